"""rootstock compress: the form that fits and changes least; the recovery and its teacher; going on; the loss; refusals."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rootstock.core.errors import UserError
from rootstock.core.evaluate.trained import load_trained
from rootstock.core.images.open import open_images
from rootstock.launch.compress import compress as compressing
from rootstock.launch.compress.budget import Budget
from rootstock.launch.compress.compress import (
    Demand,
    compress_run,
    measured_pictures,
    what_changed,
    with_sets,
)
from rootstock.launch.compress.forms import check_overrides, recovery
from rootstock.launch.outputs.int8 import int8_sets, paired_difference
from rootstock.launch.outputs.onnx_file import OnnxSession
from rootstock.tests.launch.compress.conftest import DIGITS16 as DIGITS
from rootstock.tests.launch.compress.conftest import TEST, TRAIN

pytest.importorskip("onnxruntime")
pytest.importorskip("torch_pruning")
Rootstock = Callable[..., subprocess.CompletedProcess[str]]


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "compress.json").read_text())


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


def test_eight_bits_are_enough(trained: Path, tmp_path: Path, rootstock: Rootstock) -> None:
    done = rootstock("compress", str(trained), "--size", "200KB", "--to", str(tmp_path / "small"))
    assert done.returncode == 0, done.stderr
    found = record(tmp_path / "small")
    assert (found["chosen"]["share"], found["chosen"]["int8"]) == (None, True) and not (
        tmp_path / "small" / "pruned"
    ).exists()
    file = Path(found["file"])
    assert file.name == "model.int8.onnx" and found["cost"]["bytes"] == file.stat().st_size <= 200_000
    # The loss, picture by picture, by hand.
    run, test = load_trained(trained), open_images(TEST)
    pixels = torch.stack([run.view(run.view.worker(test.read(i))[None])[0] for i in range(len(test))])
    assert run.classifier is not None and test.labels is not None
    with torch.no_grad():
        own = run.classifier(pixels).argmax(1) == test.labels
    small = torch.cat([OnnxSession(file)(one[None])["logits"] for one in pixels]).argmax(1) == test.labels
    assert found["test"]["before"] == pytest.approx(float(own.float().mean())) and found["test"]["n"] == 100
    assert found["test"]["difference"]["estimate"] == pytest.approx(
        float(small.float().mean() - own.float().mean()), abs=1e-6
    )
    assert [form["int8"] for form in found["tried"]] == [False, True] and done.stdout == f"{file}\n"
    assert "compress: all channels, 8 bits: " in done.stderr and "training images too" not in done.stderr
    assert (
        " points [" in done.stderr.splitlines()[-2]
        and "(95 %, paired over 100 pictures of " in done.stderr.splitlines()[-2]
    )


@pytest.mark.slow
def test_channels_go_where_eight_bits_are_not_enough_and_the_command_goes_on(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "smaller"
    monkeypatch.setattr(compressing, "SHARES_TRIED", (0.9, 0.3))
    demand = Demand(Budget(None, 75_000), (), (), 1, True, ["optim.duration=4"])
    assert compress_run(trained, to, demand) == 0
    found = record(to)
    share, stays = found["chosen"]["share"], found["chosen"]["stays"]
    assert found["chosen"]["int8"] and share == 0.3 and found["cost"]["bytes"] <= 75_000
    result = json.loads((to / "pruned" / "result.json").read_text())
    assert (
        result["pruned"]["after"]["macs"] == pytest.approx(stays * result["pruned"]["before"]["macs"])
        and stays <= share
    )
    assert result["steps"] == 4
    described = json.loads((to / "pruned" / "classifier" / "backbone.json").read_text())
    assert any(stage.get("teacher") == str(trained) for stage in described["provenance"])
    before = (to / "exported" / "model.int8.onnx").read_bytes()
    capsys.readouterr()
    assert compress_run(trained, to, demand) == 0
    said = capsys.readouterr().err
    assert "timing forms" not in said and "is finished" in said
    assert (to / "exported" / "model.int8.onnx").read_bytes() == before and record(to)["chosen"] == found["chosen"]
    with pytest.raises(UserError) as refused:
        compress_run(trained, to, demand._replace(budget=Budget(None, 50_000)))
    assert (
        str(refused.value)
        == f"--to: {to} was made by another command; name a new folder, or give the same run, budget and overrides"
    )


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("run.dir=elsewhere", "run.dir"),
        ("data.size=8", "data.size"),
        ("data={crop: 0.5}", "data.crop"),
        ("method.prune.macs=0.9", "method.prune.macs"),
        ("method.prune={macs: 0.9}", "method.prune.macs"),
        ("method.prune=null", "method.prune.macs"),
        ("method.prune.weights=0.5", "method.prune.weights"),
        ("method.prune.importance=taylor", "method.prune.importance"),
        ("method.prune={importance: taylor, multiple: 4}", "method.prune.importance"),
        ("method.keep_head=false", "method.keep_head"),
        ("backbone.weights=none", "backbone.weights"),
        ("backbone={drop_path: 0.1}", "backbone.drop_path"),
    ],
)
def test_overrides_that_would_make_another_network_are_refused_at_once(
    override: str, key: str, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        compress_run(trained, tmp_path / "to", Demand(Budget(None, 1), (), (), 1, False, [override]))
    assert str(refused.value) == f"{key}: rootstock compress sets it for the recovery; leave it out"
    assert not list(tmp_path.iterdir())


def test_overrides_of_the_training_are_not_refused(trained: Path, tmp_path: Path) -> None:
    config = recovery(load_trained(trained), 0.5, tmp_path)
    check_overrides(
        config, ["optim.lr=0.1", "method.prune={multiple: 4}", "method.teacher=null", "data.views=digits", "seed=4"]
    )


@pytest.mark.parametrize("int8", [True, False])
def test_a_test_of_other_channels_is_refused(int8: bool, trained: Path, five: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        compress_run(trained, tmp_path / "to", Demand(Budget(None, 1), (), (five,), 1, int8, ()))
    assert str(refused.value) == (
        f"{five}: its pictures have 5 channels, and smallconv of {trained} takes 3; give pictures of 3 channels"
    )


@pytest.mark.parametrize(("calibrate", "left"), [("300:340", 60), ("0:40", 100), ("380:420", 80), (None, 100)])
def test_the_loss_is_measured_on_pictures_that_did_not_calibrate(
    calibrate: str | None, left: int, trained: Path
) -> None:
    """Of a test that holds calibrating pictures, the others count, before and after."""
    run, calibrating = load_trained(trained), [f"{DIGITS}#[{calibrate or '0:40'},seed=1]"]
    sets = None if calibrate is None else int8_sets(run, calibrating, [TEST])
    test, labels = measured_pictures(run, Demand(Budget(None, 1), calibrating, [TEST], 1, True, ()), sets)
    whole = open_images(TEST)
    assert whole.labels is not None and len(test) == left
    used = open_images(calibrating).keys().tolist() if calibrate else []
    expected = [(k, n) for k, n in zip(whole.keys().tolist(), whole.labels.tolist(), strict=True) if k not in used]
    assert list(zip(test.keys().tolist(), labels.tolist(), strict=True)) == expected


def test_a_test_of_training_pictures_is_named_before_anything_is_timed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compressing, "_choose", stop)
    with pytest.raises(KeyboardInterrupt):
        compress_run(trained, tmp_path / "to", Demand(Budget(None, 100), (), (TRAIN,), 1, False, ()))
    assert "WARNING: test: 300 of 300 images (100.0%) are training images too" in capsys.readouterr().err


def test_the_interval_is_over_groups(patients: Callable[[int], str]) -> None:
    """Of 40 patients with six pictures each, two change."""
    test = open_images(patients(40))
    before, after = torch.ones(240, dtype=torch.bool), torch.arange(240) >= 12
    told, said = what_changed(before, after, test)
    assert told["difference"] == paired_difference(before.numpy(), after.numpy(), np.arange(240) // 6)._asdict()
    low, high = 100 * told["difference"]["low"], 100 * told["difference"]["high"]
    assert said == (
        f"accuracy 100.0% before, 95.0% after: -5.0 points [{low:+.1f}, {high + 0.0:+.1f}] (95 %, paired over 240 pictures in 40 groups of "
        f"{patients(40)})"
    )


def test_refusals(trained: Path, tmp_path: Path, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressing, "SHARES_TRIED", (0.5, 0.02))
    with pytest.raises(UserError) as refused:
        compress_run(trained, tmp_path / "none", Demand(Budget(None, 100), (), (), 1, False, ()))
    said = str(refused.value)
    assert said.startswith(
        "--latency, --size: nothing fits 0.0001 MB; of all forms that can be made, the nearest one has "
    )
    assert said.endswith(f" MB. Allow that, or teach a smaller network: rootstock distill {trained} --student NAME")
    assert [form["share"] for form in record(tmp_path / "none")["tried"]] == [None, 0.5]  # 0.02 cannot be reached
    done = rootstock("compress", str(trained))
    assert done.returncode == 2 and done.stderr.startswith("error: --latency: give it, or --size: ")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    done = rootstock("compress", str(trained), "--size", "1MB", "--to", str(tmp_path / "other"))
    assert (
        done.stderr
        == f"error: --to: {tmp_path / 'other'} exists already, and is no folder of rootstock compress; name a new one\n"
    )
    broken = tmp_path / "broken" / "0"
    broken.mkdir(parents=True)
    (broken / "1.png").write_bytes(b"no picture")
    given = ["--test", f"folder:{tmp_path / 'broken'}", "--to", str(tmp_path / "b")]
    done = rootstock("compress", str(trained), "--size", "1MB", "--no-int8", *given)
    assert done.returncode == 2 and "1.png" in done.stderr and "skip-damaged" not in done.stderr
    assert not (tmp_path / "b").exists()
    done = rootstock("compress", str(trained), "--size", "1MB", "--threads", "0")
    assert done.returncode == 2 and done.stderr.startswith("error: --threads: expected 1 to ")
    run = load_trained(trained)
    held = run._replace(config={**run.config, "data": {**run.config["data"], "test": None}})
    with pytest.raises(
        UserError, match=r"^--test: .* held its test out of its training pictures, so what a smaller network loses"
    ):
        with_sets(held, Demand(Budget(None, 1), (), (), 1, True, ()))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"compress .*without torchrun"):
        compress_run(trained, tmp_path / "x", Demand(Budget(None, 1), (), (), 1, True, ()))
