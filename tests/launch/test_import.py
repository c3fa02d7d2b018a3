"""`rootstock import`: a published file becomes a run that other verbs take, or one sentence and nothing else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rootstock.core.evaluate.taps import Taps
from rootstock.launch import importing
from rootstock.tests.core.convert import cases

Command = Callable[..., subprocess.CompletedProcess[str]]
HEADS = ("--args", f"num_heads={cases.HEADS}")
DIGITS = "sklearn:digits#[:4%]"


@pytest.fixture(autouse=True)
def scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder for temporary files, of this test alone; commands run in tmp_path."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in this process: the child takes seconds to import torch, and tests of its own."""
    monkeypatch.setattr(importing, "read_weights", cases.opened)


def test_an_imported_run_is_probed_and_pretrained_on(
    rootstock: Command, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases.save("dino", Path("weights.pth"))
    done = rootstock("import", "weights.pth", "--from", "dino", "--to", "runs/dino", *HEADS)
    assert done.returncode == 0, done.stderr
    assert "project   dino (as --from says), weights in teacher under backbone." in done.stdout
    assert done.stdout.endswith("imported; use it as backbone.weights=runs/dino backbone.name=null\n")
    assert list(scratch.iterdir()) == []
    assert sorted(path.name for path in Path("runs").iterdir()) == ["dino"]

    shown: list[tuple[Tensor, Tensor]] = []
    forward = Taps.forward

    def watched(self: Taps, images: Tensor) -> dict[str, Tensor]:
        found = forward(self, images)
        shown.append((images, found["pooled"]))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Taps, "forward", watched)
        weights = (
            "backbone.weights=runs/dino",
            "backbone.name=null",
            f"data.size={cases.SIDE}",
            "run.device=cpu",
            "run.workers=0",
        )
        done = rootstock(
            "probe", "probe/probe.yaml", f"data.train={DIGITS}", *weights, "evaluate.linear=null",
            "evaluate.presets=[]", "evaluate.knn={k: 3}", "run.dir=runs/probe",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(shown) >= 2
    for images, features in shown:
        torch.testing.assert_close(features.double(), case.features(images.double()), rtol=1e-4, atol=1e-5)
    assert json.loads(Path("runs/probe/result.json").read_text())["seen_unlabelled"] == {}

    done = rootstock(
        "pretrain", "pretrain/mae.yaml", f"data.train={DIGITS}", *weights, "method.decoder_dim=16", "method.decoder_depth=1",
        "method.decoder_heads=2", "optim.batch_size=8", "optim.duration=1", "optim.warmup=0", "run.dir=runs/further",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    described = json.loads(Path("runs/further/backbone/backbone.json").read_text())
    first, second = described["provenance"]
    assert (first["task"], first["weights"], first["from"]) == ("external", "weights.pth", "dino")
    assert len(first["sha256"]) == 64 and second["task"] == "pretrain"
    assert described["args"]["num_heads"] == cases.HEADS


class Malicious:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def test_code_in_a_file_is_one_sentence_and_never_runs(rootstock: Command, scratch: Path) -> None:
    torch.save({"model": cases.vit_state(), "extra": Malicious()}, "weights.pth")
    done = rootstock("import", "weights.pth", "--from", "mae", "--to", "runs/mae")
    assert done.returncode == 2
    assert done.stderr.startswith("error: weights.pth: holds more than weights (")
    assert "if you trust its origin" in done.stderr and done.stderr.count("\n") == 1
    assert not Path("executed").exists() and not Path("runs").exists() and list(scratch.iterdir()) == []


@pytest.mark.usefixtures("no_child")
def test_the_report_names_every_tensor(rootstock: Command) -> None:
    cases.save("solo", Path("weights.ckpt"))
    done = rootstock(
        "import", "weights.ckpt", "--to", "run", "--json", "--mean", "0.49,0.48,0.45", "--std", "0.25,0.24,0.26"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads(Path("run/import.json").read_text())
    assert (report["from"], report["backbone"]["stem"], report["backbone"]["mean"]) == (
        "solo",
        "solo",
        [0.49, 0.48, 0.45],
    )
    assert "momentum_backbone.conv1.weight" in report["unused"] and "layer1.0.conv1.weight" in report["used"]


@pytest.mark.usefixtures("no_child")
def test_counts_and_first_names_are_for_people(rootstock: Command) -> None:
    cases.save("mae", Path("weights.pth"))
    done = rootstock("import", "weights.pth", "--to", "run", *HEADS, "--size", "24")
    assert done.returncode == 0, done.stderr
    for said in (
        "project   mae (recognised by decoder_", "weights in model\n", "backbone  vit_base_patch16_224 for 24 px,",
        "pooling token, ", "num_heads=2", "used      30 (", "dropped   5 (decoder_blocks.0.norm1.weight, ", "heads, decoders and masks",
        "pictures  normalised with mean 0.485,0.456,0.406", "note      positions resampled from 16 to 24 px, by timm",
    ):  # fmt: skip
        assert said in done.stdout, done.stdout


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--from", "mea"), "--from: unknown project mea; did you mean mae? (known: timm, torchvision, mae"),
        (("--from", "moco"), "1 missing (norm.bias)"),
        (("--args", "num_heads"), "--args: expected KEY=VALUE, for example num_heads=6"),
        (("--args", "breadth=3", *HEADS), "timm cannot build"),
        (("--mean", "a,b,c"), "--mean: expected numbers joined by commas"),
        (("--size", "0"), "--size: expected pixels, got 0"),
        (("--name", "vit_bas"), "--name: 'vit_bas' is no timm model"),
        (("--to", "there"), "--to: there exists already; name a new folder"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    options: tuple[str, ...], said: str, rootstock: Command, scratch: Path
) -> None:
    state = cases.vit_state()
    if "moco" in options:
        del state["norm.bias"]
        options = (*options, *HEADS)
    torch.save({"model": state}, "weights.pth")
    Path("there").mkdir()
    (Path("there") / "kept").touch()
    to = () if "--to" in options else ("--to", "run")
    before = sorted(Path().rglob("*"))
    done = rootstock("import", "weights.pth", *to, *options)
    assert done.returncode == 2, done.stdout
    assert said in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


@pytest.mark.usefixtures("no_child")
def test_a_draft_that_a_kill_left_is_replaced_and_an_empty_folder_filled(rootstock: Command) -> None:
    cases.save("mae", Path("weights.pth"))
    Path(".run.import/backbone").mkdir(parents=True)
    Path("run").mkdir()
    assert rootstock("import", "weights.pth", "--to", "run", *HEADS).returncode == 0
    assert not Path(".run.import").exists() and Path("run/backbone/backbone.json").is_file()
    done = rootstock("import", "weights.pth", "--to", "weights.pth/run", *HEADS)
    assert done.returncode == 2 and "cannot be written" in done.stderr and done.stderr.count("\n") == 1
