"""-q and -v: what is printed and what not, in runs, pipelines and launches; no config and no result knows of them."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rootstock.core.loudness import Loudness, loudness, speaking
from rootstock.launch.cluster import launcher
from rootstock.launch.cluster.placement import Placement

Rootstock = Callable[..., subprocess.CompletedProcess[str]]
TINY = [
    "data.train=sklearn:digits?size=32#[:64]", "evaluate.watch=null", "evaluate.knn=null", "optim.batch_size=16", "optim.duration=3",
    "optim.warmup=3", "run.log_every=1", "run.checkpoint.every=2",
]  # fmt: skip
WARNING = "WARNING: optim.warmup takes 3 steps of 3"
SECTIONS = {
    "run": {"dir": "runs/line"},
    "stages": {
        "pre": {
            "verb": "pretrain",
            "config": "pretrain/digits_simclr.yaml",
            "set": {key: yaml.safe_load(value) for key, value in (word.split("=", 1) for word in TINY)},
        },
        "hog": {
            "verb": "probe",
            "config": "probe/digits.yaml",
            "set": {"backbone.name": "hog", "evaluate.linear": None},
        },
    },
}


@pytest.fixture
def said(tmp_path: Path, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """stderr of the same run with each option."""
    monkeypatch.chdir(tmp_path)
    found = {}
    for option in ("-q", "", "-v"):
        done = rootstock("pretrain", "digits_simclr", *TINY, f"run.dir=runs/r{option}", *filter(None, [option]))
        assert (done.returncode, done.stdout) == (0, "")
        found[option] = done.stderr
    return found


def test_quiet_keeps_warnings_and_the_verdict(said: dict[str, str], tmp_path: Path) -> None:
    quiet = said["-q"].splitlines()
    assert len(quiet) == 2 and quiet[0].startswith(WARNING) and quiet[1].startswith("pretrain simclr: loss ")
    normal = said[""].splitlines()
    assert (
        WARNING in said[""] and any(line.startswith("step 3/3 ") for line in normal) and normal[-1].startswith("next: ")
    )
    assert "checkpoint" not in said[""] and "fingerprint" not in said[""]
    loud = said["-v"].splitlines()
    for begin in (
        "step 1/3 ",
        "step 2/3 ",
        "checkpoint of step 2 saved in",
        "checkpoint of step 3 saved in",
        "train: 64 images, ",
        "cpu, ",
    ):
        assert sum(line.startswith(begin) for line in loud) == 1, begin
    assert {line for line in normal if not line.startswith(("step", "pretrain simclr: loss", "next"))} <= set(loud)
    weights, configs = [], []
    for option in ("-q", "", "-v"):
        folder = tmp_path / f"runs/r{option}"
        weights.append((folder / "backbone/backbone.safetensors").read_bytes())
        configs.append((folder / "config.yaml").read_text().partition("\n")[2].replace(f"runs/r{option}", "DIR"))
    assert weights[0] == weights[1] == weights[2]
    assert configs[0] == configs[1] == configs[2] and "verbose" not in configs[0] and "quiet" not in configs[0]


def test_a_pipeline_hands_both_to_its_stages(
    tmp_path: Path, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "line.yaml").write_text(yaml.safe_dump(SECTIONS))
    loud = rootstock("run", "line.yaml", "-v", "run.dir=runs/loud")
    assert loud.returncode == 0, loud.stderr
    assert (
        "checkpoint of step 2 saved" in loud.stderr
        and "seed 0" in loud.stderr
        and "pretrain simclr: loss" in loud.stderr
    )
    quiet = rootstock("run", "line.yaml", "-q").stderr.splitlines()
    assert [line for line in quiet if not line.startswith("WARNING")] == ["1 row over 1 seed, in runs/line/table.md"]
    normal = rootstock("run", "line.yaml").stderr  # finished, so nothing is run
    assert "finished before" in normal and normal.endswith("next: rootstock run line.yaml seeds=3\n")


def test_both_at_once_are_refused(rootstock: Rootstock) -> None:
    done = rootstock("pretrain", "small", "-q", "-v")
    assert (done.returncode, done.stderr) == (2, "error: -q and -v contradict each other; give one of them\n")
    assert loudness() is Loudness.NORMAL


@pytest.mark.parametrize(
    ("loud", "added"), [(Loudness.QUIET, ["-q"]), (Loudness.NORMAL, []), (Loudness.VERBOSE, ["-v"])]
)
def test_processes_get_the_option(loud: Loudness, added: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(launcher, "start_processes", lambda words, *_, **__: asked.append(words) or 0)
    monkeypatch.setattr(launcher, "check_devices", lambda *_: None)
    with speaking(loud):
        launcher.launch_verb("pretrain", "digits_simclr", ["seed=1"], Placement(2, 1, None, "x"))
    assert asked == [["pretrain", "digits_simclr", "seed=1", *added]]


def test_verbs_without_a_run_listen_too(tmp_path: Path, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch) -> None:
    from rootstock.core.model.backbone import create

    create(16, name="smallconv", args={"widths": (4, 4, 6, 8)}).export(tmp_path / "net")
    monkeypatch.chdir(tmp_path)
    words = ["embed", "net", "sklearn:digits#[:5]", "--workers", "0", "--out"]
    assert len(rootstock(*words, "a.npz").stderr.splitlines()) == 3
    quiet = rootstock(*words, "b.npz", "-q")
    assert (quiet.stdout, quiet.stderr) == ("b.npz\n", "embed: pooled [5, 8] of 5 pictures\n")
