"""Visual words: descriptors against OpenCV and loops, words that order, copies and test images cannot move, counts by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.images.images import Images
from rootstock.core.images.open import open_images
from rootstock.core.views.view import Evaluation
from rootstock.finetune.baselines.sift import Sift
from rootstock.finetune.baselines.surf import DenseSurf, Surf
from rootstock.finetune.baselines.words import VisualWords, k_means, learn_words, nearest_words, regular_places

ZERO, ONE = (0.0,) * 3, (1.0,) * 3


def pictures(n: int = 6, size: int = 24) -> Tensor:
    coarse = torch.rand(n, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1) * 255).round() / 255


def stored(folder: Path, name: str, pixels: Tensor) -> Images:
    file = folder / f"{name}.npz"
    np.savez(file, x=(pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy(), y=np.arange(len(pixels)) % 2)
    return open_images(f"npz:{file}")


def learned(images: Images, seed: int = 0, **args: Any) -> VisualWords:
    model = Surf(24, words=8, **args)
    learn_words(model, images, Evaluation(24, mean=ZERO, std=ONE), seed=seed, log=lambda line: None)
    return model


def test_sift_is_opencvs_at_the_grid_upright_and_square_rooted() -> None:
    images, model = pictures(2), Sift(24, step=6, cells=[2.0, 3.0])
    found = model.describe(images)
    assert regular_places(24, 6) == [2, 8, 14, 20] and found.shape == (2, 32, 128)
    gray = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    for n, image in enumerate((gray * 255).round().to(torch.uint8).numpy()):
        for place, cell, row, column in ((0, 2.0, 2, 2), (7, 2.0, 8, 20), (16 + 9, 3.0, 14, 8)):
            assert model.describe.places[place].tolist() == [row, column]  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
            sift: Any = cv2.SIFT_create()  # pyright: ignore[reportAttributeAccessIssue]
            _, one = sift.compute(image, [cv2.KeyPoint(float(column), float(row), cell * 2 / 3, 0.0)])
            assert one is not None
            np.testing.assert_allclose(found[n, place].numpy(), np.sqrt(one[0] / one[0].sum()), atol=1e-6)
    # Upright: a turned picture has other descriptors, those of a flat one are 0.
    assert float((model.describe(images.rot90(1, (2, 3))) - found).abs().max()) > 0.1
    assert not model.describe(torch.full((1, 3, 24, 24), 0.5)).any()


def slow_surf(gray: np.ndarray, row: int, column: int, scale: int) -> np.ndarray:
    """Sample by sample; gray: whole levels [S, S]."""
    size, found = len(gray), []

    def level(y: int, x: int) -> float:
        return float(gray[min(max(y, 0), size - 1), min(max(x, 0), size - 1)])

    for cell_row in range(4):
        for cell_column in range(4):
            sums = np.zeros(4)
            for j in range(cell_row * 5 - 10, cell_row * 5 - 5):
                for i in range(cell_column * 5 - 10, cell_column * 5 - 5):
                    top, left = row + j * scale - scale // 2, column + i * scale - scale // 2
                    side = range(2 * scale)
                    dx = sum(level(top + y, left + x) * (1 if x >= scale else -1) for y in side for x in side)
                    dy = sum(level(top + y, left + x) * (1 if y >= scale else -1) for y in side for x in side)
                    weight = math.exp(-((j + 0.5) ** 2 + (i + 0.5) ** 2) / (2 * 3.3**2))
                    sums += weight * np.array([dx, dy, abs(dx), abs(dy)])
            found.append(sums)
    whole = np.concatenate(found)
    return whole / np.linalg.norm(whole)


@pytest.mark.parametrize(("size", "step", "scales"), [(24, 6, (1, 2)), (12, 5, (3,))])
def test_surf_is_a_loop_over_samples(size: int, step: int, scales: tuple[int, ...]) -> None:
    images, model = pictures(2, size), DenseSurf(size, 3, step, scales)
    found, rows = model(images), regular_places(size, step)
    gray = ((images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1) * 255).round().numpy()
    count = len(rows)
    for number, scale in enumerate(scales):
        for i, j in ((0, 0), (count - 1, 0), (count // 2, count - 1)):
            place = number * count**2 + i * count + j
            assert model.places[place].tolist() == [rows[i], rows[j]]
            np.testing.assert_allclose(found[1, place].numpy(), slow_surf(gray[1], rows[i], rows[j], scale), atol=1e-5)


def test_surf_does_not_see_brightness_and_contrast_and_is_0_where_nothing_is() -> None:
    model = DenseSurf(24, 1, 8, (1,))
    gray = (pictures(1)[:, :1] * 100).round() / 255
    torch.testing.assert_close(model(gray * 2 + 20 / 255), model(gray), atol=1e-5, rtol=0)
    assert not model(torch.full((1, 1, 24, 24), 0.3)).any()
    ramp = (torch.arange(24) * 10 / 255).expand(1, 1, 24, 24)
    middle = model(ramp)[0, 4].view(16, 4)
    assert float(middle[:, 0].min()) > 0 and torch.equal(middle[:, 0], middle[:, 2]) and not middle[:, [1, 3]].any()


def test_words_do_not_depend_on_order_copies_or_labels(tmp_path: Path) -> None:
    """Also where only some of the images are drawn: 8 words take 800 descriptors, 32 of an image."""
    many = pictures(40)
    plain, turned = stored(tmp_path, "plain", many), stored(tmp_path, "turned", many.flip(0))
    words = learned(plain, step=4).words
    assert torch.equal(learned(turned, step=4).words, words) and bool(words.any(1).all())
    assert torch.equal(learned(plain.select(torch.randperm(40)), step=4).words, words)
    assert not torch.equal(learned(plain, seed=1, step=4).words, words)
    # A picture that is not among those drawn moves nothing; one that is does.
    moved = [not torch.equal(learned(plain.select(torch.arange(40) != i), step=4).words, words) for i in (0, 8, 16)]
    assert any(moved) and not all(moved)


def test_each_place_counts_for_the_nearest_word_of_its_part(tmp_path: Path) -> None:
    images = pictures()
    model = learned(stored(tmp_path, "x", images), step=4, levels=2)
    found = model(images).square() * 2
    descriptors = model.describe(images)
    assert found.shape == (6, 8 * 5) and model.feature_dim == 40
    for n in range(6):
        expected = torch.zeros(5, 8)
        for place, (row, column) in enumerate(model.describe.places.tolist()):  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            distances = [float((descriptors[n, place] - word).norm()) for word in model.words]
            word = distances.index(min(distances))
            expected[0, word] += 1 / 36
            expected[1 + 2 * (row >= 12) + (column >= 12), word] += 1 / 36
        torch.testing.assert_close(found[n], expected.flatten(), atol=1e-5, rtol=0)
    torch.testing.assert_close(model(images).norm(dim=1), torch.ones(6))


def test_k_means_is_lloyds_algorithm() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(200, 3)) + rng.integers(0, 4, 200)[:, None] * 5).astype(np.float32)
    centres, nearest = rows[[0, 50, 100, 150]].astype(float), np.zeros(200, dtype=int)
    for _ in range(25):
        nearest = ((rows[:, None] - centres) ** 2).sum(2).argmin(1)
        centres = np.stack([rows[nearest == k].mean(0) for k in range(4)])
    np.testing.assert_allclose(k_means(rows, rows[[0, 50, 100, 150]]), centres, atol=1e-4)
    assert nearest_words(torch.from_numpy(rows), torch.from_numpy(centres).float()).tolist() == nearest.tolist()


def test_too_few_different_descriptors_are_refused(tmp_path: Path) -> None:
    flat = stored(tmp_path, "flat", torch.full((4, 3, 24, 24), 0.5))
    with pytest.raises(
        UserError, match=r"backbone\.args\.words: surf needs 8 different descriptors .* have 1; give fewer"
    ):
        learned(flat)
