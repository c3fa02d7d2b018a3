"""Compares the training step of each method with lightly's example of it, on one CPU core.

    python benchmarks/methods_speed.py [--only NAME,...] [--markdown benchmarks/methods_speed.md] [--gate]

Two measurements, each interleaved with lightly's: the step alone on ready views (forward, loss, backward, optimizer, teacher), and
end to end from uint8 pictures in memory, with the augmentation. `--gate` exits with 1 if ours is slower; `--toy` only checks
that everything runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import lightly_steps
import numpy as np
import page
import torch
from fitted import Plan, Setting, of_pictures, of_ready_views
from method_settings import FULL, TOY, Scale, settings
from pictures import photographs
from rounds import Found, Way, in_rounds
from timing import Interval

OURS, THEIRS = "ours", "lightly"
STEP, WHOLE = "ready views", "end to end"
# A step that does the same arithmetic differs by noise alone: it is slower if its whole interval is below 1. End to end, ours has
# to be faster beyond noise.
ROUNDS, PLAN, TOY_PLAN = 7, Plan(1, 1, 3), Plan(1, 1, 1)


class Pictures(NamedTuple):
    """The same pictures for both: uint8 [N, size, size, 3], and a file of them."""

    array: np.ndarray
    uri: str


def ways(setting: Setting, plan: Plan, pictures: Pictures) -> Iterator[Way]:
    """Our step on ready views and end to end, and lightly's if it has an example."""
    clock, options = time.process_time, {"device": "cpu", "compile": "off"}
    yield Way(f"{OURS}, {STEP}", False, partial(of_ready_views, setting, plan, clock=clock, **options))
    yield Way(f"{OURS}, {WHOLE}", False, partial(of_pictures, setting, plan, pictures.uri, clock=clock, **options))
    if setting.method["name"] in lightly_steps.METHODS:
        peer = (setting, plan, torch.device("cpu"), torch.float32, False)
        yield Way(f"{THEIRS}, {STEP}", False, partial(lightly_steps.of_ready_views, *peer, clock=clock))
        yield Way(
            f"{THEIRS}, {WHOLE}", False, partial(lightly_steps.of_pictures, *peer, pictures.array, 0, clock=clock)
        )


def ratio(found: Found, what: str) -> Interval | None:
    """Our images per second divided by lightly's: the median of the rounds' ratios; None if lightly has no example."""
    ours, theirs = found[f"{OURS}, {what}", False], found.get((f"{THEIRS}, {what}", False))
    if theirs is None:
        return None
    return Interval.of_median([peer / own for own, peer in zip(ours.seconds, theirs.seconds, strict=True)])


def holds(step: Interval | None, whole: Interval | None) -> bool:
    """Whether ours is not slower: the step within noise, end to end beyond noise. True if lightly has no example."""
    return (step is None or step.high >= 1.0) and (whole is None or whole.low >= 1.0)


def line(setting: Setting, found: Found) -> tuple[str, bool]:
    """A method's row, and whether it holds."""
    cells = [setting.method["name"], setting.backbone["name"]]
    for what in (STEP, WHOLE):
        for who in (OURS, THEIRS):
            seen = found.get((f"{who}, {what}", False))
            cells.append("–" if seen is None else f"{1e3 * seen.median:,.0f}")
        said = ratio(found, what)
        cells.append("–" if said is None else page.spoken(said))
    passed = holds(ratio(found, STEP), ratio(found, WHOLE))
    compared = ratio(found, STEP) is not None or ratio(found, WHOLE) is not None
    return page.row([*cells, ("yes" if passed else "no") if compared else "–"]), passed


def heading(arguments: list[str], asked: argparse.Namespace, scale: Scale, rounds: int) -> list[str]:
    command = " ".join(page.shown(word) for word in arguments)
    vit = scale.vit
    return [
        "# Throughput of every method, against lightly's own examples",
        "",
        f"Command: `python benchmarks/methods_speed.py {command}`, {time.strftime('%Y-%m-%d', time.gmtime())}. One thread, CPU time; "
        f"{rounds} interleaved rounds, each way in another order. Pictures of {scale.size} px, {scale.batch} source images a step; "
        f"{scale.conv['name']}, or a ViT of {vit['depth']} blocks, width {vit['embed_dim']}, patch {vit['patch_size']}.",
        "",
        "A step of both has the same backbone, optimizer, batch, number of views and crops, widths of heads, prototypes and share of "
        "hidden patches. Ready views: forward, loss, backward, optimizer, teacher. End to end: from uint8 pictures in memory, "
        "lightly's through its own transform in its DataLoader. Ratio: how many times as many images a second ours trains, the "
        "median of the rounds' own ratios [95 % bootstrap interval]. A row holds where ours is not slower: the interval of the step "
        "alone reaches 1, that of the whole lies at or above it. lightly has no example of MoCo v3. I-JEPA: lightly cuts each context to "
        "the batch's smallest, 13 of 64 patches here; ours is given method.max_context 13, for as many.",
        *(["", "Toy sizes: the numbers say nothing."] if asked.toy else []),
        "",
        page.machine(),
        "",
        f"| method | backbone | {STEP}: ours, ms | lightly, ms | ratio | {WHOLE}: ours, ms | lightly, ms | ratio | holds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]


def options(arguments: list[str], known: list[str]) -> argparse.Namespace:
    """Exits with 2 and one sentence if the options cannot be met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", metavar="NAME,...", help="methods (all by default)")
    parser.add_argument("--trials", type=int, help=f"interleaved rounds ({ROUNDS})")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the table there as well")
    parser.add_argument("--gate", action="store_true", help="exit with 1 where ours is slower")
    parser.add_argument("--toy", action="store_true", help="tiny sizes: tells only whether everything runs")
    asked = parser.parse_args(arguments)
    page.check_options(parser, asked)
    asked.only = asked.only.split(",") if asked.only else known
    if unknown := [name for name in asked.only if name not in known]:
        parser.error(f"--only {unknown[0]}: expected some of {', '.join(known)}")
    return asked


def main(arguments: list[str]) -> int:
    asked = options(arguments, [setting.method["name"] for setting in settings(FULL)])
    scale, plan = (TOY, TOY_PLAN) if asked.toy else (FULL, PLAN)
    rounds = asked.trials or ROUNDS
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*capabilities of TorchVision are deprecated.*")
    warnings.filterwarnings("ignore", message=".*weight_norm. is deprecated.*")  # lightly's heads
    array = np.stack([np.asarray(picture) for picture in photographs(scale.size, scale.size, 4 * scale.batch)])
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/pictures.npz", images=array)
        rows = (
            line(setting, in_rounds(list(ways(setting, plan, Pictures(array, f"npz:{folder}/pictures.npz"))), rounds))
            for setting in settings(scale)
            if setting.method["name"] in asked.only
        )
        held = page.measure_rows(heading(arguments, asked, scale, rounds), rows, asked.markdown)
    return 1 if asked.gate and not held else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
