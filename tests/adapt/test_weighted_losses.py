"""Losses with weights of images (`label_shift.resample`): an image of weight w counts as w images in the batch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from rootstock.adapt.afn import stepwise_norm
from rootstock.adapt.bnm import BNM
from rootstock.adapt.deepcoral import coral
from rootstock.adapt.deepjdot import DeepJDOT
from rootstock.adapt.fixmatch import consistency, pseudo_labels
from rootstock.adapt.mcc import class_confusion
from rootstock.adapt.mcd import MCD, discrepancy
from rootstock.adapt.mdd import margin_disparity
from rootstock.adapt.parts.masked_consistency import masked_error
from rootstock.adapt.parts.resampling import Resampling
from rootstock.adapt.parts.transfer import Joint
from rootstock.core.kernels import gaussian_kernels, squared_distances, unbiased_mmd
from rootstock.tests.adapt.one_update import CLASSES, domains, small

COPIES = torch.tensor([1, 3, 2, 1, 4, 1])
N, K = len(COPIES), 4
ROWS = torch.arange(N).repeat_interleave(COPIES)
WEIGHTS = COPIES.double() * N / COPIES.sum()  # 1 on average


def rows(width: int, seed: int = 0, parts: int = 2) -> Tensor:
    """float64 [parts, N, width]."""
    return torch.randn(parts, N, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOSSES: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "mcc": lambda x, w: class_confusion(x[0], 2.5, w),
    "afn": lambda x, w: stepwise_norm(x[0], 1.0, w),
    "mdd": lambda x, w: margin_disparity(x[:2], x[2:], 4.0, None if w is None else torch.stack([w, w])),
    "mcd": lambda x, w: discrepancy(x[0], x[1], w),
    "fixmatch": lambda x, w: consistency(x[0], pseudo_labels(x[1], 0.4), w),
    "mic": lambda x, w: masked_error(x[0], x[1].argmax(1), x[2].softmax(1).amax(1), w),
}


@pytest.mark.parametrize("name", LOSSES)
def test_weights_are_copies(name: str) -> None:
    """The loss and its gradient on six weighted images are those on twelve, some of them copies."""
    loss, few = LOSSES[name], rows(K, parts=4).requires_grad_()
    weighted, copied = loss(few, WEIGHTS), loss(few[:, ROWS], None)
    torch.testing.assert_close(weighted, copied, rtol=1e-12, atol=0)
    ours, right = (torch.autograd.grad(found, few)[0] for found in (weighted, copied))
    torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-14)
    plain = loss(few, None)
    gradient = torch.autograd.grad(plain, few)[0]
    assert not torch.allclose(gradient, ours, rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(loss(few, torch.ones(N).double()), plain)


def of_joint(method: BNM | DeepJDOT, few: bool) -> Tensor:
    """The transfer loss on six weighted images a domain, or on twelve with copies."""
    features, logits, labels = rows(3, 1), rows(CLASSES, 2), torch.arange(N) % CLASSES
    if few:
        return method.transfer(Joint(features, logits, labels, torch.stack([WEIGHTS, WEIGHTS])), 0.5)[0]
    return method.transfer(Joint(features[:, ROWS], logits[:, ROWS], labels[ROWS]), 0.5)[0]


def test_the_plan_of_deepjdot_moves_as_much_as_the_weights_say() -> None:
    method = small("deepjdot", CLASSES, features=1.0, labels=1.0)
    assert isinstance(method, DeepJDOT)
    torch.testing.assert_close(of_joint(method, few=True), of_joint(method, few=False), rtol=1e-10, atol=0)
    given = torch.stack([WEIGHTS, WEIGHTS.flip(0)])
    plan = method.plan(torch.rand(N, N).double(), given)
    torch.testing.assert_close(torch.stack([plan.sum(1), plan.sum(0)]), given / N)
    independent = method.plan(torch.full((N, N), torch.inf).double(), given)  # no plan: the run's own checks speak
    torch.testing.assert_close(independent, given[0][:, None] * given[1] / N**2)


@pytest.mark.parametrize("fast", [False, True])
def test_bnms_norm_of_weighted_rows_is_that_of_copies(fast: bool) -> None:
    """Its norm over B falls with sqrt(B), so that copies have sqrt(6 / 12) of it."""
    method = small("bnm", CLASSES, fast=fast)
    assert isinstance(method, BNM)
    many = of_joint(method, few=False) * (len(ROWS) / N) ** 0.5
    torch.testing.assert_close(of_joint(method, few=True), many, rtol=1e-10, atol=0)


def test_the_weighted_discrepancy_is_a_mean_over_pairs() -> None:
    source, target = rows(3)
    weights = torch.stack([WEIGHTS, WEIGHTS.flip(0)])
    scale = torch.tensor(2.0).double()
    pairs = ((source, source), (target, target), (source, target))
    kernels = [gaussian_kernels(squared_distances(a, b), scale) for a, b in pairs]
    sums = []
    for kernel, (a, b), apart in zip(kernels, ((0, 0), (1, 1), (0, 1)), (True, True, False), strict=True):
        kept = [(i, j) for i, j in product(range(N), range(N)) if not apart or i != j]
        total = sum(weights[a, i].item() * weights[b, j].item() for i, j in kept)
        sums.append(sum(weights[a, i].item() * weights[b, j].item() * kernel[i, j].item() for i, j in kept) / total)
    found = unbiased_mmd(kernels[0], kernels[1], kernels[2], weights)
    assert found.item() == pytest.approx(sums[0] + sums[1] - 2 * sums[2], rel=1e-12)
    even = unbiased_mmd(kernels[0], kernels[1], kernels[2], torch.ones(2, N))
    torch.testing.assert_close(even, unbiased_mmd(kernels[0], kernels[1], kernels[2]))


def test_the_weighted_discrepancy_is_unbiased_for_re_sampled_domains() -> None:
    """Two domains with the same pictures in each class and other class priors: 0 on average by weights, above 0 without them."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(400):
        labels = [torch.rand(40, generator=generator) < share for share in (0.3, 0.7)]
        few, many = (
            torch.where(own, 0.5 / share, 0.5 / (1 - share)) for own, share in zip(labels, (0.3, 0.7), strict=True)
        )
        x, y = (2.0 * own.double()[:, None] + torch.randn(40, 1, generator=generator) for own in labels)
        scale = torch.tensor(1.0).double()
        kernels = [gaussian_kernels(squared_distances(a, b), scale) for a, b in ((x, x), (y, y), (x, y))]
        weights = torch.stack([few, many]).double()
        found.append([unbiased_mmd(kernels[0], kernels[1], kernels[2], w).item() for w in (weights, None)])
    weighted, plain = torch.tensor(found).mean(0).tolist()
    assert abs(weighted) < 0.1 * plain and plain > 0.1


def test_the_weighted_covariance_is_a_mean_over_pairs() -> None:
    """C = 1/2 sum over i != j of w_i w_j (x_i - x_j)(x_i - x_j)^T, over the sum of w_i w_j."""
    x, weights = rows(3), torch.stack([WEIGHTS, WEIGHTS.flip(0)])
    covariances = []
    for own, w in zip(x, weights, strict=True):
        pairs = [(i, j) for i, j in product(range(N), range(N)) if i != j]
        total = torch.stack([w[i] * w[j] * torch.outer(own[i] - own[j], own[i] - own[j]) for i, j in pairs]).sum(0)
        covariances.append(total / 2 / sum(w[i] * w[j] for i, j in pairs))
    right = (covariances[0] - covariances[1]).square().sum() / (4 * 3**2)
    torch.testing.assert_close(coral(x[0], x[1], weights), right, rtol=1e-12, atol=0)
    torch.testing.assert_close(coral(x[0], x[1], torch.ones(2, N)), coral(x[0], x[1]))


def test_classes_are_counted_once_a_step_of_several_turns() -> None:
    method = small("mcd", CLASSES)
    assert isinstance(method, MCD)
    method.resampling = Resampling(torch.ones(CLASSES))
    batch = domains()
    for turn in range(method.turns):
        method(batch, 0.5, turn)
    method.after_step(0.5)
    assert method.resampling.batches.item() == 2.0  # the equal frequencies, and one batch
