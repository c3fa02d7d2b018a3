"""Named recipes of views: `View` with other defaults, so that a config may change any single parameter of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from .views import View

VIEWS: Mapping[str, Callable[..., View]] = {
    # Chen et al. 2020 (arXiv:2002.05709), appendix A, at strength 1.
    "simclr": partial(
        View, scale=(0.08, 1.0), flip=0.5, jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, grayscale=0.2, blur=0.5
    ),
    # He et al. 2022 (arXiv:2111.06377), appendix A.1: crop and flip alone.
    "mae": partial(View, scale=(0.2, 1.0), interpolation="bicubic", flip=0.5),
    "supervised": partial(View, scale=(0.08, 1.0), flip=0.5),
    # Digits: mirrored they are other signs, inverted they are the same.
    "digits": partial(
        View,
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
    "digits_weak": partial(View, rotate=10.0, shift=0.08, zoom=(0.9, 1.1)),
    "none": partial(View),
}
