"""What is known of points before they train: whether their networks can be built, what they cost, and how a filter scores them.

Networks are built in a process of its own: trials are forked from the worker, and could not use threads of torch that it has begun.
Each point's facts lie in a file of the sweep's folder, so that they are found out once, by whichever worker comes first.
"""

from __future__ import annotations

import fcntl
import json
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ...core.config.resolve import build
from ...core.errors import UserError, first_line
from ...core.launchlog import warn
from ...core.manifest import DamagedFile, read_record, write_record
from ..cluster.launcher import stop_with_parent
from .cost import COST
from .plan import Sweep
from .point import Untrained
from .prefilter import PREFILTERS, ScoredPoint, drawn_points, kept_points
from .search_space import as_keys
from .untrained import untrained_at

_FOLDER, _CHECKED, _LOG = "candidates", "checked.json", "appraisal.log"
FACTS = ".cost.json"  # of a trial, in its folder


def offered_points(sweep: Sweep, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The points that the first trials take, best first; [] without a filter. Checks first that the searched networks can be built.

    Warns if the cheapest network that was found is beyond the budget. Blocks while another worker of this folder does it. Raises UserError
    if a network cannot be built, or if all points that were drawn cost more than the budget.
    """
    folder = sweep.dir / _FOLDER
    folder.mkdir(exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for the worker that looks at the searched networks")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / _CHECKED).exists():
            say("checking the searched networks")
            _in_process(lambda: write_record(folder / _CHECKED, {"warning": _check_ends(sweep)}), folder)
            if warning := (_read(folder / _CHECKED) or {}).get("warning"):
                say(warning)
        if not sweep.filtered:
            return []
        drawn = _drawn(sweep)
        if any(_read(_file(sweep, number)) is None for number in range(len(drawn))):
            say(f"scoring {len(drawn)} points by {sweep.config['prefilter']['name']}")
            _in_process(lambda: _score_all(sweep, drawn), folder)
    kept = kept_points(scored_points(sweep), sweep)
    say(f"{len(kept)} of {len(drawn)} points are tried first")
    return [dict(candidate.params) for candidate in kept]


def scored_points(sweep: Sweep) -> list[ScoredPoint]:
    """The points that have been scored in this folder, in the order of their drawing."""
    found = [(number, params, _read(_file(sweep, number))) for number, params in enumerate(_drawn(sweep))]
    return [ScoredPoint(number, params, facts) for number, params, facts in found if facts is not None]


def weigh_trial(sweep: Sweep, number: int, params: Mapping[str, Any]) -> bool:
    """Find out what the trial's network costs, once, and keep it in its folder. Returns whether it is within the budget."""
    assert sweep.cost is not None
    path = sweep.folder(number) / FACTS
    if (facts := _read(path)) is None:
        known = [one.facts for one in scored_points(sweep) if one.params == params and COST in one.facts]
        facts = {k: v for k, v in known[0].items() if k != "score"} if known else _cost(sweep, params)
        write_record(path, facts)
    return sweep.cost.excess(facts[COST]) <= 0


def cost_facts(sweep: Sweep, number: int) -> dict[str, Any] | None:
    """What `weigh_trial` found out; None if it has not been there."""
    return _read(sweep.folder(number) / FACTS)


def _drawn(sweep: Sweep) -> list[dict[str, Any]]:
    section = sweep.config["prefilter"]
    return drawn_points(sweep.space, section["of"], section["seed"]) if sweep.filtered else []


def _file(sweep: Sweep, number: int) -> Path:
    return sweep.dir / _FOLDER / f"candidate-{number:04d}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_record(path)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        warn(f"WARNING: {error}; it is made anew")
        return None


def _cost(sweep: Sweep, params: Mapping[str, Any], point: Untrained | None = None) -> dict[str, float]:
    assert sweep.cost is not None

    def other(values: Mapping[str, Any] | None) -> Untrained:
        return untrained_at(sweep, as_keys(sweep.space, sweep.first) if values is None else values)

    return sweep.cost.of(point or untrained_at(sweep, as_keys(sweep.space, params)), other)


def _check_ends(sweep: Sweep) -> str:
    """Build the networks at each end and choice of a parameter, the others at their first value.

    Returns a warning where none that was found is within the budget, else "". Raises UserError with the first that cannot be built.
    """
    cost, known = sweep.cost, dict[str, float]()

    def weight(params: Mapping[str, Any]) -> float:
        key = json.dumps(params, sort_keys=True)
        if key not in known:
            point = untrained_at(sweep, as_keys(sweep.space, params))
            counted = (
                cost is not None and cost.name != "latency"
            )  # time follows multiply-adds closely enough to find what to measure
            known[key] = _cost(sweep, params, point)[COST] if counted else point.macs
        return known[key]

    for name, span in sweep.space.items():
        for value in span.values:
            try:
                weight({**sweep.first, name: value})
            except UserError as error:
                raise UserError(
                    f"search.{name}: with {json.dumps(value)}: {error} (and choose another run.dir)"
                ) from error
    if cost is None or cost.budget is None:
        return ""
    found = _cost(sweep, _cheapest(sweep, weight))[COST]
    if cost.excess(found) <= 0:
        return ""
    return (
        f"WARNING: cost.budget: {cost.budget:g} is below the {cost.name} of the cheapest network that was found, {found:g}, and a trial "
        "beyond it trains nothing; raise it, or search smaller networks, in another run.dir"
    )


def _cheapest(sweep: Sweep, weight: Callable[[Mapping[str, Any]], float]) -> dict[str, Any]:
    """The point of ends and choices to which no other value of a single parameter is preferred; the least, if each counts alone.

    weight: of a point. Raises UserError where the first point cannot be built; others that cannot are passed over.
    """

    def buildable(params: Mapping[str, Any]) -> float:
        try:
            return weight(params)
        except UserError:
            return math.inf

    point, before = dict(sweep.first), math.inf
    while (now := weight(point)) < before:
        before = now
        for name, span in sweep.space.items():
            weights = [buildable({**point, name: value}) for value in span.values]
            point[name] = span.values[weights.index(min(weights))]
    return point


def _score_all(sweep: Sweep, drawn: list[dict[str, Any]]) -> None:
    """Cost and score of each point that has none yet. A point that cannot be built is recorded with the reason."""
    section = {k: v for k, v in sweep.config["prefilter"].items() if k not in ("of", "keep", "seed")}
    for number, params in enumerate(drawn):
        if _read(_file(sweep, number)) is not None:
            continue
        facts: dict[str, Any] = {}
        try:
            point = untrained_at(sweep, as_keys(sweep.space, params))
            facts |= _cost(sweep, params, point) if sweep.cost is not None else {}
            if sweep.cost is None or sweep.cost.excess(facts[COST]) <= 0:
                facts["score"] = build(section, PREFILTERS, sweep, number, params, point)
        except UserError as error:
            facts["why"] = first_line(error)
        write_record(_file(sweep, number), facts)


def _in_process(work: Callable[[], None], folder: Path) -> None:
    """Do the work in a forked process, and wait for it. Raises the UserError that ended it, or one that says how it ended."""
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_work, args=(work, theirs, folder / _LOG, os.getpid()), name="appraisal"
    )
    process.start()
    theirs.close()
    said = ""
    try:
        said = ours.recv_bytes().decode()
    except EOFError:  # it ended without a word
        pass
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()
    if said:
        raise UserError(said)
    if process.exitcode:
        by = signal.Signals(-process.exitcode).name if process.exitcode < 0 else f"exit code {process.exitcode}"
        raise UserError(
            f"the process that looks at the searched networks was ended by {by} (its log is {folder / _LOG}); run the same command to go on"
        )


def _work(work: Callable[[], None], parent: Connection, log: Path, worker: int) -> None:
    redirect_output(log)
    stop_with_parent(worker)
    try:
        work()
    except UserError as error:
        parent.send_bytes(str(error).encode())


def redirect_output(log: Path) -> None:
    """Append what this process prints to the log."""
    sys.stdout = sys.stderr = open(log, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - open until the process ends
    for descriptor in (1, 2):
        os.dup2(sys.stdout.fileno(), descriptor)
