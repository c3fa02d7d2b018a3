"""Whole runs with every key for classes of unequal size and of partial training: two processes, and a stop, give the same weights."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rootstock.core.errors import UserError
from rootstock.core.evaluate.calibration import fit_temperature
from rootstock.core.evaluate.features import extract
from rootstock.core.evaluate.trained import load_trained
from rootstock.core.images.open import open_images
from rootstock.finetune.training.evaluation import hold_out
from rootstock.finetune.training.posthoc import TAUS
from rootstock.launch.verbs import execute
from rootstock.tests.conftest import Forks

STEPS, HALFWAY = 4, 2
DATA = "sklearn:digits?size=16"
BASE: dict[str, Any] = {
    "data": {
        "train": f"{DATA}#[:400,longtail=10]",
        "test": f"{DATA}#[400:460]",
        "size": 16,
        "views": "digits",
        "class_groups": [8, 20],
    },
    "backbone": {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}, "norm": "batch"},
    "optim": {"name": "sgd", "lr": 0.05, "batch_size": 16, "duration": STEPS, "warmup": 1},
    "run": {"log_every": 1, "workers": 0, "checkpoint": {"every": HALFWAY, "keep": 3}},
}
CASES: dict[str, list[str]] = {
    "ldam": ["method.loss=ldam", "method.loss.start=0.5", "method.l1.weight=0.4", "method.l1.on=all"],
    "sampler": ["data.sampler=balanced", "method.trained=last:2", "method.posthoc=tau_norm"],
    "biases": [
        "method.loss=class_balanced", "method.trained=biases", "method.mixup=0.8",
        "method.posthoc=tau_norm", "method.posthoc.tau=null", "evaluate.held_out=0.2",
    ],
    "l2_sp": ["method.loss=balanced_softmax", "method.l2_sp.alpha=0.5", "backbone.weights=sampler"],
}  # fmt: skip
TOGETHER = ("ldam", "sampler", "biases", "l2_sp")  # in two processes
COMMANDS = """
import json, sys
from rootstock.launch.verbs import execute

for overrides in json.loads(sys.argv[2]):
    execute("finetune", sys.argv[1], overrides, quiet=True)
"""


def overrides_of(name: str, base: Path, folder: Path, *more: str) -> list[str]:
    given = [word.replace("weights=sampler", f"weights={base / 'sampler'}") for word in CASES[name]]
    given += ["backbone.name=null", "backbone.args={}"] if name == "l2_sp" else []
    return [*given, f"run.dir={folder / name}", *more]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config, and each case trained straight through by one process."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "config.yaml").write_text(yaml.safe_dump(BASE))
    for name in ("ldam", "sampler", "biases", "l2_sp"):
        execute("finetune", str(folder / "config.yaml"), overrides_of(name, folder, folder), quiet=True)
    return folder


def digest(run: Path) -> str:
    files = [run / "classifier" / "backbone.safetensors", run / "classifier" / "head.safetensors"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def weights(run: Path) -> dict[str, torch.Tensor]:
    files = [run / "classifier" / "backbone.safetensors", run / "classifier" / "head.safetensors"]
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize("name", CASES)
def test_a_stopped_run_ends_with_the_same_bits(name: str, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / name, tmp_path / name)
    for gone in ("result.json", "backbone", "classifier", f"checkpoints/step-{STEPS:08d}"):
        path = tmp_path / name / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    result = execute("finetune", str(base / "config.yaml"), overrides_of(name, base, tmp_path), quiet=True)
    assert digest(tmp_path / name) == digest(base / name)
    assert result["metrics"] == json.loads((base / name / "result.json").read_text())["metrics"]


def test_two_processes_end_with_the_same_weights(base: Path, tmp_path: Path, forks: Forks) -> None:
    (script := tmp_path / "commands.py").write_text(COMMANDS)
    forks.group(script, base / "config.yaml", json.dumps([overrides_of(name, base, tmp_path) for name in TOGETHER]))
    for name in TOGETHER:
        alone, together = weights(base / name), weights(tmp_path / name)
        assert json.loads((tmp_path / name / "run.json").read_text())["processes"] == 2
        for key, value in alone.items():
            assert torch.allclose(together[key], value, rtol=1e-4, atol=1e-4), (name, key)


def test_what_the_runs_say(base: Path) -> None:
    metrics = json.loads((base / "ldam" / "result.json").read_text())["metrics"]
    assert {"accuracy_many", "accuracy_medium", "accuracy_few"} <= {name.rsplit("/")[-1] for name in metrics}
    zeros = {name: sum(int((v == 0).sum()) for v in weights(base / name).values() if v.ndim > 1) for name in CASES}
    assert zeros["ldam"] > 5 and zeros["sampler"] == 0
    assert json.loads((base / "ldam" / "classifier" / "classifier.json").read_text())["head"] == "cosine"
    lengths = weights(base / "sampler")["head/weight"].norm(dim=1)
    assert torch.allclose(lengths, torch.ones(10), atol=1e-5)
    rows = [json.loads(line) for line in (base / "l2_sp" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["l2_sp"] > 0 and rows[-1]["l2_sp"] > rows[0]["l2_sp"]


def test_tau_is_chosen_and_the_temperature_is_that_of_the_head_that_is_exported(base: Path) -> None:
    run = load_trained(base / "biases")
    result, classifier = run.result, run.classifier
    assert classifier is not None and result["selection"] == "train-split" and not classifier.head.bias.any()
    assert result["posthoc"]["tau"] in TAUS and result["posthoc"]["chosen"] == "held-out training images"
    train = open_images(BASE["data"]["train"])
    assert train.labels is not None and run.calibration is not None
    _, held_out = hold_out(train, {"held_out": 0.2}, 0)
    assert held_out is not None and held_out.labels is not None
    logits = extract(classifier, held_out, run.view, device="cpu")
    fitted = fit_temperature(logits.double().numpy(), held_out.labels.numpy())
    assert run.calibration.temperature == pytest.approx(fitted.value, rel=1e-6)
    right = (logits.argmax(1) == held_out.labels).double().mean()
    assert result["evaluations"]["accuracy"] == pytest.approx(float(right))


def test_keys_that_contradict_each_other(base: Path, tmp_path: Path) -> None:
    for words, said in (
        (["data.sampler=sqrt", "method.loss=ldam"], r"data\.sampler: sqrt would correct a second time"),
        (["data.sampler=0.3", "method.loss=ldam"], r"data\.sampler: 0\.3 would correct a second time"),
        (["data.sampler=1.01"], r"data\.sampler: expected .* a number from 0 \(uniform\) to 1 \(balanced\), got 1\.01"),
        (["data.sampler=square"], r"data\.sampler"),
        (["data.sampler=sqrt", "data.shuffle=blocks"], r"data\.sampler: sqrt .* use data\.shuffle=full"),
        (["data.class_groups=[100, 20]"], r"data\.class_groups: .* the smaller one first"),
        (["method.posthoc=tau_norm", "method.posthoc.tau=null"], r"method\.posthoc\.tau: null .* give evaluate\.held_out too"),
        (["method.trained=last:9"], r"method\.trained: smallconv has \d stages or blocks, got last:9"),
        (["method.l2_sp.alpha=1"], r"method\.l2_sp: .* set backbone\.weights"),
        (["method.loss=ldam", "method.keep_head=true", f"backbone.weights={base / 'sampler'}", "backbone.name=null", "backbone.args={}"],
         r"method\.keep_head: .* head linear, and method\.loss: ldam needs .* head cosine"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            execute("finetune", str(base / "config.yaml"), [*words, f"run.dir={tmp_path / 'refused'}"], quiet=True)
