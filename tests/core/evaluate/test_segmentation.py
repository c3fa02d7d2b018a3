"""The arithmetic of segmentation against slow loops and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score

from rootstock.core.errors import UserError
from rootstock.core.evaluate.counts import Ints, split_counts
from rootstock.core.evaluate.segmentation import (
    IGNORED,
    cell_modes,
    confusion_of,
    counts_of,
    draw_patches,
    measure_segmentation,
    segmentation_metrics,
    upsampled_classes,
)


def masks(n: int, classes: int, seed: int, ignored: float = 0.2) -> tuple[Ints, Ints]:
    """Labels, some of them ignored, and predictions, int64 [n, 9, 9]."""
    random = np.random.default_rng(seed)
    labels, predictions = random.integers(classes, size=(2, n, 9, 9))
    return np.where(random.random(labels.shape) < ignored, IGNORED, labels), predictions


@pytest.mark.parametrize(("classes", "predicted_more"), [(2, 0), (5, 0), (4, 3)])
def test_miou_and_pixel_accuracy_are_those_of_scikit_learn_and_of_a_loop(classes: int, predicted_more: int) -> None:
    labels, predictions = masks(6, classes, seed=classes)
    predictions[0, 0] += predicted_more  # classes that no mask has, and one that neither has
    k = classes + predicted_more + 1
    each = np.stack([counts_of(confusion_of(a, b, k)) for a, b in zip(labels, predictions, strict=True)])
    confusion = confusion_of(labels, predictions, k)
    found = measure_segmentation(each, confusion, np.arange(6), [str(c) for c in range(k)], seed=0)
    kept = labels >= 0
    assert found.metrics["miou"] == pytest.approx(
        jaccard_score(labels[kept], predictions[kept], average="macro"), abs=1e-12
    )
    assert found.metrics["pixel_accuracy"] == pytest.approx(accuracy_score(labels[kept], predictions[kept]), abs=1e-12)
    ious = []
    for c in range(k):
        both = either = 0
        for label, said in zip(labels.ravel().tolist(), predictions.ravel().tolist(), strict=True):
            both += label == said == c
            either += label >= 0 and c in (label, said)
        ious.append(both / either if either else None)
    assert [entry["iou"] for entry in found.details["per_class"].values()] == ious and ious[-1] is None
    assert found.metrics["miou"] == pytest.approx(np.mean([iou for iou in ious if iou is not None]), abs=1e-12)
    assert np.array_equal(found.details["confusion"], confusion) and confusion.sum() == kept.sum()


def test_the_confusion_is_summed_over_the_set_and_not_a_mean_of_images() -> None:
    one = np.array([[[8, 0], [0, 0]], [[0, 4], [0, 4]]])
    total = segmentation_metrics(split_counts(counts_of(one.sum(0))))["miou"]
    assert total == pytest.approx((8 / 12 + 4 / 8) / 2)
    assert segmentation_metrics(split_counts(counts_of(one)))["miou"].tolist() == [1.0, 0.25]


def test_copies_of_all_images_change_neither_metrics_nor_intervals() -> None:
    labels, predictions = masks(7, 3, seed=1)
    each = np.stack([counts_of(confusion_of(a, b, 3)) for a, b in zip(labels, predictions, strict=True)])
    confusion = confusion_of(labels, predictions, 3)
    one = measure_segmentation(each, confusion, np.arange(7), "abc", seed=3)
    three = measure_segmentation(np.tile(each, (3, 1)), 3 * confusion, np.tile(np.arange(7), 3), "abc", seed=3)
    assert three.metrics == one.metrics and three.intervals == one.intervals
    assert one.intervals["miou"][0] < one.metrics["miou"] < one.intervals["miou"][1]
    assert not measure_segmentation(
        each[:1], confusion_of(labels[0], predictions[0], 3), np.zeros(1), "abc", 0
    ).intervals
    with pytest.raises(UserError, match="no pixel of the test masks counts"):
        measure_segmentation(0 * each, 0 * confusion, np.arange(7), "abc", seed=3)


@pytest.mark.parametrize(("side", "grid"), [(8, (4, 4)), (10, (4, 4)), (7, (7, 7)), (9, (2, 5))])
def test_the_value_of_a_cell_is_the_mode_of_its_pixels_that_count(side: int, grid: tuple[int, int]) -> None:
    random = np.random.default_rng(side)
    values = random.choice([0, 3, 7, 300, 255], size=(side, side)).astype(np.uint16)
    values[: side // 2, : side // 2] = 255
    for ignore in (255, None):
        found = cell_modes(values, grid, ignore).reshape(grid)
        for r in range(grid[0]):
            for c in range(grid[1]):
                inside = [
                    int(values[y, x])
                    for y in range(side)
                    for x in range(side)
                    if r <= (y + 0.5) * grid[0] / side < r + 1 and c <= (x + 0.5) * grid[1] / side < c + 1
                ]
                kept = sorted(v for v in inside if v != ignore)
                assert found[r, c] == (max(kept, key=kept.count) if kept else IGNORED)


def test_equally_frequent_values_give_the_smallest() -> None:
    assert cell_modes(np.array([[9, 2], [2, 9]], dtype=np.uint8), (1, 1), None).tolist() == [2]


@pytest.mark.parametrize("at_once", [1, 300, 700, 1 << 22])
def test_classes_of_pixels_do_not_depend_on_how_many_are_enlarged_at_once(at_once: int) -> None:
    scores = torch.randn(12, 7, generator=torch.Generator().manual_seed(0)).double()
    scores[:, 5] = scores[:, 2]  # of equals the first
    whole = torch.nn.functional.interpolate(scores.float().T.view(1, 7, 3, 4), size=(13, 13), mode="bilinear")[0]
    found = upsampled_classes(scores, (3, 4), 13, at_once)
    assert torch.equal(found, whole.argmax(0)) and 5 not in found


def test_the_draw_of_patches_depends_on_identities_and_seed_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 4, (20, 9), generator=generator)
    keys = torch.randint(-(2**62), 2**62, (20,), generator=generator)
    everything = draw_patches(labels, keys, 180, seed=0)
    assert torch.equal(everything, (labels.flatten() >= 0).nonzero()[:, 0])
    some = draw_patches(labels, keys, 40, seed=0)
    assert len(some) == 40 and torch.equal(some, some.sort().values) and bool(torch.isin(some, everything).all())
    order = torch.randperm(20, generator=generator)
    again = draw_patches(labels[order], keys[order], 40, seed=0)
    assert sorted((order[again // 9] * 9 + again % 9).tolist()) == some.tolist()
    assert not torch.equal(draw_patches(labels, keys, 40, seed=1), some)
