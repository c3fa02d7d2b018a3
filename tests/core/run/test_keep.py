"""`run.keep=results`: a finished run keeps what it found, not its weights; nothing else about it changes."""

import os
import signal
from pathlib import Path

import pytest

from rootstock.adapt.mcc import MCC
from rootstock.core.run.directory import Interrupted
from rootstock.core.run.folder import WEIGHT_FOLDERS
from rootstock.launch.report.page import write_report
from rootstock.launch.verify import verify_folders
from rootstock.tests.adapt.test_objective import start

KEEP = "run.keep=results"


def files(run: Path) -> set[str]:
    found = (path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return {str(path) for path in found if not path.name.startswith(".")}


def test_weights_are_gone_and_everything_else_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also after a stop in the middle, for which checkpoints are there until the end."""
    every = start(tmp_path / "all", "mcc", "evaluate.every=1")
    forward = MCC.forward

    def stopping(method: MCC, batch: object, progress: float) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return forward(method, batch, progress)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patched:
        patched.setattr(MCC, "forward", stopping)
        with pytest.raises(Interrupted):
            start(tmp_path / "few", "mcc", "evaluate.every=1", KEEP)
    run = tmp_path / "few" / "run"
    assert (run / "checkpoints").is_dir()
    few = start(tmp_path / "few", "mcc", "evaluate.every=1", KEEP)
    assert few["metrics"] == every["metrics"] and few["validators"] == every["validators"]
    gone = {name for name in files(tmp_path / "all" / "run") if name.partition("/")[0] in WEIGHT_FOLDERS}
    assert files(run) == files(tmp_path / "all" / "run") - gone and gone
    assert not any((run / name).exists() for name in WEIGHT_FOLDERS)
    assert verify_folders([run]) == 0
    capsys.readouterr()
    assert start(tmp_path / "few", "mcc", "evaluate.every=1", KEEP) == few
    assert "missing" not in capsys.readouterr().err
    write_report([run], tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 1000
