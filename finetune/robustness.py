"""Corrupted copies of a probe's test sets: the same classifier, tested on noise, rotation, scale, occlusion and clutter.

The training images stay as they are, and so do the test sets themselves; each copy is one more test of the same run.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..core.errors import UserError
from ..core.images.images import Images
from ..core.views.corrupted import Corruption, CorruptionName, corrupted, view_before
from ..core.views.corruptions import Table
from ..core.views.view import Evaluation


def robustness_options(
    *, names: list[CorruptionName], severities: list[int] = [3], table: Table = "imagenet", size: int | None = None
) -> None:
    """The `data.corrupt` section of a probe.

    names: The corruptions, each of which gives one more test at each severity. Five are of ImageNet-C (Hendrycks & Dietterich 2019,
        arXiv:1903.12261); rotation is by 10, 20, 30, 45, 60 degrees, scale 1.15 to 2 times as large or as small, occlusion a gray rectangle
        over 10 to 50 % of the picture, clutter 4 to 24 bars over it.
    severities: Their strengths, from 1 to 5.
    table: Whose constants: imagenet, of ImageNet-C's pictures of 224 pixels, or cifar, of CIFAR-10-C's of 32. The other four have the same
        in both.
    size: Pixels of the side at which pictures are corrupted, before the view of evaluation resizes them; null takes data.size. Those
        of `cifar` are for 32, also where a network sees pictures enlarged.
    """


def corrupted_tests(
    tests: Mapping[str, Images],
    names: list[str],
    severities: list[int],
    table: Table,
    size: int | None,
    view: Evaluation,
) -> dict[str, Images]:
    """Of each labelled test and each corruption the test TEST-NAMEk at severity k, in this order. Raises UserError.

    view: that of evaluation. Identities, labels and order are those of the test.
    """
    view = view_before(size, view)
    for key, given in (("names", names), ("severities", severities)):
        if not given or len(set(given)) < len(given):
            raise UserError(f"data.corrupt.{key}: expected one or more, each once, got {given}")
    if not set(severities) <= set(range(1, 6)):
        raise UserError(f"data.corrupt.severities: expected numbers from 1 to 5, got {severities}; 5 is the strongest")
    found = dict[str, Images]()
    for test, images in tests.items():
        if images.labels is None:
            continue
        for name in names:
            for severity in severities:
                key = f"{test}-{name}{severity}"
                if key in tests:
                    raise UserError(f"data.test: {key} is what {test} is called under data.corrupt; rename one of them")
                found[key] = corrupted(images, Corruption(name, severity, table), view)
    return found
