"""The longer tiers of tests, with a dated record: python tests/tiers.py test-all | soak

test-all: the tests marked `slow` (four processes among them), then a part of the suite under the lowest and the latest supported versions
of torch, timm and accelerate, each in a virtual environment of its own below .venvs/ (some 6 GB each, from PyPI). soak: the tests marked
`soak`. The record, with date, commit, machine and load, is written to benchmarks/test-all.md or benchmarks/soak.md, to be committed.
"""

from __future__ import annotations

import argparse
import configparser
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from rootstock.core.environment import usable_cores

ROOT = Path(__file__).parents[1]
# What moves between versions of these three: networks, optimizers, compilation, processes. Run through whole commands.
VARIED = ("torch", "timm", "accelerate")
# Torchvision is made for one version of torch each, so it goes with torch.
TORCHVISION = "torchvision"
SUBSET = (
    "tests/core/model",
    "tests/core/train",
    "tests/core/test_distributed.py",
    "tests/ssl/test_exactness.py",
    "tests/test_processes.py",
    "tests/test_resume.py",
)
PYTEST = ["-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "-p", "no:cacheprovider"]


class Part(NamedTuple):
    """What one call of pytest gave."""

    what: str
    versions: str
    line: str  # pytest's closing line
    code: int
    failures: tuple[str, ...]
    told: tuple[str, ...] = ()  # how many inputs each target of the fuzzing got


def requirements() -> dict[str, str]:
    """{package: requirement as in setup.cfg} of the package, with the extra `test`."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    lines = (settings["options"]["install_requires"] + settings["options.extras_require"]["test"]).split()
    return {re.split(r"[<>=]", line)[0]: line for line in lines}


def pinned(leave_out: set[str]) -> list[str]:
    """constraints.txt without some packages."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and line.split("==")[0].lower() not in leave_out]


def pip_arguments(which: str) -> list[str]:
    """What pip installs for `lowest` or `latest`: exact floors of setup.cfg, or whatever is newest on PyPI."""
    wanted = requirements()
    if which == "lowest":
        varied = [wanted[name].replace(">=", "==") + ".*" for name in (*VARIED, TORCHVISION)]
    else:
        varied = [wanted[name] for name in (*VARIED, TORCHVISION)]
    return varied + [line for name, line in wanted.items() if name not in (*VARIED, TORCHVISION)]


def environment(which: str) -> Path:
    """The Python of a virtual environment with those versions, made anew unless it is there."""
    folder = ROOT / ".venvs" / which
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return python
    print(f"Setting up {folder} (some minutes, about 6 GB) ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    # torch brings its own CUDA packages, so only what does not depend on it keeps the version of constraints.txt.
    own = {*VARIED, TORCHVISION, "triton", "torchmetrics", "pytorch-lightning", "lightning-utilities", "setuptools"}
    constraints = folder / "constraints.txt"
    kept = [line for line in pinned(own) if not line.lower().startswith(("nvidia", "cuda"))]
    constraints.write_text("\n".join(kept) + "\n")
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--constraint", constraints]
    subprocess.run([*pip, *pip_arguments(which)], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)], check=True)
    (folder / "ready").touch()
    return python


def tested(what: str, python: str | Path, *arguments: str) -> Part:
    """Run pytest, show what it prints, and keep its closing line."""
    show = f"from importlib.metadata import version\nprint(*(f'{{n}} {{version(n)}}' for n in {VARIED!r}), sep=', ')"
    versions = subprocess.check_output([python, "-c", show], text=True).strip()
    print(f"== {what}: {versions}", flush=True)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [str(python), *PYTEST, *arguments]
    line, failures, told = "no closing line", [], []
    with subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for output in process.stdout:
            print(output, end="", flush=True)
            if re.search(r"\b(passed|failed|error|errors) in \d", output) or re.search(
                r"\b(passed|failed).* in [\d.]+s", output
            ):
                line = output.strip(" =\n")
            if output.startswith(("FAILED ", "ERROR ")):
                failures.append(output.strip())
            if output.startswith("fuzzing "):
                told.append(output.strip())
    return Part(what, versions, line, process.returncode, tuple(failures), tuple(told))


def parts(tier: str) -> Iterator[Part]:
    if tier == "soak":
        yield tested("marked soak", sys.executable, "-m", "soak", "-rP")
        return
    yield tested("marked slow", sys.executable, "-m", "slow")
    for which in ("lowest", "latest"):
        # Not our errors: what an old timm uses of a newer torch that deprecates it.
        lenient = [] if which == "latest" else ["-W", "ignore::DeprecationWarning"]
        yield tested(f"{which} versions", environment(which), "-m", "not slow and not soak", *lenient, *SUBSET)


def record(tier: str, began: datetime, minutes: float, found: list[Part]) -> str:
    """The page of benchmarks/, in Markdown."""
    commit = subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True).strip()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    lines = [
        f"# `make {tier}`",
        "",
        f"{began:%Y-%m-%d %H:%M} UTC, commit {commit}, Python {sys.version.split()[0]}, {minutes:.0f} minutes;",
        f"load {load} (1, 5, 15 minutes) at the end, on {usable_cores()} cores.",
        "",
        "| Tests | Versions | Result |",
        "|---|---|---|",
        *(f"| {part.what} | {part.versions} | {part.line} |" for part in found),
    ]
    if told := sorted(sentence for part in found for sentence in part.told):
        lines += ["", *(f"- {sentence}" for sentence in told)]
    if failures := [failure for part in found for failure in part.failures]:
        lines += ["", "```", *failures, "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tier", choices=["test-all", "soak"])
    tier = parser.parse_args().tier
    began, clock = datetime.now(UTC), time.monotonic()
    found = list(parts(tier))
    page = record(tier, began, (time.monotonic() - clock) / 60.0, found)
    (ROOT / "benchmarks" / f"{tier}.md").write_text(page)
    print(page)
    return int(any(part.code for part in found))


if __name__ == "__main__":
    sys.exit(main())
