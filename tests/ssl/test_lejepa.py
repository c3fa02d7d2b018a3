"""SIGReg against quadrature by hand, the exact integral and lightly's, and LeJEPA's forward against a plain one."""

import cmath
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from lightly.loss.lejepa_loss import LeJEPALoss, SIGReg
from torch import Tensor, nn

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.ssl.lejepa import LeJEPA, characteristic_sums, epps_pulley, prediction_loss, random_directions
from rootstock.tests.ssl.cases import backbone, method, views


def sigreg(z: Tensor, directions: Tensor, points: int = 17, t_max: float = 3.0) -> Tensor:
    t = torch.linspace(0.0, t_max, points, dtype=torch.float64)
    return epps_pulley(characteristic_sums(z, directions, t), z.shape[1], t)


def sample(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def directions(dim: int, count: int, seed: int = 0) -> Tensor:
    return random_directions(Draws(seed, torch.tensor([7])), dim, count).double()


def slow_sigreg(z: Tensor, a: Tensor, points: int, t_max: float) -> float:
    """N times the integral over all of -t_max..t_max, one direction, frequency and sample at a time."""
    found = []
    step = t_max / (points - 1)
    for view in z.tolist():
        for direction in a.T.tolist():
            lengths = [sum(x * y for x, y in zip(row, direction, strict=True)) for row in view]
            heights = []
            for k in range(-(points - 1), points):
                t = k * step
                empirical = sum(cmath.exp(1j * t * length) for length in lengths) / len(lengths)
                gaussian = math.exp(-t * t / 2)
                heights.append(abs(empirical - gaussian) ** 2 * gaussian)
            integral = sum((low + high) / 2 * step for low, high in pairwise(heights))
            found.append(len(lengths) * integral)
    return sum(found) / len(found)


@pytest.mark.parametrize(("points", "t_max"), [(17, 3.0), (9, 5.0), (2, 1.0)])
def test_sigreg_equals_quadrature_by_hand(points: int, t_max: float) -> None:
    z, a = 1.5 * sample(2, 5, 3) + 0.3, directions(3, 4)
    assert sigreg(z, a, points, t_max).item() == pytest.approx(slow_sigreg(z, a, points, t_max), rel=1e-6)


def test_sigreg_has_the_gradient_of_finite_differences() -> None:
    z, a = sample(1, 4, 2), directions(2, 3)
    ours = torch.autograd.grad(sigreg(z.requires_grad_(), a), z)[0].flatten()
    z, step = z.detach(), 1e-5
    for i in range(z.numel()):
        shift = torch.zeros(z.numel(), dtype=z.dtype).scatter(0, torch.tensor(i), step).view_as(z)
        slow = (slow_sigreg(z + shift, a, 17, 3.0) - slow_sigreg(z - shift, a, 17, 3.0)) / (2 * step)
        assert ours[i].item() == pytest.approx(slow, rel=1e-5, abs=1e-9)
    assert ours.abs().max() > 1e-2


def test_sigreg_equals_lightlys(monkeypatch: pytest.MonkeyPatch) -> None:
    z, a = sample(4, 6, 5), directions(5, 8)
    monkeypatch.setattr(SIGReg, "_generate_unit_vectors", lambda *_: a)
    assert sigreg(z, a).item() == pytest.approx(SIGReg(num_vectors=8)(z).item(), rel=1e-5)
    theirs = LeJEPALoss(lambda_param=0.02, sigreg_num_vectors=8)(global_proj=z[:2], local_proj=z[2:])
    ours = 0.02 * sigreg(z, a) + 0.98 * prediction_loss(z, 2)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_the_quadrature_is_close_to_epps_and_pulleys_closed_form() -> None:
    """Over the whole line and with this weight the statistic has a closed form; almost nothing of it lies beyond |t| = 5."""
    x = sample(6)
    n = len(x)
    pairs = (-0.5 * (x[:, None] - x).square()).exp().sum() / n
    closed = math.sqrt(2 * math.pi) * (pairs - 2 * (-0.25 * x.square()).exp().sum() / math.sqrt(2) + n / math.sqrt(3))
    ours = sigreg(x[None, :, None], torch.ones(1, 1, dtype=torch.float64), points=201, t_max=8.0)
    assert ours.item() == pytest.approx(closed.item(), rel=1e-5)


def test_a_gaussian_is_better_than_anything_else() -> None:
    a = directions(4, 64)

    def score(z: Tensor) -> float:
        return sigreg(z[None], a).item()

    gaussian = score(sample(512, 4))
    assert score(torch.zeros(512, 4, dtype=torch.float64)) > 100 * gaussian  # collapsed to a point
    assert score(2.0 * sample(512, 4)) > 10 * gaussian
    assert score(sample(512, 4) + 1.0) > 10 * gaussian
    assert score(sample(512, 1).expand(-1, 4)) > 10 * gaussian  # collapsed to a line
    assert score(torch.sign(sample(512, 4))) > 2 * gaussian  # the right moments, the wrong shape


@pytest.mark.parametrize("n", [4, 32])
def test_under_the_null_the_mean_is_the_same_for_any_batch(n: int) -> None:
    """Of a Gaussian sample, n E|phi_n - phi|^2 = 1 - exp(-t^2), so small batches have no larger loss for their size."""
    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
    assert sigreg(sample(500, n, 4), directions(4, 8), t_max=5.0).item() == pytest.approx(expected, rel=0.06)


def test_sigreg_of_half_precision_is_computed_in_float32() -> None:
    z, a = sample(2, 8, 4), directions(4, 8)
    low = sigreg(z.bfloat16(), a)
    assert low.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert sigreg(z.float(), a).item() == pytest.approx(sigreg(z, a).item(), rel=1e-4)


def test_directions_have_length_one_and_point_everywhere() -> None:
    a = directions(3, 4096)
    torch.testing.assert_close(a.norm(dim=0), torch.ones(4096, dtype=a.dtype), rtol=1e-6, atol=0)
    assert a.mean(1).abs().max() < 0.04
    torch.testing.assert_close(a @ a.T / 4096, torch.eye(3, dtype=a.dtype) / 3, rtol=0, atol=0.02)


def slow_prediction(z: Tensor, whole: int) -> float:
    """View by view, number by number."""
    squares = []
    for view in z:
        for n in range(z.shape[1]):
            for e in range(z.shape[2]):
                centre = sum(z[v, n, e].item() for v in range(whole)) / whole
                squares.append((view[n, e].item() - centre) ** 2)
    return sum(squares) / len(squares)


@pytest.mark.parametrize("whole", [1, 2, 4])
def test_prediction_is_the_distance_to_the_mean_of_the_whole_views(whole: int) -> None:
    z = sample(4, 3, 5)
    assert prediction_loss(z, whole).item() == pytest.approx(slow_prediction(z, whole), rel=1e-10)
    assert prediction_loss(z.bfloat16(), whole).dtype == torch.float32


def test_nothing_is_detached() -> None:
    """The gradient reaches whole views through their mean too: no stop-gradient (the paper's point)."""
    z = sample(3, 1, 1).requires_grad_()
    ours = torch.autograd.grad(prediction_loss(z, 2), z)[0].flatten()
    x = z.detach().flatten()
    centre = x[:2].mean()
    through = -2.0 * (x - centre).sum() / 3 / 2
    expected = 2.0 * (x - centre) / 3 + torch.tensor([through, through, 0.0])
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("local", [True, False])
def test_forward_is_the_losses_of_its_projections(local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = method("lejepa", "conv", sigreg_weight=0.1).eval()
    batch = views(made, 4)
    batch = batch if local else batch._replace(local=None)
    step = made(batch, 0.0)
    pictures = [*batch.images, *(batch.local if batch.local is not None else ())]
    z = torch.stack([made.projector(made.backbone(picture)) for picture in pictures]).double().detach()
    a = random_directions(Draws(batch.draws.seed, batch.draws.positions[:1]), 6, 16).double()
    regular, prediction = slow_sigreg(z, a, 17, 3.0), slow_prediction(z, 2)
    assert step.metrics["sigreg"].item() == pytest.approx(regular, rel=1e-4)
    assert step.metrics["prediction"].item() == pytest.approx(prediction, rel=1e-4)
    assert step.loss.item() == pytest.approx(0.1 * regular + 0.9 * prediction, rel=1e-4)
    assert step.loss.requires_grad and not any(metric.requires_grad for metric in step.metrics.values())


def test_directions_change_from_step_to_step_and_hang_on_the_first_position_alone() -> None:
    made = method("lejepa", "conv").eval()
    batch = views(made, 4)

    def loss(positions: list[int]) -> float:
        return made(batch._replace(draws=Draws(0, torch.tensor(positions))), 0.0).loss.item()

    assert loss([4, 5, 6, 7]) == loss([6, 7, 4, 5]) == loss([4, 90, 17, 33])
    assert loss([4, 5, 6, 7]) != loss([8, 9, 10, 11])


def test_whole_views_and_local_crops_share_the_heads_batchnorm() -> None:
    made = method("lejepa", "conv").train()
    sizes: list[int] = []
    first = next(m for m in made.projector.modules() if isinstance(m, nn.BatchNorm1d))
    first.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    made(views(made, 4), 0.0)
    assert sizes == [4 * (2 + 2)]


def test_the_head_is_the_authors() -> None:
    projector = LeJEPA(backbone("conv"), projection=(12, 10, 4)).projector
    assert [type(m).__name__ for m in projector.layers] == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear"]


@pytest.mark.parametrize("kind", ["conv", "vit"])
def test_every_trained_parameter_gets_a_gradient(kind: str) -> None:
    made = method("lejepa", kind).train()
    made(views(made, 4), 0.0).loss.backward()
    assert [name for name, p in made.named_parameters() if p.requires_grad and p.grad is None] == []


def test_training_keeps_embeddings_apart_and_brings_views_together() -> None:
    made = method("lejepa", "conv", slices=64).train()
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    batch = views(made, 32)
    seen = []
    for step in range(40):
        out = made(batch._replace(draws=Draws(0, torch.arange(32) + 32 * step)), 0.0)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        seen.append(out)
    assert seen[-1].loss < 0.7 * seen[0].loss
    assert seen[-1].metrics["embedding_std"] > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigreg_weight": 1.5}, "method.sigreg_weight.*0 to 1"),
        ({"sigreg_weight": -0.1}, "method.sigreg_weight"),
        ({"slices": 0}, "method.slices"),
        ({"points": 1}, "method.points"),
        ({"t_max": 0.0}, "method.t_max"),
        ({"projection": ()}, "method.projection"),
    ],
)
def test_values_that_make_no_loss_are_refused(options: dict[str, Any], message: str) -> None:
    build: Callable[..., LeJEPA] = LeJEPA
    with pytest.raises(UserError, match=message):
        build(backbone("conv"), **options)
