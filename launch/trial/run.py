"""`rootstock try`: the whole story on one's own pictures, within a budget of minutes.

The plan is written to DIR/try.yaml before anything is trained, a pipeline that `rootstock run` takes; the same command goes on with it.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.markup import escape

from ...core.documents import read_mapping
from ...core.errors import UserError
from ...core.files import write_text
from ...core.loudness import Loudness, loudness
from ...core.manifest import write_record
from ...core.printable import printable
from ...core.run.directory import Interrupted
from ...core.run.folder import make_folder, run_folder
from ...core.run.rows import METRICS, read_rows
from ..aloud import say
from ..dry import build_untrained
from ..dry_time import typical
from ..following import LABELS, command
from ..pipeline.ending import after_pipeline, pipeline_verdict
from ..pipeline.run import run_pipeline
from ..timing import TIMED_STEPS
from ..verbs import execute, resolve
from .pictures import read_roles
from .plan import ADAPTATION, PRETRAINING, Plan, RunCosts, plan_story, plan_words, too_short

FILE, ASKED = "try.yaml", "try.json"

FEWEST_MINUTES = 1.0


def try_pictures(uris: Sequence[str], minutes: float, to: str) -> dict[str, Any]:
    """Plan, say it in four lines, and run it; returns the pipeline's result.json. Raises UserError."""
    if not minutes >= FEWEST_MINUTES:
        raise UserError(f"--minutes: expected {FEWEST_MINUTES:g} or more, got {minutes:g}")
    folder, console = run_folder(to), Console(stderr=True, highlight=False, quiet=loudness() is Loudness.QUIET)
    began = time.monotonic()
    roles = read_roles(uris)
    asked = {
        "uris": [one.uri for one in roles.all],
        "minutes": minutes,
        "data": [one.images.split_hash() for one in roles.all],
    }
    if (known := _known(folder, asked)) is not None:
        console.print(f"goes on with {escape(printable(str(known)))}", soft_wrap=True)
    else:
        console.print("looking at the pictures")

        def measure(verb: str, config: Mapping[str, Any]) -> RunCosts:
            console.print(
                f"timing some steps of {verb} at {config['data']['size']} px; on a busy machine this takes minutes"
            )
            return measured(verb, config)

        def probe(config: Mapping[str, Any]) -> float:
            console.print(f"timing a probe of {config['backbone']['name']} at {config['data']['size']} px")
            return probed(config)

        plan = plan_story(roles, minutes, str(folder), resolve, measure, probe)
        lines = plan_words(plan, roles, minutes, machine())
        known = _write(folder, plan, asked, lines)
        for line in lines:
            console.print(escape(printable(line)), soft_wrap=True)
    result = run_pipeline(known, [], execute, resolve, build=build_untrained)
    for line in pipeline_verdict(result, folder):
        say(line, Loudness.QUIET)
    say(f"{(time.monotonic() - began) / 60:.1f} min; the plan is {known}, to be changed and run again")
    if roles.target is not None and (run := folder / "seed-0" / "adapted").exists():
        say(f"to use it: {command('predict', str(run), roles.target.uri, '--out', LABELS)}")
    say(f"next: {_following(folder, known, asked, result)}")
    return result


def _following(folder: Path, plan: Path, asked: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """A longer try where the pretraining was too short to be judged, which is said; else what follows on a pipeline."""
    if (longer := read_mapping(folder / ASKED).get("longer")) is None:
        return after_pipeline(str(plan), [], result, folder)
    say(f"WARNING: {too_short(longer['epochs'], longer['minutes'])}", Loudness.QUIET)
    return command("try", *asked["uris"], "--minutes", f"{longer['minutes']:g}", "--to", f"{folder}-longer")


def measured(verb: str, config: Mapping[str, Any]) -> RunCosts:
    """What a run of this config costs here, by one of twelve steps that leaves nothing."""
    with _folder() as folder:
        checkpoint = {**config["run"]["checkpoint"], "every": 0}
        run = {**config["run"], "dir": str(folder / "run"), "log_every": 1, "checkpoint": checkpoint}
        whole = _seconds(verb, {**config, "optim": {**config["optim"], "duration": TIMED_STEPS}, "run": run})
        rows = read_rows(folder / "run" / METRICS, lambda _: None)
    images = config["optim"]["batch_size"] * (2 if verb == "adapt" else 1)
    steps = [images / row["images_per_s"] for row in rows if "images_per_s" in row]
    return RunCosts(typical(steps), max(0.0, whole - sum(steps)))


def probed(config: Mapping[str, Any]) -> float:
    """How many seconds a probe of this config takes here; it leaves nothing."""
    with _folder() as folder:
        return _seconds("probe", {**config, "run": {**config["run"], "dir": str(folder / "run")}})


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder for a run that is timed, and is gone afterwards. Raises Interrupted with words of its own if such a run was stopped."""
    try:
        with tempfile.TemporaryDirectory(prefix="rootstock-try-") as folder:
            yield Path(folder)
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(
            "interrupted while the costs were measured: nothing was begun, and nothing is kept; the same command starts from the beginning"
        ) from None


def _seconds(verb: str, config: Mapping[str, Any]) -> float:
    began = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):  # what it says is not of the run that follows
        execute(verb, config, quiet=True)
    return time.perf_counter() - began


def machine() -> str:
    """The accelerator, or how many cores there are."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} CPU cores, no accelerator"


def _known(folder: Path, asked: Mapping[str, Any]) -> Path | None:
    """The plan of an earlier command, if there is one. Raises UserError if it was asked for something else."""
    if not (folder / ASKED).exists():
        return None
    before = read_mapping(folder / ASKED)
    if changed := [key for key in asked if before.get(key) != asked[key]]:
        raise UserError(f"--to: {folder} has a try with other {' and '.join(changed)}; choose another folder")
    return folder / FILE


def _write(folder: Path, plan: Plan, asked: Mapping[str, Any], lines: Sequence[str]) -> Path:
    make_folder(folder)
    head = [
        "Made by `rootstock try` from the pictures and this machine; a pipeline like any other, with the recipes",
        f"{PRETRAINING}, probe/small.yaml and {ADAPTATION}.",
        *lines,
        f"Command   rootstock run {folder / FILE}",
    ]
    text = "".join(f"# {printable(line)}\n" for line in head) + yaml.safe_dump(
        plan.pipeline, sort_keys=False, allow_unicode=True, width=120
    )
    write_text(folder / FILE, text)
    short = None if plan.longer is None else {"epochs": plan.epochs, "minutes": plan.longer}
    write_record(folder / ASKED, {**asked, "longer": short})
    return folder / FILE
