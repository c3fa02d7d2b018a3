"""Every colour operation against torchvision's at the same parameters, and ColorJitter's factors, order and probability."""

from typing import Any

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from scipy import stats
from torch import Tensor

from rootstock.core import colour
from rootstock.core.colour import blur_matrix, colour_jitter, gaussian_blur, grayscale, shift_hue
from rootstock.core.draws import Draws
from rootstock.core.views import View

LEVEL = 1 / 255
OPERATIONS = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Random colours, and among them the ones where hue and saturation are at their edges; float [8, 3, 20, 24]."""
    x = torch.rand(8, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    x[1] = x[1, :1]  # gray
    x[2] = (x[2] > 0.5).float()  # the corners of the colour cube
    x[3, :, :5], x[3, :, 5:10] = 0.0, 1.0
    x[4, 1] = x[4, 0]  # two equal channels
    x[5, 2] = x[5, 1]
    return x


def test_grayscale(pictures: Tensor) -> None:
    expected = tv.rgb_to_grayscale(pictures, num_output_channels=3)
    assert torch.allclose(grayscale(pictures), expected, atol=1e-6)


@pytest.mark.parametrize("amount", [-0.5, -0.2, -0.01, 0.0, 0.1, 0.37, 0.5])
def test_hue(pictures: Tensor, amount: float) -> None:
    found = shift_hue(pictures, torch.full((len(pictures),), amount))
    assert (found - tv.adjust_hue(pictures, amount)).abs().max() < 1e-4


def test_a_whole_turn_of_hue_changes_nothing(pictures: Tensor) -> None:
    assert torch.allclose(shift_hue(pictures, torch.ones(len(pictures))), pictures, atol=1e-5)


@pytest.mark.parametrize("operation", range(4))
def test_each_operation_at_each_factor(pictures: Tensor, operation: int) -> None:
    factors = torch.rand(len(pictures), 4, generator=torch.Generator().manual_seed(operation)) * 1.8
    factors[:, colour.HUE] = factors[:, colour.HUE] / 1.8 - 0.5
    found = colour._one_turn(pictures, torch.full((len(pictures),), operation), factors, any_hue=True)
    for x, y, factor in zip(pictures, found, factors[:, operation].tolist(), strict=True):
        assert (OPERATIONS[operation](x, factor) - y).abs().max() < 1e-4


def jitter_parameters(draws: Draws, strength: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
    """Factors [N, 4] and orders [N, 4] as colour_jitter draws them."""
    unit = draws.uniform("factor", 4)
    low = torch.tensor([max(0.0, 1 - strength[0]), max(0.0, 1 - strength[1]), max(0.0, 1 - strength[2]), -strength[3]])
    high = torch.tensor([1 + strength[0], 1 + strength[1], 1 + strength[2], strength[3]])
    return low + (high - low) * unit, draws.permutation("order", 4)


@pytest.mark.parametrize(
    "strength", [(0.8, 0.8, 0.8, 0.2), (0.4, 0.4, 0.2, 0.1), (0.5, 0.0, 1.5, 0.0), (0.0, 0.0, 0.0, 0.5)]
)
def test_colour_jitter_is_the_loop_over_torchvision(
    pictures: Tensor, strength: tuple[float, float, float, float]
) -> None:
    draws = Draws(3, torch.arange(len(pictures)))
    found = colour_jitter(pictures, draws, strength, p=0.7)
    chosen = draws.bernoulli("p", 0.7).tolist()
    assert True in chosen and False in chosen
    factors, orders = jitter_parameters(draws, strength)
    for n, x in enumerate(pictures):
        for operation in orders[n].tolist() if chosen[n] else []:
            x = OPERATIONS[operation](x, factors[n, operation].item())
        assert (found[n] - x).abs().max() <= LEVEL / 4


def test_factors_follow_torchvisions_ranges() -> None:
    """Read off from constant pictures: brightness of gray 0.4 is its factor, hue of pure red its angle."""
    n = 3_000
    gray = torch.full((n, 3, 1, 1), 0.4)
    factor = colour_jitter(gray, Draws(0, torch.arange(n)), (0.8, 0.0, 0.0, 0.0), 1.0)[:, 0, 0, 0] / 0.4
    assert stats.kstest(factor.numpy(), stats.uniform(0.2, 1.6).cdf).pvalue > 0.001
    # a strength above 1 is cut off at 0, as in torchvision: uniform on [0, 2.5]
    dim = torch.full((n, 3, 1, 1), 0.2)
    factor = colour_jitter(dim, Draws(0, torch.arange(n)), (1.5, 0.0, 0.0, 0.0), 1.0)[:, 0, 0, 0] / 0.2
    assert stats.kstest(factor.numpy(), stats.uniform(0.0, 2.5).cdf).pvalue > 0.001
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(n, 3, 1, 1)
    turned = colour_jitter(red, Draws(0, torch.arange(n)), (0.0, 0.0, 0.0, 0.1), 1.0)[:, :, 0, 0]
    angle = (turned[:, 1] - turned[:, 2]) / 6
    assert stats.kstest(angle.numpy(), stats.uniform(-0.1, 0.2).cdf).pvalue > 0.001


def test_jitter_is_applied_with_its_probability() -> None:
    n = 5_000
    x = torch.full((n, 3, 1, 1), 0.4)
    changed = (colour_jitter(x, Draws(1, torch.arange(n)), (0.8, 0.8, 0.8, 0.2), 0.8) != x).flatten(1).any(1)
    assert stats.binomtest(int(changed.sum()), n, 0.8).pvalue > 0.001


def test_static_shapes_give_the_same(pictures: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off the CPU every sample is computed and masked, so that nothing waits for the device; here with the flag turned."""

    class Elsewhere(torch.Tensor):
        is_cpu = False  # pyright: ignore[reportAssignmentType]

    draws = Draws(3, torch.arange(len(pictures)))
    masked = colour_jitter(pictures.as_subclass(Elsewhere), draws, (0.8, 0.8, 0.8, 0.2), 0.7)
    assert torch.equal(masked.as_subclass(Tensor), colour_jitter(pictures, draws, (0.8, 0.8, 0.8, 0.2), 0.7))


@pytest.mark.parametrize(("largest", "kernel"), [(2.0, 17), (1.0, 9), (0.3, 5), (3.4, 29)])
def test_blur(pictures: Tensor, largest: float, kernel: int) -> None:
    sigma = torch.linspace(0.1, 1.0, len(pictures)) * largest
    found = gaussian_blur(pictures, sigma, largest)
    for x, y, s in zip(pictures, found, sigma.tolist(), strict=True):
        assert (tv.gaussian_blur(x, [kernel, kernel], [s, s]) - y).abs().max() < 1e-5


def test_blur_keeps_constants_and_tiny_pictures() -> None:
    constant = torch.full((2, 3, 7, 5), 0.3)
    assert torch.allclose(gaussian_blur(constant, torch.tensor([0.5, 4.0]), 4.0), constant, atol=1e-6)
    one = torch.rand(1, 3, 1, 1)
    assert torch.allclose(gaussian_blur(one, torch.tensor([1.0]), 2.0), one)
    assert torch.allclose(blur_matrix(torch.tensor([0.0, 2.0]), 6, 3).sum(2), torch.ones(2, 6))
    assert torch.allclose(blur_matrix(torch.tensor([0.0]), 6, 3)[0], torch.eye(6))


@pytest.mark.parametrize("name", ["solarize", "invert", "grayscale"])
def test_switches(pictures: Tensor, name: str) -> None:
    """With probability 1 the whole batch is torchvision's, with a half some of it, chosen by position."""
    crops = (pictures * 255).round().to(torch.uint8)[:, :, :20, :20]
    draws = Draws(0, torch.arange(len(crops)))
    plain = crops / 255
    expected = {
        "solarize": tv.solarize(plain, 0.5),
        "invert": tv.invert(plain),
        "grayscale": tv.rgb_to_grayscale(plain, num_output_channels=3),
    }[name]
    always: dict[str, Any] = {name: 1.0}
    sometimes: dict[str, Any] = {name: 0.5}
    view = View(20, (0.0,), (1.0,), **always)
    assert torch.allclose(view.finish(crops, draws), expected, atol=1e-6)
    half = View(20, (0.0,), (1.0,), **sometimes).finish(crops, draws)
    kept, turned = (half - plain).flatten(1).abs().amax(1) < 1e-6, (half - expected).flatten(1).abs().amax(1) < 1e-6
    assert (kept | turned).all() and (~kept).any() and (~turned).any()
    # the threshold of solarize is 128, as torchvision's on uint8
    if name == "solarize":
        levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
        found = View(16, (0.0,), (1.0,), solarize=1.0).finish(levels, Draws(0, torch.arange(1))) * 255
        assert torch.equal(found.round().to(torch.uint8), tv.solarize(levels, 128.0))
