"""The attentive probe against loops over images, heads, queries and tokens, and properties of its training."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn.functional import cross_entropy

from rootstock.core import hostmemory
from rootstock.core.errors import UserError
from rootstock.core.evaluate.frozen import features_of
from rootstock.core.evaluate.held_out import held_out_rows
from rootstock.core.evaluate.predictions import read_predictions
from rootstock.core.evaluate.taps import Taps
from rootstock.core.images.open import Images, open_images
from rootstock.core.model.backbone import Backbone, create
from rootstock.core.stream.order import straddling
from rootstock.core.views.view import Evaluation
from rootstock.finetune.protocols.attentive import (
    SCALE_FLOOR,
    Attentive,
    FittedProbes,
    _moments,
    _train,
    fit_choosing,
)
from rootstock.finetune.protocols.attentive_probe import Probe, probe_logits
from rootstock.finetune.protocols.contract import Counts
from rootstock.launch.verbs import execute

CPU = torch.device("cpu")
SCORES = ("accuracy", "precision", "recall", "f1")


def fitted(x: Tensor, y: Tensor, num_classes: int, training: Attentive, seed: int) -> FittedProbes:
    """Each image has an identity of its own."""
    return fit_choosing(x, y, torch.arange(len(y)), num_classes, training, seed)


WIDTH, LENGTH = 12, 9


def filled(heads: int, queries: int, seed: int, num_classes: int = 3) -> Probe:
    """A probe in float64 whose parameters are all nonzero."""
    probe = Probe(WIDTH, num_classes, heads, queries, seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return probe


def slow_logits(probe: Probe, tokens: Tensor) -> list[float]:
    """One image, [L, D]: keys and values of every token, number by number."""
    heads, queries, each = probe.query.shape
    gathered: list[float] = []
    for h in range(heads):
        keys = [[float(probe.key[h, e] @ token) for e in range(each)] for token in tokens]
        values = [[float(probe.value[h, e] @ token) for e in range(each)] for token in tokens]
        answers = []
        for q in range(queries):
            scores = [sum(float(probe.query[h, q, e]) * k[e] for e in range(each)) / math.sqrt(each) for k in keys]
            total = sum(math.exp(s) for s in scores)
            answers.append(
                [sum(math.exp(s) / total * v[e] for s, v in zip(scores, values, strict=True)) for e in range(each)]
            )
        gathered += [sum(answer[e] for answer in answers) / queries for e in range(each)]
    mean = sum(gathered) / len(gathered)
    deviation = math.sqrt(sum((g - mean) ** 2 for g in gathered) / len(gathered) + 1e-5)
    normal = [(g - mean) / deviation for g in gathered]
    return [
        sum(float(w) * g for w, g in zip(row, normal, strict=True)) + float(bias)
        for row, bias in zip(probe.weight, probe.bias, strict=True)
    ]


@torch.no_grad()
@pytest.mark.parametrize(("heads", "queries"), [(1, 1), (3, 1), (4, 2), (2, 5)])
def test_logits_of_several_candidates_against_loops(heads: int, queries: int) -> None:
    probes = [filled(heads, queries, seed) for seed in (1, 2)]
    x = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = probe_logits(probes, x)
    assert found.shape == (2, 3, 3)
    expected = torch.tensor([[slow_logits(probe, image) for image in x] for probe in probes], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_order_of_tokens_does_not_matter() -> None:
    probe, x = filled(3, 2, 1), torch.randn(4, LENGTH, WIDTH, dtype=torch.float64)
    shuffled = x[:, torch.randperm(LENGTH, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(probe_logits([probe], shuffled), probe_logits([probe], x))
    changed = x.clone()
    changed[:, 3] += 1
    assert not torch.allclose(probe_logits([probe], changed), probe_logits([probe], x))


@torch.no_grad()
def test_it_starts_near_the_mean_of_tokens_and_says_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(4, 1, WIDTH, generator=generator) + torch.randn(4, LENGTH, WIDTH, generator=generator)
    probe = Probe(WIDTH, 3, 4, 1, seed=0)
    assert not probe_logits([probe], x).any()
    probe.weight.normal_(generator=generator)
    torch.testing.assert_close(
        probe_logits([probe], x), probe_logits([probe], x.mean(1, keepdim=True)), atol=0.05, rtol=0
    )
    assert not torch.allclose(probe_logits([probe], x), probe_logits([probe], x[:, :1]), atol=0.5)
    again, other = Probe(WIDTH, 3, 4, 1, seed=0), Probe(WIDTH, 3, 4, 1, seed=1)
    assert torch.equal(again.key, probe.key) and not torch.equal(other.key, probe.key)
    assert not torch.equal(probe.key, probe.value)


def needles(n: int, seed: int, length: int = 16, width: int = 16) -> tuple[Tensor, Tensor]:
    """Each token carries the code of a random class. One token, at a random place, also carries a mark; its class is the label."""
    fixed = torch.Generator().manual_seed(9)
    codes, mark = torch.randn(4, width, generator=fixed), torch.randn(width, generator=fixed)
    generator = torch.Generator().manual_seed(seed)
    y, at = torch.randint(4, (n,), generator=generator), torch.randint(length, (n,), generator=generator)
    classes = torch.randint(4, (n, length), generator=generator)
    classes[torch.arange(n), at] = y
    x = codes[classes] + 0.3 * torch.randn(n, length, width, generator=generator)
    x[torch.arange(n), at] += mark
    return x, y


def test_it_finds_a_label_that_the_mean_of_tokens_hides() -> None:
    x, y = needles(300, seed=0)
    test_x, test_y = needles(200, seed=1)
    training = Attentive(epochs=25, lr=(1e-5, 1e-2), batch_size=64)
    model = fitted(x.half(), y, 4, training, seed=0)
    assert model.selected and model.grid == [(1e-2, 0.1)]  # with 1e-5 nothing is learned
    assert float((model.predict(test_x.half()) == test_y).float().mean()) > 0.95
    pooled = fitted(x.mean(1, keepdim=True), y, 4, training, seed=0)
    assert float((pooled.predict(test_x.mean(1, keepdim=True)) == test_y).float().mean()) < 0.6


def trained(x: Tensor, y: Tensor, grid: Sequence[float], seed: int = 0) -> Any:
    return fitted(x, y, 4, Attentive(epochs=2, lr=tuple(grid), batch_size=16), seed=seed)


def test_the_same_seed_trains_the_same_probe() -> None:
    x, y = needles(60, seed=0)
    torch.manual_seed(1)
    first = trained(x, y, [1e-3, 1e-2])
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again, other = trained(x, y, [1e-2, 1e-3, 1e-3]), trained(x, y, [1e-3, 1e-2], seed=5)
    assert torch.equal(first.logits(x), again.logits(x)) and first.grid == again.grid
    assert not torch.equal(first.logits(x), other.logits(x))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # torch's own generator was not used


def test_a_candidate_is_trained_as_if_it_were_alone() -> None:
    x, y = needles(60, seed=0)
    rows, grid, training = (
        torch.arange(5, 55),
        [(1e-3, 0.0), (1e-2, 0.0), (1e-2, 20.0)],
        Attentive(epochs=2, batch_size=16),
    )
    together = _train(x, y, rows, 4, training, grid, 0, CPU).logits(x)
    alone = [_train(x, y, rows, 4, training, [candidate], 0, CPU).logits(x)[0] for candidate in grid]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(together[1], together[2], atol=1e-2) and not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("kind", ["clear", "noisy"])
def test_the_choice_is_the_best_on_the_held_out_slice(kind: str) -> None:
    """Against a loop over candidates. Clear data: all are right everywhere, so the loss decides. Noisy data: memorising is worst."""
    generator = torch.Generator().manual_seed({"clear": 1, "noisy": 0}[kind])
    y = torch.randint(4, (100,), generator=generator)
    x = torch.randn(100, 2, 16, generator=generator)
    x[:, :, :4] += {"clear": 9.0, "noisy": 0.9}[kind] * torch.eye(4)[y][:, None]
    held_out = held_out_rows(torch.arange(len(y)), y, seed=0)
    training = Attentive(epochs=20, lr=(1e-3, 1e-2, 1e-1), batch_size=16)
    scores = []
    for lr, _ in training.grid:
        alone = fitted(x[~held_out], y[~held_out], 4, replace(training, lr=lr), 0)
        found = alone.logits(x[held_out])[0].double()
        loss = -sum(float(row.log_softmax(0)[c]) for row, c in zip(found, y[held_out], strict=True)) / len(found)
        scores.append((int((found.argmax(1) == y[held_out]).sum()), -loss))
    assert len({right for right, _ in scores}) == (1 if kind == "clear" else 3)
    best = training.grid[scores.index(max(scores))]
    assert best[0] == (1e-1 if kind == "clear" else 1e-2)
    chosen = fitted(x, y, 4, training, 0)
    assert chosen.grid == [best] and chosen.selected
    again = fitted(x, y, 4, replace(training, lr=best[0]), 0)
    torch.testing.assert_close(chosen.logits(x), again.logits(x))


def test_training_is_adamw_with_a_cosine() -> None:
    x, y = needles(40, seed=0)
    rows, training = torch.arange(3, 40), Attentive(epochs=3, batch_size=16)
    fitted = _train(x, y, rows, 4, training, [(1e-2, 2.0)], 7, CPU)
    known = x[rows].flatten(0, 1)
    standard = (x - known.mean(0)) / known.std(0, correction=0)
    probe = Probe(16, 4, 8, 1, seed=7)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in probe.named_parameters()}
    steps = math.ceil(3 * 37 / 16)
    for step, places in enumerate(straddling(7, "attentive", 37, 16, steps)):
        lr = 1e-2 * (1 + math.cos(math.pi * step / steps)) / 2
        loss = cross_entropy(probe_logits([probe], standard[rows[places]])[0], y[rows[places]])
        names, parameters = zip(*probe.named_parameters(), strict=True)
        for name, p, g in zip(names, parameters, torch.autograd.grad(loss, parameters), strict=True):
            first, second = moments[name]
            first.mul_(0.9).add_(0.1 * g)
            second.mul_(0.999).add_(0.001 * g**2)
            with torch.no_grad():
                p *= 1 - lr * (2.0 if name in ("key", "value", "weight") else 0.0)
                p -= lr * (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    for name, p in probe.named_parameters():
        torch.testing.assert_close(fitted.probes[0].get_parameter(name), p, rtol=1e-3, atol=1e-4, msg=name)


def test_a_diverged_candidate_is_not_chosen() -> None:
    x, y = needles(60, seed=0)
    found = trained(x, y, [1e-3, 1e30])
    assert found.grid == [(1e-3, 0.1)] and [row.get("diverged", False) for row in found.tried] == [False, True]


@pytest.mark.parametrize("rates", [[1e30], [1e12], [1e29, 1e30]])
def test_a_training_that_diverged_names_its_rate(rates: list[float]) -> None:
    x, y = needles(60, seed=0)
    with pytest.raises(
        UserError, match=rf"attentive: the training diverged at lr = {re.escape(f'{rates[0]:g}')} and weight_decay"
    ):
        trained(x, y, rates)


def test_every_image_is_seen_once_an_epoch() -> None:
    batches = list(straddling(3, "attentive", 10, 4, 5))
    assert all(len(batch) == 4 for batch in batches)
    epochs = torch.cat(batches).view(2, 10)
    assert [sorted(epoch) for epoch in epochs.tolist()] == [list(range(10))] * 2
    assert not torch.equal(epochs[0], epochs[1])


def test_tokens_are_standardised_by_the_rows_trained_on() -> None:
    x = 5 + torch.tensor([1.0, 100.0, 1e-6, 0.0]) * torch.randn(20, 3, 4, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([1, 4, 7, 19])
    mean, scale = _moments(x, rows, CPU)
    known = x[rows].double().flatten(0, 1)
    torch.testing.assert_close(mean, known.mean(0).float())
    deviation = ((known - known.mean(0)) ** 2).mean(0).sqrt()
    least = SCALE_FLOOR * float((deviation**2).mean().sqrt())
    torch.testing.assert_close(scale, deviation.clamp(min=least).float())
    assert float(scale[2]) == float(scale[3]) == pytest.approx(least)  # nearly dead and dead channels are not amplified
    assert _moments(torch.ones(2, 3, 4), torch.arange(2), CPU)[1].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, r"evaluate\.attentive\.epochs: expected 1 to 10,000,000, got 0"),
        ({"heads": 0}, r"attentive\.heads: expected 1 to"),
        ({"queries": -1}, r"attentive\.queries"),
        ({"batch_size": 0}, r"attentive\.batch_size"),
        ({"epochs": 10**12}, r"attentive\.epochs: expected 1 to 10,000,000"),
        ({"lr": 1e300}, r"attentive\.lr: expected one or more finite numbers above 0, at most 1e\+30"),
        ({"lr": ()}, r"attentive\.lr: expected one or more finite numbers above 0, at most 1e\+30, got \[\]"),
        ({"lr": (1e-3, 0.0)}, r"attentive\.lr"),
        ({"lr": math.inf}, r"attentive\.lr"),
        ({"weight_decay": -0.1}, r"attentive\.weight_decay: expected .* of 0 or more"),
    ],
)
def test_bad_values_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Attentive(**options)


def test_what_cannot_be_trained_is_named() -> None:
    x, y = needles(20, seed=0)
    with pytest.raises(UserError, match=r"heads: 3 do not divide the 16 numbers of a token; .* 1, 2, 4, 8, 16$"):
        fitted(x, y, 4, Attentive(heads=3), 0)
    with pytest.raises(UserError, match="no class has two different training images"):
        fitted(x[:1], y[:1], 4, Attentive(), 0)
    with pytest.raises(UserError, match=r"training images of classes 0\.\.1"):
        fitted(x, y, 2, Attentive(), 0)
    with pytest.raises(ValueError, match=r"\[N, L, D\]"):
        fitted(x[:, 0], y, 4, Attentive(), 0)
    assert [Attentive().heads_of(width) for width in (768, 1764, 3, 20)] == [8, 4, 1, 4]


def digits() -> Images:
    return open_images("sklearn:digits?size=16#[:5%,seed=0]")


def test_training_leaves_no_trace_in_the_features() -> None:
    model, images = create(16, name="smallconv").train(), digits()
    view = Evaluation(16, crop=1.0, mean=model.mean, std=model.std)
    tokens = features_of(Taps(model, ["tokens"]), images, view, device=CPU)["tokens"]
    assert tokens.shape == (len(images), 4, 128) and tokens.dtype == torch.float16
    before = tokens.clone()
    fitted(tokens, cast(Tensor, images.labels), 10, Attentive(epochs=1, lr=1e-3), 0)
    assert torch.equal(tokens, before) and all(p.grad is None for p in model.parameters())


def test_a_probe_beyond_half_of_the_memory_is_refused_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts(torch.arange(4) // 2, torch.arange(4), ("a", "b"), {"tokens": (4, 128)})
    need = Attentive().bytes(128, 2)
    monkeypatch.setattr(hostmemory, "available", lambda: 2 * need)
    Attentive().requires("attentive", counts)
    monkeypatch.setattr(hostmemory, "available", lambda: 2 * need - 1)
    with pytest.raises(
        UserError, match=r"evaluate\.attentive: 5 candidates take .* MB, more than half of the .* give fewer"
    ):
        Attentive().requires("attentive", counts)
    monkeypatch.setattr(hostmemory, "available", lambda: None)  # where it is unknown, nothing is refused
    Attentive().requires("attentive", counts)
    with pytest.raises(UserError, match="heads: 3 do not divide the 128 numbers"):
        Attentive(heads=3).requires("attentive", counts)


def probe(folder: Path, **evaluate: Any) -> dict[str, Any]:
    folder.mkdir()
    config = {
        "data": {
            "train": "sklearn:digits?size=16#[:10%,seed=0]",
            "test": "sklearn:digits?size=16#[95%:,seed=0]",
            "size": 16,
        },
        "backbone": {"name": "smallconv"},
        "evaluate": evaluate,
        "run": {"dir": str(folder / "run"), "device": "cpu", "workers": 0},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return execute("probe", str(folder / "config.yaml"), quiet=True)


def test_the_recipe_extracts_tokens_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = probe(tmp_path / "asked", linear={"C": [1.0]}, attentive={"epochs": 8, "lr": [1e-3, 1e-2]})
    names = [name.split("/") for name in asked["metrics"]]
    assert {tuple(name[:2]) for name in names} == {("test", "linear"), ("test", "attentive")}
    # A temperature is fitted on the slice on which the rates were chosen; a single C leaves nothing to choose.
    assert {name[2] for name in names if name[1] == "attentive"} == {name[2] for name in names if name[1] == "linear"} | {
        "nll_scaled", "ece_scaled"
    }  # fmt: skip
    assert asked["metrics"]["test/attentive/accuracy"] > 0.7
    assert asked["details"]["test/attentive"].keys() == asked["details"]["test/linear"].keys() | {"temperature"}
    assert {"test/linear/accuracy", "test/attentive/accuracy"} <= asked["intervals"].keys()
    kept = read_predictions(tmp_path / "asked" / "run")
    assert kept is not None and set(kept.scores) == {"test/linear", "test/attentive"}
    assert asked["chosen"].keys() == {"attentive/lr", "attentive/weight_decay"}
    assert asked["selection"] == "train-split"
    monkeypatch.setattr(Backbone, "tokens", None)
    plain = probe(tmp_path / "plain", linear={"C": [1.0]})
    assert plain["metrics"].items() <= asked["metrics"].items()
    with pytest.raises(UserError, match=r"evaluate\.attentive\.heads: expected 1 to 10,000,000, got 0"):
        probe(tmp_path / "heads", attentive={"heads": 0})
    with pytest.raises(UserError, match=r"evaluate\.attentive\.lr: expected .* a list"):
        probe(tmp_path / "text", attentive={"lr": "fast"})
