"""Every colour operation compared with torchvision's at equal parameters; ColorJitter's factors, order and probability."""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torchvision.transforms.v2 as transforms
import torchvision.transforms.v2.functional as tv
from scipy import stats
from torch import Tensor

from rootstock.core.draws import Draws
from rootstock.core.views import blur, colour
from rootstock.core.views import view as views
from rootstock.core.views.augmentation import Augmentation
from rootstock.core.views.blur import blur_matrix, gaussian_blur
from rootstock.core.views.colour import Colours, colour_jitter, grayscale, recolour, shift_hue
from rootstock.core.views.view import View
from rootstock.tests.core.test_draws_compiled import needs_compiler

LEVEL = 1 / 255
OPERATIONS = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Random colours and edge cases of hue and saturation; float [8, 3, 20, 24]."""
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
    found = shift_hue(pictures.clone(), torch.full((len(pictures), 1, 1, 1), amount))
    assert (found - tv.adjust_hue(pictures, amount)).abs().max() < 1e-4


def test_a_whole_turn_of_hue_changes_nothing(pictures: Tensor) -> None:
    assert torch.allclose(shift_hue(pictures.clone(), torch.ones(len(pictures), 1, 1, 1)), pictures, atol=1e-5)


@pytest.mark.parametrize("operation", range(4))
def test_each_operation_at_each_factor(pictures: Tensor, operation: int) -> None:
    factors = torch.rand(len(pictures), 4, generator=torch.Generator().manual_seed(operation)) * 1.8
    factors[:, colour.HUE] = factors[:, colour.HUE] / 1.8 - 0.5
    found = colour.JITTER_OPERATIONS[operation](pictures.clone(), factors[:, operation, None, None, None])
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
    """Measured on constant images: gray 0.4 shows the brightness factor, pure red the hue's angle."""
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
    """On a GPU every sample passes one fixed sequence, so that nothing waits for the device; forced on the CPU here."""
    draws = Draws(3, torch.arange(400))
    many = pictures.repeat(50, 1, 1, 1)
    view = View(
        20,
        augmentation=Augmentation(
            jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.7, grayscale=0.3, blur=0.5, solarize=0.3, invert=0.3
        ),
    )
    crops = (many[:, :, :, :20] * 255).to(torch.uint8)
    eager = view.finish(crops, draws)
    jittered = colour_jitter(many, draws, (0.8, 0.8, 0.8, 0.2), 0.7)
    assert len(set(map(tuple, draws.permutation("order", 4).tolist()))) == 24
    monkeypatch.setattr(colour, "eager_cpu", lambda x: False)
    monkeypatch.setattr(views, "eager_cpu", lambda x: False)
    assert torch.allclose(colour_jitter(many, draws, (0.8, 0.8, 0.8, 0.2), 0.7), jittered, atol=1e-6)
    # solarize is continuous, so differences stay as small as rounding; normalisation enlarges them by 1 / std
    assert torch.allclose(view.finish(crops, draws), eager, atol=1e-5)


@pytest.mark.parametrize("size", [32, 224])
def test_gray_then_inverted_is_each_sample_alone(size: int) -> None:
    """If a whole slice is gray, later operations must not write into channels that share memory; also for a slice of one sample."""
    n = 5
    crops = torch.randint(256, (n, 3, size, size), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    draws = Draws(4, torch.arange(n))
    solarized, inverted = (draws.bernoulli(name, 0.5).tolist() for name in ("solarize", "invert"))
    assert len(set(zip(solarized, inverted, strict=True))) > 2
    for jitter_p in (0.0, 0.5):
        view = View(
            size,
            augmentation=Augmentation(
                jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=jitter_p, grayscale=1.0, solarize=0.5, invert=0.5
            ),
        )
        found = view.finish(crops, draws)
        expected = crops / 255
        if jitter_p:
            expected = colour_jitter(expected, draws.stream("jitter"), view.augmentation.jitter, jitter_p)
        for n, x in enumerate(expected):
            x = tv.rgb_to_grayscale(x, num_output_channels=3)
            x = tv.solarize(x, 0.5) if solarized[n] else x
            x = tv.invert(x) if inverted[n] else x
            assert torch.allclose(found[n], tv.normalize(x, list(view.mean), list(view.std)), atol=1e-5)
    always = View(size, (0.0,), (1.0,), augmentation=Augmentation(grayscale=1.0, solarize=1.0, invert=1.0)).finish(
        crops, draws
    )
    slow = tv.invert(tv.solarize(tv.rgb_to_grayscale(crops / 255, num_output_channels=3), 0.5))
    assert torch.allclose(always, slow, atol=1e-6)


def test_traces_whole(pictures: Tensor) -> None:
    """Draws and pixels without a graph break; only traced, which needs no compiler."""
    draws = Draws(5, torch.arange(len(pictures)))
    view = View(
        20,
        (0.0,),
        (1.0,),
        augmentation=Augmentation(jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.7, grayscale=0.3, blur=0.5, solarize=0.3),
    )
    crops = (pictures[:, :, :, :20] * 255).to(torch.uint8)
    traced = torch.compile(lambda c, p: view.finish(c, Draws(5, p)), backend="eager", fullgraph=True, dynamic=False)
    assert torch.allclose(traced(crops, draws.positions), view.finish(crops, draws), atol=1e-6)


@needs_compiler
@pytest.mark.slow  # two graphs for a C++ compiler; that they trace whole is tested above, and draws are compiled in test_draws_compiled.py
def test_compiled_is_eager(pictures: Tensor) -> None:
    """The two compiled graphs of a view: one turn of jitter with every operation, and the rest."""
    n = len(pictures)
    operation, some = torch.arange(n) % 4, torch.arange(n) % 3 < 1
    factor = torch.linspace(-0.2, 1.7, n)
    factor[operation == colour.HUE] = 0.2
    turn = torch.compile(colour.jitter_turn, fullgraph=True, dynamic=False)
    samples = zip(operation.tolist(), pictures.clone().split(1), factor.view(-1, 1, 1, 1, 1), strict=True)
    expected = torch.cat([colour.JITTER_OPERATIONS[k](x, f) for k, x, f in samples])
    assert torch.allclose(turn(pictures, operation, factor), expected, atol=1e-6)
    colours = Colours(gray=some, blur=some.roll(1), sigma=torch.linspace(0.1, 0.25, n), solarize=some.roll(2))
    rest = torch.compile(recolour, fullgraph=True, dynamic=False)
    assert torch.allclose(rest(pictures, colours, 0.25), recolour(pictures.clone(), colours, 0.25), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_chunks_of_any_length_give_the_same(pictures: Tensor, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    view = View(
        20,
        augmentation=Augmentation(
            jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.7, grayscale=0.3, blur=0.5, solarize=0.3, invert=0.3
        ),
    )
    crops, draws = (pictures[:, :, :, :20] * 255).to(torch.uint8), Draws(5, torch.arange(len(pictures)))
    whole = view.finish(crops, draws)
    monkeypatch.setattr(colour, "CACHED_FLOATS", rows * crops[0].numel())
    assert torch.allclose(view.finish(crops, draws), whole, atol=1e-6)
    assert torch.equal(view.finish(crops, draws, torch.empty(crops.shape)), view.finish(crops, draws))


def test_spare_memory_is_nobodys_result() -> None:
    """Neither a later call nor one in another thread overwrites a result."""
    crops = torch.randint(256, (48, 3, 32, 32), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
    view = View(32, augmentation=Augmentation(jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, grayscale=0.2, blur=0.5))
    streams = [Draws(seed, torch.arange(48)) for seed in range(16)]
    one_by_one = [view.finish(crops, draws) for draws in streams]
    copies = [result.clone() for result in one_by_one]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda draws: view.finish(crops, draws), streams))
    for found, copy, threaded in zip(one_by_one, copies, at_once, strict=True):
        assert torch.equal(found, copy) and torch.equal(found, threaded)


def test_parameters_follow_torchvisions() -> None:
    """ColorJitter's factors and order and GaussianBlur's sigma have the distribution of torchvision's make_params."""
    n, strength = 3_000, (0.8, 0.4, 1.2, 0.2)
    ours = colour.draw_jitter(Draws(0, torch.arange(n)), strength, 0.8)
    torch.manual_seed(0)
    jitter = transforms.ColorJitter(*strength)
    theirs = [jitter.make_params([]) for _ in range(n)]
    assert ours.factor is not None and ours.order is not None and ours.jitter is not None
    for k, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        result: Any = stats.ks_2samp(ours.factor[:, k].numpy(), [one[f"{name}_factor"] for one in theirs])
        assert result.pvalue > 0.001
    orders = (ours.order @ torch.tensor([64, 16, 4, 1])).tolist()
    expected = [sum(int(o) * w for o, w in zip(one["fn_idx"], (64, 16, 4, 1), strict=True)) for one in theirs]
    codes = sorted(set(expected))
    assert len(codes) == 24 and set(orders) == set(codes)
    result = stats.chi2_contingency([[sample.count(c) for c in codes] for sample in (orders, expected)])
    assert result.pvalue > 0.001
    gaussian = transforms.GaussianBlur(9, (0.1, 2.0))
    view = View(224, augmentation=Augmentation(jitter=strength, jitter_p=0.8, blur=0.5, blur_sigma=(0.1, 2.0)))
    sigma = view._colours(Draws(0, torch.arange(n))).sigma
    assert sigma is not None
    found: Any = stats.ks_2samp(sigma.numpy(), [gaussian.make_params([])["sigma"][0] for _ in range(n)])
    assert found.pvalue > 0.001


@pytest.mark.parametrize(
    ("height", "width", "largest"),
    [(80, 97, 0.7), (96, 96, 1.0), (65, 130, 3.0), (224, 70, 5.0), (32, 20, 0.3), (2, 3, 0.2)],
)
def test_blur_is_the_product_with_whole_matrices(height: int, width: int, largest: float) -> None:
    """The blur in blocks, with three taps, and as a convolution."""
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    sigma, radius = torch.tensor([0.1, largest]), min(math.ceil(4 * largest), height - 1, width - 1)
    matrices = [blur_matrix(sigma, side, radius).double() for side in (height, width)]
    expected = (matrices[0][:, None] @ x.double() @ matrices[1].transpose(1, 2)[:, None]).float()
    assert torch.allclose(gaussian_blur(x, sigma, largest), expected, atol=1e-6)
    assert torch.allclose(blur._convolve(x, sigma, radius), expected, atol=1e-6)


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
    assert torch.allclose(gaussian_blur(one, torch.tensor([0.2]), 0.2), one)
    assert torch.allclose(blur_matrix(torch.tensor([0.0, 2.0]), 6, 3).sum(2), torch.ones(2, 6))
    assert torch.allclose(blur_matrix(torch.tensor([0.0]), 6, 3)[0], torch.eye(6))


@pytest.mark.parametrize("name", ["solarize", "invert", "grayscale"])
def test_switches(pictures: Tensor, name: str) -> None:
    """With probability 1 the whole batch equals torchvision's; with 0.5 a part of it, chosen by position."""
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
    view = View(20, (0.0,), (1.0,), augmentation=Augmentation(**always))
    assert torch.allclose(view.finish(crops, draws), expected, atol=1e-6)
    half = View(20, (0.0,), (1.0,), augmentation=Augmentation(**sometimes)).finish(crops, draws)
    kept, turned = (half - plain).flatten(1).abs().amax(1) < 1e-6, (half - expected).flatten(1).abs().amax(1) < 1e-6
    assert (kept | turned).all() and (~kept).any() and (~turned).any()
    # the threshold of solarize is 128, as torchvision's on uint8
    if name == "solarize":
        levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
        found = (
            View(16, (0.0,), (1.0,), augmentation=Augmentation(solarize=1.0)).finish(levels, Draws(0, torch.arange(1)))
            * 255
        )
        assert torch.equal(found.round().to(torch.uint8), tv.solarize(levels, 128.0))
