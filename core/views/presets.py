"""Augmentations by name, for `data.views`: each is `Augmentation` with the numbers of a paper's own code as defaults.

So a config names a published recipe and may change any single number of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from .augmentation import Augmentation

# The two views of Grill et al. 2020 (arXiv:2006.07733), appendix B: the first is always blurred; the second is blurred rarely and
# sometimes solarized.
_BYOL = partial(
    Augmentation,
    scale=(0.08, 1.0),
    interpolation="bicubic",
    flip=0.5,
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_p=0.8,
    grayscale=0.2,
    blur=(1.0, 0.1),
    solarize=(0.0, 0.2),
)

VIEWS: Mapping[str, Callable[..., Augmentation]] = {
    # Chen et al. 2020 (arXiv:2002.05709), appendix A, at strength 1; crops bilinear as vissl and lightly have them (the authors'
    # TensorFlow code: bicubic).
    "simclr": partial(
        Augmentation, scale=(0.08, 1.0), flip=0.5, jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, grayscale=0.2, blur=0.5
    ),
    # Chen, Fan et al. 2020 (MoCo v2, arXiv:2003.04297), section 3 and its code.
    "moco": partial(
        Augmentation, scale=(0.2, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8, grayscale=0.2, blur=0.5
    ),
    # Chen, Xie & He 2021 (arXiv:2104.02057) and its code: BYOL's, but of crops from 0.2 of the area on, bilinear.
    "mocov3": partial(_BYOL, scale=(0.2, 1.0), interpolation="bilinear"),
    "byol": _BYOL,
    # Zbontar et al. 2021 (arXiv:2103.03230), section 2.2: as BYOL's.
    "barlow": _BYOL,
    # Bardes et al. 2022 (arXiv:2105.04906), appendix C: BYOL's, but both views alike; solarize 0.1 as lightly has it. The released
    # code has BYOL's two unlike views.
    "vicreg": partial(_BYOL, blur=0.5, solarize=0.1),
    # Caron et al. 2021 (arXiv:2104.14294), section 3.2 "Implementation details" and main_dino.py: 2 global views, 8 local crops.
    "dino": partial(_BYOL, scale=(0.4, 1.0), local=8),
    # Caron et al. 2020 (arXiv:2006.09882), section 4 and appendix A.1: SimCLR's colours on 2 views and 6 small crops.
    "swav": partial(
        Augmentation,
        scale=(0.14, 1.0),
        flip=0.5,
        jitter=(0.8, 0.8, 0.8, 0.2),
        jitter_p=0.8,
        grayscale=0.2,
        blur=0.5,
        local=6,
        local_scale=(0.05, 0.14),
    ),
    # He et al. 2022 (arXiv:2111.06377), appendix A.1: crop and flip alone.
    "mae": partial(Augmentation, scale=(0.2, 1.0), interpolation="bicubic", flip=0.5),
    # Xie et al. 2022 (arXiv:2111.09886), section 4.1 "Pre-training" and data_simmim.py.
    "simmim": partial(Augmentation, scale=(0.67, 1.0), flip=0.5),
    "supervised": partial(Augmentation, scale=(0.08, 1.0), flip=0.5),
    # Cubuk et al. 2020 (arXiv:1909.13719), section 4, with the random erasing of He et al. 2022 (appendix A.2, fine-tuning).
    # The magnitude is torchvision's, of 30; timm's m9, of 10, is 27 here.
    "randaugment": partial(
        Augmentation, scale=(0.08, 1.0), flip=0.5, randaugment=2, magnitude=9.0, erase=0.25, erase_fill="noise"
    ),
    # He et al. 2022 (arXiv:2111.06377), fine-tuning: appendix A.2 and its code, which is timm's RandAugment and random erasing.
    "mae_finetune": partial(
        Augmentation,
        scale=(0.08, 1.0),
        interpolation="bicubic",
        flip=0.5,
        timm_randaugment="rand-m9-mstd0.5-inc1",
        erase=0.25,
        erase_scale=(0.02, 1 / 3),
        erase_ratio=(0.3, 1 / 0.3),
        erase_fill="noise",
    ),
    # The strong view of Sohn et al. 2020 (FixMatch, arXiv:2001.07685), section 2.3: RandAugment of two operations, then Cutout of a quarter
    # of the area. The magnitude is that of tllib's command for adaptation, timm's rand-m10-n2-mstd2, whose mean is 9.2 of 10: 27 of 30.
    # The paper draws each operation's magnitude anew; tllib has no Cutout.
    "fixmatch": partial(
        Augmentation,
        scale=(0.08, 1.0),
        flip=0.5,
        randaugment=2,
        magnitude=27.0,
        erase=1.0,
        erase_scale=(0.25, 0.25),
    ),
    # Digits: mirroring would change what they mean, inverting doesn't.
    "digits": partial(
        Augmentation,
        rotate=10.0,
        shift=0.08,
        zoom=(0.85, 1.15),
        jitter=(0.6, 0.6, 0.8, 0.5),
        jitter_p=0.8,
        grayscale=0.2,
        blur=0.2,
        blur_sigma=(0.7, 5.0),
        solarize=0.5,
        invert=0.5,
    ),
    # A targeted augmentation (Qu & Xie 2024, arXiv:2402.03325) for digits -> digits-m. It knows of what kind the shift is,
    # |digit - photograph|, and puts smooth random colours in the photograph's place, over `digits_weak`. It has nothing of the target,
    # neither a photograph nor a label, and was never tuned. Whoever writes such a thing knows more than a method can, so its rows say so.
    "digits_targeted": partial(Augmentation, rotate=10.0, shift=0.08, zoom=(0.9, 1.1), difference=0.8),
    "digits_weak": partial(Augmentation, rotate=10.0, shift=0.08, zoom=(0.9, 1.1)),
    "none": partial(Augmentation),
}
