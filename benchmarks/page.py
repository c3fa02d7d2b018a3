"""Writes measurements as Markdown: machine, versions, and tables of interleaved trials."""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from timing import Costs, Interval

VERSIONS = (
    "torch", "torchvision", "timm", "accelerate", "triton", "lightly", "pillow", "numpy", "kornia", "nvidia-dali-cuda130",
    "simplejpeg", "onnx", "onnxruntime",
)  # fmt: skip


def machine(accelerator: str = "no accelerator used") -> str:
    """Processor, cores, accelerator and the versions of the packages that are measured."""
    cpu = platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        named = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = f"{named[0]}, {cpu}" if named else cpu
    found = [f"python {platform.python_version()}"]
    for name in VERSIONS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"Machine: {os.cpu_count()} CPU cores ({cpu}), {accelerator}. Versions: {', '.join(found)}."


def table(title: str, load: str, costs: Costs, against: str, loaders: bool) -> list[str]:
    """A section: the cost of each way, and its ratio to that of `against`. loaders: wall clock, with the workers' CPU time."""
    unit = "µs, wall clock" if loaders else "µs, CPU"
    extra = " workers: µs, CPU |" if loaders else ""
    lines = ["", f"## {title}", "", f"Load average {load}.", ""]
    lines += [f"| way | a source image: {unit} | images/s |{extra} times that of {against} |"]
    lines += [f"|---|---|---|{'---|' if loaders else ''}---|"]
    for name, trials in costs.items():
        spent = Interval.quartiles([cost.main for cost in trials])
        rate = f"{1e6 / spent.median:,.0f}"
        cells = [name, f"{number(spent.median)} [{number(spent.low)}, {number(spent.high)}]", rate]
        cells += [number(float(np.median([cost.workers for cost in trials])))] if loaders else []
        cells += ["1" if name == against else spoken(Interval.ratio(trials, costs[against]))]
        lines.append(row(cells))
    return lines


def measure_rows(heading: Sequence[str], rows: Iterable[tuple[str, bool]], markdown: Path | None) -> bool:
    """Print the heading and each row as soon as it is measured, and keep them in the file, also if a later one fails.

    rows: measured while they are asked for; each is a line, and whether it holds its limit. Returns whether all do.
    """
    before, held, lines = os.getloadavg()[0], True, list(heading)
    print("\n".join(lines), flush=True)
    for line, holds in rows:
        print(line, flush=True)
        lines.append(line)
        held = held and holds
        if markdown:
            markdown.write_text("\n".join(lines) + "\n")
    lines += ["", f"Load average {before:.1f} before, {os.getloadavg()[0]:.1f} after."]
    print("\n".join(lines[-2:]), flush=True)
    if markdown:
        markdown.write_text("\n".join(lines) + "\n")
    return held


def check_options(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    """Check the options before anything is measured. Exits with 2 and one sentence if they cannot be met."""
    if asked.trials is not None and asked.trials < 1:
        parser.error(f"--trials {asked.trials}: expected 1 or more")
    if asked.markdown and not asked.markdown.absolute().parent.is_dir():
        parser.error(f"--markdown {asked.markdown}: there is no folder {asked.markdown.parent}")
    for name, uri in vars(asked).items():
        if not name.startswith("files") or uri is None:
            continue
        scheme, _, path = uri.partition(":")
        if scheme not in ("folder", "tar") or not Path(path).exists():
            parser.error(f"--{name} {uri}: expected folder:PATH or tar:PATH of JPEG files that are there")


def publish(lines: Iterable[str], to: Path | None) -> None:
    """Print a page, and write it to a file if there is one."""
    text = "\n".join(lines) + "\n"
    print(text)
    if to:
        to.write_text(text)


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spoken(ratio: Interval) -> str:
    return f"{ratio.median:.3g} [{ratio.low:.3g}, {ratio.high:.3g}]"


def shown(word: str) -> str:
    """An argument of the command without this machine's folders: the last name of an absolute path."""
    return re.sub(r"(^|[:=])/\S*/", r"\1", word)
