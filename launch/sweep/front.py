"""The Pareto front of a sweep with a cost: the trials that no other surpasses in one of both and equals in the other; each as a config."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ...core.config.resolve import find
from ...core.config.yaml_file import CONFIGS
from ...core.files import write_text
from ..pipeline.plan import check_pipeline, found_again
from ..verbs import resolve
from .cost import cost_in_words

if TYPE_CHECKING:
    from .plan import Sweep

_FOLDER = "front"


def pareto_front(trials: Sequence[Mapping[str, Any]], maximize: bool) -> list[dict[str, Any]]:
    """The points {number, params, value, cost} of the front, cheapest first; of equal points the first trial.

    A trial is on it if none is at least as good in value and cost, and better in one. trials: as in result.json.
    """
    sign = -1.0 if maximize else 1.0
    known = [trial for trial in trials if trial["value"] is not None and trial["cost"] is not None]
    front, best = list[dict[str, Any]](), float("inf")
    for trial in sorted(known, key=lambda one: (one["cost"], sign * one["value"], one["number"])):
        if sign * trial["value"] < best:
            best = sign * trial["value"]
            front.append({key: trial[key] for key in ("number", "params", "value", "cost")})
    return front


def front_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """For the console: a line for each point of the front; none of a sweep without a cost."""
    for point in result.get("front", ()):
        price = f"{result['cost']['name']} {cost_in_words(point['cost'])}"
        yield f"front: {price}, {result['objective']} {point['value']:.4f}: {point['config']}"


def write_front(sweep: Sweep, front: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write each point of the front as a config, the best once more as best.yaml. Returns the points with `config` and `command`."""
    for path in (sweep.dir / _FOLDER).glob("*.yaml"):  # of the same sweep with fewer trials
        path.unlink(missing_ok=True)
    if front:
        write_point(sweep, front[-1], "best")
    return [{**point, **write_point(sweep, point)} for point in front]


def write_point(sweep: Sweep, point: Mapping[str, Any], name: str = "") -> dict[str, str]:
    """Write a point of the front as a config that runs as it stands. Returns {"config": its path, "command": that trains it}."""
    name = name or f"trial-{point['number']:04d}"
    path = sweep.dir / _FOLDER / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    run = str(sweep.dir / _FOLDER / name)
    overrides = sweep.overrides(point["number"], point["params"])[:-1]
    text = _pipeline(sweep, overrides, run) if sweep.verb == "run" else _single(sweep, overrides, run, path.parent)
    write_text(path, "\n".join([*_header(sweep, point, path), text]), shared=True)
    return {"config": str(path), "command": f"rootstock {sweep.verb} {path}"}


def _header(sweep: Sweep, point: Mapping[str, Any], path: Path) -> Iterator[str]:
    assert sweep.cost is not None
    objective = "/".join(filter(None, sweep.objective))
    yield f"# Trial {point['number']} of the sweep {sweep.dir}, a point of its Pareto front."
    yield f"# Command   rootstock {sweep.verb} {path}"
    yield (
        f"# Expected  {objective} {point['value']:.4f} in the sweep (selection: {sweep.selection}); it was chosen by that number, so it "
        "is optimistic;"
    )
    yield f"#           {sweep.cost.name} {point['cost']:.6g}."


def _single(sweep: Sweep, overrides: Sequence[str], run: str, beside: Path) -> str:
    """A config that extends the trials' one: a shipped one by its name, another by its path from here."""
    base = find(sweep.file, sweep.verb).resolve()
    shipped = base.is_relative_to(CONFIGS)
    extends = base.relative_to(CONFIGS).as_posix() if shipped else os.path.relpath(base, beside.resolve())
    tree: dict[str, Any] = {"extends": extends}
    for override in overrides:
        key, _, value = override.partition("=")
        *sections, last = key.split(".")
        place = tree
        for section in sections:
            inner = place.get(section)
            # A name alone stands for its section: `method=simclr` before `method.temperature=...`.
            place[section] = inner if isinstance(inner, dict) else {} if inner is None else {"name": inner}
            place = place[section]
        found = _read(value)
        inner = place.get(last)
        place[last] = {**found, **inner} if isinstance(found, dict) and isinstance(inner, dict) else found
    tree["run"] = {**tree.get("run", {}), "dir": run}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _read(text: str) -> Any:
    """The value of an override: JSON, or else a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _pipeline(sweep: Sweep, overrides: Sequence[str], run: str) -> str:
    """The whole pipeline, with its overrides in its stages."""
    config, _ = check_pipeline(sweep.file, [*overrides, f"run.dir={json.dumps(run)}"], resolve)
    return yaml.safe_dump(found_again(config, sweep.file), sort_keys=False, allow_unicode=True)
