"""The command line without its imports' seconds: imports once, then runs it in a forked child for each line of input.

A line is {"argv", "log", "at", "signal", "save"}: the child sends itself the signal when it is about to begin the step after
`at` completed ones, or, with `save`, in the middle of writing the checkpoint of step `at`. The answer is its exit code.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import rootstock.launch.verbs  # noqa: F401 - imported before forking
from rootstock.core import files
from rootstock.core.train import loop
from rootstock.launch.cli import main


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

    def writing(path: Path, text: str) -> None:
        if job["save"] and path.parent.name == f".step-{job['at']:08d}":
            os.kill(os.getpid(), job["signal"])
        write(path, text)

    loop.Loop.step, files.write_text = stepping, writing
    main()


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


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = answer(partial(command, json.loads(line)))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
