"""`rootstock VERB ... --dry-run`: how long the run would take here, measured on a few real steps within ten seconds.

The steps are made by `timing.py` in a process of its own, which is ended when the time is over, so that neither slow steps nor a lack of
memory keep this command. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from ..core.printable import printable_lines
from ..core.train.remaining import shorter_ways, time_left

LIMIT = 8.5  # seconds of this command, of the ten that it may take
# Seconds that are left for measuring once torch is imported, which takes three on a free machine and more on a busy one, up to PATIENCE.
MEASURING, PATIENCE = 5.0, 45.0
STEPS_UNTIL = 0.7  # of MEASURING, in which steps are made; then there is one evaluation. A pipeline has no evaluation.
EVALUATION = "evaluation"
TOO_BUSY = "this machine was too busy to measure a step in time; ask again when it is free"
WARM = 4  # steps that come before those that count, or half of them if they are few
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class RunTime(NamedTuple):
    """seconds: of the whole run. bound: whether it is only known that it takes longer. how: from what it follows, in words."""

    seconds: float
    bound: bool
    how: str

    def in_words(self) -> str:
        return f"{'probably more than' if self.bound else 'about'} {time_left(self.seconds)}; {self.how}"


class MeasuredRun:
    """The facts about one run that `timing.py` has told."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.steps: list[float] = []

    def add(self, fact: Mapping[str, Any]) -> None:
        if "step" in fact:
            self.steps.append(fact["step"])
        else:
            self.facts |= fact

    def time(self, waited: float) -> RunTime | None:
        """How long the run takes; None if it was not even built. waited: seconds since a step was begun that has not ended."""
        facts = self.facts
        if "pictures" in facts:
            how = f"features of {facts['pictures']:,} pictures at {1 / facts['a_picture']:,.0f} a second; fitting the probes comes on top"
            return RunTime(facts["pictures"] * facts["a_picture"], False, how)
        if "steps" not in facts or ("first" not in facts and facts["steps"] > facts["done"]):
            return None
        left = facts["steps"] - facts["done"]
        goes_on = f" (it goes on after step {facts['done']:,})" if facts["done"] else ""
        if left <= 0:
            return RunTime(0.0, False, f"no step is left{goes_on}")
        if not self.steps:
            how = f"{left:,} steps, of which the first, often the slowest, had not ended after {waited:.1f} s{goes_on}"
            return RunTime(left * waited, True, how)
        one = typical(self.steps)
        how = f"{left:,} steps of {seconds_words(one)}, measured on {len(self.steps)}{goes_on}"
        count = round(facts["evaluations"] * left / facts["steps"])
        if count and EVALUATION in facts:
            how += f", and {count} evaluation{'s' * (count != 1)} of {seconds_words(facts[EVALUATION])}"
        elif count:
            how += f"; {count} evaluation{'s' * (count != 1)} come on top, which the time was too short to measure"
        return RunTime(left * one + count * facts.get(EVALUATION, 0.0), False, how)


def typical(steps: Sequence[float]) -> float:
    """The seconds of a step: the median, without the first ones, in which memory is laid out and workers start."""
    return median(steps[min(WARM, len(steps) // 2) :])


def seconds_words(seconds: float) -> str:
    """ "0.71 s", "12 ms"."""
    return (
        f"{1000 * seconds:.0f} ms" if seconds < 0.0995 else f"{seconds:.2g} s" if seconds < 9.95 else time_left(seconds)
    )


def say_time(verb: str, config: str, overrides: Sequence[str], limit: float = LIMIT) -> int:
    """Print how long the run, or the pipeline, would take. Returns the exit code; mistakes are printed as the run would print them."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    began, last = time.monotonic(), time.monotonic()
    runs: dict[str, MeasuredRun] = {}
    stages: dict[str, int] | None = None
    current = MeasuredRun()
    with _measuring(verb, config, overrides) as process:
        for fact in _facts(process, began, limit):
            last = time.monotonic()
            if "stages" in fact:
                stages = fact["stages"]
            elif "stage" in fact:
                current = runs[fact["stage"]] = MeasuredRun()
            else:
                current.add(fact)
        ended = process.poll()
    if ended is not None and ended > 0:
        return ended
    died = ended is not None and ended < 0
    waited = max(time.monotonic() - last, 0.0)
    lines = pipeline_lines(runs, stages, waited, current) if verb == "run" else run_lines(current, waited, died)
    print(printable_lines("\n".join(lines)))
    return 0


def run_lines(found: MeasuredRun, waited: float, died: bool = False) -> list[str]:
    """What is said of one run. died: whether the process that measured was ended by the system."""
    facts, known = found.facts, found.time(waited)
    lines = list(facts.get("log", ()))
    if facts.get("finished"):
        return [*lines, f"{facts['run']} is finished, so the run would take no time"]
    if died and not found.steps:
        lines.append(
            "WARNING: the system ended the process that measured a step, probably for want of memory; a smaller optim.batch_size, or "
            "run.chunk or run.accumulate, needs less"
        )
        return lines
    if known is None and not facts:
        return [TOO_BUSY]
    if known is None:
        why = (
            "no step was begun in time, so nothing is known yet; a second try is often quicker, by what is in the cache"
        )
        return [*lines, why]
    lines.append(f"{_where(facts)}: {known.in_words()}")
    if (
        facts["device"] == "cpu"
        and "steps" in facts
        and (ways := shorter_ways(known.seconds, facts["steps"], facts["config"]))
    ):
        lines.append(ways)
    if facts.get("compile"):
        lines.append("measured without torch.compile, with which the first steps take longer and the others less")
    if (count := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        lines.append(
            f"measured on one process: {count} processes on devices of their own take at best 1/{count} of it, on the same cores as long"
        )
    return [*lines, f"nothing was written; the run would go to {facts['run']}"]


def pipeline_lines(
    runs: Mapping[str, MeasuredRun], stages: Mapping[str, int] | None, waited: float, last: MeasuredRun
) -> list[str]:
    """What is said of a pipeline. stages: how many runs of each stage are to be done. last: the stage that was measured at the end."""
    if stages is None:
        return [TOO_BUSY]
    if not stages:
        return ["every stage is finished, so the pipeline would take no time"]
    lines, total, bound = list[str](), 0.0, False
    for name, count in stages.items():
        known = runs[name].time(waited if runs[name] is last else 0.0) if name in runs else None
        times = f"{count} x " if count > 1 else ""
        if known is None:
            bound = True
            lines.append(f"{name}: not measured, the time was too short")
            continue
        bound = bound or known.bound
        total += count * known.seconds
        lines.append(f"{name}: {times}{known.in_words()}")
    runs_left = sum(stages.values())
    lines.append(
        f"in all {'more than' if bound else 'about'} {time_left(total)} for {runs_left} runs, tests and pages not counted"
    )
    return lines


def _where(facts: Mapping[str, Any]) -> str:
    if facts["device"] != "cpu":
        return "on this device"
    return f"on {facts['threads']} thread{'s' * (facts['threads'] != 1)} of this CPU"


@contextlib.contextmanager
def _measuring(verb: str, config: str, overrides: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The process that measures, in a group of its own, with a folder that is gone afterwards."""
    environment = {key: value for key, value in os.environ.items() if key not in LAUNCHED}
    with tempfile.TemporaryDirectory(prefix="rootstock-dry-") as place:
        seconds = str(MEASURING * (1.0 if verb == "run" else STEPS_UNTIL))
        command = [sys.executable, "-m", f"{__package__}.timing", seconds, place, verb, config, *overrides]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _facts(process: subprocess.Popen[bytes], began: float, limit: float) -> Iterator[dict[str, Any]]:
    """What the process tells until it ends, or until the time is over; the first fact says that it has begun."""
    assert process.stdout is not None
    waiting, until, begun = b"", began + max(limit, PATIENCE), False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0 and selector.select(left):
            got = os.read(process.stdout.fileno(), 1 << 16)
            if not got:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, until - time.monotonic()))
                return
            *lines, waiting = (waiting + got).split(b"\n")
            if lines and not begun:
                begun, until = True, max(began + limit, time.monotonic() + min(limit, MEASURING))
            yield from (json.loads(line) for line in lines)
