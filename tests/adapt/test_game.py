"""The health of a game: the ratio of gradients against the chain rule by hand, no trace of it in the training, and when a game is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rootstock.adapt.cdan import CDAN
from rootstock.adapt.dann import DANN
from rootstock.adapt.health import FEWEST_ROWS, health
from rootstock.adapt.mcd import FEATURES, MCD
from rootstock.adapt.parts.game import Game
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.core.train import checkpoint
from rootstock.tests.adapt.test_dann import classifier, pair
from rootstock.tests.adapt.test_examine import start

GAMES = sorted(name for name, kind in ADAPT_METHODS.items() if issubclass(kind, Game) and kind.is_game)


def test_the_games_are_the_adversarial_methods() -> None:
    assert GAMES == ["cdan", "dann", "mcd", "mdd", "osbp"]


def by_hand(method: DANN, reversal: float) -> float:
    """|reversal * d domain / d f| / |d CE / d f| of DANN, each derivative written out for linear layers."""
    batch = pair()
    features = method.classifier.encode(torch.stack([batch.source.images, batch.target.images])).detach().double()
    head = method.classifier.head
    p = (features[0] @ head.weight.double().T + head.bias.double()).softmax(1)
    p[torch.arange(6), batch.source.labels] -= 1.0
    task = (p @ head.weight.double() / 6).detach()  # [6, D]
    leaf = features.flatten(0, 1).requires_grad_()
    guesses: Tensor = leaf
    for layer in method.discriminator.layers:
        is_linear = isinstance(layer, nn.Linear)
        guesses = guesses @ layer.weight.double().T + layer.bias.double() if is_linear else guesses.clamp(min=0.0)
    labels = torch.tensor([1.0] * 6 + [0.0] * 6, dtype=torch.float64)
    pull = (guesses[:, 0].sigmoid() - labels).detach() / 12  # of the mean cross-entropy
    (transfer,) = torch.autograd.grad(guesses[:, 0] @ pull, leaf)
    return reversal * transfer.norm().item() / task.norm().item()


def test_the_ratio_is_that_of_the_gradients_at_the_features() -> None:
    lam = 2.0 / (1.0 + torch.exp(torch.tensor(-5.0)).item()) - 1.0
    method = DANN(classifier(), hidden=5)
    expected = by_hand(method, lam)
    assert expected > 1e-3
    assert float(method.watch(pair(), 0.5)["gradient_ratio"]) == pytest.approx(expected, rel=1e-4)
    method.trade_off = 3.0
    assert float(method.watch(pair(), 0.5)["gradient_ratio"]) == pytest.approx(3.0 * expected, rel=1e-4)
    assert float(method.watch(pair(), 0.0)["gradient_ratio"]) == 0.0  # the reversal weight begins at 0
    for control in (DANN(classifier(), reversal=0.0, hidden=5), CDAN(classifier(), reversal=0.0, hidden=5)):
        assert float(control.watch(pair(), 0.5)["gradient_ratio"]) == 0.0


def test_of_mcds_turns_the_first_of_the_features_has_a_ratio() -> None:
    method = MCD(classifier())
    assert [list(method.watch(pair(), 0.5, turn)) for turn in range(method.turns)] == [
        ["gradient_ratio"] if turn == FEATURES else [] for turn in range(method.turns)
    ]
    assert float(method.watch(pair(), 0.5, FEATURES)["gradient_ratio"]) > 0.0


@pytest.mark.parametrize("name", ["dann", "mcd", "osbp"])
def test_watching_leaves_no_trace(name: str, tmp_path: Path) -> None:
    """The same weights, buffers (also frequencies of classes) and moments, whether each step is watched or the last one alone."""
    more: dict[str, Any] = {"method": {"name": name, "bottleneck": 8}}
    if name == "dann":
        more["method"] |= {"hidden": 8, "discriminator_norm": True}
        more["label_shift"] = {"resample": "pseudo-labels", "resamples": 0}
    ends = []
    for log_every in (1, 100):
        where = tmp_path / str(log_every)
        run = {"workers": 0, "device": "cpu", "log_every": log_every, "checkpoint": {"every": 6}}
        start(where, None, run={"dir": str(where / "run"), **run}, **more)
        saved = checkpoint.agreed(where / "run" / "checkpoints", print, torch.device("cpu"))
        assert saved is not None
        ends.append((saved.model, saved.optimizer))
        rows = [json.loads(line) for line in (where / "run" / "metrics.jsonl").read_text().splitlines()]
        ratios = [row[key] for row in rows for key in ("gradient_ratio", "turn2/gradient_ratio") if key in row]
        assert len(ratios) == (6 if log_every == 1 else 1) and ratios[-1] > 0.0
    for one, other in zip(*map(flat, ends), strict=True):
        assert torch.equal(one, other)


def flat(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, dict | tuple):
        for part in found.values() if isinstance(found, dict) else found:
            yield from flat(part)


def rows(**metrics: Any) -> list[dict[str, float]]:
    """Logged rows; each metric is a number, or the list of its values."""
    count = max((len(value) for value in metrics.values() if isinstance(value, list)), default=16)
    lines = {name: value if isinstance(value, list) else [value] * count for name, value in metrics.items()}
    return [{"step": k, "loss": 1.0, **{name: line[k] for name, line in lines.items()}} for k in range(count)]


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"domain_accuracy": [0.6, 0.8, *[0.99] * 14], "gradient_ratio": 0.1}, "the discriminator won"),
        ({"domain_accuracy": 0.5, "gradient_ratio": 0.1}, "at chance from the start"),
        (
            {"domain_accuracy": [0.8] * 8 + [0.52] * 8, "gradient_ratio": 0.1},
            "",
        ),  # won by the features: as it should end
        ({"domain_accuracy": [0.9] * 8 + [0.7] * 8, "gradient_ratio": 0.1}, ""),
        ({"domain_accuracy": 0.99, "gradient_ratio": 0.0}, ""),  # the control, whose discriminator only watches
        ({"domain_accuracy": [0.99] * (FEWEST_ROWS - 1), "gradient_ratio": 0.1}, ""),  # too few rows
        ({"turn1/agreement": 1.0, "turn2/gradient_ratio": 0.1}, "both heads agreed"),
        ({"turn1/agreement": [0.9] * 8 + [1.0] * 8, "turn2/gradient_ratio": 0.1}, ""),
        ({"unknown_target": [0.1] * 8 + [1.0] * 8, "gradient_ratio": 0.1}, "called unknown"),
        ({"confident": 0.0}, "hardly any target image"),
        ({"confident": [0.0] * 12 + [0.3] * 4}, ""),
        ({"transfer_loss": 0.0}, ""),
    ],
)
def test_a_lost_game_is_a_sentence(metrics: dict[str, Any], words: str) -> None:
    lost = health(rows(**metrics))["lost"]
    assert lost is None if not words else words in (lost or "")


def test_the_quarters_are_means_and_other_rows_do_not_count() -> None:
    values = [0.1, 0.3, *[0.5] * 4, 0.8, 0.6]
    found = health([*rows(domain_accuracy=values), {"step": 8, "candidate/im": 1.0}, {"step": 8, "warning": "!"}])
    assert found["rows"] == 8 and found["first"] == {"domain_accuracy": pytest.approx(0.2)}
    assert found["last"] == {"domain_accuracy": pytest.approx(0.7)}
    assert health([]) == {"rows": 0, "first": {}, "last": {}, "lost": None}
