"""NT-Xent against a double loop and lightly's, and SimCLR's forward against a plain one."""

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor, nn

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.method import Views
from rootstock.core.model.backbone import Backbone
from rootstock.ssl.simclr import SimCLR, nt_xent


class Net(nn.Module):
    """Convolution, BatchNorm, mean; remembers the batches that it was given."""

    num_features = 6

    def __init__(self, batchnorm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if batchnorm else nn.Identity()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach())
        return self.norm(self.conv(images)).relu().mean((2, 3))


def backbone(batchnorm: bool = True) -> Backbone:
    half = (0.5, 0.5, 0.5)
    return Backbone(
        Net(batchnorm), {"name": "net", "args": {}, "size": 8, "stem": "default", "pooling": None}, half, half
    )


def views(n: int = 5, seed: int = 0) -> Views:
    generator = torch.Generator().manual_seed(seed)
    return Views(torch.randn(2, n, 3, 8, 8, generator=generator), Draws(seed, torch.arange(n)))


def pair(n: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    return first.requires_grad_(), second.requires_grad_()


def slow_nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Eq. 1 pair by pair: l(i, j) = -log(exp(s_ij / t) / sum over k != i of exp(s_ik / t)), averaged over both directions."""
    z = [*first, *second]
    n = len(first)

    def similarity(i: int, k: int) -> Tensor:
        return (z[i] @ z[k]) / (z[i] @ z[i]).sqrt() / (z[k] @ z[k]).sqrt()

    losses = []
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        denominator = torch.stack([(similarity(i, k) / temperature).exp() for k in range(2 * n) if k != i]).sum()
        losses.append(-((similarity(i, partner) / temperature).exp() / denominator).log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("n", "temperature"), [(2, 0.5), (7, 0.1), (12, 0.2)])
def test_nt_xent_equals_the_double_loop_and_lightly(n: int, temperature: float) -> None:
    first, second = pair(n, 5)
    ours = nt_xent(first, second, temperature)
    assert ours.item() == pytest.approx(slow_nt_xent(first, second, temperature).item(), rel=1e-6)
    assert ours.item() == pytest.approx(NTXentLoss(temperature=temperature)(first, second).item(), rel=1e-6)


def test_nt_xent_has_the_gradient_of_the_double_loop() -> None:
    first, second = pair(6, 4)
    ours = torch.autograd.grad(nt_xent(first, second, 0.2), (first, second))
    slow = torch.autograd.grad(slow_nt_xent(first, second, 0.2), (first, second))
    for a, b in zip(ours, slow, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_rows_are_the_anchors_of_one_process_and_add_up() -> None:
    first, second = pair(6, 4)
    whole = nt_xent(first, second, 0.3)
    parts = [nt_xent(first, second, 0.3, slice(start, stop)) for start, stop in ((0, 2), (2, 3), (3, 6))]
    weighted = (torch.stack(parts) * torch.tensor([2.0, 1.0, 3.0])).sum() / 6
    torch.testing.assert_close(weighted, whole, rtol=1e-12, atol=0)
    gradient = torch.autograd.grad(weighted, first, retain_graph=True)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, first)[0], rtol=1e-9, atol=1e-12)


def test_nt_xent_is_symmetric_and_ignores_lengths() -> None:
    first, second = pair(5, 4)
    loss = nt_xent(first, second, 0.2)
    torch.testing.assert_close(nt_xent(second, first, 0.2), loss)
    torch.testing.assert_close(nt_xent(3.0 * first, 0.1 * second, 0.2), loss)
    uniform = torch.ones(5, 4)
    assert nt_xent(uniform, uniform, 0.2).item() == pytest.approx(math.log(2 * 5 - 1), rel=1e-6)


def test_nt_xent_of_half_precision_is_computed_in_float32() -> None:
    first, second = pair(8, 16)
    low = nt_xent(first.half(), second.half(), 0.01)
    assert low.dtype == torch.float32 and bool(low.isfinite())
    with torch.autocast("cpu", torch.bfloat16):
        assert nt_xent(first.float(), second.float(), 0.2).item() == pytest.approx(
            nt_xent(first, second, 0.2).item(), rel=1e-5
        )


def test_nt_xent_refuses_what_has_no_negatives() -> None:
    with pytest.raises(ValueError, match="N >= 2"):
        nt_xent(torch.randn(1, 4), torch.randn(1, 4), 0.2)
    with pytest.raises(ValueError, match="N >= 2"):
        nt_xent(torch.randn(3, 4), torch.randn(2, 4), 0.2)
    with pytest.raises(UserError, match=r"optim.batch_size.*2 images"):
        SimCLR(backbone(), projection=(4,))(views(1), 0.0)


def test_both_views_go_through_one_forward_and_one_batchnorm() -> None:
    torch.manual_seed(0)
    method = SimCLR(backbone(), temperature=0.2, projection=(8, 4))
    batch = views()
    step = method(batch, 0.0)
    net = method.backbone.model
    assert isinstance(net, Net) and isinstance(net.norm, nn.BatchNorm2d) and net.norm.running_mean is not None
    (seen,) = net.seen
    assert seen.shape == (10, 3, 8, 8)
    assert sorted(x.sum().item() for x in seen) == sorted(x.sum().item() for x in batch.images.flatten(0, 1))
    # BatchNorm's running mean took one step of 0.1 towards the mean over both views.
    both = net.conv(batch.images.flatten(0, 1)).mean((0, 2, 3))
    torch.testing.assert_close(net.norm.running_mean, 0.1 * both, rtol=1e-5, atol=1e-7)
    features = net(batch.images.flatten(0, 1))
    projected = method.projector(features).unflatten(0, (2, -1))
    slow = slow_nt_xent(projected[0].double(), projected[1].double(), 0.2)
    assert step.loss.item() == pytest.approx(slow.item(), rel=1e-5)


def test_metrics_are_detached_and_mean_what_they_say() -> None:
    torch.manual_seed(0)
    method = SimCLR(backbone(False), projection=(4,))
    batch = views()
    same = Views(batch.images[:1].expand(2, -1, -1, -1, -1), batch.draws)
    step = method(same, 0.0)
    assert step.metrics["positive_cosine"].item() == pytest.approx(1.0, abs=1e-6)
    assert not any(metric.requires_grad for metric in step.metrics.values())
    assert step.loss.requires_grad


def test_chunks_give_the_loss_and_gradient_of_the_whole_batch() -> None:
    def outcome(chunk: int | None) -> tuple[float, list[Tensor]]:
        torch.manual_seed(0)
        method = SimCLR(backbone(False), chunk, projection=(8, 4)).double()
        batch = views(8)
        loss = method(Views(batch.images.double(), batch.draws), 0.0).loss
        loss.backward()
        return loss.item(), [p.grad for p in method.parameters() if p.grad is not None]

    whole, chunked = outcome(None), outcome(2)
    assert chunked[0] == pytest.approx(whole[0], rel=1e-12)
    assert len(chunked[1]) == len(whole[1]) > 0
    for a, b in zip(chunked[1], whole[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_every_projection_width_is_used() -> None:
    projector = SimCLR(backbone(), projection=(16, 12, 4)).projector
    widths = [(m.in_features, m.out_features) for m in projector.modules() if isinstance(m, nn.Linear)]
    assert widths == [(6, 16), (16, 12), (12, 4)]
    kinds = [type(m).__name__ for m in projector.layers]
    assert kinds == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear", "BatchNorm1d"]
    (single,) = (m for m in SimCLR(backbone(), projection=(4,)).projector.modules() if isinstance(m, nn.Linear))
    assert (single.in_features, single.out_features) == (6, 4)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"temperature": 0.0}, "method.temperature"),
        ({"projection": ()}, "method.projection"),
        ({"projection": (8, 0)}, "method.projection"),
    ],
)
def test_values_that_make_no_loss_are_refused(options: dict[str, object], key: str) -> None:
    with pytest.raises(UserError, match=key):
        SimCLR(backbone(), **options)  # pyright: ignore[reportArgumentType]


def test_training_brings_views_together() -> None:
    torch.manual_seed(0)
    method = SimCLR(backbone(), projection=(8, 4))
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    batch = views(8)
    near = Views(batch.images[:1] + 0.1 * batch.images, batch.draws)
    losses = []
    for _ in range(20):
        loss = method(near, 0.0).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
