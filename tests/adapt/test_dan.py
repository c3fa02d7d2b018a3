"""DAN's and JAN's discrepancies against loops, under the null, and against peers' published values."""

import math

import pytest
import torch
from torch import Tensor

from rootstock.adapt.dan import feature_kernels
from rootstock.adapt.jan import prediction_kernels
from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.kernels import (
    EXPONENTS,
    gaussian_kernels,
    mean_squared_distance,
    multi_kernel_mmd,
    squared_distances,
    unbiased_mmd,
)
from rootstock.tests.adapt.one_update import PEERS, Drawn, drawn, gradient_norms, small


def slow(drawn: Drawn, sigma: float | None = None) -> float:
    """The unbiased estimate one pair at a time. sigma: JAN's, of the predictions' kernel; None: DAN."""
    rows = [*drawn.features[0].tolist(), *drawn.features[1].tolist()]
    predictions = [*drawn.logits[0].softmax(1).tolist(), *drawn.logits[1].softmax(1).tolist()]
    n = len(rows) // 2

    def squared(x: list[float], y: list[float]) -> float:
        return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))

    pairs = [(i, j) for i in range(2 * n) for j in range(2 * n) if i != j]
    scale = sum(squared(rows[i], rows[j]) for i, j in pairs) / len(pairs)

    def kernel(i: int, j: int) -> float:
        value = sum(math.exp(-squared(rows[i], rows[j]) / (2 * 2.0**u * scale)) for u in range(-3, 2))
        if sigma is not None:
            value *= math.exp(-squared(predictions[i], predictions[j]) / (2 * sigma**2))
        return value

    within = sum(kernel(i, j) for i, j in pairs if (i < n) == (j < n)) / (n * (n - 1))
    return within - 2 * sum(kernel(i, j) for i in range(n) for j in range(n, 2 * n)) / n**2


@pytest.mark.parametrize(("name", "sigma"), [("dan", None), ("jan", 0.92), ("jan", 0.3)])
def test_it_equals_loops(name: str, sigma: float | None) -> None:
    found = drawn()
    keys = {} if sigma is None else {"sigma": sigma}
    loss, watched = small(name, classes=5, **keys).transfer(found.joint, 0.5)
    assert loss.item() == pytest.approx(slow(found, sigma), rel=1e-10)
    x = found.features.detach().flatten(0, 1)
    differences = (x[:, None] - x[None]).square().sum(2)
    assert watched["mean_squared_distance"].item() == pytest.approx(float(differences.sum() / (24 * 23)))


def test_dan_is_what_a_peer_gives_for_the_same_kernels() -> None:
    """pytorch-adapt 1366df7: five times MMDLoss(tensor of 2^-u / 2, mmd_type="quadratic", bandwidth=m), as its kernels are averaged."""
    found = drawn()
    loss = small("dan", classes=5).transfer(found.joint, 0.5)[0]
    (norm,) = gradient_norms(loss, found.features)
    assert (loss.item(), norm) == pytest.approx((0.505198800254, 0.220083729032), rel=PEERS)


def test_tllib_differs_by_its_scale_and_a_constant() -> None:
    """tllib c4aa59e, linear=False, on the same tensors: its mean squared distance counts i = j, and it adds 2 / (B - 1)."""
    found = drawn()
    source, target = found.features.detach()
    scale = mean_squared_distance(torch.cat([source, target])) * 23 / 24
    pairs = ((source, source), (target, target), (source, target))
    kernels = [gaussian_kernels(squared_distances(x, y), scale) for x, y in pairs]
    dan = 0.691066112203
    assert unbiased_mmd(*kernels).item() + 2 / 11 == pytest.approx(dan, rel=1e-6)  # its weights of pairs are float32
    assert multi_kernel_mmd(source, target).item() < dan - 0.18
    weights = prediction_kernels(found.logits.detach().softmax(-1), 0.92)
    jan = 0.468216300011
    joint = unbiased_mmd(*(k * w for k, w in zip(kernels, weights, strict=True)))
    assert joint.item() + 2 / 11 == pytest.approx(jan, rel=1e-6)
    # Its default, the estimate in linear time, gives 0.959 here; pytorch-adapt's gives 0.194, DeepDA's biased one 0.952.


def test_deepda_is_biased() -> None:
    """DeepDA f951df1 MMDLoss: the diagonal counts, and kernels are exp(-d^2 / (2^u m)), u from -2 to 2."""
    source, target = drawn().features.detach()
    scale = mean_squared_distance(torch.cat([source, target]))
    means = [
        gaussian_kernels(squared_distances(x, y), scale / 2.0, (-2, -1, 0, 1, 2)).mean()
        for x, y in ((source, source), (target, target), (source, target))
    ]
    assert (means[0] + means[1] - 2 * means[2]).item() == pytest.approx(0.952457695410, rel=PEERS)


def null_draws(n: int, draws: int = 100) -> list[float]:
    """Estimates for two halves of one normal distribution."""
    rows = Draws(3, torch.arange(2 * n * draws)).normal("null", 16).view(draws, 2, n, 16)
    return [multi_kernel_mmd(*pair).item() for pair in rows]


@pytest.mark.parametrize("n", [4, 32])
def test_it_is_0_in_the_mean_where_domains_are_alike(n: int) -> None:
    found = torch.tensor(null_draws(n))
    error = float(found.std() / len(found) ** 0.5)
    assert abs(float(found.mean())) < 4 * error and error < 0.2 / n
    assert 0.3 < float((found < 0).float().mean()) < 0.8  # nothing was added to make it positive
    # The biased estimate would be above 0 by (K - 1 kernel) / n, far outside of this interval.
    assert 2 * (5 - 2.5) / n > 4 * error


def test_domains_apart_are_far_from_0() -> None:
    rows = Draws(3, torch.arange(64)).normal("rows", 16).view(2, 32, 16)
    assert multi_kernel_mmd(rows[0], rows[1] + 1.0).item() > 0.5


def test_exchanging_the_domains_changes_nothing() -> None:
    found = drawn()
    for name in ("dan", "jan"):
        method = small(name, classes=5)
        turned = found.joint._replace(features=found.features.flip(0), logits=found.logits.flip(0))
        torch.testing.assert_close(method.transfer(turned, 0.5)[0], method.transfer(found.joint, 0.5)[0])


def test_jan_is_dan_where_predictions_are_alike() -> None:
    found = drawn()
    same = found.joint._replace(logits=torch.ones_like(found.logits))
    torch.testing.assert_close(small("jan").transfer(same, 0.5)[0], small("dan").transfer(found.joint, 0.5)[0])


def test_jan_moves_predictions_and_dan_does_not() -> None:
    found = drawn()
    loss = small("jan", classes=5).transfer(found.joint, 0.5)[0]
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(loss, (found.features, found.logits)))
    loss = small("dan", classes=5).transfer(found.joint, 0.5)[0]
    assert torch.autograd.grad(loss, found.logits, allow_unused=True) == (None,)


def test_no_gradient_goes_through_the_scale() -> None:
    """With the scale as a constant the gradient is the same; with gradient through it, it would be another one."""
    x = drawn().features.detach().requires_grad_()
    (ours,) = torch.autograd.grad(unbiased_mmd(*feature_kernels(x, EXPONENTS)[:3]), x)

    def of(scale: Tensor) -> Tensor:
        pairs = ((x[0], x[0]), (x[1], x[1]), (x[0], x[1]))
        loss = unbiased_mmd(*(gaussian_kernels((a[:, None] - b[None]).square().sum(2), scale) for a, b in pairs))
        return torch.autograd.grad(loss, x)[0]

    rows = x.flatten(0, 1)
    scale = (rows[:, None] - rows[None]).square().sum() / (24 * 23)
    torch.testing.assert_close(of(scale.detach()), ours)
    assert (of(scale) - ours).norm() > 0.02 * ours.norm()


def test_the_mean_of_shards_is_another_loss() -> None:
    found = drawn(32)
    for name in ("dan", "jan"):
        method = small(name, classes=5)
        whole = method.transfer(found.joint, 0.5)[0].item()
        parts = [
            method.transfer(found.joint._replace(features=f, logits=z), 0.5)[0].item()
            for f, z in zip(found.features.split(8, 1), found.logits.split(8, 1), strict=True)
        ]
        assert abs(sum(parts) / 4 - whole) > 0.005


def test_far_apart_from_0_the_distances_keep_their_digits() -> None:
    x = drawn().features[0].detach()
    exact = (x[:, None] - x[None]).square().sum(2)
    torch.testing.assert_close(squared_distances(x + 1e6, x + 1e6), exact, rtol=1e-6, atol=1e-8)
    shifted = (x + 100.0).float()
    torch.testing.assert_close(squared_distances(shifted, shifted).double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["dan", "jan"])
@pytest.mark.parametrize("exponents", [(), (0, 31)])
def test_exponents_out_of_range_are_refused(name: str, exponents: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"method\.exponents: expected whole numbers from -30 to 30, at least one"):
        small(name, exponents=exponents)


def test_a_width_of_0_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.sigma: must be above 0, got 0.0; 0.92"):
        small("jan", sigma=0.0)
