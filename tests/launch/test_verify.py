"""`rootstock verify`: a line for each file, exit code 1 with the names of those that differ."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rootstock.core.evaluate.looks import LookedAt, record_look
from rootstock.core.images import cache
from rootstock.core.manifest import lost_exports
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.core.run import state
from rootstock.core.run.directory import Run
from rootstock.core.train import checkpoint
from rootstock.core.train.checkpoint import Checkpoint

Rootstock = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def finished(tmp_path: Path, opened: Callable[..., Run]) -> Path:
    """A run with a checkpoint and exports, without the training."""
    run = opened()
    run.record(data={"train": "a"})
    run.metrics({"step": 1, "loss": 1.0})
    saved = Checkpoint(1, {"w": torch.ones(2)}, {"w//m": torch.ones(2)}, {"n": 0})
    checkpoint.save(run.checkpoints, saved, 2)
    torch.manual_seed(0)
    Classifier(create(8, name="smallconv", args={"widths": [4, 4, 4, 4]}), ["a", "b"]).export(run.dir)
    run.finish({"metrics": {}})
    state.write_state(run.dir, "finished", 1)
    run.close()
    return run.dir


def test_every_file_of_a_run_is_guarded(finished: Path, rootstock: Rootstock) -> None:
    done = rootstock("verify", str(finished))
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    written = sorted(str(path) for path in finished.rglob("*") if path.is_file() and path.name != ".lock")
    assert sorted({line.split()[1] for line in lines[:-1]}) == written and len(written) == 21
    assert all(line.startswith("ok ") for line in lines[:-1])
    for name in written:
        path = Path(name)
        content = path.read_bytes()
        for damage in (
            lambda path=path, content=content: path.write_bytes(content[:-3] + b"x" + content[-2:]),
            path.unlink,
        ):
            damage()
            wrong = rootstock("verify", str(finished))
            assert wrong.returncode == 1 and name in wrong.stderr and f"DIFFERS    {name}" in wrong.stdout, (
                name,
                wrong,
            )
            path.write_bytes(content)
    assert rootstock("verify", str(finished.parent)).returncode == 0


def test_a_run_that_was_refused_lacks_no_record(
    tmp_path: Path, opened: Callable[..., Run], rootstock: Rootstock
) -> None:
    """Bad data is found before run.json is written: the folder holds a config and a state, and both are whole."""
    run = opened()
    state.write_state(run.dir, "failed", 0, "data.train: no labels")
    run.close()
    done = rootstock("verify", str(tmp_path))
    assert done.returncode == 0 and "2 files are what was written, 0 differ" in done.stdout, done.stdout
    (run.dir / "checkpoints").mkdir(exist_ok=True)
    assert "run.json: it is missing" in rootstock("verify", str(tmp_path)).stdout


def test_a_lost_list_is_one_fault(finished: Path, rootstock: Rootstock) -> None:
    (finished / "backbone" / "MANIFEST.json").unlink()
    done = rootstock("verify", str(finished))
    assert done.returncode == 1 and done.stdout.count("DIFFERS") == 1 and done.stdout.endswith(", 1 differ\n")


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        (["classifier"], ["classifier/"]),
        (
            ["backbone/backbone.safetensors", "classifier/classes.json"],
            ["backbone/backbone.safetensors", "classifier/classes.json"],
        ),
        (
            ["backbone/MANIFEST.json", "classifier/seen.safetensors"],
            ["backbone/MANIFEST.json", "classifier/seen.safetensors"],
        ),
        (["pictures", "checkpoints"], []),
    ],
)
def test_a_finished_run_names_an_export_that_it_has_lost(finished: Path, lost: list[str], named: list[str]) -> None:
    for name in lost:
        path = finished / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    assert lost_exports(finished) == named


@pytest.mark.parametrize("content", [b"", b"{}", b'{"sha256": {}}', None])
def test_a_finished_run_names_a_damaged_manifest_of_an_export(finished: Path, content: bytes | None) -> None:
    path = finished / "classifier" / "MANIFEST.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"\n", b" ", 1) if content is None else content)
    assert lost_exports(finished) == ["classifier/MANIFEST.json"]
    path.unlink()
    path.mkdir()
    assert lost_exports(finished) == ["classifier/MANIFEST.json"]


def test_an_earlier_version_has_fewer_digests(finished: Path, tmp_path: Path, rootstock: Rootstock) -> None:
    old = Path(__file__).parents[1] / "formats" / "1"
    done = rootstock("verify", str(old))
    assert done.returncode == 0 and f"no digest  {old}/dino/run/run.json" in done.stdout
    assert f"ok         {old}/dino/run/checkpoints/step-00000008/model.safetensors" in done.stdout
    shutil.copytree(finished / "backbone", tmp_path / "export")
    (tmp_path / "export" / "MANIFEST.json").unlink()
    done = rootstock("verify", str(tmp_path / "export"))
    assert done.returncode == 0 and "3 without a digest" in done.stdout


def test_packs_and_the_cache(
    tmp_path: Path, rootstock: Rootstock, draw: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = draw(tmp_path / "set", ["a/0.png", "b/1.png"])
    assert rootstock("data", f"folder:{folder}", "--pack", str(tmp_path / "pack")).returncode == 0
    cache.remember("keys", "entry", b"12345678", 0)
    cache.remember("surveys", "survey", b"{}", 0)
    cache.made_once(cache.cache_folder("archives") / "x.tar", lambda file: file.write(b"abc") and None)  # pyright: ignore[reportArgumentType]
    done = rootstock("verify", str(tmp_path))
    assert done.returncode == 0 and "6 files are what was written, 0 differ" in done.stdout
    for name in (
        "pack/records.bin",
        "pack/index.safetensors",
        "cache/rootstock/keys/entry",
        "cache/rootstock/surveys/survey",
        "cache/rootstock/archives/x.tar",
    ):
        path = tmp_path / name
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        wrong = rootstock("verify", str(tmp_path))
        assert wrong.returncode == 1 and wrong.stdout.count("DIFFERS") == 1
        assert path.name in wrong.stdout[wrong.stdout.index("DIFFERS") :]
        path.write_bytes(good)


def test_what_holds_nothing_to_verify_is_refused(tmp_path: Path, rootstock: Rootstock) -> None:
    (tmp_path / "file").write_text("")
    for place, why in (("file", "is a file"), ("nowhere", "does not exist"), (".", "nothing below it has a digest")):
        done = rootstock("verify", str(tmp_path / place))
        assert done.returncode == 2 and why in done.stderr


def test_ledgers_of_looks(
    finished: Path, tmp_path: Path, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a run that is not finished has no other digest than its own chain; those of the cache have no manifest at all."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("MANIFEST.json", "result.json"):
        (finished / name).unlink()
    for k in range(2):
        assert record_look(finished, "target", LookedAt("0" * 64, "0" * 64), {"classifier": str(k)})["n"] == k + 1
    done = rootstock("verify", str(tmp_path))
    paths = [finished / "looks.json", tmp_path / "cache" / "rootstock" / "looks" / f"{'0' * 64}.json"]
    for path in paths:
        assert f"ok         {path}" in done.stdout
        good = path.read_text()
        entries = [line for line in good.splitlines() if '"classifier": "1"' in line]
        path.write_text(good.replace(entries[0], entries[0].replace('"1"', '"2"')))
        wrong = rootstock("verify", str(tmp_path))
        assert wrong.returncode == 1 and f"DIFFERS    {path}" in wrong.stdout
        path.write_text(good)
