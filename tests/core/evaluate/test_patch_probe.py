"""The patch probe against scikit-learn, image by image."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.evaluate.patch_probe import PixelLabels, fit_patches, sliced_images
from rootstock.core.evaluate.segmentation import IGNORED, cell_modes

CPU = torch.device("cpu")
GRID, SIDE, CLASSES = (3, 3), 12, 3


@dataclasses.dataclass
class Drawn:
    """Images of 3 x 3 patches; features: [N, 9, 6], the last two of which are constants."""

    features: Tensor
    labels: Tensor  # int64 [N, 9]
    keys: Tensor
    pixels: PixelLabels


def drawn(n: int, copies: int = 1, seed: int = 0) -> Drawn:
    random = np.random.default_rng(seed)
    masks = np.repeat(np.repeat(random.integers(CLASSES, size=(n, 3, 3)), 4, 1), 4, 2)
    masks = np.roll(masks, 1, axis=2)  # the border of a class is no border of a patch
    masks[random.random(masks.shape) < 0.1] = IGNORED
    labels = np.stack([cell_modes(mask, GRID, IGNORED) for mask in masks])
    features = random.normal(size=(n, 9, 6)) * 10.0 ** np.arange(-2, 4) + 0.8 * np.eye(CLASSES, 6)[labels] * [
        0.01,
        0.1,
        1,
        0,
        0,
        0,
    ]
    features[:, :, 4:] = [0.1, 1000.3]
    images = torch.from_numpy(np.tile(features, (copies, 1, 1))).half()
    tiled = np.tile(masks, (copies, 1, 1))
    pixels = PixelLabels(lambda i: tiled[i], GRID, SIDE, CLASSES)
    return Drawn(images, torch.from_numpy(np.tile(labels, (copies, 1))), torch.arange(n).repeat(copies), pixels)


def fit(images: Drawn, values_of_C: list[float], most: int = 10_000) -> Any:
    return fit_patches(
        images.features, images.labels, images.keys, images.pixels,
        seed=0, values_of_C=values_of_C, most=most, device=CPU,
    )  # fmt: skip


def test_choice_and_classifier_are_those_of_scikit_learn() -> None:
    images, grid = drawn(30), [1e-3, 1e-1, 1e1]
    found = fit(images, grid)
    outer = sliced_images(images.keys, 0)
    x, y = images.features.double().numpy(), images.labels.numpy()
    expected = []
    for C in grid:
        inner = x[~outer].reshape(-1, 6), y[~outer].ravel()
        scaler = StandardScaler().fit(inner[0])
        model = LogisticRegression(C=C, tol=1e-10, max_iter=2000).fit(
            np.asarray(scaler.transform(inner[0]))[:, :4], inner[1]
        )
        truth, said = [], []
        for i in outer.nonzero()[:, 0].tolist():
            logits = torch.from_numpy(model.decision_function(np.asarray(scaler.transform(x[i]))[:, :4])).float()
            maps = logits.T.view(1, CLASSES, *GRID)
            large = torch.nn.functional.interpolate(maps, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0]
            mask = images.pixels.labels(i)
            truth.append(mask[mask >= 0])
            said.append(large.argmax(0).numpy()[mask >= 0])
        expected.append(jaccard_score(np.concatenate(truth), np.concatenate(said), average="macro"))
    assert [one["miou"] for one in found.candidates] == pytest.approx(expected, abs=2e-3)
    assert found.candidates[int(np.argmax(expected))]["C"] == found.model.C
    assert found.used == int((images.labels >= 0).sum())
    assert torch.equal(found.model.scale[4:], torch.ones(2).double())  # a constant is not blown up
    assert found.model.weight[:, 4:].abs().max() < 1e-9


def test_copies_stay_on_one_side_and_do_not_move_the_slice() -> None:
    one, three = drawn(20), drawn(20, copies=3)
    assert torch.equal(sliced_images(three.keys, 0), sliced_images(one.keys, 0).repeat(3))
    # Three copies count as 3 C: the same objective, so the same mIoU on the slice.
    found, again = fit(one, [3e-2, 3e-1, 3.0]), fit(three, [1e-2, 1e-1, 1.0])
    assert [c["miou"] for c in again.candidates] == pytest.approx([c["miou"] for c in found.candidates], abs=2e-3)


def test_a_cap_bounds_the_patches_and_a_single_C_chooses_nothing() -> None:
    images = drawn(12)
    found = fit(images, [0.1], most=50)
    assert found.used == 50 and found.candidates == () and found.choice == ()


def test_one_class_in_the_fitted_part_predicts_it_everywhere() -> None:
    images = drawn(10)
    outer = sliced_images(images.keys, 0)
    images.labels[~outer] = images.labels[~outer].clamp(max=0)
    found = fit(images, [0.1, 1.0])
    assert found.candidates[0]["miou"] == found.candidates[1]["miou"] and found.model.C == 0.1


def test_no_held_out_pixel_that_counts_is_said() -> None:
    images = drawn(10)
    images.pixels = images.pixels._replace(labels=lambda _: np.full((SIDE, SIDE), IGNORED))
    with pytest.raises(UserError, match=r"give evaluate\.dense\.C a single value"):
        fit(images, [0.1, 1.0])
