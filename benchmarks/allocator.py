"""What it is worth to keep freed memory on a CPU: python benchmarks/allocator.py [--markdown FILE]

Each row trains a network for some steps in child processes, with the C library's default and with the setting of `launch/allocator.py`,
interleaved. A step's cost is the CPU time of one thread, so other programs on the machine hardly matter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from page import machine, publish
from threads import STEP
from timing import Interval

STEPS = 4
NARROW = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128], "stem_width": 16}
CHILD = f"""
import json, resource, sys, time
from rootstock.launch.allocator import keep_freed_memory

network, kept, steps = json.loads(sys.argv[1])
if kept:
    keep_freed_memory()
import torch
from rootstock.core.model.backbone import create
from rootstock.core.train.parallel import channels_last

torch.set_num_threads(1)
name, stem, args, size, batch = network
model = create(size, name=name, stem=stem, args=args).train()
channels_last(model)
optimizer = torch.optim.AdamW(model.parameters())
{STEP}
for _ in range(2):
    step()
began = time.process_time()
for _ in range(steps):
    step()
print(json.dumps([(time.process_time() - began) / steps, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


class Network(NamedTuple):
    """What a row trains: the arguments of `core.model.backbone.create`, the side of an image and the images of a step."""

    name: str
    stem: str
    args: dict[str, Any]
    size: int
    batch: int


NETWORKS = {
    "ResNet-10, 16 to 128 channels, small stem": Network("resnet18", "small", NARROW, 32, 512),
    "ResNet-18": Network("resnet18", "default", {}, 96, 64),
    "ViT-Tiny/4": Network("vit_tiny_patch16_224", "default", {"patch_size": 4, "depth": 6}, 32, 128),
}


class Trial(NamedTuple):
    seconds: float  # of one step, CPU time
    peak: float  # MiB of resident memory


def trial(network: Network, kept: bool) -> Trial:
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", CHILD, json.dumps([network, kept, STEPS])]
    return Trial(*json.loads(subprocess.check_output(command, env=variables, text=True)))


def row(title: str, network: Network, rounds: int) -> str:
    pairs = [(trial(network, False), trial(network, True)) for _ in range(rounds)]
    gain = Interval.quartiles([default.seconds / kept.seconds for default, kept in pairs])
    default, kept = (np.median([pair[side] for pair in pairs], axis=0) for side in (0, 1))
    return (
        f"| {title} | {network.size} px | {network.batch} | {gain.median:.2f} [{gain.low:.2f}, {gain.high:.2f}] | {default[1]:,.0f} MiB "
        f"| {kept[1]:,.0f} MiB |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, help="write the table to this file as well")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    lines = [
        "# Freed memory that stays with the process",
        "",
        f"Command: `python benchmarks/allocator.py --rounds {asked.rounds}`. Training steps (forward, backward, AdamW) on one thread; "
        "speed is the ratio of CPU time with glibc's default to that with `launch/allocator.py`, which the command line applies; medians "
        "over rounds, quartiles in brackets. Peaks are of the whole process.",
        "",
        machine(),
        "",
        "| network | images | batch | times as fast | peak, default | peak, kept |",
        "|---|---|---|---|---|---|",
        *(row(title, network, asked.rounds) for title, network in NETWORKS.items()),
    ]
    publish(lines, asked.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
