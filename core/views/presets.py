"""How images are drawn for training: `multiview` is what a config's `views` section builds, presets are it with other defaults.

So a config names a published recipe and may change any single number of it. Numbers are those of each paper's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..errors import UserError
from .erasing import Fill
from .multiview import Multiview
from .resample import Interpolation
from .view import View

# A probability for every view, or one for each of them.
Each = float | tuple[float, ...]


def multiview(
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    count: int,
    *,
    scale: tuple[float, float] | None = None,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: Interpolation = "bilinear",
    flip: float = 0.0,
    rotate: float = 0.0,
    shift: float = 0.0,
    zoom: tuple[float, float] = (1.0, 1.0),
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    jitter_p: Each = 0.0,
    grayscale: Each = 0.0,
    blur: Each = 0.0,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
    solarize: Each = 0.0,
    invert: Each = 0.0,
    centre: float = 1.0,
    randaugment: int = 0,
    magnitude: float = 9.0,
    erase: float = 0.0,
    erase_scale: tuple[float, float] = (0.02, 0.33),
    erase_fill: Fill = "mean",
    local: int = 0,
    local_size: int | None = None,
    local_scale: tuple[float, float] = (0.05, 0.4),
    local_blur: float = 0.5,
    local_solarize: float = 0.0,
) -> Multiview:
    """`count` views of each image, and `local` small crops of it; the other keys are those of `View`.

    jitter_p, grayscale, blur, solarize, invert: one probability, or one a view (local crops then take the first of jitter_p,
    grayscale and invert). local_size: pixels, 3/7 of the size by default (96 of 224) in multiples of 8. Raises UserError for a
    count of numbers that is not the count of views, and for numbers out of their range.
    """
    _check_ranges(locals())
    each = {"jitter_p": jitter_p, "grayscale": grayscale, "blur": blur, "solarize": solarize, "invert": invert}
    numbers: dict[str, Any] = {key: _each(value, count, f"data.views.{key}") for key, value in each.items()}
    if local < 0 or (local_size is not None and local_size < 1):
        raise UserError(
            f"data.views.local: expected a count of local crops of 1 px or more, got {local} of {local_size} px"
        )
    build = partial(
        View, mean=mean, std=std, ratio=ratio, interpolation=interpolation, flip=flip,
        rotate=rotate, shift=shift, zoom=zoom, jitter=jitter, randaugment=randaugment, magnitude=magnitude,
        erase=erase, erase_scale=erase_scale, erase_fill=erase_fill,
    )  # fmt: skip
    whole = partial(build, size, scale=scale, centre=centre, blur_sigma=blur_sigma)
    # In DINO's and SwAV's code local crops are blurred by as many pixels as the whole views; View scales them by its size.
    small = local_size if local_size is not None else max(8, 8 * round(size * 3 / 56))
    sigma = (blur_sigma[0] * size / small, blur_sigma[1] * size / small)
    chances = {key: numbers[key][0] for key in ("jitter_p", "grayscale", "invert")}
    crop = partial(build, small, scale=local_scale, blur_sigma=sigma, blur=local_blur, solarize=local_solarize)
    views = [whole(**{key: number[i] for key, number in numbers.items()}) for i in range(count)]
    return Multiview(views, [crop(**chances)] * local)


def _each(value: Each, count: int, key: str) -> tuple[float, ...]:
    numbers = value if isinstance(value, tuple | list) else (value,) * count  # a resolved config holds lists
    if len(numbers) != count:
        raise UserError(
            f"{key}: {len(numbers)} numbers are given for {count} view{'s' if count > 1 else ''}; give one number or one a view"
        )
    return tuple(numbers)


def _check_ranges(given: Mapping[str, Any]) -> None:
    """Raises UserError for the first of multiview's arguments that has no meaning."""

    def expect(key: str, right: bool, what: str) -> None:
        if not right:
            raise UserError(f"data.views.{key}: {given[key]} is given; expected {what}")

    for key in ("flip", "erase", "jitter_p", "grayscale", "blur", "solarize", "invert", "local_blur", "local_solarize"):
        chances = given[key] if isinstance(given[key], tuple | list) else (given[key],)
        expect(key, all(0.0 <= p <= 1.0 for p in chances), "probabilities from 0 to 1")
    for key in ("scale", "local_scale", "erase_scale"):
        if given[key] is not None:
            low, high = given[key]
            expect(key, 0.0 < low <= high <= 1.0, "the smallest and the largest part of the area, above 0 and up to 1")
    for key in ("ratio", "zoom"):
        low, high = given[key]
        expect(key, 0.0 < low <= high, "the smallest and the largest, above 0")
    low, high = given["blur_sigma"]
    expect("blur_sigma", 0.0 < low <= high, "the smallest and the largest in pixels at 224 px, above 0")
    *strengths, hue = given["jitter"]
    right = min(strengths) >= 0.0 and 0.0 <= hue <= 0.5
    expect("jitter", right, "brightness, contrast and saturation from 0 on, and hue from 0 to 0.5")
    expect("rotate", given["rotate"] >= 0.0, "degrees to either side, 0 or more")
    expect("shift", given["shift"] >= 0.0, "a part of the side to either side, 0 or more")
    expect("centre", 0.0 < given["centre"] <= 1.0, "the part of the shorter side to take, above 0 and up to 1")
    expect("randaugment", given["randaugment"] >= 0, "operations a picture, 0 or more")
    expect("magnitude", 0.0 <= given["magnitude"] <= 30.0, "a number from 0 to 30")


# The two views of Grill et al. 2020 (arXiv:2006.07733), appendix B: blurred almost always and almost never, one solarized.
_BYOL = partial(
    multiview,
    scale=(0.08, 1.0),
    interpolation="bicubic",
    flip=0.5,
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_p=0.8,
    grayscale=0.2,
    blur=(1.0, 0.1),
    solarize=(0.0, 0.2),
)

VIEWS: Mapping[str, Callable[..., Multiview]] = {
    # Chen et al. 2020 (arXiv:2002.05709), appendix A, at strength 1; crops bilinear as vissl and lightly have them (the authors'
    # TensorFlow code: bicubic).
    "simclr": partial(
        multiview, scale=(0.08, 1.0), flip=0.5, jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, grayscale=0.2, blur=0.5
    ),
    # Chen, Fan et al. 2020 (MoCo v2, arXiv:2003.04297), section 3 and its code.
    "moco": partial(
        multiview, scale=(0.2, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8, grayscale=0.2, blur=0.5
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
        multiview,
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
    "mae": partial(multiview, scale=(0.2, 1.0), interpolation="bicubic", flip=0.5),
    # Xie et al. 2022 (arXiv:2111.09886), section 4.1 "Pre-training" and data_simmim.py.
    "simmim": partial(multiview, scale=(0.67, 1.0), flip=0.5),
    "supervised": partial(multiview, scale=(0.08, 1.0), flip=0.5),
    # Cubuk et al. 2020 (arXiv:1909.13719), section 4, with the random erasing of He et al. 2022 (appendix A.2, fine-tuning).
    # The magnitude is torchvision's, of 30; timm's m9, of 10, is 27 here.
    "randaugment": partial(
        multiview, scale=(0.08, 1.0), flip=0.5, randaugment=2, magnitude=9.0, erase=0.25, erase_fill="noise"
    ),
    # Digits: mirrored they are other signs, inverted they are the same.
    "digits": partial(
        multiview,
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
    "digits_weak": partial(multiview, rotate=10.0, shift=0.08, zoom=(0.9, 1.1)),
    "none": partial(multiview),
}
