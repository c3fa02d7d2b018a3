"""What `--dry-run` measures: a few real steps of a verb, or of each stage of a pipeline, in a process that is ended when its time is over.

Nothing of the run is written. Each fact is a line of JSON on stdout as soon as it is known, so that what was measured before the end
counts. `dry_time.py` starts it and makes sentences of the facts.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..core import stage
from ..core.errors import UserError
from ..core.evaluate.features import evaluating
from ..core.evaluate.frozen import features_of
from ..core.evaluate.taps import Taps
from ..core.run.compare import of_another_config
from ..core.run.folder import RESULT, read_result, run_folder
from ..core.stream.batches import MicroBatches
from ..core.train.fit import Every
from ..finetune.probe import Probing
from .dry import DryRun, build_dry
from .exits import answer
from .runs import saved_step
from .verbs import fill_defaults, resolve

TIMED_STEPS = 12  # steps at most
PROBED_PICTURES = 128  # of which a probe's features are computed
Tell = Callable[[Mapping[str, Any]], None]


class Enough(Exception):
    """As many steps as wanted, or as fit into the time, have been made."""


class TimedRun(DryRun):
    """A run whose training ends after some steps. Nothing outside of `place` is written."""

    def __init__(self, verb: str, config: dict[str, Any], place: Path) -> None:
        super().__init__(verb, config)
        place.mkdir(parents=True, exist_ok=True)
        self.dir, self.console, self.complete = place, Console(quiet=True), None
        gpu = self.options["device"] == "auto" and torch.accelerator.is_available()
        self.device = torch.device(torch.accelerator.current_accelerator() or "cpu") if gpu else torch.device("cpu")

    def plan(self, steps: int | None) -> None:
        self.steps = steps

    def rows(self) -> list[dict[str, Any]]:
        return []

    def cut_metrics(self, step: int) -> None:
        pass

    def write_rows(self) -> None:
        pass

    def note_rows(self) -> None:
        pass

    def metrics(self, row: Mapping[str, Any]) -> None:
        pass


def measure_alone(verb: str, resolved: Mapping[str, Any], tell: Tell, until: float, place: Path) -> None:
    """`measure_run` of a run that is no stage of a pipeline, whose folder may hold another one. Raises UserError."""
    folder = run_folder(resolved["run"]["dir"])
    if trouble := of_another_config(folder, verb, resolved, partial(fill_defaults, verb)):
        raise UserError(trouble)
    measure_run(verb, resolved, tell, until, place)


def measure_run(
    verb: str,
    resolved: Mapping[str, Any],
    tell: Tell,
    until: float,
    place: Path,
    export: Path | None = None,
    evaluate: bool = True,
) -> None:
    """Tell the facts of one run. until: by time.perf_counter(), when its steps are to end. export: as for `build_untrained`.

    evaluate: whether an evaluation is measured after the steps. Raises UserError as the run would.
    """
    folder = run_folder(resolved["run"]["dir"])
    compiled = resolved["run"]["compile"]
    quick = {
        **resolved,
        "run": {**resolved["run"], "compile": "off" if compiled == "auto" else compiled, "feature_cache": 0},
    }
    run, built = build_dry(verb, quick, partial(TimedRun, place=place))
    shown = f"{run.config['backbone']['name'] or run.config['backbone']['weights']} at {run.config['data']['size']} px"
    tell({
        "run": str(folder), "verb": verb, "log": [*run.messages, f"network: {shown}"],
        "device": run.device.type, "threads": torch.get_num_threads(),
        "config": {"data": {"size": run.config["data"]["size"]}}, "finished": read_result(folder, lambda _: None) is not None,
        "done": max(0, saved_step(folder)), "compile": compiled == "auto" and run.device.type == "cuda",
    })  # fmt: skip
    if isinstance(built, Probing):
        _measure_features(run, built, tell)
        return
    plan, evaluators = built.plan, built.evaluators
    count = sum(plan.every.evaluates(done, plan.steps) for done in range(1, plan.steps + 1)) if evaluators else 0
    tell({"steps": plan.steps, "evaluations": count})
    method = plan.method
    if export is not None:
        (method.backbone if verb == "pretrain" else method.classifier).export(export)
    if plan.steps == 0:
        return
    if verb == "adapt" and method.online:
        built.begin(run)
    with contextlib.suppress(Enough):
        batches = _clocked(plan.batches, plan.steps, run.device, tell, until)
        stage.train(run, plan._replace(batches=batches, every=Every(plan.every.log, verify=0)))
    if evaluators and evaluate:
        began = time.perf_counter()
        with evaluating(method):
            for evaluator in evaluators.values():
                evaluator(method)
        tell({"evaluation": time.perf_counter() - began})


def _clocked(batches: MicroBatches, steps: int, device: torch.device, tell: Tell, until: float) -> MicroBatches:
    """The same batches; the seconds from one to the next are told. Raises Enough."""

    def of(start: int) -> Iterator[list[Any]]:
        last, made = time.perf_counter(), -1
        for micro in batches(start):
            if device.type != "cpu":
                torch.accelerator.synchronize()
            now = time.perf_counter()
            tell({"step": now - last} if made >= 0 else {"first": True})
            last, made = now, made + 1
            if made >= TIMED_STEPS or (made > 0 and (now >= until or made == steps - 1)):  # after the last one is saved
                raise Enough
            yield micro
        tell({"step": time.perf_counter() - last})
        raise Enough

    return of


def _measure_features(run: DryRun, built: Probing, tell: Tell) -> None:
    """Of a probe: the features of some pictures."""
    sets = [built.distinct, *built.tests.values()]
    count = min(PROBED_PICTURES, len(built.distinct))
    rows = torch.arange(count) * (len(built.distinct) // count)
    taps = Taps(built.taps.backbone, built.taps.names or ["pooled"]).to(run.device)
    began = time.perf_counter()
    features_of(taps, built.distinct.select(rows), built.view, device=run.device, batch_size=count, log=lambda _: None)
    tell({"pictures": sum(map(len, sets)), "a_picture": (time.perf_counter() - began) / count})


def measure_pipeline(path: str, overrides: Sequence[str], tell: Tell, until: float, place: Path) -> None:
    """Tell the facts of each unfinished stage of one seed, in equal shares of the time. Raises ConfigError."""
    from .pipeline.plan import plan_pipeline
    from .pipeline.preflight import check_buildable

    _, jobs = plan_pipeline(path, overrides, resolve)
    waiting = [job for job in jobs if not (job.dir / RESULT).exists()]
    names = list(dict.fromkeys(job.name for job in waiting))
    tell({"stages": {name: sum(job.name == name for job in waiting) for name in names}})
    left = list(names)

    def build(verb: str, config: dict[str, Any], export: Path | None) -> None:
        name = Path(config["run"]["dir"]).name
        while left and left.pop(0) != name:
            pass
        now = time.perf_counter()
        tell({"stage": name})
        measure_run(
            verb, config, tell, now + max(0.0, until - now) / (len(left) + 1), place / name, export, evaluate=False
        )

    check_buildable(path, jobs, build)


def main(arguments: Sequence[str]) -> int:
    """SECONDS PLACE VERB CONFIG [KEY=VALUE ...]. Returns the exit code."""
    seconds, place, verb, config, *overrides = arguments
    until = time.perf_counter() + float(seconds)

    def tell(fact: Mapping[str, Any]) -> None:
        print(json.dumps(fact), flush=True)

    tell({"begun": True})

    def work() -> None:
        if verb == "run":
            measure_pipeline(config, overrides, tell, until, Path(place))
        else:
            measure_alone(verb, resolve(verb, config, overrides), tell, until, Path(place))

    return answer(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
