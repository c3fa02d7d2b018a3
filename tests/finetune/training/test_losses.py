"""The losses for classes of unequal size, each against sums over images and classes written out, and what must hold of them."""

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from rootstock.core.config.resolve import build
from rootstock.core.errors import UserError
from rootstock.core.model.heads import CosineHead, HeadInit, Structure, initialise_head
from rootstock.finetune.training.losses import LOSSES, ClassLoss, effective_weights, inverse_weights
from rootstock.finetune.training.objective import check_corrections
from rootstock.finetune.training.posthoc import POSTHOC, check_head, chosen_tau, treat_head

COUNTS = [60, 25, 9, 4, 0]
SEEN = [60, 25, 9, 4, 1]  # of a prior, a class without images counts as one of one
K, N = len(COUNTS), sum(SEEN)
PRESENT = COUNTS[:-1]
LOGITS = torch.randn(12, K, generator=torch.Generator().manual_seed(0)) * 3
LABELS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
MIXED = torch.rand(12, K, generator=torch.Generator().manual_seed(1)).softmax(1)

Row = Callable[
    [list[float], list[float], list[float]], float
]  # logits, smoothed and unsmoothed labels of an image -> its loss


def log_softmax(z: list[float]) -> list[float]:
    top = max(z)
    total = top + math.log(sum(math.exp(v - top) for v in z))
    return [v - total for v in z]


def weighted(weights: list[float], gamma: float = 0.0) -> Row:
    def loss(z: list[float], t: list[float], _: list[float]) -> float:
        logs = log_softmax(z)
        return -sum(w * s * (1 - math.exp(v)) ** gamma * v for w, s, v in zip(weights, t, logs, strict=True))

    return loss


def adjusted(tau: float) -> Row:
    def loss(z: list[float], t: list[float], plain: list[float]) -> float:
        return weighted([1.0] * K)([v + tau * math.log(n / N) for v, n in zip(z, SEEN, strict=True)], t, plain)

    return loss


def effective(beta: float) -> list[float]:
    """1 over the effective number, which is the sum of a geometric series."""
    raw = [1 / sum(beta**j for j in range(n)) for n in PRESENT]
    return [*(w / (sum(raw) / len(raw)) for w in raw), 1.0]


def with_margins(weights: list[float]) -> Row:
    def loss(z: list[float], t: list[float], plain: list[float]) -> float:
        least = 30.0 * 0.5 / max(n**-0.25 for n in PRESENT)
        each = [*(least * n**-0.25 for n in PRESENT), 30.0 * 0.5]
        return weighted(weights)([v - m * s for v, m, s in zip(z, each, plain, strict=True)], t, plain)

    return loss


def drawn_out(beta: float) -> list[float]:
    w = effective(beta)
    mean = sum(n * v for n, v in zip(COUNTS, w, strict=True)) / sum(COUNTS)
    return [*(v / mean for v in w[:-1]), 1.0]


CASES: list[tuple[str, dict[str, Any], float, Row]] = [
    ("cross_entropy", {}, 0.0, weighted([1.0] * K)),
    ("inverse_frequency", {}, 0.0, weighted([*(sum(PRESENT) / (4 * n) for n in PRESENT), 1.0])),
    ("class_balanced", {"beta": 0.9}, 0.0, weighted(effective(0.9))),
    ("class_balanced", {"beta": 0.99, "gamma": 2.0}, 0.0, weighted(effective(0.99), 2.0)),
    ("focal", {}, 0.0, weighted([1.0] * K, 2.0)),
    ("focal", {"gamma": 0.5}, 0.0, weighted([1.0] * K, 0.5)),
    ("logit_adjusted", {"tau": 1.7}, 0.0, adjusted(1.7)),
    ("balanced_softmax", {}, 0.0, adjusted(1.0)),
    ("ldam", {"beta": 0.9}, 0.79, with_margins([1.0] * K)),
    ("ldam", {"beta": 0.9}, 0.8, with_margins(drawn_out(0.9))),
    ("ldam", {"start": 1.0}, 1.0, with_margins([1.0] * K)),
]


def made(name: str, smoothing: float = 0.0, **keys: Any) -> ClassLoss:
    return build({"name": name, **keys}, LOSSES, torch.tensor(COUNTS), smoothing)


@pytest.mark.parametrize(("name", "keys", "progress", "row"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_against_sums(name: str, keys: dict[str, Any], progress: float, row: Row, smoothing: float) -> None:
    criterion = made(name, smoothing, **keys)
    for labels in (LABELS, MIXED):
        plain = (labels if labels.ndim == 2 else torch.eye(K)[labels]).tolist()
        smooth = [[(1 - smoothing) * v + smoothing / K for v in one] for one in plain]
        expected = sum(map(row, LOGITS.double().tolist(), smooth, plain)) / 12
        assert float(criterion(LOGITS, labels, progress)) == pytest.approx(expected, rel=2e-5)
        # Halves of a batch give halves of its loss, so processes and micro-batches do.
        halves = [float(criterion(LOGITS[part], labels[part], progress)) for part in (slice(0, 4), slice(4, 8))]
        assert sum(halves) / 2 == pytest.approx(float(criterion(LOGITS[:8], labels[:8], progress)), rel=1e-5)
    assert not criterion.state_dict()


def test_every_loss_has_a_case_and_no_loss_breaks_on_sure_logits() -> None:
    assert {case[0] for case in CASES} == LOSSES.keys()
    for name, keys in [(case[0], case[1]) for case in CASES]:
        sure = (torch.eye(K)[LABELS] * 1e4).requires_grad_()
        loss = made(name, **keys)(sure, LABELS, 0.9)
        loss.backward()
        assert loss.isfinite() and sure.grad is not None and sure.grad.isfinite().all(), name


def test_equal_classes_need_no_correction() -> None:
    equal = torch.full((K,), 7)
    plain = LOSSES["cross_entropy"](equal, 0.0)(LOGITS, LABELS, 0.0)
    for name in ("inverse_frequency", "class_balanced", "logit_adjusted", "balanced_softmax"):
        assert torch.allclose(LOSSES[name](equal, 0.0)(LOGITS, LABELS, 0.0), plain, rtol=1e-5), name
    assert torch.allclose(effective_weights(torch.tensor(COUNTS), 0.0), torch.ones(K).double())
    nearly = effective_weights(torch.tensor(COUNTS), 1 - 1e-9)
    inverse = inverse_weights(torch.tensor(COUNTS))
    assert torch.allclose(nearly[:-1], inverse[:-1] / inverse[:-1].mean(), rtol=1e-6)


@pytest.mark.parametrize(("name", "keys", "progress"), [case[:3] for case in CASES])
def test_a_class_without_images_changes_nothing_of_the_others(name: str, keys: dict[str, Any], progress: float) -> None:
    """Where its logit is so low that it has no part in the softmax, the loss is that without it."""
    counts = torch.tensor([500, 450, 60, 9])
    logits, labels = LOGITS[:, :4], torch.arange(12) % 4
    without = build({"name": name, **keys}, LOSSES, counts, 0.0)(logits, labels, progress)
    further = torch.cat([logits[:, :2], torch.full((12, 1), -1e4), logits[:, 2:]], 1)
    counts = torch.tensor([500, 450, 0, 60, 9])
    found = build({"name": name, **keys}, LOSSES, counts, 0.0)(further, labels + (labels > 1), progress)
    assert float(found) == pytest.approx(float(without), rel=1e-5)


def test_the_least_adjusted_loss_is_at_the_balanced_posterior() -> None:
    """Fitted to p(y | x) of the unequal classes, f is log of the posterior under equal ones, which needs no adjustment."""
    likelihood = torch.rand(6, K, generator=torch.Generator().manual_seed(2)).double()
    priors = torch.tensor(SEEN).double() / N
    posterior = likelihood * priors
    posterior /= posterior.sum(1, keepdim=True)
    f = (likelihood / likelihood.sum(1, keepdim=True)).log().requires_grad_()
    criterion = made("logit_adjusted").double()
    criterion.shift = priors.log()
    (gradient,) = torch.autograd.grad(criterion(f, posterior, 0.0), [f])
    assert gradient.abs().max() < 1e-12


def test_ldam_is_made_for_cosines_times_its_scale() -> None:
    head = made("ldam", scale=20.0).head
    assert head is not None and head == Structure(head="cosine", temperature=1 / 20.0)
    _, layer = head.layers(4, K)
    assert isinstance(layer, CosineHead)
    features = torch.randn(3, 4)
    cosines = torch.nn.functional.cosine_similarity(features[:, None], layer.weight[None], dim=2)
    assert torch.allclose(layer(features), 20 * cosines, atol=1e-4)


def head_of(weight: Tensor, bias: Tensor) -> torch.nn.Linear:
    head = torch.nn.Linear(weight.shape[1], len(weight))
    head.load_state_dict({"weight": weight, "bias": bias})
    return head


def test_heads_after_the_training() -> None:
    weight, bias, x = torch.randn(K, 3), torch.randn(K), torch.randn(4, 3)
    treat_head({"name": "none"}, head := head_of(weight, bias), torch.tensor(COUNTS))
    assert torch.equal(head.weight, weight) and torch.equal(head.bias, bias)
    treat_head({"name": "logit_adjusted", "tau": 0.5}, head := head_of(weight, bias), torch.tensor(COUNTS))
    plain = x @ weight.T + bias
    expected = [[float(z) - 0.5 * math.log(n / N) for z, n in zip(row, SEEN, strict=True)] for row in plain]
    assert torch.allclose(head(x), torch.tensor(expected), atol=1e-5)
    treat_head({"name": "tau_norm", "tau": 0.7}, head := head_of(weight, bias), torch.tensor(COUNTS))
    rows = [row / math.sqrt(sum(float(v) ** 2 for v in row)) ** 0.7 for row in weight]
    assert torch.allclose(head(x), x @ torch.stack(rows).T, atol=1e-5)
    with pytest.raises(UserError, match=r"method\.posthoc: tau_norm is for a linear head"):
        check_head({"name": "tau_norm", "tau": 0.7}, CosineHead(3, K, 0.1), held_out=False)
    with pytest.raises(
        UserError, match=r"method\.posthoc\.tau: null chooses it .* give evaluate\.held_out too, such as 0\.2"
    ):
        check_head({"name": "tau_norm", "tau": None}, head, held_out=False)


def test_tau_is_the_best_of_a_slow_search() -> None:
    """Balanced accuracy of the treated head itself, for each tau; the rare class has short weights here."""
    torch.manual_seed(3)
    x, y = torch.randn(200, 3), torch.randint(K, (200,))
    weight, bias = torch.randn(K, 3) * torch.tensor([[4.0], [1.0], *[[0.3]] * (K - 2)]), torch.randn(K)
    x = x + 0.7 * torch.nn.functional.normalize(weight, dim=1)[y]

    def balanced(tau: float) -> float:
        treat_head({"name": "tau_norm", "tau": tau}, head := head_of(weight, bias), torch.tensor(COUNTS))
        guessed = head(x).argmax(1)
        recalls = [float((guessed[y == k] == k).double().mean()) for k in range(K) if bool((y == k).any())]
        return sum(recalls) / len(recalls)

    slow = {i / 20: balanced(i / 20) for i in range(21)}
    best = max(slow.values())
    found = chosen_tau(head_of(weight, bias), x @ weight.T + bias, y)
    assert found == min(tau for tau, accuracy in slow.items() if accuracy == pytest.approx(best)) and found > 0.0
    assert best > slow[0.0]


@pytest.mark.parametrize(
    ("loss", "sampler", "posthoc", "said"),
    [
        ("inverse_frequency", "sqrt", "none", r"data\.sampler: sqrt would correct a second time.* method\.loss: inverse_frequency"),
        ("logit_adjusted", "uniform", "logit_adjusted", r"method\.posthoc: logit_adjusted would correct .* as method\.loss does"),
        ("focal", "balanced", "logit_adjusted", r"method\.posthoc: logit_adjusted would correct .* as data\.sampler does"),
        ("ldam", "uniform", "tau_norm", r"method\.posthoc: tau_norm is for a linear head, which this loss has not"),
    ],
)  # fmt: skip
def test_nothing_corrects_twice(loss: str, sampler: str, posthoc: str, said: str) -> None:
    keys = {} if posthoc == "none" else {"tau": 1.0}
    with pytest.raises(UserError, match=said):
        check_corrections(made(loss), sampler, {"loss": {"name": loss}, "posthoc": {"name": posthoc, **keys}})
    check_corrections(made("focal"), sampler, {"loss": {"name": "focal"}, "posthoc": {"name": "none"}})


PLAIN = {"posthoc": {"name": "none"}, "linear_first": False, "head_init": "torch"}


@pytest.mark.parametrize("how", get_args(HeadInit))
@pytest.mark.parametrize("loss", LOSSES)
def test_a_head_that_is_drawn_is_a_linear_one(loss: str, how: HeadInit) -> None:
    """Of every loss: the head that it is made for can be drawn so, or a sentence says that it cannot."""
    criterion, keys = made(loss), {**PLAIN, "loss": {"name": loss}, "head_init": how}
    _, head = (criterion.head or Structure()).layers(4, K)
    if isinstance(head, torch.nn.Linear) or how == "torch":
        check_corrections(criterion, "uniform", keys)
        initialise_head(head, how, 2e-5)  # pyright: ignore[reportArgumentType]
    else:
        said = f"method.head_init: {how} is for a linear head, which method.loss: {loss} has not; give method.head_init: torch"
        with pytest.raises(UserError, match=f"^{said}$"):
            check_corrections(criterion, "uniform", keys)


def test_a_linear_probe_is_no_head_of_cosines() -> None:
    said = "method.linear_first: a linear probe has no head such as method.loss: ldam needs; leave one of both out"
    with pytest.raises(UserError, match=f"^{said}$"):
        check_corrections(made("ldam"), "uniform", {**PLAIN, "loss": {"name": "ldam"}, "linear_first": True})


@pytest.mark.parametrize(
    ("name", "keys", "key"),
    [
        ("focal", {"gamma": -1.0}, "loss.gamma"),
        ("class_balanced", {"beta": 1.0}, "loss.beta"),
        ("logit_adjusted", {"tau": math.inf}, "loss.tau"),
        ("ldam", {"scale": 0.0}, "loss.scale"),
        ("ldam", {"start": 1.5}, "loss.start"),
    ],
)
def test_numbers_out_of_range(name: str, keys: dict[str, float], key: str) -> None:
    with pytest.raises(UserError, match=rf"method\.{key}: "):
        made(name, **keys)
    for kind, tau in (("logit_adjusted", -1.0), ("tau_norm", 1.5)):
        with pytest.raises(UserError, match=r"method\.posthoc\.tau: "):
            POSTHOC[kind](tau=tau)
