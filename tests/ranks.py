"""One of a pair of plain processes, as srun starts them: ranks.py ARGV FAULT WHO, with a rank's variables in the environment.

ARGV: the command line of rootstock, as JSON. FAULT: what rank WHO does when it is about to begin the step after AT completed ones;
"early": it is killed before the processes compare what they were given.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from rootstock.core import agree, distributed, phase
from rootstock.core.errors import UserError
from rootstock.core.train import loop
from rootstock.launch import cli, processes

AT = 12


def evaluate_alone() -> None:
    with phase.during(phase.EVALUATION):
        for _ in range(8):  # the others' collectives answer some of them
            distributed.barrier()


def fail(error: Exception) -> None:
    raise error


FAULTS: Mapping[str, Callable[[], Any]] = {
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "ask": lambda: os.kill(os.getppid(), signal.SIGTERM),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "sleep": lambda: time.sleep(1000),
    "evaluate": evaluate_alone,
    "error": lambda: fail(ValueError("a bug on one rank")),
    "mistake": lambda: fail(UserError("b.png is damaged; delete it")),
}


def main(argv: str, fault: str, who: str) -> None:
    sys.argv = ["rootstock", *json.loads(argv)]
    straight = loop.Loop.step
    if os.environ["RANK"] != who:
        fault = ""
    if fault == "early":
        processes.code_version = FAULTS["kill"]
    elif fault == "code":
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
    cli.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
