"""The command line without its imports' seconds: imports once, then runs it in a forked child for each line of input. With a line as its
only argument it is that child itself, for tests/forks.py.

A line is {"argv", "log", "at", "signal", "save", "event", "under"}: the child sends itself the signal when it is about to begin the step
after `at` completed ones, or, with `save`, in the middle of writing the checkpoint of step `at`, or, with `event`, right before it
changes the disk below the folder `under` for that many times (a file opened for writing, renamed or removed, a folder made or
removed). The answer is its exit code and, where it ends by itself, how many such changes there were.
"""

import atexit
import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import rootstock.tests.warm  # noqa: F401 - imported before forking
from rootstock.core import files
from rootstock.core.train import loop
from rootstock.launch.cli import main

CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


class Changes:
    """Counts what changes the disk below a folder, and kills the process right before the change number `event`, from 1 on.

    The trials of a sweep are processes of their own, which count anew; only the first that comes so far is killed. killed: is made then.
    """

    def __init__(self, under: str, event: int, killed: Path) -> None:
        self.under, self.event, self.killed, self.count = under, event, killed, 0
        killed.unlink(missing_ok=True)

    def __call__(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name not in CHANGES or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if name == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if os.path.abspath(os.fsdecode(arguments[0])).startswith(self.under):
            self.count += 1
            if self.count == self.event and not self.killed.exists():
                self.killed.touch()
                os.kill(os.getpid(), 9)


def command(job: dict[str, Any]) -> None:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["rootstock", *job["argv"]]
    straight, write = loop.Loop.step, files.write_text

    def stepping(
        self: loop.Loop, wrapped: Any, micro: Any, prepare: Any, step: int, asked: list[int]
    ) -> dict[str, Any]:
        if step == job["at"] and not job["save"]:
            os.kill(os.getpid(), job["signal"])
        return straight(self, wrapped, micro, prepare, step, asked)

    def writing(path: Path, text: str, **how: Any) -> None:
        if job["save"] and path.parent.name == f".step-{job['at']:08d}":
            os.kill(os.getpid(), job["signal"])
        write(path, text, **how)

    loop.Loop.step, files.write_text = stepping, writing
    main()


def watched(job: dict[str, Any]) -> Changes | None:
    if not job.get("under"):
        return None
    changes = Changes(job["under"], job["event"], Path(job["log"]).with_suffix(".killed"))
    sys.addaudithook(changes)
    return changes


def answer(work: Callable[[], None]) -> int:
    """In the child: the exit code that Python itself would end with."""
    try:
        work()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def live(job: dict[str, Any]) -> int:
    """In the child: do the job. Returns its exit code."""
    changes = watched(job)
    code = answer(partial(command, job))
    sys.stdout.flush()
    sys.stderr.flush()
    if changes is not None:
        Path(job["log"]).with_suffix(".changes").write_text(str(changes.count))
    return code


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(live(json.loads(sys.argv[1])))
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            atexit._clear()
            os._exit(live(json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
