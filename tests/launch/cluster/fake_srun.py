"""A fake srun for the scripts under launch/slurm/: runs the command once for each of SLURM_JOB_NUM_NODES nodes, all on this machine.

As SLURM's own, it hands signals to every process of the step, loaders included, and returns the highest exit code, which it also notes
in FAKES/events.
"""

import contextlib
import os
import signal
import subprocess
import sys

import psutil

command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
tasks = [subprocess.Popen(command) for _ in range(int(os.environ["SLURM_JOB_NUM_NODES"]))]


def forward(number: int, _: object) -> None:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


for asked in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(asked, forward)
codes = [task.wait() for task in tasks]
highest = max(code if code >= 0 else 128 - code for code in codes)
with open(f"{os.environ['FAKES']}/events", "a") as file:
    file.write(f"step {highest}\n")
sys.exit(highest)
