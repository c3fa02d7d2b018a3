"""MCD against loops, and who moves in which turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from rootstock.adapt.mcd import MCD, discrepancy
from rootstock.core import stage
from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.evaluate.predictions import read_predictions
from rootstock.core.method import Domains, Labelled, Unlabelled
from rootstock.launch.verbs import execute
from rootstock.tests.adapt.one_update import PEERS, Drawn, Given, drawn, gradient_norms
from rootstock.tests.adapt.test_dann import classifier, pair


def players(method: MCD) -> dict[str, nn.Module]:
    return {"features": method.backbone, "first": method.classifier.head, "second": method.second}


def moved(method: MCD, turn: int, **given: Any) -> dict[str, bool]:
    """Which players one turn of plain gradient descent moves, weight decay included."""
    before = {name: [p.clone() for p in player.parameters()] for name, player in players(method).items()}
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, weight_decay=0.1)
    method(pair(**given), 0.5, turn).loss.backward()
    for parameter in method.frozen(0.5, turn):
        parameter.grad = None
    optimizer.step()
    return {
        name: not all(torch.equal(a, b) for a, b in zip(before[name], player.parameters(), strict=True))
        for name, player in players(method).items()
    }


def test_the_discrepancy_is_the_mean_over_images_and_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64) * 3
    slow = 0.0
    for n in range(5):
        powers = [[z.exp().item() for z in logits[n]] for logits in (first, second)]
        one, two = ([power / sum(row) for power in row] for row in powers)
        slow += sum(abs(a - b) for a, b in zip(one, two, strict=True)) / 4
    assert discrepancy(first, second).item() == pytest.approx(slow / 5)
    assert discrepancy(first, second + 7.0).item() == pytest.approx(slow / 5)  # of probabilities, not of logits
    certain = torch.eye(4, dtype=torch.float64)[:2] * 1e3
    assert discrepancy(certain[:1], certain[1:]).item() == pytest.approx(2 / 4)  # the most there is: 2 / K


def test_each_turn_has_its_loss() -> None:
    method, batch = MCD(classifier(), trade_off=0.7, label_smoothing=0.1), pair()
    features = method.backbone(torch.cat([batch.source.images, batch.target.images])).double()
    known, logits = 0.0, []
    for head in (method.classifier.head, method.second):
        found = (features @ head.weight.double().T + head.bias.double()).log_softmax(1)
        logits.append(found)
        for n, label in enumerate(batch.source.labels.tolist()):
            known -= 0.9 * found[n, label].item() / 6 + 0.1 * found[n].mean().item() / 6
    apart = sum((logits[0][n].exp() - logits[1][n].exp()).abs().mean().item() / 6 for n in range(6, 12))
    assert method.turns == 6
    losses = [method(batch, 0.5, turn).loss.item() for turn in range(method.turns)]
    assert losses == pytest.approx([known, known - 0.7 * apart, *[0.7 * apart] * 4], rel=1e-5)


def test_who_moves_in_which_turn() -> None:
    method = MCD(classifier(), generator_steps=2)
    assert [moved(method, turn) for turn in range(method.turns)] == [
        {"features": True, "first": True, "second": True},
        {"features": False, "first": True, "second": True},
        {"features": True, "first": False, "second": False},
        {"features": True, "first": False, "second": False},
    ]


def test_the_control_trains_on_the_source_alone() -> None:
    """The heads' turn has no gradient of the target, and in the features' turns nobody moves, not even by weight decay."""
    control = MCD(classifier(), trade_off=0.0)
    still = dict.fromkeys(players(control), False)
    assert moved(control, 1) == still | {"first": True, "second": True} and moved(control, 2) == still
    here, there = (control.eval()(Domains.of(pair().source, pair(shift=shift).target), 0.5, 1) for shift in (0.0, 3.0))
    assert here.loss.item() == there.loss.item() and here.metrics["discrepancy"] != there.metrics["discrepancy"]


def test_the_heads_pull_apart_and_the_features_together() -> None:
    """A small step of each player against its own turn's loss moves the discrepancy the right way."""
    batch = pair()

    def after(turn: int) -> Tensor:
        method = MCD(classifier(), trade_off=50.0).eval()
        before = method(batch, 0.5, turn)
        before.loss.backward()
        for parameter in method.frozen(0.5, turn):
            parameter.grad = None
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-4 * parameter.grad
        return method(batch, 0.5, turn).metrics["discrepancy"] - before.metrics["discrepancy"]

    assert after(1) > 0 and after(2) < 0


def test_heads_that_start_equal_would_never_part() -> None:
    """Why the second head is drawn anew: equal heads have no discrepancy, and no gradient of it."""
    method = MCD(classifier())
    assert not torch.allclose(method.second.weight, method.classifier.head.weight, atol=1e-2)
    assert method(pair(), 0.5, 2).metrics["discrepancy"] > 0.01
    method.second.load_state_dict(method.classifier.head.state_dict())
    step = method(pair(), 0.5, 2)
    assert step.loss.item() == 0.0
    assert all(not g.any() for g in torch.autograd.grad(step.loss, list(method.backbone.parameters())))


def test_the_number_of_updates_is_bounded() -> None:
    with pytest.raises(UserError, match=r"method\.generator_steps: expected 1 to 16, got 0; 4 is usual"):
        MCD(classifier(), generator_steps=0)


def on_drawn(trade_off: float) -> tuple[Any, Drawn]:
    """The method whose heads give the drawn logits and those of the adversary."""
    method: Any = MCD(classifier(), trade_off=trade_off)
    found = drawn()
    method.classifier.encode = lambda *_: found.features
    method.classifier.head, method.second = Given(found.logits), Given(found.adversary)
    return method, found


def test_it_is_the_peers_value() -> None:
    """The authors' af10217 Solver.discrepancy and tllib c4aa59e classifier_discrepancy; then the loss of the heads' turn."""
    method, found = on_drawn(1.0)
    images = torch.zeros(12, 3, 8, 8)
    batch = Domains.of(
        Labelled(images, found.labels, Draws(0, torch.arange(12))), Unlabelled(images, Draws(0, torch.arange(12)))
    )
    apart = discrepancy(found.logits[1], found.adversary[1])
    norms = gradient_norms(apart, found.logits, found.adversary)
    assert [apart.item(), *norms] == pytest.approx([0.245265440208, 0.019231108855, 0.017324652024], rel=PEERS)
    turn = method(batch, 0.5, 1).loss
    norms = gradient_norms(turn, found.logits, found.adversary)
    assert [turn.item(), *norms] == pytest.approx([5.322863596344, 0.326670014616, 0.257354570436], rel=PEERS)
    # tllib's for Office-31: ten times the discrepancy, and a term that balances classes.
    method, found = on_drawn(10.0)
    balance = sum(-(z[1].softmax(1).mean(0) + 1e-6).log().mean() for z in (found.logits, found.adversary))
    turn = method(batch, 0.5, 1).loss + 0.01 * balance
    norms = gradient_norms(turn, found.logits, found.adversary)
    assert [turn.item(), *norms] == pytest.approx([3.151577107251, 0.378400510168, 0.309789842514], rel=PEERS)


def test_what_is_exported_is_the_first_head_and_never_the_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first head of zeros is exported and tested as it is, beside a second one that has learned."""
    trained: list[MCD] = []
    original = stage.fit

    def worse(method: Any, *arguments: Any, **options: Any) -> None:
        original(method, *arguments, **options)
        with torch.no_grad():
            for parameter in method.classifier.head.parameters():
                parameter.zero_()
        trained.append(method)

    monkeypatch.setattr(stage, "fit", worse)
    digits = "sklearn:digits?size=16"
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "data": {"source": f"{digits}#[:60]", "target": f"{digits}#[60:110]", "size": 16, "views": "digits"},
                "backbone": {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}},
                "method": {"name": "mcd", "generator_steps": 1},
                "optim": {"name": "sgd", "lr": 0.1, "batch_size": 8, "duration": 2},
                "evaluate": None,
                "label_shift": {"resamples": 0},
                "run": {"workers": 0, "device": "cpu"},
            }
        )
    )
    result = execute("adapt", str(tmp_path / "config.yaml"), [f"run.dir={tmp_path / 'run'}"], quiet=True)
    (method,) = trained
    assert bool(method.second.weight.any())
    exported = load_file(tmp_path / "run" / "classifier" / "head.safetensors")
    assert not any(value.any() for name, value in exported.items() if "norm" not in name), exported.keys()
    assert not any("second" in name for name in exported)
    # A head of zeros predicts the first class for all, and that is what the test says.
    kept = read_predictions(tmp_path / "run")
    assert kept is not None
    share = float((kept.tests["target"].labels == 0).mean())
    assert 0.0 < share < 0.5 and result["metrics"]["target/classifier/accuracy"] == pytest.approx(share)
    assert [name for name in result["metrics"] if name.endswith("/accuracy") and "target" in name] == [
        "target/classifier/accuracy"
    ]
