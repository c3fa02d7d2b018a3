"""A linear classifier of frozen patches, and what it says about each pixel of an image.

The protocol is CAPI's (Darcet et al. 2025, arXiv:2502.08769, eval_segmentation.py): logistic regression on patches whose features are
standardised one by one, the label of a patch being the mode of its pixels; C by mIoU on held-out training images, then all are fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .counts import Ints, split_counts
from .held_out import held_out_rows
from .logreg import LogisticRegression, fit_path
from .segmentation import confusion_of, counts_of, draw_patches, segmentation_metrics, upsampled_classes

# CAPI's grid: 8 values from 1e-6 to 1e5.
DENSE_GRID: tuple[float, ...] = tuple(float(c) for c in np.logspace(-6, 5, 8))


class PixelLabels(NamedTuple):
    """How masks are seen. grid: rows and columns of patches; side: of the mask in pixels; classes: how many there are.

    labels: of image i, int64 [side, side], IGNORED where a pixel doesn't count.
    """

    labels: Callable[[int], Ints]
    grid: tuple[int, int]
    side: int
    classes: int


class PatchFit(NamedTuple):
    """A fitted classifier; candidates: each C that was tried, with its mIoU on the slice. used: how many patches it was fitted on."""

    model: LogisticRegression
    candidates: tuple[Mapping[str, float], ...]
    choice: tuple[Mapping[str, Any], ...]  # how the search for each candidate ended
    used: int


def sliced_images(keys: Tensor, seed: int) -> Tensor:
    """Which training images are held out to choose on, bool [N]: whole identities with all their patches; no strata."""
    return held_out_rows(keys, torch.zeros_like(keys), seed=seed)


def fit_patches(
    features: Tensor,
    labels: Tensor,
    keys: Tensor,
    pixels: PixelLabels,
    *,
    seed: int,
    values_of_C: Sequence[float],
    most: int,
    device: torch.device,
) -> PatchFit:
    """Fit at most `most` labelled patches, drawn by `draw_patches`; of several C, take that of the highest mIoU on the slice, then refit.

    features: [N, P, D]; labels: int64 [N, P] in 0..K-1 or IGNORED; keys: int64 [N]. Of equal mIoU, the smallest C is taken.
    Raises UserError if no held-out pixel counts.
    Memory: some 40 bytes for each number of the drawn patches, beside the solver's (`newton.minimise`).
    """
    places = draw_patches(labels, keys, most, seed)
    x, y = _patches(features, places, device), labels.flatten()[places].to(device)
    grid, tried = sorted(set(values_of_C)), list[LogisticRegression]()
    if len(grid) == 1:
        return PatchFit(fit_path(x, y, grid, standardised=True)[0], (), (), len(places))
    outer = sliced_images(keys, seed)
    fitted = ~outer[places // labels.shape[1]].to(device)
    tried = fit_path(x[fitted], y[fitted], grid, standardised=True)
    total = np.zeros((len(grid), pixels.classes, pixels.classes), dtype=np.int64)
    for _, confusion in image_confusions(tried, features, pixels, outer.nonzero()[:, 0].tolist()):
        total += confusion
    if not total.any():
        raise UserError(
            "no pixel of the held-out training masks counts, so C cannot be chosen; give evaluate.dense.C a single value"
        )
    scores = segmentation_metrics(split_counts(counts_of(total)))["miou"].tolist()
    best = tried[scores.index(max(scores))]
    model = fit_path(x, y, [best.C], best, standardised=True)[0]
    candidates = tuple({"C": c, "miou": score} for c, score in zip(grid, scores, strict=True))
    return PatchFit(model, candidates, tuple(one.fit._asdict() for one in tried), len(places))


def _patches(features: Tensor, places: Tensor, device: torch.device) -> Tensor:
    """The patches at `places` of features.flatten(0, 1), float64 [n, D]; features may be mapped from a file."""
    return features.flatten(0, 1)[places].to(device).double()


def image_confusions(
    models: Sequence[LogisticRegression], features: Tensor, pixels: PixelLabels, images: Iterable[int]
) -> Iterator[tuple[int, Ints]]:
    """Of each image its number and the confusion of its pixels by each of M models, int64 [M, K, K]. The models share their scale."""
    for i in images:
        labels, predictions = pixels.labels(i), predicted_classes(models, features[i], pixels)
        yield i, np.stack([confusion_of(labels, found, pixels.classes) for found in predictions])


def predicted_classes(models: Sequence[LogisticRegression], patches: Tensor, pixels: PixelLabels) -> list[Ints]:
    """The class of each pixel by each model, int64 [side, side]; patches: [P, D] of one image. The models share their scale and classes."""
    first = models[0]
    x = (patches.to(first.mean) - first.mean) / first.scale
    found: list[Ints] = []
    for model in models:
        winner = upsampled_classes(x @ model.weight.T + model.bias, pixels.grid, pixels.side)
        found.append(model.classes[winner].cpu().numpy())
    return found
