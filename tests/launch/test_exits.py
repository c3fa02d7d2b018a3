"""Each kind of error ends in its exit code and its sentence; what nobody foresaw is called a bug, and its traceback kept."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rootstock.core.errors import ProcessesFailed, UserError, at
from rootstock.core.interrupt import StoppedBySignal
from rootstock.core.run.directory import Interrupted
from rootstock.launch.exits import answer
from rootstock.tests.conftest import Forks


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


@pytest.mark.parametrize(
    "error",
    [
        ValueError("ours"),
        RuntimeError("ours"),
        OSError("ours"),
        EOFError("ours"),
        ModuleNotFoundError("ours", name="rootstock.x"),
    ],
)
def test_the_unforeseen_is_a_bug(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert answer(raising(error)) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    (kept,) = tmp_path.iterdir()
    last = said.splitlines()[-1]
    assert f"this is a bug of Rootstock ({type(error).__name__}: ours)" in last and str(kept) in last
    assert kept.read_text() in said


def in_hand(error: BaseException) -> Callable[[], None]:
    """Work whose function has the file in its hands when a parser fails, as ours have."""
    scope: dict[str, Any] = {"__name__": "rootstock.some.module", "Path": Path, "error": error}
    exec("def work():\n    path = Path('runs/a/some.json')\n    raise error", scope)
    return scope["work"]


def located(error: BaseException, *where: str) -> Callable[[], None]:
    def work() -> None:
        with contextlib.ExitStack() as stack:
            for place in where:
                stack.enter_context(at(place))
            raise error

    return work


def half_json() -> Exception:
    return json.JSONDecodeError("Expecting value", "x", 0)


@pytest.mark.parametrize(
    ("work", "code", "said"),
    [
        (raising(FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b")), 2, "a/b: No such file or directory; check the path"),
        (raising(PermissionError(errno.EACCES, "Permission denied", b"a/b")), 2, "a/b: Permission denied; give yourself the permission"),
        (raising(OSError(errno.EROFS, "Read-only file system", "a")), 2, "a: Read-only file system; choose a place that can be written"),
        (raising(OSError(errno.ENAMETOOLONG, "File name too long", "a")), 2, "a: File name too long; give a shorter name"),
        (raising(OSError(errno.ELOOP, "Too many levels of symbolic links", "a")), 2, "a: Too many levels"),
        (raising(IsADirectoryError(errno.EISDIR, "Is a directory", "a")), 2, "a: Is a directory; give a file"),
        (raising(OSError(errno.EMFILE, "Too many open files")), 1, "Too many open files; raise the limit (`ulimit -n`)"),
        (raising(OSError(errno.EFBIG, "File too large")), 1, "File too large; the file system or `ulimit -f`"),
        (raising(OSError(errno.EIO, "Input/output error", "a")), 1, "a: Input/output error; the disk or the network"),
        (raising(OSError(errno.ENOTCONN, "odd", "a")), 1, "a: odd; check the path and the disk"),
        (located(PermissionError(errno.EACCES, "Permission denied"), "data.train: folder:x", "x/1.png"), 2,
         "data.train: folder:x: x/1.png: Permission denied"),
        (located(FileNotFoundError(errno.ENOENT, "No such file", "x/1.png"), "data.train", "x/1.png"), 2, "data.train: x/1.png: No such"),
        (located(half_json(), "runs/a/map.json"), 1, "runs/a/map.json: cannot be read (Expecting value: line 1 column 1 (char 0))"),
        (located(zlib.error("Error -3"), "x.npz"), 1, "x.npz: cannot be read (Error -3); it is damaged"),
        (located(EOFError(), "x.gz"), 1, "x.gz: cannot be read (EOFError)"),
        (located(RecursionError("maximum"), "x.json"), 1, "x.json: cannot be read (it is nested too deeply)"),
        (in_hand(half_json()), 1, "runs/a/some.json: cannot be read (Expecting value"),
        (in_hand(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")), 1, "runs/a/some.json: cannot be read ('utf-8' codec"),
        (raising(UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "surrogates not allowed")), 1, "holds characters that utf-8 cannot write"),
        (raising(MemoryError()), 1, "the memory is full (no more could be had); use a smaller optim.batch_size"),
        (raising(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")), 1, "the memory is full"),
        (raising(type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried 2 GiB")), 1, "the device's memory is full"),
        (raising(RuntimeError("can't start new thread")), 1, "the machine allows no more processes or threads"),
        (raising(ModuleNotFoundError("No module named 'optuna'", name="optuna.x")), 1, "`pip install 'rootstock[sweep]'`"),
        (raising(ModuleNotFoundError("No module named 'clearml'", name="clearml")), 1, "clearml is not installed; `pip install clearml`"),
        (raising(ImportError("libGL.so.1: cannot open", name="cv2")), 1, "cv2 cannot be imported (libGL.so.1: cannot open);"),
        (raising(StoppedBySignal("SIGTERM")), 130, "interrupted by SIGTERM; run the same command to resume"),
        (raising(UserError(f"{'x' * 100_000} is no set; give another")), 2, "xxx is no set; give another"),
        (raising(UserError("a\x1b[31mred\x07.png is damaged")), 2, "error: a\\x1b[31mred\\x07.png is damaged"),
    ],
)  # fmt: skip
def test_what_the_machine_says_becomes_a_sentence(
    work: Callable[[], None], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(work) == code
    complaint = capsys.readouterr().err
    assert said in complaint and complaint.count("\n") == 1 and len(complaint) < 4000


def test_a_signal_stops_a_command_with_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert answer(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 130
    assert capsys.readouterr().err == "interrupted by SIGTERM; run the same command to resume\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_full_disk_behind_stdout(tmp_path: Path) -> None:
    code = "import sys; from rootstock.launch.exits import answer; sys.exit(answer(lambda: print('x')))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "the disk is full" in done.stderr and done.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """As in `rootstock schema | head -c 1`: what is printed is longer than a pipe holds, and its reader is gone."""
    code = "import sys; from rootstock.launch.exits import answer; sys.exit(answer(lambda: print('x' * 10**6)))"
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.close()
    writer.stdout = None
    assert writer.communicate() == (None, b"")
    assert writer.returncode == 1


def test_a_pipe_that_breaks_elsewhere_is_a_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """stdout is a file here, so the pipe that broke is another, such as a loader worker's."""
    with open(tmp_path / "out", "w") as out:
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        assert answer(raising(BrokenPipeError())) == 1
    assert "this is a bug of Rootstock" in capsys.readouterr().err


def test_other_processes_tell_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "error.json"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    assert answer(raising(UserError("b.png is damaged"))) == 2
    assert capsys.readouterr().err == ""
    assert json.loads(path.read_text())["message"]["message"] == "error: b.png is damaged"


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("b.png is damaged"), 2), (ProcessesFailed("rank 0 is lost", 132), 132)]
)
def test_without_torchrun_other_processes_speak_for_themselves(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    assert answer(raising(error)) == code
    assert capsys.readouterr().err == f"rank 1: error: {error}\n"


ENDS = """
import atexit, os, sys, types
import torch.distributed as dist
from rootstock.launch.cli import main

class Fragile:
    def __del__(self):
        os.abort()

if "connected" in sys.argv:
    sys.argv.remove("connected")
    dist.init_process_group("gloo", init_method=f"file://{sys.argv.pop()}", rank=0, world_size=1)
    atexit.register(print, "told to end")
    sys.modules["kept.until.the.end"] = kept = types.ModuleType("kept")
    kept.fragile = Fragile()
main()
"""


def test_connected_processes_end_without_teardown(tmp_path: Path) -> None:
    """What aborts while the interpreter frees its modules does not change how a process ended; what registered for the end is called."""
    command = [sys.executable, "-c", ENDS, "pretrain", "none-such", "connected", str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stdout.splitlines()[-1] == "told to end"


TWICE = """
import atexit, sys
from pathlib import Path
from rootstock.tests.ssl.cases import teacher

folder = Path(teacher("conv"))
assert folder.is_dir(), f"{folder} was removed by an earlier process"
atexit._run_exitfuncs()
"""


def test_a_process_of_the_tests_that_ends_so_leaves_the_files_of_the_next(forks: Forks, tmp_path: Path) -> None:
    """Both are forked from one program, which keeps folders until its own end."""
    (script := tmp_path / "twice.py").write_text(TWICE)
    for _ in range(2):
        (ended,) = forks(script, [[]])
        assert ended.code == 0, ended.said
