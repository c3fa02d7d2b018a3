"""Make the runs of benchmarks/uda_runs.yaml, each packed into one file of 256-d features and logits in float16 and then deleted.

Command: python benchmarks/uda_runs.py [CONFIG] [--limit N] [--committed FILE] [key=value ...]     (the same command resumes)

The runs are those of `rootstock run CONFIG`, made one after the other. RUN.DIR/packed/STAGE.seed-S.candidates.safetensors has the
candidates of a run, with no label of the target, and in its header their accuracies after the run's one look: made again, on the same
machine and versions, it has the same bytes. When all are there, benchmarks/NAME.sha256 is written: for `sha256sum -c` in that folder, and
to be committed with the config. Then `rootstock validators score RUN.DIR/packed` compares all validators on them, for benchmarks/NAME.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import page

from rootstock.adapt.stored_runs import PACKED, pack_run, packed_about
from rootstock.core.environment import usable_cores
from rootstock.core.errors import UserError
from rootstock.core.files import sha256, write_text
from rootstock.core.manifest import write_manifest
from rootstock.core.run.directory import Interrupted
from rootstock.core.run.folder import run_folder
from rootstock.launch.pipeline.plan import StageJob, check_pipeline
from rootstock.launch.report.tables import duration
from rootstock.launch.scoring import score_validators
from rootstock.launch.verbs import execute, resolve

HERE = Path(__file__).parent
CONFIG = HERE / "uda_runs.yaml"
GUESSED = 3.5  # seconds a run, until some were timed here
TIMED = 50  # of the last runs, whose median is what a run is expected to take
TIMES = (
    "times.jsonl"  # of the runs made here; the one file beside the packed ones that differs when they are made again
)
Work = Callable[[str, str, Sequence[str], bool], Mapping[str, Any]]


def main(words: list[str], work: Work = execute) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "config", nargs="?", default=str(CONFIG), help="a pipeline of adaptations; benchmarks/uda_runs.yaml"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the pipeline, such as seeds=1")
    parser.add_argument("--limit", type=int, metavar="N", help="make at most N runs now")
    parser.add_argument(
        "--committed",
        type=Path,
        metavar="FILE",
        help="for the digests, benchmarks/NAME.sha256; the page lies beside it",
    )
    asked = parser.parse_intermixed_args(words)  # overrides may follow options
    if "=" in asked.config:
        asked.config, asked.overrides = str(CONFIG), [asked.config, *asked.overrides]
    pipeline, jobs = check_pipeline(asked.config, asked.overrides, resolve)
    folder = run_folder(pipeline["run"]["dir"]) / "packed"
    waiting = [job for job in jobs if not is_packed(job, folder)]
    now = waiting if asked.limit is None else waiting[: asked.limit]
    print(plan_words(len(jobs), len(waiting), len(now), times(folder)), flush=True)
    failed = make(now, folder, work, len(jobs) - len(waiting), len(jobs))
    if len(now) < len(waiting):
        return 0
    done = [job for job in jobs if is_packed(job, folder)]
    names = sorted(packed_file(job, folder).name for job in done)
    write_manifest(folder, names)
    committed = asked.committed or HERE / f"{Path(asked.config).stem}.sha256"
    write_text(committed, digests(asked.config, folder, names))
    for name, why in failed.items():
        print(f"not made: {name}: {why}")
    print(f"{len(names):,} of {len(jobs):,} runs in {folder}; their digests in {committed}")
    if names:
        write_page(committed.with_suffix(".md"), pipeline["report"]["title"] or Path(asked.config).stem, folder)
    return 1 if failed else 0


def packed_file(job: StageJob, folder: Path) -> Path:
    return folder / f"{job.name}.seed-{job.seed}{PACKED}"


def is_packed(job: StageJob, folder: Path) -> bool:
    """Whether the job's run is packed. Raises UserError if it is one of another config."""
    path = packed_file(job, folder)
    if not path.exists():
        return False
    if packed_about(path).get("config") != science(job):
        raise UserError(f"{path} was made with another config; delete it, or choose another run.dir")
    return True


def science(job: StageJob) -> dict[str, Any]:
    """The resolved config without `run`, which changes no result."""
    return json.loads(json.dumps({key: value for key, value in job.resolved.items() if key != "run"}))


def make(jobs: Sequence[StageJob], folder: Path, work: Work, before: int, count: int) -> dict[str, str]:
    """Make, pack and delete the runs; returns why some could not be made, by name. One that diverges does not stop the others."""
    failed = {}
    folder.mkdir(parents=True, exist_ok=True)
    for number, job in enumerate(jobs):
        started, path = time.monotonic(), packed_file(job, folder)
        if is_packed(job, folder):  # by another command since this one began
            continue
        try:
            work(job.verb, job.config, job.overrides, True)
            pack_run(job.dir, path, {"stage": job.name, "config": science(job)})
        except UserError as error:
            failed[path.name] = str(error)
            print(f"WARNING: {path.name}: {error}", flush=True)
            continue
        shutil.rmtree(job.dir)
        with open(folder / TIMES, "a") as file:
            file.write(json.dumps({"name": path.name, "seconds": round(time.monotonic() - started, 2)}) + "\n")
        left = (len(jobs) - number - 1) * expected(times(folder))
        print(f"{before + number + 1:,}/{count:,}  {job.name}, seed {job.seed}; {duration(left)} left", flush=True)
    return failed


def write_page(path: Path, title: str, folder: Path) -> None:
    """Score every validator on the packed runs, and write the table with the machine."""
    score_validators([folder], [], None, path, False, usable_cores())
    write_text(path, f"# {title}\n\n{page.machine()}\n\n{path.read_text()}")


def times(folder: Path) -> list[float]:
    """Seconds of the runs made here; a half-written last line, as a kill leaves one, is passed over."""
    if not (folder / TIMES).exists():
        return []
    *lines, _ = (folder / TIMES).read_text().split("\n")
    return [json.loads(line)["seconds"] for line in lines if line.endswith("}")]


def expected(seconds: Sequence[float]) -> float:
    """How long a run takes."""
    return median(seconds[-TIMED:]) if seconds else GUESSED


def plan_words(count: int, waiting: int, now: int, seconds: Sequence[float]) -> str:
    """What will be made, and how long it takes, before it begins."""
    each = expected(seconds)
    how = f"as the last {len(seconds[-TIMED:])} took" if seconds else "on one free CPU core, by our measurement"
    limited = f", of which {now:,} now" if now < waiting else ""
    return (
        f"{count:,} runs, {count - waiting:,} of them packed before; {waiting:,} to make{limited}: "
        f"about {duration(now * each)} at {each:.1f} s a run, {how}"
    )


def digests(config: str, folder: Path, names: Sequence[str]) -> str:
    """What is committed: a comment with the digest of the config, then a line of `sha256sum` for each packed run."""
    own = hashlib.sha256(Path(config).read_bytes()).hexdigest()
    lines = [f"# {len(names)} runs of {Path(config).name}, sha256 {own}"]
    return "\n".join([*lines, *(f"{sha256(folder / name)}  {name}" for name in names)]) + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
    except (Interrupted, KeyboardInterrupt):
        sys.exit("interrupted; the same command resumes")
