"""The arithmetic of segmentation: classes of cells, scores of cells as classes of pixels, confusion, mIoU and its interval.

The confusion is summed over all images of a set before any ratio is taken: a mean of images' IoU would be another number. Pixels that are
ignored (class -1) count nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..draws import Draws
from ..errors import UserError
from .counts import ClassCounts, Floats, Ints, split_counts
from .measures import Measured
from .statistics import bootstrap_intervals, cluster_numbers, of_sums

IGNORED = -1
# Scores are enlarged for so many numbers at a time (16 MB in float32), or for one class.
ENLARGED_AT_ONCE = 1 << 22


def cell_modes(values: NDArray[Any], grid: tuple[int, int], ignore: int | None) -> Ints:
    """The most frequent value of each cell of a mask, int64 [rows * columns], row by row; of equally frequent ones the smallest.

    values: integers of 0 or more, [H, W], cut into `grid` equal cells; a pixel belongs to the cell that holds its centre. Pixels of the
    value `ignore` don't count; a cell without any other is IGNORED.
    """
    (height, width), (rows, columns) = values.shape, grid
    row, column = ((2 * np.arange(side) + 1) * n // (2 * side) for side, n in ((height, rows), (width, columns)))
    counts = values != ignore if ignore is not None else np.ones(values.shape, dtype=bool)
    known, index = np.unique(values[counts], return_inverse=True)
    found = np.full(rows * columns, IGNORED, dtype=np.int64)
    if len(known):
        cell = (row[:, None] * columns + column)[counts]
        table = np.bincount(cell * len(known) + index.ravel(), minlength=rows * columns * len(known))
        table = table.reshape(-1, len(known))
        seen = table.any(axis=1)
        found[seen] = known[table[seen].argmax(axis=1)]
    return found


def draw_patches(labels: Tensor, keys: Tensor, most: int, seed: int) -> Tensor:
    """At most `most` of the labelled patches, drawn by seed: their places in labels.flatten(), int64, ascending.

    labels: int64 [N, P], IGNORED for patches without a label; keys: int64 [N], identities. The draw depends on the identities, not on the
    order of images. Memory: 24 bytes for each of the N x P patches.
    """
    places = (labels.flatten() >= 0).nonzero()[:, 0]
    if len(places) <= most:
        return places
    order = Draws(seed, keys.cpu(), "dense/").bits("patch", labels.shape[1]).flatten()[places]
    return places[order.argsort(stable=True)[:most]].sort().values


def upsampled_classes(scores: Tensor, grid: tuple[int, int], side: int, at_once: int = ENLARGED_AT_ONCE) -> Tensor:
    """The class of each pixel, int64 [side, side]: cells' scores are enlarged bilinearly, and the largest wins, of equals the first.

    scores: [P, K] of one image's cells, row by row. Memory: at most `at_once` enlarged scores, or those of one class, side^2.
    """
    maps = scores.float().T.reshape(1, -1, *grid)
    best = winner = None
    for start in range(0, maps.shape[1], count := max(1, at_once // side**2)):
        part = torch.nn.functional.interpolate(
            maps[:, start : start + count], size=(side, side), mode="bilinear", align_corners=False
        )[0]
        largest, index = part.max(dim=0)
        if best is None or winner is None:
            best, winner = largest, index + start
        else:
            better = largest > best
            best, winner = torch.where(better, largest, best), torch.where(better, index + start, winner)
    assert winner is not None
    return winner


def confusion_of(labels: Ints, predictions: Ints, num_classes: int) -> Ints:
    """Pixels of each true class (rows) predicted as each class (columns), int64 [K, K]; labels of IGNORED don't count."""
    counts = labels >= 0
    pairs = labels[counts] * num_classes + predictions[counts]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def counts_of(confusion: Ints) -> Floats:
    """Hits, labelled and predicted pixels of each class, float64 [..., 3 K], as `split_counts` takes them; confusion: [..., K, K]."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.concatenate([hits, confusion.sum(-1), confusion.sum(-2)], axis=-1).astype(np.float64)


def segmentation_metrics(counts: ClassCounts) -> dict[str, Floats]:
    """`miou` and `pixel_accuracy` of `definitions`, [...] each; NaN where no pixel counts.

    IoU is hits / (labelled + predicted - hits); its mean is over the classes that occur among labels or predictions, as of scikit-learn's
    jaccard_score with average="macro".
    """
    hits, support, predicted = counts
    union = support + predicted - hits
    n, occurring = support.sum(-1), (union > 0).sum(-1)
    iou = np.divide(hits, union, out=np.zeros_like(union), where=union > 0)
    with np.errstate(invalid="ignore"):
        return {"miou": iou.sum(-1) / occurring, "pixel_accuracy": hits.sum(-1) / n}


def measure_segmentation(
    each: Floats, confusion: Ints, keys: NDArray[Any], classes: Sequence[str], seed: int
) -> Measured:
    """Metrics over a set, their intervals over its images, and the table of classes.

    each: float64 [M, 3 K], `counts_of` of every image; confusion: int64 [K, K], their sum; keys: [M], identities: copies are drawn
    together. Raises UserError if no pixel counts.
    """
    if not confusion.any():
        raise UserError(
            "no pixel of the test masks counts: all are ignored; correct the masks or evaluate.dense.ignore"
        )
    member, clusters = cluster_numbers(keys)
    sums = np.zeros((clusters, each.shape[1]))
    np.add.at(sums, member, each)
    found = bootstrap_intervals(
        of_sums(sums, lambda drawn: segmentation_metrics(split_counts(drawn))), clusters, seed=seed
    )
    hits, support, predicted = (part.astype(int).tolist() for part in split_counts(each.sum(axis=0)))
    per_class = {
        name: {"iou": hit / union if (union := there + said - hit) else None, "pixels": there, "predicted": said}
        for name, hit, there, said in zip(classes, hits, support, predicted, strict=True)
    }
    return Measured(
        {name: interval.estimate for name, interval in found.items()},
        {name: [i.low, i.high] for name, i in found.items() if i.low is not None and i.high is not None},
        {
            "classes": list(classes),
            "per_class": per_class,
            "confusion": confusion.tolist(),
            "interval": found["miou"].method,
        },
    )
