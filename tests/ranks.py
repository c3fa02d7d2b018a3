"""Pairs of plain processes, as srun starts them, without their imports' seconds: imports once, then forks two ranks for each line of input.

A line is {"argv": [of rank 0, of rank 1], "cwd": [of each], "log": folder, "fault": what rank `who` does when it is about to begin the step
after AT completed ones}. The answer is the list of their exit codes.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch

import rootstock.launch.verbs  # noqa: F401 - imported before forking
from rootstock.core import agree, distributed, phase
from rootstock.core.errors import UserError
from rootstock.core.train import loop
from rootstock.launch import processes
from rootstock.launch.cli import main

AT = 12


def evaluate_alone() -> None:
    with phase.during(phase.EVALUATION):
        for _ in range(8):  # the others' collectives answer some of them
            distributed.barrier()


def fail(error: Exception) -> None:
    raise error


FAULTS: Mapping[str, Callable[[], Any]] = {
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "sleep": lambda: time.sleep(1000),
    "evaluate": evaluate_alone,
    "error": lambda: fail(ValueError("a bug on one rank")),
    "mistake": lambda: fail(UserError("b.png is damaged; delete it")),
}


def command(job: Mapping[str, Any], rank: int) -> None:
    log = os.open(f"{job['log']}/{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(job["cwd"][rank])
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(job["port"])}
    os.environ.update(own, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    sys.argv = ["rootstock", *job["argv"][rank]]
    straight, fault = loop.Loop.step, job["fault"] if rank == job["who"] else ""
    if fault == "code":
        processes.code_version = lambda: {**agree.code_version(), "core/train/loop.py": "another"}

    def stepping(
        self: loop.Loop, wrapped: Any, micro: Any, prepare: Any, step: int, asked: list[int]
    ) -> dict[str, Any]:
        if step == AT and fault == "flip":
            with torch.no_grad():
                next(iter(self.method.backbone.parameters()))[0].mul_(1.0001)
        elif step == AT and fault in FAULTS:
            FAULTS[fault]()
        return straight(self, wrapped, micro, prepare, step, asked)

    loop.Loop.step = stepping
    main()


def answer(job: Mapping[str, Any], rank: int) -> int:
    """In the child: the exit code that Python itself would end with."""
    try:
        command(job, rank)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def pair(job: Mapping[str, Any]) -> list[int]:
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            code = answer(job, rank)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    for line in sys.stdin:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        print(json.dumps(pair({**json.loads(line), "port": port})), flush=True)
