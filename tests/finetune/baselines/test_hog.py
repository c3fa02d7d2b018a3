import math

import numpy as np
import pytest
import torch

from rootstock.core.errors import UserError
from rootstock.finetune.baselines.hog import Hog
from rootstock.finetune.baselines.pixels import Pixels


def slow_hog(image: np.ndarray, cell: int, orientations: int) -> np.ndarray:
    """Pixel by pixel and vote by vote, float64; image [3, S, S] -> [D]."""
    side = image.shape[1]
    cells = np.zeros((side // cell, side // cell, orientations))
    for row in range(side):
        for column in range(side):
            up, down = max(row - 1, 0), min(row + 1, side - 1)
            left, right = max(column - 1, 0), min(column + 1, side - 1)
            dx = [image[c, row, right] - image[c, row, left] for c in range(3)]
            dy = [image[c, down, column] - image[c, up, column] for c in range(3)]
            lengths = [math.hypot(x, y) for x, y in zip(dx, dy, strict=True)]
            channel = lengths.index(max(lengths))
            angle = math.atan2(dy[channel], dx[channel]) % math.pi
            # Direction o is the interval [o, o + 1) * pi / orientations, with its vote at the middle.
            for o in range(orientations):
                middle = (o + 0.5) * math.pi / orientations
                apart = abs(angle - middle)
                apart = min(apart, math.pi - apart) / (math.pi / orientations)
                cells[row // cell, column // cell, o] += lengths[channel] * max(0.0, 1 - apart)
    parts = []
    for row in range(side // cell - 1):
        for column in range(side // cell - 1):
            block = cells[row : row + 2, column : column + 2].flatten()
            block = np.minimum(block / math.sqrt(float(block @ block) + 1e-10), 0.2)
            parts.append(block / math.sqrt(float(block @ block) + 1e-10))
    return np.concatenate(parts)


@pytest.mark.parametrize(("side", "cell", "orientations"), [(16, 4, 9), (12, 6, 8), (12, 3, 2)])
def test_hog_against_a_loop(side: int, cell: int, orientations: int) -> None:
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    hog = Hog(side, cell=cell, orientations=orientations)
    found = hog(images)
    assert found.shape == (3, hog.feature_dim)
    for image, features in zip(images, found, strict=True):
        slow = slow_hog(image.double().numpy(), cell, orientations)
        np.testing.assert_allclose(features.numpy(), slow, atol=2e-5)


def test_hog_of_a_ramp_is_one_direction() -> None:
    """Brightness rises to the right: the gradient's angle is 0, halfway between the first and the last direction."""
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    votes = Hog(16)(ramp).view(-1, 9)
    assert torch.allclose(votes[:, 0], votes[:, 8])
    assert float(votes[:, 0].min()) > 0
    assert float(votes[:, 1:8].abs().max()) < 1e-6


def test_hog_doesnt_see_brightness_contrast_or_inversion() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    hog = Hog(32)
    torch.testing.assert_close(hog(0.2 + 0.5 * images), hog(images), atol=1e-4, rtol=0)
    torch.testing.assert_close(hog(1 - images), hog(images), atol=1e-4, rtol=0)


def test_hog_of_a_flat_image_is_zero() -> None:
    assert not Hog(32)(torch.full((1, 3, 32, 32), 0.5)).any()


def test_hog_sizes() -> None:
    assert Hog(32).cell == 4
    assert Hog(32).feature_dim == 7 * 7 * 36
    assert Hog(224).feature_dim == 7 * 7 * 36
    with pytest.raises(UserError, match="cells of 5 px don't fit images of 32 px"):
        Hog(32, cell=5)
    with pytest.raises(UserError, match="two whole cells"):
        Hog(32, cell=32)
    with pytest.raises(UserError, match="orientations"):
        Hog(32, orientations=1)


def test_pixels_are_the_image() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(Pixels(8)(images).view(2, 3, 8, 8), images)
    assert Pixels(8).feature_dim == 192


@pytest.mark.parametrize("baseline", [Pixels, Hog])
def test_any_number_of_channels(baseline: type[Pixels] | type[Hog]) -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    # The same picture with three dark channels more: pixels are kept as they are, no gradient is stronger.
    more = torch.cat([images, torch.zeros(2, 3, 16, 16)], dim=1)
    three, six = baseline(16), baseline(16, 6)
    assert six(more).shape == (2, six.feature_dim)
    assert torch.equal(six(more)[:, : three.feature_dim], three(images))


@pytest.mark.parametrize("baseline", [Pixels, Hog])
def test_another_shape_is_refused(baseline: type[Pixels] | type[Hog]) -> None:
    with pytest.raises(ValueError, match=r"expected images \[N, 3, 32, 32\], got \(1, 3, 16, 16\)"):
        baseline(32)(torch.rand(1, 3, 16, 16))
