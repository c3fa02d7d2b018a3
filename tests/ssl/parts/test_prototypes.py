"""The prototypes' head against the authors' layers, Sinkhorn-Knopp and losses against loops and lightly's."""

import math
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import DINOLoss, SwaVLoss
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from lightly.models.modules.heads import DINOProjectionHead
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.ssl.parts.prototypes import (
    PrototypeHead,
    assignment_metrics,
    center_update,
    crops_loss,
    cross_entropy,
    sinkhorn,
)
from rootstock.tests.ssl.parts.slow_prototypes import slow_crops_loss, slow_sinkhorn


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosines(*shape: int, seed: int = 0) -> Tensor:
    return random(*shape, seed=seed).tanh()


def in_processes(parts: list[Any], work: Callable[[Any, Callable[[Tensor], Tensor]], Tensor]) -> list[Tensor]:
    """work(part, reduce) of all parts at once; `reduce` sums over the parts as over processes."""
    turn, box = threading.Barrier(len(parts), timeout=20), [torch.empty(0)] * len(parts)

    def run(rank: int) -> Tensor:
        def reduce(local: Tensor) -> Tensor:
            box[rank] = local
            turn.wait()
            total = torch.stack(box).sum(0)
            turn.wait()
            return total

        return work(parts[rank], reduce)

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(run, range(len(parts))))


def test_the_head_is_the_authors() -> None:
    """Same weights, same logits as their layers: weight_norm with magnitudes of 1 is a row scaled to length 1."""
    torch.manual_seed(0)
    ours = PrototypeHead(5, prototypes=7, hidden=6, bottleneck=4).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's warning about the weight_norm that lightly uses
        theirs = DINOProjectionHead(5, 6, 4, 7).double()
    linear = [layer for layer in theirs.layers if isinstance(layer, nn.Linear)]
    mine = [layer for layer in ours.mlp if isinstance(layer, nn.Linear)]
    for a, b in zip(mine, linear, strict=True):
        b.load_state_dict(a.state_dict())
    theirs.last_layer.weight_v.data.copy_(ours.weight)  # pyright: ignore[reportArgumentType, reportCallIssue]
    x = random(9, 5)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours(x.view(3, 3, 5)), theirs(x).view(3, 3, 7), rtol=1e-10, atol=1e-12)


def test_the_heads_layers() -> None:
    torch.manual_seed(0)

    def kinds(**options: Any) -> list[str]:
        head = PrototypeHead(64, prototypes=90, hidden=80, bottleneck=70, **options)
        return [type(layer).__name__ for layer in head.mlp]

    assert kinds() == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    assert kinds(norm=True) == ["Linear", "BatchNorm1d", "GELU", "Linear", "BatchNorm1d", "GELU", "Linear"]
    assert kinds(layers=1) == ["Linear"]
    head = PrototypeHead(64, prototypes=90, hidden=80, bottleneck=70)
    linear = [layer for layer in head.mlp if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(64, 80), (80, 80), (80, 70)]
    assert head.weight.shape == (90, 70)
    assert all(0.018 < layer.weight.std() < 0.022 and not layer.bias.any() for layer in linear)


def test_logits_are_cosines_whatever_the_rows_lengths() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(5, prototypes=7, hidden=6, bottleneck=4)
    x = random(9, 5).float()
    logits = head(x)
    z = head.mlp(x)
    expected = F.cosine_similarity(z[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    head.weight.data *= torch.arange(1.0, 8.0)[:, None]
    torch.testing.assert_close(head(x), logits, rtol=1e-5, atol=1e-6)


def test_a_head_with_batchnorm_takes_all_crops_as_one_batch() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(5, prototypes=7, hidden=6, bottleneck=4, norm=True).double()
    x = random(4, 3, 5)
    torch.testing.assert_close(head.embed(x).flatten(0, 1), F.normalize(head.mlp(x.flatten(0, 1)), dim=-1))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("prototypes", 1, "2 or more"),
        ("hidden", 0, "1 or more"),
        ("bottleneck", 1, "2 or more"),
        ("layers", 0, "1 to 1,000"),
        ("layers", 10**12, "1 to 1,000"),
    ],
)
def test_sizes_that_make_no_head_are_refused(key: str, value: int, expected: str) -> None:
    options: dict[str, Any] = {"prototypes": 8, key: value}
    with pytest.raises(UserError, match=rf"method\.{key}: expected {expected}, got {value}"):
        PrototypeHead(4, **options)


def test_the_centre_moves_towards_the_mean() -> None:
    center, logits = random(4), random(2, 3, 4, seed=1)
    expected = [
        0.9 * center[k].item() + 0.1 * sum(logits[v, n, k].item() for v in range(2) for n in range(3)) / 6
        for k in range(4)
    ]
    assert center_update(center, logits, 0.9).tolist() == pytest.approx(expected, rel=1e-12)
    found = in_processes([logits[:, :1], logits[:, 1:]], lambda part, reduce: center_update(center, part, 0.9, reduce))
    for value in found:
        assert value.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("iterations", "temperature"), [(1, 0.1), (3, 0.05), (5, 0.5)])
def test_sinkhorn_equals_loops_and_lightlys(iterations: int, temperature: float) -> None:
    logits = cosines(6, 4)
    ours = sinkhorn(logits, temperature, iterations)
    torch.testing.assert_close(ours, slow_sinkhorn(logits, temperature, iterations), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(ours, lightly_sinkhorn(logits, iterations, temperature), rtol=1e-10, atol=1e-14)


def test_sinkhorn_uses_every_prototype_equally() -> None:
    logits = cosines(12, 4) + torch.tensor([3.0, 0.0, 0.0, -3.0])  # all prefer the first
    assert logits.argmax(1).eq(0).all()
    q = sinkhorn(logits, 0.5, 200)
    torch.testing.assert_close(q.sum(0), torch.full((4,), 3.0, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(q.sum(1), torch.ones(12, dtype=torch.float64), rtol=1e-12, atol=0)
    uniform = torch.full((12, 4), 0.25, dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(logits, 1e6, 3), uniform, rtol=1e-4, atol=0)
    own = torch.eye(4, dtype=torch.float64)[[2, 0, 3, 1]]
    torch.testing.assert_close(sinkhorn(own, 0.02, 3), own, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cut", [(3, 3), (1, 5), (2, 1, 3)])
def test_sinkhorn_of_processes_is_that_of_their_whole_batch(cut: tuple[int, ...]) -> None:
    logits = cosines(2, 6, 4)
    parts = [*logits.split(cut, 1)]
    found = in_processes(parts, lambda part, reduce: sinkhorn(part, 0.05, 3, reduce))
    torch.testing.assert_close(torch.cat(found, 1), sinkhorn(logits, 0.05, 3), rtol=1e-11, atol=1e-15)


def test_sinkhorn_talks_little() -> None:
    said: list[int] = []

    def reduce(local: Tensor) -> Tensor:
        said.append(local.numel())
        return local

    sinkhorn(cosines(50, 4), 0.05, 3, reduce)
    assert said == [5, 4, 4, 4]


def test_sinkhorn_of_several_problems_is_each_of_them() -> None:
    logits = cosines(2, 6, 4)
    together = sinkhorn(logits, 0.05, 3)
    for alone, found in zip(logits, together, strict=True):
        torch.testing.assert_close(found, sinkhorn(alone, 0.05, 3), rtol=1e-12, atol=0)


def test_samples_that_do_not_count_take_no_share() -> None:
    logits = cosines(6, 4)
    counted = torch.tensor([True, False, True, True, False, True])
    found = sinkhorn(logits, 0.05, 3, counted=counted)
    torch.testing.assert_close(found[counted], sinkhorn(logits[counted], 0.05, 3), rtol=1e-10, atol=1e-14)
    assert not torch.allclose(found[counted], sinkhorn(logits, 0.05, 3)[counted], rtol=0.1)
    torch.testing.assert_close(found.sum(1), torch.ones(6, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", [1e-3, 0.05])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sinkhorn_neither_overflows_nor_vanishes(temperature: float, dtype: torch.dtype) -> None:
    logits = cosines(8, 5).to(dtype)
    logits[:, 0] -= 50.0  # a prototype that is far from all
    q = sinkhorn(logits, temperature, 3)
    assert q.dtype == torch.float32 and q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(8), rtol=1e-5, atol=0)
    expected = sinkhorn(logits.double(), temperature, 3)
    torch.testing.assert_close(q.double(), expected, rtol=0, atol=2e-3)


def test_sinkhorn_needs_an_iteration() -> None:
    with pytest.raises(ValueError, match="at least one iteration, got 0"):
        sinkhorn(cosines(3, 2), 0.05, 0)


def test_cross_entropy_equals_a_loop() -> None:
    targets, logits = random(3, 5).softmax(1), random(3, 5, seed=1)
    found = cross_entropy(targets, logits, 0.3)
    for n in range(3):
        total = sum(math.exp(logits[n, k].item() / 0.3) for k in range(5))
        expected = -sum(targets[n, k].item() * (logits[n, k].item() / 0.3 - math.log(total)) for k in range(5))
        assert found[n].item() == pytest.approx(expected, rel=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        assert cross_entropy(targets.bfloat16(), logits.bfloat16(), 0.3).dtype == torch.float32


@pytest.mark.parametrize(("v", "s"), [(2, 2), (2, 5), (1, 3), (3, 4)])
def test_the_loss_over_crops_equals_loops(v: int, s: int) -> None:
    targets, logits = random(v, 3, 4).softmax(-1), random(s, 3, 4, seed=1).requires_grad_()
    ours, slow = crops_loss(targets, logits, 0.3), slow_crops_loss(targets, logits, 0.3)
    assert ours.item() == pytest.approx(slow.item(), rel=1e-12)
    gradient = torch.autograd.grad(ours, logits)[0]
    expected = torch.autograd.grad(slow, logits)[0]
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_the_loss_over_crops_is_lightlys_for_dino_and_swav() -> None:
    known, logits = random(2, 6, 5), cosines(4, 6, 5, seed=1)
    theirs = DINOLoss(5, teacher_temp=0.07, student_temp=0.1).double()
    ours = crops_loss((known / 0.07).softmax(-1), logits, 0.1)
    assert ours.item() == pytest.approx(theirs([*known], [*logits]).item(), rel=1e-10)
    swapped = SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)([*logits[:2]], [*logits[2:]])
    ours = crops_loss(sinkhorn(logits[:2], 0.05, 3), logits, 0.1)
    assert ours.item() == pytest.approx(swapped.item(), rel=1e-10)


def test_the_loss_over_crops_is_least_where_predictions_are_the_targets() -> None:
    targets = random(1, 3, 4).softmax(-1).expand(2, -1, -1)
    entropy = torch.special.entr(targets).sum(-1).mean().item()
    assert crops_loss(targets, 0.1 * targets.log(), 0.1).item() == pytest.approx(entropy, rel=1e-9)
    assert crops_loss(targets, random(2, 3, 4, seed=1), 0.1).item() > entropy
    assert crops_loss(targets, torch.zeros(2, 3, 4), 0.1).item() == pytest.approx(math.log(4), rel=1e-6)


def test_the_loss_over_crops_of_half_precision_is_computed_in_float32() -> None:
    targets, logits = random(2, 3, 4).softmax(-1), random(4, 3, 4, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = crops_loss(targets.float(), logits, 0.02)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(crops_loss(targets, logits.double(), 0.02).item(), rel=1e-5)


@pytest.mark.parametrize(("v", "s"), [(1, 1), (3, 2)])
def test_crops_without_pairs_are_refused(v: int, s: int) -> None:
    with pytest.raises(ValueError, match="two crops or more"):
        crops_loss(torch.ones(v, 3, 4), torch.ones(s, 3, 4), 0.1)


def test_health_tells_both_collapses() -> None:
    uniform = torch.full((2, 6, 8), 0.125)
    found = assignment_metrics(uniform, torch.tensor(3.0))
    assert found["target_entropy"].item() == pytest.approx(math.log(8), rel=1e-6)
    assert found["target_kl"].item() == pytest.approx(3.0 - math.log(8), rel=1e-6)
    assert found["prototypes_used"].item() == pytest.approx(8.0, rel=1e-5)
    one = torch.eye(8)[torch.full((2, 6), 3)]
    found = assignment_metrics(one, torch.tensor(0.0))
    assert found["target_entropy"].item() == 0.0
    assert found["prototypes_used"].item() == pytest.approx(1.0)
    each = torch.eye(8)
    found = assignment_metrics(each, torch.tensor(0.0))
    assert found["target_entropy"].item() == 0.0
    assert found["prototypes_used"].item() == pytest.approx(8.0, rel=1e-5)
