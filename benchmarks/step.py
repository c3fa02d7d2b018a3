"""Measures a training step: the overhead of `fit`, and real methods against their ceilings.

    python benchmarks/step.py [--markdown benchmarks/step.md] [--gate]            on one CPU core
    python benchmarks/step.py --gpu [--only resnet50,resnet18,mae] [--files URI]  on one GPU, with lightly beside it

`--gate` ends with 1 where `fit` may cost more than its limit, or a target on the GPU is missed; `--toy` only tries whether
everything runs, with `--gpu --device cpu` also where there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gpu
import numpy as np
import page
import torch
from fitted import Plan, of_pictures, of_ready_views
from overhead import BATCH, pairs
from pictures import photographs
from rounds import Way, in_rounds
from timing import Interval

LIMIT = 300.0  # microseconds a step
STEPS, TOY_STEPS = 2000, 20
SMALL = gpu.simclr(32, 64, {"name": "resnet18"}, [512, 128], {"name": "adamw", "lr": 1e-3})
TOY_SMALL = gpu.simclr(16, 4, {"name": "smallconv"}, [8, 8], {"name": "adamw", "lr": 1e-3})


def overhead(folder: Path, trials: int, toy: bool) -> tuple[list[str], bool]:
    """The table of `fit` against a hand-written loop, and whether the limit holds."""
    steps = TOY_STEPS if toy else STEPS
    before = os.getloadavg()[0]
    found = pairs(folder, trials, steps)
    spent = found.difference
    lines = ["", f"## What `fit` costs: one linear layer, batch {BATCH}, {steps:,} steps, logging off", ""]
    lines += [f"{trials} interleaved pairs; load average {before:.1f} before, {os.getloadavg()[0]:.1f} after.", ""]
    lines += ["| way | a step: µs, CPU, median [quartiles] |", "|---|---|"]
    for name, values in (("a bare PyTorch loop", found.bare), ("`fit`", found.fit)):
        span = Interval.quartiles(values)
        lines.append(page.row([name, f"{span.median:.0f} [{span.low:.0f}, {span.high:.0f}]"]))
    lines += [
        "",
        "| gate | median of the pairs' differences [95 % interval] | upper bound at most | holds |",
        "|---|---|---|---|",
    ]
    holds = spent.high <= LIMIT
    figure = f"{spent.median:.0f} [{spent.low:.0f}, {spent.high:.0f}] µs a step"
    lines.append(page.row(["`fit` beyond a bare loop", figure, f"{LIMIT:.0f} µs", "yes" if holds else "no"]))
    return lines, holds


def small_simclr(folder: Path, rounds: int, toy: bool) -> list[str]:
    """The table of a small SimCLR step on the CPU."""
    setting, plan = (TOY_SMALL, Plan(1, 1, 1)) if toy else (SMALL, Plan(1, 1, 3))
    drawn = photographs(setting.size, setting.size, 4 * setting.batch)
    np.savez(folder / "small.npz", images=np.stack([np.asarray(picture) for picture in drawn]))
    options = {"clock": time.process_time, "device": "cpu", "compile": "off"}
    ways = [
        Way(gpu.CEILING, False, partial(of_ready_views, setting, plan, **options)),
        Way("ours, from memory", False, partial(of_pictures, setting, plan, f"npz:{folder / 'small.npz'}", **options)),
    ]
    found = in_rounds(ways, rounds)
    title = f"A small step on the CPU (CPU time): {setting.title}, batch {setting.batch}"
    return gpu.table(title, setting, found)


def on_the_cpu(asked: argparse.Namespace, folder: Path) -> Iterator[tuple[list[str], bool]]:
    """The tables, and whether their gates hold."""
    yield overhead(folder, asked.trials or 10, asked.toy)
    yield small_simclr(folder, min(asked.trials or 5, 5), asked.toy), True


def on_a_gpu(asked: argparse.Namespace, folder: Path) -> Iterator[tuple[list[str], bool]]:
    """Tables, the targets last."""
    amounts = gpu.TOY if asked.toy else gpu.FULL
    machine = gpu.Machine(torch.device(asked.device), folder, amounts, asked.workers, asked.files)
    lines = ["", "## Targets (for one H200)", "", "| what | measured | target | met |", "|---|---|---|---|"]
    met = []
    for part, rows in gpu.measured(machine, asked.trials or 2, asked.only.split(",") if asked.only else [], asked.toy):
        yield part, True
        lines += [page.row([*cells, "yes" if holds else "no"]) for *cells, holds in rows]
        met += [holds for *_, holds in rows]
    yield lines, bool(met) and all(met)


def heading(arguments: list[str], asked: argparse.Namespace) -> list[str]:
    command = " ".join(page.shown(word) for word in arguments)
    windows = f"{gpu.FULL.plan.windows} windows of 15 or 60 steps in each of {asked.trials or 2} rounds"
    what = (
        f"Wall-clock time, {windows}: medians [quartiles]. data_wait: time that the loop waited for a batch; augmentation: time "
        "between events around `prepare`; MFU: FLOPs of matrix products, convolutions and attention over the data sheet's dense "
        "bf16 peak. Ready views and the resident set lie on the device; packs are read while training. Loader processes, where "
        f"there are files to decode: {asked.workers}. lightly has the same backbone, optimizer, precision, memory format and compile."
        if asked.gpu
        else "One thread. `fit` is timed whole, with its optimizer, its last row and its checkpoint; the bare loop gathers by a "
        "random permutation, prepares, runs forward, backward, fused AdamW and zero_grad. CPU time: waiting for the disk is not "
        "counted."
    )
    toy = ["", "Toy sizes: the numbers say nothing."] if asked.toy else []
    return [
        "# The training step on a GPU" if asked.gpu else "# The training step",
        "",
        f"Command: `python benchmarks/step.py {command}`, {time.strftime('%Y-%m-%d', time.gmtime())}. {what}",
        *toy,
        "",
        page.machine(gpu.described(torch.device(asked.device)) if asked.gpu else "no accelerator used"),
    ]


def options(arguments: list[str]) -> argparse.Namespace:
    """Exits with 2 and one sentence if a GPU is needed and none is found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gpu", action="store_true", help="ResNet-50, ResNet-18 and ViT-B/16 on one GPU")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="of --gpu; cpu only with --toy")
    parser.add_argument("--only", metavar="KEY,...", help="of --gpu: resnet50, resnet18, mae")
    parser.add_argument(
        "--files", metavar="URI", help="of --gpu: folder:PATH or tar:PATH of JPEG files (drawn by default)"
    )
    parser.add_argument(
        "--workers", type=int, default=min(16, os.cpu_count() or 1), help="loader processes of --gpu (a core each)"
    )
    parser.add_argument("--trials", type=int, help="pairs (10), on a GPU rounds (2)")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the tables there as well")
    parser.add_argument("--gate", action="store_true", help="exit with 1 where a gate does not hold")
    parser.add_argument("--toy", action="store_true", help="tiny sizes: tells only whether everything runs")
    asked = parser.parse_args(arguments)
    page.check_options(parser, asked)
    if not asked.gpu and (asked.only or asked.files or asked.device):
        parser.error("--only, --files and --device are of --gpu; add it")
    if asked.workers < 0:
        parser.error(f"--workers {asked.workers}: expected 0 or more")
    known = [job.key for job in gpu.jobs(asked.toy)]
    if unknown := [key for key in (asked.only or known[0]).split(",") if key not in known]:
        parser.error(f"--only {unknown[0]}: expected some of {', '.join(known)}")
    found = torch.cuda.is_available()
    asked.device = asked.device or ("cuda" if found or not asked.toy else "cpu")
    if asked.gpu and asked.device == "cuda" and not found:
        print(
            "error: --gpu needs a CUDA device, and torch finds none; use --gpu --toy --device cpu to try the script",
            file=sys.stderr,
        )
        sys.exit(2)
    if asked.gpu and asked.device == "cpu" and not asked.toy:
        print(
            "error: --device cpu is for trying the script; add --toy, or leave --gpu out to measure on the CPU",
            file=sys.stderr,
        )
        sys.exit(2)
    return asked


def main(arguments: list[str]) -> int:
    asked = options(arguments)
    if not asked.gpu:
        torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*capabilities of TorchVision are deprecated.*")
    lines = heading(arguments, asked)
    print("\n".join(lines), flush=True)
    held = True
    with tempfile.TemporaryDirectory() as folder:
        for part, holds in (on_a_gpu if asked.gpu else on_the_cpu)(asked, Path(folder)):
            print("\n".join(part), flush=True)
            lines += part
            held = held and holds
            if asked.markdown:  # keep what is measured even if a later part fails
                asked.markdown.write_text("\n".join(lines) + "\n")
    return 1 if asked.gate and not held else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
