"""Starts processes of a test without their imports' seconds: imports once, then forks the processes that each line of input asks for.

A line is {"file": program, "argv": [of each process], "env": [of each], "cwd": [of each], "said": [file for the output of each]}. The
answer is the list of their exit codes.
"""

import json
import os
import runpy
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import rootstock.tests.warm  # noqa: F401 - imported before forking


def become(job: Mapping[str, Any], number: int) -> None:
    said = os.open(job["said"][number], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(job["cwd"][number])
    os.environ.clear()
    os.environ.update(job["env"][number])
    sys.argv = [job["file"], *job["argv"][number]]
    sys.path.insert(0, os.path.dirname(job["file"]))
    runpy.run_path(job["file"], run_name="__main__")


def answer(job: Mapping[str, Any], number: int) -> int:
    """In the child: the exit code that Python itself would end with."""
    try:
        become(job, number)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def forked(job: Mapping[str, Any]) -> list[int]:
    children = []
    for number in range(len(job["argv"])):
        child = os.fork()
        if child == 0:
            code = answer(job, number)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(forked(json.loads(line))), flush=True)
