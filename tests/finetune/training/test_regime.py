"""Whole fine-tunings with a held-out slice, averages, WiSE-FT and a linear probe first: slow versions, two processes, resumes."""

import copy
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from rootstock.core.evaluate.features import extract
from rootstock.core.evaluate.trained import load_trained
from rootstock.core.images.open import open_images
from rootstock.core.model.norm import PositionBatchNorm
from rootstock.core.run.directory import Run
from rootstock.core.train.loop import Loop
from rootstock.finetune.finetune import FineTune, FineTuning, build_finetuning
from rootstock.launch.explain.training import training_pictures
from rootstock.launch.verbs import execute, fill_defaults
from rootstock.tests.conftest import Forks
from rootstock.tests.cut_off import cut_off_at

STEPS, BATCH, ALPHA, DECAY = 20, 16, 0.7, 0.8
DATA = "sklearn:digits?size=8"
OPTIM = {"name": "sgd", "lr": 0.05, "batch_size": BATCH, "duration": STEPS, "warmup": 2}
VIT = {"patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
EARLY: dict[str, Any] = {
    "data": {"train": f"{DATA}#[:90,seed=1]", "test": f"{DATA}#[90:120,seed=1]", "size": 8, "views": "digits_weak"},
    "backbone": {"name": "vit_tiny_patch16_224", "args": VIT, "pooling": "mean", "drop_path": 0.3},
    "method": {"mixup": 0.8, "cutmix": 1.0, "mix_by": "batch", "ema": {"decay": DECAY, "warmup": True}},
    "optim": {**OPTIM, "lr": 0.5},
    "evaluate": {"held_out": 0.3, "every": 2, "keep": "best", "by": "accuracy", "early_stopping": 3},
    "run": {"log_every": 1, "workers": 0, "checkpoint": {"every": 4}},
}
LATE: dict[str, Any] = {
    **EARLY,
    "backbone": {"name": "smallconv", "args": {"widths": [4, 4, 4, 6]}, "norm": "batch"},
    "method": {"swa": {"start": "50%", "every": 3}, "linear_first": True, "wise_ft": ALPHA, "label_smoothing": 0.1},
    # Clipped, since the probe's head is large on features that BatchNorm normalises otherwise in training.
    "optim": {**OPTIM, "lr": 0.02, "clip": 1.0, "schedule": "constant"},
    "evaluate": {"held_out": 0.3},
    "run": {**EARLY["run"], "log_gradients": True},
}
# Of the same training, the loss chooses a later state than the accuracy.
BY_LOSS: dict[str, Any] = {**EARLY, "evaluate": {**EARLY["evaluate"], "by": "loss", "early_stopping": 2}}
CASES = {"early": EARLY, "by loss": BY_LOSS, "late": LATE}


def run_of(case: str, folder: Path) -> dict[str, Any]:
    config = CASES[case]
    return execute("finetune", {**config, "run": {**config["run"], "dir": str(folder)}}, quiet=True)


def built_again(case: str, folder: Path) -> FineTuning:
    config = fill_defaults("finetune", {**CASES[case], "run": {**CASES[case]["run"], "dir": str(folder)}})
    with Run("finetune", config, quiet=True) as run:
        return build_finetuning(run, **{key: value for key, value in config.items() if key != "run"})


def exported(folder: Path) -> dict[str, Tensor]:
    """The classifier's weights by its own names."""
    backbone, head = (load_file(folder / "classifier" / f"{name}.safetensors") for name in ("backbone", "head"))
    return {**{f"backbone.model.{k}": v for k, v in backbone.items()}, **{f"head.{k}": v for k, v in head.items()}}


class Watched:
    """The states of a training after each step, and timm's average of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states: dict[int, dict[str, Tensor]] = {}
        self.averages: dict[int, dict[str, Tensor]] = {}
        self.start: dict[str, Tensor] = {}
        straight, first = FineTune.after_step, FineTune.forward
        watching: Any = self

        def forward(self: FineTune, batch: Any, progress: float) -> Any:
            if not watching.start:
                watching.start = copy.deepcopy(self.classifier.state_dict())
                watching.timms = ModelEmaV3(self.classifier, decay=DECAY, use_warmup=True)
            return first(self, batch, progress)

        def after_step(self: FineTune, progress: float) -> None:
            straight(self, progress)
            done = round(progress * STEPS) + 1
            watching.timms.update(self.classifier, step=done)
            watching.states[done] = copy.deepcopy(self.classifier.state_dict())
            watching.averages[done] = copy.deepcopy(watching.timms.module.state_dict())

        monkeypatch.setattr(FineTune, "forward", forward)
        monkeypatch.setattr(FineTune, "after_step", after_step)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any], Watched]]:
    """Each case once, in one process: its folder, its result, and what was watched."""
    found = {}
    for case in CASES:
        with pytest.MonkeyPatch.context() as patch:
            watched, folder = Watched(patch), tmp_path_factory.mktemp(case) / "run"
            found[case] = folder, run_of(case, folder), watched
    return found


Straight = dict[str, tuple[Path, dict[str, Any], Watched]]


def close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        wanted = expected[name]
        torch.testing.assert_close(
            tensor, wanted, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("case", ["early", "by loss"])
def test_training_stops_after_so_many_evaluations_and_the_best_average_is_exported(
    case: str, straight: Straight
) -> None:
    """By a plain loop over the slice's accuracies or losses, which are those of timm's ModelEmaV3."""
    folder, result, watched = straight[case]
    by, patience = CASES[case]["evaluate"]["by"], CASES[case]["evaluate"]["early_stopping"]
    built = built_again(case, folder.parent / "again")
    assert built.regime.evaluation is not None
    slice_of, labels = built.regime.evaluation.images, built.regime.evaluation.images.labels
    assert labels is not None
    whole, train = open_images(f"{DATA}#[:90,seed=1]", seed=0), built.regime.train
    assert set(slice_of.keys().tolist()) | set(train.keys().tolist()) == set(whole.keys().tolist())
    # What stands for the training images anywhere is what was trained on.
    assert result["data"]["n"]["train"] == len(train) == len(whole) - len(slice_of)
    assert result["data"]["split"]["train"] == train.split_hash() != whole.split_hash()
    pictured = training_pictures(load_trained(folder), ())
    assert set(pictured.keys().tolist()) == set(train.keys().tolist())
    assert sorted(load_trained(folder).backbone.seen["labelled"].tolist()) == sorted(whole.keys().unique().tolist())
    assert not set(slice_of.keys().tolist()) & set(train.keys().tolist()) and 20 < len(slice_of) < 34
    seen: dict[str, list[float]] = {"accuracy": [], "loss": []}
    best, since, done = 0, 0, 0
    for done in range(2, STEPS + 1, 2):
        built.regime.classifier.load_state_dict(watched.averages[done])
        logits = extract(built.regime.classifier, slice_of, built.view, device="cpu").double()
        seen["accuracy"].append(float((logits.argmax(1) == labels).double().mean()))
        chances = logits.exp() / logits.exp().sum(1, keepdim=True)
        seen["loss"].append(-sum(math.log(row[y]) for row, y in zip(chances, labels, strict=True)) / len(labels))
        values = [-loss for loss in seen["loss"]] if by == "loss" else seen["accuracy"]
        since = 0 if best == 0 or values[-1] > values[best // 2 - 1] else since + 1
        best = done if since == 0 else best
        if since == patience:
            break
    told = result["evaluations"]
    for key, values in seen.items():
        assert [row[key] for row in told["seen"]] == pytest.approx(values, rel=1e-5)
    by_the_other = {
        "accuracy": seen["loss"].index(min(seen["loss"])),
        "loss": seen["accuracy"].index(max(seen["accuracy"])),
    }
    assert best // 2 - 1 != by_the_other[by], "rates at which the two choices are one say nothing"
    assert done == told["stopped_early"] == result["steps"] < STEPS and best == told["kept"] < done
    assert result["selection"] == "train-split" and result["images_seen"] == done * BATCH
    assert max(watched.states) == done
    close(exported(folder), watched.averages[best])
    assert result["held_out"]["images"] == len(slice_of) and result["held_out"]["fraction"] == 0.3
    assert result["held_out"]["per_class"] == labels.bincount().tolist()


def test_equal_average_middle_and_statistics(straight: Straight) -> None:
    """Means of states 10, 13, 16, 19; WiSE-FT between the probe's head and them; statistics by torch's update_bn of the last epoch."""
    folder, result, watched = straight["late"]
    states = [watched.states[done] for done in (10, 13, 16, 19)]
    mean = {name: sum(state[name] for state in states) / len(states) for name in states[0]}
    expected = {name: (1 - ALPHA) * watched.start[name] + ALPHA * mean[name] for name in mean}
    found = exported(folder)
    close(
        {name: tensor for name, tensor in found.items() if "running" not in name and "num_batches" not in name},
        {name: tensor for name, tensor in expected.items() if "running" not in name and "num_batches" not in name},
    )
    built = built_again("late", folder.parent / "again")
    network: Any = built.regime.classifier
    network.load_state_dict(found)
    for layer in network.modules():
        if isinstance(layer, PositionBatchNorm):
            layer.__class__ = nn.BatchNorm2d  # pyright: ignore[reportAttributeAccessIssue]
    per_epoch = built.fed.steps_per_epoch
    batches = [
        built.plan.prepare(micro[0]).images
        for _, micro in zip(range(per_epoch), built.plan.batches(STEPS - per_epoch), strict=False)
    ]
    assert len(batches) == per_epoch == 63 // BATCH
    torch.optim.swa_utils.update_bn(batches, network)
    assert any("running" in name for name in found)
    close(network.state_dict(), found, 1e-4)
    assert result["selection"] == "last" and result["evaluations"]["kept"] == STEPS


def test_the_probes_head_is_the_best_on_frozen_features(straight: Straight) -> None:
    """scikit-learn's objective has no lower value near the head at the start, and the head classifies the training images well."""
    folder, _, watched = straight["late"]
    built = built_again("late", folder.parent / "again2")
    classifier, train = built.regime.classifier, built.regime.train
    backbone = {name: tensor for name, tensor in watched.start.items() if name.startswith("backbone")}
    assert all(torch.equal(tensor, classifier.state_dict()[name]) for name, tensor in backbone.items())
    features = extract(classifier.backbone, train, built.view, device="cpu").double()
    labels = train.labels
    assert labels is not None
    stored = load_file(folder / "checkpoints" / "kept" / "linear_first.safetensors")
    assert torch.equal(stored["weight"], watched.start["head.weight"])
    spread = float((features - features.mean(0)).square().mean().sqrt())

    def objective(weight: Tensor, bias: Tensor, c: float) -> Tensor:
        losses = nn.functional.cross_entropy(features @ weight.T + bias, labels, reduction="sum")
        return c * losses + (weight * spread).square().sum() / 2

    weight, bias = (stored[name].double().requires_grad_() for name in ("weight", "bias"))
    norms = {}
    for c in (1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3):
        gradients = torch.autograd.grad(objective(weight, bias, c), (weight, bias))
        size = sum(g.square().sum() for g in torch.autograd.grad((weight * spread).square().sum() / 2, weight))
        norms[c] = float(torch.cat([g.flatten() for g in gradients]).norm() / torch.as_tensor(size).sqrt())
    assert min(norms.values()) < 1e-2 < sorted(norms.values())[1]


def weights(run: Path) -> list[str]:
    names = ("backbone/backbone", "classifier/head", "classifier/backbone")
    return [hashlib.sha256((run / f"{name}.safetensors").read_bytes()).hexdigest() for name in names]


@pytest.mark.parametrize(("case", "kills"), [("early", (7, 9)), ("by loss", (11, 13)), ("late", (12, 19))])
def test_a_resumed_run_ends_with_the_same_weights(
    case: str, kills: tuple[int, ...], straight: Straight, tmp_path: Path
) -> None:
    for kill in kills:
        with cut_off_at(kill):
            run_of(case, tmp_path / "run")
    again = run_of(case, tmp_path / "run")
    folder, result, _ = straight[case]
    assert weights(tmp_path / "run") == weights(folder)
    for key in ("metrics", "evaluations", "steps", "selection", "held_out"):
        assert again[key] == result[key], key


def test_a_run_that_ends_after_its_early_stop_goes_on_to_the_same_result(
    straight: Straight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*_: Any) -> None:
        raise RuntimeError("before the result")

    with monkeypatch.context() as patch:
        patch.setattr("rootstock.finetune.finetune.score", ends)
        with pytest.raises(RuntimeError):
            run_of("early", tmp_path / "run")
    stepped: Callable[..., Any] = ends
    monkeypatch.setattr(Loop, "step", stepped)  # no step is made any more
    assert run_of("early", tmp_path / "run")["evaluations"] == straight["early"][1]["evaluations"]
    assert weights(tmp_path / "run") == weights(straight["early"][0])


SHORT: dict[str, Any] = {
    **LATE,
    "method": {"linear_first": True},
    "optim": {**OPTIM, "lr": 0.02, "clip": 1.0, "duration": 4, "warmup": 0},
    "evaluate": {},
    "run": EARLY["run"],
}


def short_run(folder: Path, average: dict[str, Any], duration: int = 4) -> dict[str, Tensor]:
    """What is exported, with this average of the weights."""
    config = {**SHORT, "method": {"linear_first": True, **average}, "optim": {**SHORT["optim"], "duration": duration}}
    execute("finetune", {**config, "run": {**config["run"], "dir": str(folder)}}, quiet=True)
    return exported(folder)


def loses(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The loss of these steps, counted from 1, is not a number."""
    forward = FineTune.forward

    def lost(self: FineTune, batch: Any, progress: float) -> Any:
        made = forward(self, batch, progress)
        return made._replace(loss=made.loss * torch.nan) if round(progress * 4) + 1 in steps else made

    monkeypatch.setattr(FineTune, "forward", lost)


@pytest.mark.parametrize("skipped", [False, True])
def test_an_average_begins_with_the_probes_head(skipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a step, and where the first is skipped, no trace of the head that was drawn is left in it."""
    if skipped:
        loses(monkeypatch, 1)
    found = short_run(tmp_path / "run", {"ema": {"decay": 0.999}}, 4 if skipped else 0)
    probe = load_file(tmp_path / "run" / "checkpoints" / "kept" / "linear_first.safetensors")
    for name in ("weight", "bias"):
        torch.testing.assert_close(found[f"head.{name}"], probe[name], rtol=0.0, atol=0.1 if skipped else 0.0)


def test_steps_that_are_skipped_are_no_part_of_an_equal_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    last = short_run(tmp_path / "last", {})
    with monkeypatch.context() as patch:
        loses(patch, 3)
        without = short_run(tmp_path / "without", {})
        capsys.readouterr()
        # The weights after step 4 alone came in, so the average is these.
        found = short_run(tmp_path / "one", {"swa": {"start": 3, "every": 1}})
        assert "nothing came into the average" not in capsys.readouterr().err
        none = short_run(tmp_path / "none", {"swa": {"start": 3, "every": 9}})
        assert "nothing came into the average of the weights" in capsys.readouterr().err
    for name, tensor in without.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(found[name], tensor)
            torch.testing.assert_close(none[name], tensor)
    assert not torch.equal(last["head.weight"], without["head.weight"])


PAIR = """
import json, sys
from rootstock.launch.explain.training import training_pictures
from rootstock.launch.verbs import execute

for config in json.loads(sys.argv[1]):
    execute("finetune", config, quiet=True)
"""


def test_two_processes_end_with_the_weights_of_one(straight: Straight, tmp_path: Path, forks: Forks) -> None:
    (script := tmp_path / "pair.py").write_text(PAIR)
    configs = [{**c, "run": {**c["run"], "dir": str(tmp_path / case)}} for case, c in CASES.items()]
    forks.group(script, json.dumps(configs))
    for case in CASES:
        folder, result, _ = straight[case]
        close(exported(tmp_path / case), exported(folder), 1e-4)
        again = json.loads((tmp_path / case / "result.json").read_text())
        for key in ("steps", "selection", "held_out"):
            assert again[key] == result[key], (case, key)
        assert again["evaluations"]["kept"] == result["evaluations"]["kept"]
        rows = zip(again["evaluations"]["seen"], result["evaluations"]["seen"], strict=True)
        assert all(a == pytest.approx(b, rel=1e-3) for a, b in rows)
        ours, theirs = gradient_rows(tmp_path / case), gradient_rows(folder)
        assert len(ours) == (STEPS if case == "late" else 0)
        assert all(a == pytest.approx(b, rel=1e-3, abs=1e-7) for a, b in zip(ours, theirs, strict=True))


def gradient_rows(folder: Path) -> list[dict[str, float]]:
    """The lengths of gradients by layer that a run logged."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [{key: row[key] for key in row if key.startswith("layer_grad_norm/")} for row in rows]
    return [row for row in found if row]


def test_an_average_is_tested_beside_the_weights_of_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: Straight
) -> None:
    """Where it is exported as it is: not a state of an earlier step, whose own weights are gone, nor the middle of WISE-FT."""
    watched = Watched(monkeypatch)
    config = {**EARLY, "evaluate": {}, "run": {**EARLY["run"], "dir": str(tmp_path / "run")}}
    result = execute("finetune", config, quiet=True)
    classifier, test = load_trained(tmp_path / "run").classifier, open_images(f"{DATA}#[90:120,seed=1]", seed=0)
    view = load_trained(tmp_path / "run").view
    assert classifier is not None and test.labels is not None
    close(exported(tmp_path / "run"), watched.averages[STEPS])
    found = {}
    for protocol, states in (("classifier", watched.averages), ("classifier-raw", watched.states)):
        classifier.load_state_dict(states[STEPS])
        logits = extract(classifier.eval(), test, view, device=torch.device("cpu"))
        found[protocol] = logits
        right = float((logits.argmax(1) == test.labels).double().mean())
        assert result["metrics"][f"test/{protocol}/accuracy"] == pytest.approx(right)
        nll = float(nn.functional.cross_entropy(logits.double(), test.labels))
        assert result["metrics"][f"test/{protocol}/nll"] == pytest.approx(nll, rel=1e-2)
    assert not torch.allclose(found["classifier"], found["classifier-raw"], atol=1e-2)
    for _, other, _ in straight.values():
        assert not any("classifier-raw" in name for name in other["metrics"])
