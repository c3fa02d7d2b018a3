"""Starts processes of a test without their imports' seconds: imports once, then forks the processes that each line of input asks for.

A line is {"file": program, "argv": [of each process], "env": [of each], "cwd": [of each], "said": [file for the output of each]}. The
answer is the list of their exit codes.
"""

import atexit
import json
import os
import runpy
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from rootstock.tests.driver import answer  # which imports before forking


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


def forked(job: Mapping[str, Any]) -> list[int]:
    children = []
    for number in range(len(job["argv"])):
        child = os.fork()
        if child == 0:
            atexit._clear()  # what is to be done at this program's end, such as removing its temporary folders, is not the child's
            code = answer(partial(become, job, number))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(forked(json.loads(line))), flush=True)
