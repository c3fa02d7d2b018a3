"""Each kind of error ends in its exit code and its sentence; what nobody foresaw is raised on."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rootstock.core.errors import UserError
from rootstock.core.run.directory import Interrupted
from rootstock.launch.exits import answer


class Foreign(Exception):
    """As a library written in Rust reports what the system said."""


def raising(error: BaseException):
    def work() -> None:
        raise error

    return work


def chained() -> BaseException:
    error = RuntimeError("could not save")
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return error


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_work_that_ends_well(returned: int | None, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(lambda: returned) == code
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            UserError("method.name: unknown; did you mean simclr?"),
            2,
            "error: method.name: unknown; did you mean simclr?",
        ),
        (KeyboardInterrupt(), 130, "interrupted; run the same command to resume"),
        (
            Interrupted("saved step 12; run the same command to resume"),
            130,
            "saved step 12; run the same command to resume",
        ),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/model.safetensors"), 1, "the disk is full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), 1, "the disk is full"),
        (Foreign("I/O error: No space left on device (os error 28)"), 1, "the disk is full"),
        (chained(), 1, "the disk is full"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_become_a_sentence(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(raising(error)) == code
    complaint = capsys.readouterr().err
    assert said in complaint and complaint.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("ours"), RuntimeError("ours"), OSError(errno.EIO, "ours")])
def test_the_unforeseen_is_raised(error: Exception) -> None:
    with pytest.raises(type(error), match="ours"):
        answer(raising(error))


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """As in `rootstock schema | head -c 1`: what is printed is longer than a pipe holds, and its reader is gone."""
    code = "import sys; from rootstock.launch.exits import answer; sys.exit(answer(lambda: print('x' * 10**6)))"
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.close()
    writer.stdout = None
    assert writer.communicate() == (None, b"")
    assert writer.returncode == 1


def test_a_pipe_that_breaks_elsewhere_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stdout is a file here, so the pipe that broke is another, such as a loader worker's."""
    with open(tmp_path / "out", "w") as out:
        monkeypatch.setattr("sys.stdout", out)
        with pytest.raises(BrokenPipeError):
            answer(raising(BrokenPipeError()))


def test_other_processes_tell_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "error.json"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    assert answer(raising(UserError("b.png is damaged"))) == 2
    assert capsys.readouterr().err == ""
    assert json.loads(path.read_text())["message"]["message"] == "error: b.png is damaged"
