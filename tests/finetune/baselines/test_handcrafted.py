"""Colour, edges and texture against scikit-image, numpy and loops over pixels."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from skimage.feature import local_binary_pattern
from skimage.filters import sobel
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.finetune.baselines.colour import ColourHistogram
from rootstock.finetune.baselines.edges import CannyEdges, SobelEdges
from rootstock.finetune.baselines.inputs import to_gray, to_levels
from rootstock.finetune.baselines.lbp import LocalBinaryPatterns, changes, uniform_kinds
from rootstock.finetune.baselines.registry import BASELINES


def pictures(n: int, size: int, channels: int = 3) -> Tensor:
    """Whole levels, as all pictures have."""
    return torch.randint(0, 256, (n, channels, size, size), generator=torch.Generator().manual_seed(0)) / 255


def test_colours_are_counted_as_numpy_counts_them() -> None:
    images = pictures(3, 12)
    found = ColourHistogram(12, bins=4, grid=2)(images).square() * 4
    for image, shares in zip((images * 255).round().numpy(), found, strict=True):
        for part, (row, column) in zip(shares.view(4, 4, 4, 4), ((0, 0), (0, 6), (6, 0), (6, 6)), strict=True):
            colours = image[:, row : row + 6, column : column + 6].reshape(3, -1).T
            expected, _ = np.histogramdd(colours, bins=[np.arange(0, 257, 64)] * 3)
            np.testing.assert_allclose(part.numpy() * 36, expected, atol=1e-4)


def test_a_level_on_a_border_belongs_to_the_upper_interval() -> None:
    levels = torch.arange(256).view(1, 1, 16, 16).float() / 255
    for bins in (2, 3, 8, 16):
        expected = torch.bincount(torch.arange(256) * bins // 256, minlength=bins) / 256
        torch.testing.assert_close(ColourHistogram(16, 1, bins=bins)(levels)[0].square(), expected)


def test_sobel_is_that_of_scikit_image() -> None:
    images = pictures(2, 12)
    found = SobelEdges(12, cell=1)(images).view(2, 2, 12, 12)
    cells = SobelEdges(12, cell=3)(images).view(2, 2, 4, 4)
    for n, gray in enumerate(to_gray(images)[:, 0].numpy()):
        expected = np.stack([np.abs(sobel(gray, axis=1, mode="reflect")), np.abs(sobel(gray, axis=0, mode="reflect"))])
        np.testing.assert_allclose(found[n].numpy(), expected, atol=1e-6)
        np.testing.assert_allclose(cells[n].numpy(), expected.reshape(2, 4, 3, 4, 3).mean((2, 4)), atol=1e-6)


def slow_canny(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """The border of a bright square: pixels whose gradient is a maximum along its direction, by hysteresis; for upright edges alone."""
    padded = np.pad(image.astype(float), 1, mode="edge")
    smooth, slope, size = (1, 2, 1), (-1, 0, 1), len(image)
    dx, dy = np.zeros((size, size)), np.zeros((size, size))
    for r in range(3):
        for c in range(3):
            dx += smooth[r] * slope[c] * padded[r : r + size, c : c + size]
            dy += slope[r] * smooth[c] * padded[r : r + size, c : c + size]
    length = np.pad(np.hypot(dx, dy), 1)
    weak = np.zeros((size, size), dtype=bool)
    for row in range(size):
        for column in range(size):
            here, across = length[row + 1, column + 1], abs(dx[row, column]) >= abs(dy[row, column])
            before, after = (
                (length[row + 1, column], length[row + 1, column + 2])
                if across
                else (length[row, column + 1], length[row + 2, column + 1])
            )
            weak[row, column] = here > low and here > before and here >= after
    strong = weak & (length[1:-1, 1:-1] > high)
    for _ in range(size * size):
        grown = np.pad(strong, 1)
        strong = weak & np.logical_or.reduce([grown[r : r + size, c : c + size] for r in range(3) for c in range(3)])
    return strong


def test_canny_keeps_ridges_of_upright_edges() -> None:
    """Bars of rising contrast: some below `low`, some between the thresholds, some above `high`."""
    image = np.zeros((24, 24), dtype=np.uint8)
    for place, level in ((4, 15), (11, 40), (18, 120)):
        image[:, place:] = np.minimum(255, image[:, place:].astype(int) + level)
    shown = torch.from_numpy(image)[None, None] / 255
    found = CannyEdges(24, 1, low=100, high=300, cell=1)(shown)[0].view(24, 24)
    assert np.array_equal(found.numpy() > 0, slow_canny(image, 100, 300))
    assert 0 < int(found.sum()) <= 2 * 24
    # A ramp of contrast along the bar: what lies between the thresholds stays because it touches what lies above.
    image = np.where(np.arange(24) < 12, 0, np.linspace(20, 120, 24).astype(int)[:, None]).astype(np.uint8)
    found = CannyEdges(24, 1, low=150, high=400, cell=1)(torch.from_numpy(image)[None, None] / 255)[0].view(24, 24)
    assert np.array_equal(found.numpy()[1:-1] > 0, slow_canny(image, 150, 400)[1:-1])
    assert bool(found[(image[:, 12] * 4 > 160) & (image[:, 12] * 4 < 390)][1:-1].any(1).all())
    assert float(CannyEdges(24, 1, sigma=1.0)(shown).sum()) < float(CannyEdges(24, 1, low=1, high=1)(shown).sum())


@pytest.mark.parametrize("radius", [1.0, 1.5])
def test_patterns_are_those_of_scikit_image(radius: float) -> None:
    """Up to the numbers that kinds have; inside, since the border is treated otherwise there."""
    images = pictures(2, 16, 1)
    lbp = LocalBinaryPatterns(16, 1, radius=radius, cell=16)
    inside = slice(2, -2)
    for image in (images[:, 0] * 255).round().to(torch.uint8).numpy():
        codes = local_binary_pattern(image, 8, radius).astype(int)[inside, inside]
        kinds = local_binary_pattern(image, 8, radius, "nri_uniform").astype(int)[inside, inside]
        assert len(set(zip(lbp.kinds[codes].flatten().tolist(), kinds.flatten().tolist(), strict=True))) == len(
            np.unique(kinds)
        )
    # The histogram of a whole picture, code by code.
    levels = (images[0, 0] * 255).round()
    counts = torch.zeros(59)
    for row in range(16):
        for column in range(16):
            code = 0
            for bit in range(8):
                y, x = (row - radius * math.sin(bit * math.pi / 4), column + radius * math.cos(bit * math.pi / 4))
                y, x = round(y, 5), round(x, 5)
                corners = [
                    (1 - abs(y - r)) * (1 - abs(x - c)) * float(levels[min(max(r, 0), 15), min(max(c, 0), 15)])
                    for r in range(math.floor(y), math.floor(y) + 2)
                    for c in range(math.floor(x), math.floor(x) + 2)
                ]
                code |= (sum(corners) >= float(levels[row, column]) - 1e-4) << bit
            counts[uniform_kinds()[code]] += 1
    torch.testing.assert_close(lbp(images[:1])[0].square() * 256, counts, atol=1e-3, rtol=0)


def test_kinds_of_patterns() -> None:
    assert changes(0) == changes(255) == 0 and changes(0b00011100) == 2 and changes(0b01010101) == 8
    kinds = uniform_kinds()
    assert int(kinds.max()) == 58 and int((kinds == 58).sum()) == 256 - 58
    flat = LocalBinaryPatterns(8, cell=8)(torch.full((1, 3, 8, 8), 0.3))
    assert float(flat[0, kinds[255]]) == 1.0  # as bright everywhere


def test_gray_is_luma_of_three_channels_and_the_mean_of_others() -> None:
    images = pictures(1, 4)
    expected = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(to_gray(images), expected)
    torch.testing.assert_close(to_gray(pictures(1, 4, 5)), pictures(1, 4, 5).mean(1, keepdim=True))
    assert to_levels(torch.tensor([0.0, 100 / 255, 1.0])).tolist() == [0, 100, 255]


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"pixels", "hog"}))
def test_every_baseline_at_several_sizes_and_channels(name: str) -> None:
    for size, channels in ((32, 3), (28, 1), (20, 4)):
        made = BASELINES[name](size, channels, **({"bins": 4} if name == "colour" else {}))
        features = made(pictures(2, size, channels))
        assert features.shape == (2, made.feature_dim) and bool(features.isfinite().all())
        assert torch.equal(made(pictures(2, size, channels)[1:]), features[1:])
        with pytest.raises(ValueError, match="expected images"):
            made(pictures(2, size + 1, channels))


@pytest.mark.parametrize(
    ("name", "args", "sentence"),
    [
        ("colour", {"bins": 1}, r"backbone\.args\.bins: colour needs 2 or more, got 1"),
        ("colour", {"bins": 64}, r"bins: 64 bins of 3 channels in 1 x 1 parts are 262,144 .* give fewer bins"),
        (
            "colour",
            {"grid": 5},
            r"backbone\.args\.grid: images of 32 px have no 5 equal parts a side; give grid as 1, 2",
        ),
        ("sobel", {"cell": 5}, r"backbone\.args\.cell: sobel needs whole cells, .* give cell as 1, 2, 4, 8, 16, 32"),
        ("canny", {"low": 200.0, "high": 100.0}, r"backbone\.args\.high: canny begins edges above high = 100"),
        ("canny", {"sigma": -1.0}, r"backbone\.args\.sigma: canny needs 0 or more, got -1"),
        ("lbp", {"radius": 0.5}, r"backbone\.args\.radius: lbp needs 1 or more"),
        ("sift", {"words": 1}, r"backbone\.args\.words: sift needs 2 or more"),
        ("sift", {"cells": []}, r"backbone\.args\.cells: sift needs one or more sides"),
        ("sift", {"step": 33}, r"backbone\.args\.step: sift cannot step 33 px in images of 32 px"),
        ("surf", {"scales": [0]}, r"backbone\.args\.scales: surf needs one or more whole numbers"),
        ("surf", {"levels": 0}, r"backbone\.args\.levels: surf needs 1 or more"),
    ],
)
def test_what_cannot_be_is_one_sentence_with_its_key(name: str, args: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        BASELINES[name](32, 3, **args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["sift", "canny"])
def test_without_opencv_the_remedy_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(
        UserError, match=rf"backbone\.name: {name} needs OpenCV; `pip install 'rootstock\[handcrafted\]'`"
    ):
        BASELINES[name](32, 3)
