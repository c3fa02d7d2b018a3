"""The forms that rootstock compress tries: which one is taken, how a pruned one recovers, and which networks keep their channels."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rootstock.core.errors import UserError
from rootstock.core.evaluate.trained import TrainedRun, load_trained
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.heads import Structure
from rootstock.core.model.macs import macs_of
from rootstock.finetune.compress import channels
from rootstock.launch.compress import compress as compressing
from rootstock.launch.compress.budget import Budget, EdgeCost
from rootstock.launch.compress.compress import Demand, check_recovery, compress_run
from rootstock.launch.compress.forms import pruned_draft, recovery
from rootstock.launch.verbs import execute, resolve
from rootstock.tests.launch.compress.conftest import CLASSIFIER, DIGITS16, TEST, TRAIN

pytest.importorskip("onnxruntime")
pytest.importorskip("torch_pruning")


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_network_that_cannot_be_pruned_is_not_one_that_is_pruned_too_little(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of ConvNeXt V2, of which no channel can go by itself."""
    monkeypatch.setattr(channels, "_coupled", lambda *_: None)
    monkeypatch.setattr(channels, "_has_free_heads", lambda _: False)
    monkeypatch.setattr(compressing, "cost_of_network", lambda *_: EdgeCost(1.0, 1.5, 200_000))
    with pytest.raises(UserError) as refused:
        compress_run(trained, tmp_path / "to", Demand(Budget(None, 100), (), (), 1, True, ()))
    said = str(refused.value)
    assert said.startswith(
        "--latency, --size: nothing fits 0.0001 MB; no layer of smallconv can be pruned by itself, since its channels are normalised or "
        "divided together, and of all forms that can be made, the nearest one has all channels, 32 bits: "
    )
    assert said.endswith(f" MB. Allow that, or teach a smaller network: rootstock distill {trained} --student NAME")


def test_a_run_that_was_trained_anew_is_another_network(trained: Path, tmp_path: Path) -> None:
    """Its path and what is asked are the same, so its weights have to tell."""
    run, to = tmp_path / "run", tmp_path / "to"
    shutil.copytree(trained, run)
    demand = Demand(Budget(None, 10_000_000), (), (), 1, False, ())
    assert compress_run(run, to, demand) == compress_run(run, to, demand) == 0
    anew = load_trained(run)
    assert anew.classifier is not None
    with torch.no_grad():
        anew.classifier.head.bias += 1.0
    anew.classifier.export(run)
    (run / "MANIFEST.json").unlink()
    before = (to / "compress.json").read_bytes()
    with pytest.raises(UserError) as refused:
        compress_run(run, to, demand)
    assert str(refused.value) == (
        f"--to: {to} holds forms of another network: {run} has been trained anew since; name a new folder, or delete this one"
    )
    assert (to / "compress.json").read_bytes() == before


def test_a_budget_that_32_bits_alone_meet(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where 8 bits are slower, the search takes 32, and what is nearest to a budget is said of both."""

    def cost(network: TrainedRun, shown: Any, calibration: Any, *_: Any) -> EdgeCost:
        whole = macs_of(network.backbone.model, network.backbone.channels, network.backbone.size)
        return EdgeCost(whole * (1.0 if calibration is None else 4.0), 1.0, 1000)

    monkeypatch.setattr(compressing, "cost_of_network", cost)
    monkeypatch.setattr(compressing, "SHARES_TRIED", (0.8, 0.5))
    monkeypatch.setattr(compressing, "execute", stop)
    whole = cost(load_trained(trained), None, None).ms
    with pytest.raises(KeyboardInterrupt):
        compress_run(trained, tmp_path / "to", Demand(Budget(0.6 * whole, None), (), (), 1, True, ()))
    found = json.loads((tmp_path / "to" / "compress.json").read_text())
    assert (found["chosen"]["share"], found["chosen"]["int8"]) == (0.5, False)
    with pytest.raises(UserError) as refused:
        compress_run(trained, tmp_path / "none", Demand(Budget(0.1 * whole, None), (), (), 1, True, ()))
    stays = found["chosen"]["stays"]
    assert (
        f" ms a picture with 5% of the time to spare; of all forms that can be made, the nearest one has {stays:.1%} of the multiply-adds, "
        "32 bits: " in str(refused.value)
    )


def test_the_recovery_is_the_runs_own_training(trained: Path, tmp_path: Path) -> None:
    """Every key of it, but those that say how its network began, what rests, and where it is."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    given = {
        **CLASSIFIER,
        "optim": {**CLASSIFIER["optim"], "layer_decay": 0.7, "backbone_lr": 0.2, "weight_decay": 0.03},
        "backbone": {
            "weights": "runs/first",
            "drop_path": 0.1,
            "norm": "local",
            "freeze": "stem",
            "mean": [0.1, 0.2, 0.3],
        },
        "method": {
            "l2_sp": {"alpha": 0.2},
            "label_smoothing": 0.1,
            "dropout": 0.3,
            "linear_first": True,
            "prune": {"macs": 0.7, "multiple": 2, "importance": "taylor"},
            "keep_head": True,
        },
        "evaluate": {"held_out": 0.1},
        "seed": 5,
        "run": {**CLASSIFIER["run"], "dir": str(run)},
    }
    own = resolve("finetune", given)
    (run / "config.yaml").write_text(yaml.safe_dump(own))
    found = resolve("finetune", recovery(load_trained(run), 0.5, tmp_path / "to"))
    for section in ("data", "optim", "evaluate", "seed"):
        assert found[section] == own[section]
    start = {"weights": str(run), "name": None, "args": {}, "freeze": "none", "mean": None}
    assert found["backbone"] == {**own["backbone"], **start}
    prune = {**own["method"]["prune"], "macs": 0.5, "importance": "magnitude"}
    teacher = {"weights": str(run), "temperature": 4.0, "weight": 0.9, "labels": "given"}
    assert found["method"] == {**own["method"], "linear_first": False, "prune": prune, "teacher": teacher}
    assert found["run"] == {**own["run"], "dir": str(tmp_path / "to")}


def test_a_recovery_can_be_a_fine_tuning_by_the_runs_own_config(trained: Path, tmp_path: Path) -> None:
    """As the how-to says for several processes, which compress refuses."""
    keys = [f"backbone.weights={trained}", "method.keep_head=true", "method.prune.macs=0.5"]
    keys += [f"method.teacher.weights={trained}", f"run.dir={tmp_path / 'run'}", "optim.duration=2"]
    told = execute("finetune", str(trained / "config.yaml"), keys, quiet=True)["pruned"]
    assert told["after"]["macs"] <= 0.5 * told["before"]["macs"]
    said = (Path(__file__).parents[3] / "docs" / "how-to" / "compress.md").read_text()
    assert all(key.partition("=")[0] in said for key in keys)


def test_an_adaptation_recovers_with_its_own_optimizer(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    given: dict[str, Any] = {
        "data": {"source": TRAIN, "target": TEST, "test": TEST, "size": 16, "views": "none"},
        "backbone": {"name": "smallconv", "drop_path": 0.1},
        "method": {"name": "dann"},
        "optim": {"layer_decay": 0.7, "backbone_lr": 0.2, "lr": 0.01, "batch_size": 50, "duration": 4},
        "run": {"dir": str(run)},
    }
    own = resolve("adapt", given)
    (run / "config.yaml").write_text(yaml.safe_dump(own))
    adapted = load_trained(run)._replace(result={"task": "adapt"})
    found = resolve("finetune", recovery(adapted, 0.5, tmp_path / "to"))
    assert found["optim"] == own["optim"] and found["backbone"]["drop_path"] == 0.1
    assert found["backbone"]["weights"] == str(run) and found["backbone"]["name"] is None
    assert (found["data"]["train"], found["method"]["teacher"]["labels"]) == (TEST, "teacher")


def test_an_adaptation_to_a_union_without_a_test_recovers_with_that_of_the_command(
    trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    target = [f"{DIGITS16}#[:100,seed=1]", f"{DIGITS16}#[100:200,seed=1]"]
    given: dict[str, Any] = {
        "data": {"source": TRAIN, "target": target, "size": 16, "views": "none"},
        "backbone": {"name": "smallconv"},
        "method": {"name": "dann"},
        "optim": {"lr": 0.01, "batch_size": 50, "duration": 4},
        "run": {"dir": str(run), "workers": 0, "device": "cpu"},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(resolve("adapt", given)))
    adapted = load_trained(run)._replace(result={"task": "adapt"})
    asked = Demand(Budget(None, 1), (), (TEST,), 1, True, ["optim.duration=2"])
    check_recovery(adapted, tmp_path / "to", asked)
    config = resolve("finetune", recovery(adapted, 0.5, tmp_path / "to", asked.test), asked.overrides)
    assert config["data"]["test"] == {"test_1": TEST} and config["data"]["train"] == target
    draft = pruned_draft(adapted, config, tmp_path / "draft")
    assert draft is not None and draft.classifier is not None


def test_what_knows_unknown_images_keeps_its_channels_and_that_is_said_first(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_trained(trained)
    assert run.classifier is not None
    folder = tmp_path / "open"
    Classifier(run.backbone, run.classifier.classes, structure=Structure(extra=1)).export(folder)
    (folder / "config.yaml").write_bytes((trained / "config.yaml").read_bytes())
    (folder / "result.json").write_text(json.dumps({"task": "adapt"}))
    why = (
        f"{folder} has an output for unknown images, which no student has; teach by features (`rootstock pretrain` with method=distill), "
        "or give a classifier without `unknown`"
    )
    asked = Demand(Budget(None, 1), (), (), 1, True, ())
    check_recovery(load_trained(folder), tmp_path / "to", asked)
    assert capsys.readouterr().err == f"WARNING: all channels stay: {why}\n"
    with pytest.raises(UserError) as refused:
        check_recovery(load_trained(folder), tmp_path / "to", asked._replace(overrides=["optim.lr=0.1"]))
    assert str(refused.value) == why
    with pytest.raises(UserError) as refused:
        recovery(load_trained(folder), 0.5, tmp_path / "to")
    assert str(refused.value) == why
