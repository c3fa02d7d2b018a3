"""How waiting OpenMP threads should wait, on an idle and on a loaded machine: python benchmarks/threads.py [--markdown FILE]

torch's threads wait for each other many times in a step. By default they spin: on an idle machine that is fast, but where other programs
run, a thread that spins keeps the core from the one that it waits for. Each row trains a small network for some seconds in a child
process with other settings of libgomp, once with nothing beside it and once beside one busy process a core. Rounds are interleaved, so
each ratio compares neighbours in time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from page import machine, publish
from timing import Interval

from rootstock.core.environment import usable_cores
from rootstock.launch.waiting import SPINS

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=100": {"GOMP_SPINCOUNT": "100"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
NETWORKS = {
    "smallconv, 32 px": ("smallconv", {"widths": [16, 32, 64, 128]}, 32),
    "ViT, 32 px": ("vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}, 32),
}
BATCH, SECONDS = 64, 4.0
# Of a child process, which has a model, an optimizer, and the number and the side of its images.
STEP = """images = torch.randn(batch, 3, size, size)

def step():
    optimizer.zero_grad(set_to_none=True)
    model(images).square().mean().backward()
    optimizer.step()
"""
CHILD = f"""
import json, sys, time
import torch
from rootstock.core.model.backbone import create

name, args, size, batch, seconds = json.loads(sys.argv[1])
model = create(size, name=name, args=args).train()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
{STEP}
for _ in range(3):
    step()
began, steps = time.perf_counter(), 0
while time.perf_counter() - began < seconds:
    step()
    steps += 1
print(steps * batch / (time.perf_counter() - began))
"""


def rate(network: str, setting: dict[str, str]) -> float:
    """Images a second of one child process."""
    name, args, size = NETWORKS[network]
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "MKL_"))}
    variables |= {"OMP_NUM_THREADS": str(usable_cores())} | setting
    command = [sys.executable, "-c", CHILD, json.dumps([name, args, size, BATCH, SECONDS])]
    return float(subprocess.check_output(command, env=variables, text=True))


def measure(network: str, loaded: bool, rounds: int) -> dict[str, list[float]]:
    """{setting: images/s of each round}. loaded: beside one busy process a core."""
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(usable_cores() if loaded else 0)
    ]
    try:
        found: dict[str, list[float]] = {name: [] for name in SETTINGS}
        for _ in range(rounds):
            for name, setting in SETTINGS.items():
                found[name].append(rate(network, setting))
        return found
    finally:
        for process in busy:
            process.kill()
            process.wait()


def section(network: str, loaded: bool, rounds: int) -> list[str]:
    load = os.getloadavg()[0]
    found = measure(network, loaded, rounds)
    lines = ["", f"## {network}, {'beside a busy process on each core' if loaded else 'nothing beside it'}", ""]
    lines += [
        f"Load average {load:.1f} before the first round.",
        "",
        "| setting | images/s | times the default |",
        "|---|---|---|",
    ]
    for name, rates in found.items():
        ratios = Interval.quartiles([one / other for one, other in zip(rates, found["default"], strict=True)])
        lines.append(
            f"| {name} | {np.median(rates):,.0f} | {ratios.median:.2f} [{ratios.low:.2f}, {ratios.high:.2f}] |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, help="write the tables to this file as well")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    lines = [
        "# How OpenMP threads wait",
        "",
        f"Command: `python benchmarks/threads.py --rounds {asked.rounds}`. Training steps of {BATCH} images (forward, backward, SGD) on "
        f"{usable_cores()} threads, except in the last row; medians over rounds, and quartiles of the ratio in brackets. The command "
        f"line sets GOMP_SPINCOUNT={SPINS} unless the environment has it or OMP_WAIT_POLICY (`launch/waiting.py`).",
        "",
        machine(),
    ]
    for network in NETWORKS:
        for loaded in (False, True):
            lines += section(network, loaded, asked.rounds)
    publish(lines, asked.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
