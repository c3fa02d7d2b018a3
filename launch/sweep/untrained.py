"""The network of a point, untrained: that of the stage that the objective measures, built as its recipe builds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import UserError, first_line
from ...core.model.macs import macs_of
from ..dry import build_dry
from ..pipeline.plan import StageJob, plan_pipeline
from ..pipeline.preflight import check_buildable
from ..verbs import resolve
from .plan import Sweep
from .point import Untrained


def untrained_at(sweep: Sweep, values: Mapping[str, Any]) -> Untrained:
    """The network of the sweep's config with these overrides. Raises UserError if it cannot be built."""
    overrides = sweep.elsewhere(values)
    if sweep.verb != "run":
        _, built = build_dry(sweep.verb, resolve(sweep.verb, sweep.file, overrides))
        return _network_in(sweep.verb, built)
    _, jobs = plan_pipeline(sweep.file, overrides, resolve)
    first = {job.name: job for job in jobs if job.seed == jobs[0].seed}
    measured, found = first[sweep.objective.stage], list[Untrained]()

    def build(verb: str, config: dict[str, Any], export: Path | None) -> None:
        _, built = build_dry(verb, config)
        point = _network_in(verb, built)
        if export is not None and verb != "probe":
            exported: Any = point.network  # a backbone or a classifier
            exported.export(export)
        if config["run"]["dir"] == measured.resolved["run"]["dir"]:
            found.append(point)

    check_buildable(sweep.file, _needed(measured, first), build)
    if not found:
        raise UserError(f"stages.{measured.name}: its network cannot be built before the stages that it needs have run")
    return found[0]


def _needed(measured: StageJob, jobs: Mapping[str, StageJob]) -> Sequence[StageJob]:
    """The stage and those that it uses, directly or not, in the order of the pipeline."""
    names, waiting = {measured.name}, [measured]
    while waiting:
        more = [name for name in waiting.pop().inputs if name not in names]
        names.update(more)
        waiting += [jobs[name] for name in more]
    return [job for name, job in jobs.items() if name in names]


def _network_in(verb: str, built: Any) -> Untrained:
    """The network in what a recipe has built. Raises UserError if it does not take pictures of its size."""
    backbone = built.taps.backbone if verb == "probe" else built.plan.method.backbone
    network = built.plan.method.classifier if verb in ("finetune", "adapt") else backbone
    try:
        macs = macs_of(network, backbone.channels, backbone.size)
    except RuntimeError as error:  # what torch raises where a map is smaller than a kernel
        raise UserError(
            f"backbone: {backbone.spec['name']} does not take pictures of {backbone.size} px with args {backbone.spec['args']} "
            f"({first_line(error)}); take a larger data.size, or a network that halves them less often"
        ) from error
    return Untrained(network, backbone.channels, backbone.size, macs)
