"""From sets and a budget of minutes to a pipeline: network, size, batch and steps, by what a few steps cost on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...core.config.yaml_file import override_of
from ...core.images.split import cut_point
from ...core.train.remaining import time_left
from ..settle import INPUT_SIDES, facts_about, settle, side_for
from .pictures import GivenSet, Roles
from .probing import ProbeCosts, ProbedParts, ProbeTimer, Resolve, chosen_parts, probe_costs, probe_stages

SPARE = 0.85  # of the budget is planned; the rest is for what no step shows, such as pages and slower moments
PRETRAINED, ADAPTED = 0.65, 0.175  # of the planned time after fixed costs; adaptation twice, with its control
FEWEST_EPOCHS, MOST_EPOCHS = 20, 200
FEWEST_STEPS = 20
FIRST_ON_CPU = 96  # where the minutes are enough for it
SURELY = 1.2  # a larger size is timed if the pretraining is expected to be longer by this factor than it has to be
PRETRAINING, ADAPTATION = "pretrain/small.yaml", "adapt/small.yaml"


class RunCosts(NamedTuple):
    """What a run costs on this machine, in seconds: of each step, and besides (start, evaluation, export)."""

    step: float
    fixed: float

    def of(self, steps: int) -> float:
        """Seconds of a run of so many steps."""
        return self.fixed + self.step * steps


class Plan(NamedTuple):
    """pipeline: as a file holds it. network, size: for the probes. steps: by verb. seconds: expected in all.

    epochs: how often the pretraining sees each picture. longer: minutes with which it would see each often enough to be judged; None
    where it does. probed: labelled pictures that the probes learn from and are tested on.
    """

    pipeline: dict[str, Any]
    network: str
    size: int
    batch: dict[str, int]
    steps: dict[str, int]
    seconds: float
    epochs: float
    longer: float | None
    probed: int


Measure = Callable[[str, Mapping[str, Any]], RunCosts]


class _Timing(NamedTuple):
    """What was timed with pictures of one size."""

    config: dict[str, Any]
    cost: RunCosts
    adaptation: tuple[dict[str, Any], RunCosts] | None
    probed: ProbedParts | None
    probing: float  # seconds of the probes
    planned: float  # seconds for steps, after all that is fixed

    @property
    def batch(self) -> int:
        return self.config["optim"]["batch_size"]

    @property
    def share(self) -> float:
        """The part of `planned` that the pretraining gets."""
        return PRETRAINED if self.adaptation is not None else 1.0

    @property
    def steps(self) -> int:
        """Of the pretraining, as many as fit."""
        return int(max(self.planned, 0.0) * self.share / self.cost.step)


class _Story:
    """Times runs on the pictures, and knows how many seconds that took."""

    def __init__(self, roles: Roles, minutes: float, resolve: Resolve, measure: Measure, probe: ProbeTimer) -> None:
        self.roles, self.minutes, self.resolve, self.measure, self.probe = roles, minutes, resolve, measure, probe
        self.measured = 0.0
        self.probes: ProbeCosts | None = None
        self.count = sum(_trained_count(one) for one in roles.all)
        self.words = [override_of("data.train", _pretraining_uris(roles)), "run.dir=unused"]

    def timed(self, size: int) -> _Timing:
        config = settle("pretrain", self.resolve("pretrain", PRETRAINING, [*self.words, f"data.size={size}"]))
        cost = self.measure("pretrain", config)
        self.measured += cost.of(FEWEST_STEPS)
        fixed = cost.fixed
        adaptation = _adaptation(self.roles, size, config["backbone"]["name"], self.resolve, self.measure)
        if adaptation is not None:
            self.measured += adaptation[1].of(FEWEST_STEPS)
            fixed += 2 * adaptation[1].fixed
        probed, probing = self.probing(size, config["backbone"]["name"])
        planned = 60 * self.minutes * SPARE - self.measured - fixed - probing
        return _Timing(config, cost, adaptation, probed, probing, planned)

    def probing(self, size: int, network: str) -> tuple[ProbedParts | None, float]:
        """What is probed with pictures of this size, and how many seconds that takes. The probes are timed once, at the first size."""
        labelled = self.roles.labelled
        if labelled is None:
            return None, 0.0
        if self.probes is None:
            self.probes = probe_costs(labelled, size, network, self.resolve, self.probe)
            self.measured += self.probes.spent
        parts = chosen_parts(labelled, size, self.probes, self.measured, 60 * self.minutes * SPARE)
        return parts, self.probes.of(parts.pictures, size)

    def epochs(self, timing: _Timing) -> float:
        """How often the pretraining sees each picture."""
        return timing.steps * timing.batch / self.count

    def chosen(self) -> _Timing:
        """Of the size that the minutes allow. Each timing costs as much as some minutes' worth of steps, so there are three at most."""
        facts = facts_about("pretrain", self.resolve("pretrain", PRETRAINING, self.words))
        first, size = side_for(facts, FIRST_ON_CPU), side_for(facts)
        found = self.timed(size)
        expected = self.epochs(found) * (size / first) ** 2  # with the larger one: a step costs by the area
        if size < first and expected >= SURELY * FEWEST_EPOCHS:
            larger = self.timed(first)
            return larger if self.epochs(larger) >= FEWEST_EPOCHS else found
        for smaller in sorted((one for one in INPUT_SIDES if one < size), reverse=True):
            if self.epochs(found) >= FEWEST_EPOCHS:
                break
            found = self.timed(smaller)
        return found

    def minutes_for(self, timing: _Timing) -> float:
        """Minutes with which the pretraining would see each picture often enough."""
        steps = FEWEST_EPOCHS * self.count / timing.batch
        fixed = 60 * self.minutes * SPARE - self.measured - timing.planned - timing.probing
        wanted, labelled = fixed + steps * timing.cost.step / timing.share, self.roles.labelled
        if labelled is not None and self.probes is not None:
            whole = self.probes.of(len(labelled.images), timing.config["data"]["size"])
            wanted = max(self.probes.beside(wanted, whole), wanted + timing.probing)
        return math.ceil((self.measured + wanted) / SPARE / 60)


def plan_story(
    roles: Roles, minutes: float, folder: str, resolve: Resolve, measure: Measure, probe: ProbeTimer
) -> Plan:
    """The pipeline that ends within the minutes.

    Pictures become smaller until the pretraining sees each at least twenty times, or 32 px are reached. Raises UserError.
    """
    story = _Story(roles, minutes, resolve, measure, probe)
    timing = story.chosen()
    side, network, batch = timing.config["data"]["size"], timing.config["backbone"]["name"], timing.batch
    most = MOST_EPOCHS * story.count
    trained = max(FEWEST_STEPS, min(timing.steps, most // batch))
    keys = {
        "data.size": side, "backbone.name": network, "backbone.args": timing.config["backbone"]["args"], "optim.batch_size": batch,
    }  # fmt: skip
    keys = {key: value for key, value in keys.items() if value not in (None, {})}
    given = {"data.train": _pretraining_uris(roles), **keys, "optim.duration": trained, "evaluate.every": "50%"}
    stages: dict[str, Any] = {"pretrained": _stage("pretrain", PRETRAINING, given)}
    lengths, batches = {"pretrain": trained}, {"pretrain": batch}
    seconds = story.measured + timing.cost.of(trained)
    if timing.probed is not None:
        stages |= probe_stages(timing.probed, side, network)
        seconds += timing.probing
    if timing.adaptation is not None:
        config, cost = timing.adaptation
        batches["adapt"] = config["optim"]["batch_size"]
        fitting = int(max(timing.planned, 0.0) * ADAPTED / cost.step)
        lengths["adapt"] = max(FEWEST_STEPS, min(fitting, most // batches["adapt"]))
        stages |= _adaptations(roles, side, batches["adapt"], lengths["adapt"])
        seconds += 2 * cost.of(lengths["adapt"])
    pipeline = {"run": {"dir": folder}, "seeds": 1, "stages": stages, "report": _report(roles)}
    epochs = trained * batch / story.count
    longer = story.minutes_for(timing) if epochs < FEWEST_EPOCHS else None
    probed = 0 if timing.probed is None else timing.probed.pictures
    return Plan(pipeline, network, side, batches, lengths, seconds, epochs, longer, probed)


def plan_words(plan: Plan, roles: Roles, minutes: float, machine: str) -> list[str]:
    """What will be done, in four lines; a fifth says so if that is too little to judge a pretraining by."""
    held = " but a fifth of each set with labels" if any(one.labelled for one in roles.all) else ""
    often = f"which shows each {plan.epochs:.0f} times" if plan.epochs >= 1.5 else "too few to show each twice"
    parts = [
        f"pretraining on all pictures{held}, in {plan.steps['pretrain']} steps of {plan.batch['pretrain']}, {often}"
    ]
    if roles.labelled is not None:
        count = len(roles.labelled.images)
        some = "" if plan.probed >= count else f", on {plan.probed:,} of the {count:,} labelled pictures, for time"
        parts.append(f"probes against raw pixels, HOG and a random network{some}")
    parts += (
        [f"adaptation and its control, {plan.steps['adapt']} steps of {plan.batch['adapt']} each"]
        if "adapt" in plan.steps
        else []
    )
    told = "; ".join(one.words() for one in roles.all)
    return [
        told,
        f"machine: {machine}; {plan.network} at {plan.size} px",
        "; ".join(parts),
        f"about {time_left(plan.seconds)} in all, of the {minutes:g} min that it may take",
        *([f"WARNING: {too_short(plan.epochs, plan.longer)}"] if plan.longer is not None else []),
    ]


def too_short(epochs: float, longer: float) -> str:
    """That the trainings are too short to be judged, and what would be long enough."""
    return (
        f"these trainings are too short to be judged or used: the pretraining sees each picture {epochs:.1f} times, and {FEWEST_EPOCHS} "
        f"are the least; --minutes {longer:g} would be enough"
    )


def _pretraining_uris(roles: Roles) -> list[str]:
    """All pictures that may train without labels: no held-out fifth of a set that is tested on."""
    return [_trained_on(one) for one in roles.all]


def _trained_on(one: GivenSet) -> str:
    """All of a set that cannot be tested on, having no labels; else four fifths."""
    return f"{one.uri}#[:80%]" if one.labelled else one.uri


def _trained_count(one: GivenSet) -> int:
    """How many pictures `_trained_on` means."""
    return cut_point("80%", len(one.images), 0) if one.labelled else len(one.images)


def _adaptations(roles: Roles, size: int, batch: int, steps: int) -> dict[str, Any]:
    assert roles.labelled is not None and roles.target is not None
    source, target = roles.labelled.uri, roles.target.uri
    tests = {"source": f"{source}#[80%:]"} | ({"target": f"{target}#[80%:]"} if roles.target.labelled else {})
    common = {
        "data.source": f"{source}#[:80%]", "data.target": _trained_on(roles.target), "data.test": tests, "data.size": size,
        "backbone": {"name": None, "weights": "@pretrained"}, "optim.batch_size": batch, "optim.duration": steps,
    }  # fmt: skip
    return {
        "control": _stage("adapt", ADAPTATION, {**common, "method.trade_off": 0}),
        "adapted": _stage("adapt", ADAPTATION, common),
    }


def _adaptation(
    roles: Roles, size: int, network: str, resolve: Resolve, measure: Measure
) -> tuple[dict[str, Any], RunCosts] | None:
    """The config of an adaptation with a new network, and what it costs; None without a target."""
    if roles.labelled is None or roles.target is None:
        return None
    keys = {
        "data.source": f"{roles.labelled.uri}#[:80%]", "data.target": _trained_on(roles.target), "data.size": size,
        "data.test": f"{roles.labelled.uri}#[80%:]", "backbone.name": network, "run.dir": "unused",
    }  # fmt: skip
    config = settle("adapt", resolve("adapt", ADAPTATION, [override_of(key, value) for key, value in keys.items()]))
    return config, measure("adapt", config)


def _report(roles: Roles) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    if roles.labelled is not None:
        names = {"pixels": "raw pixels", "hog": "HOG", "random": "random network", "probe": "pretrained"}
        rows += [
            {"group": "Features", "label": f"{name}, {kind}", "stage": stage, "metric": f"test/{protocol}/accuracy"}
            for protocol, kind in (("knn", "kNN"), ("linear", "linear probe"))
            for stage, name in names.items()
        ]
        comparisons += [
            {
                "label": f"pretraining over a random network, {kind}",
                "a": f"pretrained, {kind}",
                "b": f"random network, {kind}",
                "primary": True,
            }
            for kind in ("kNN", "linear probe")
        ]
        comparisons += [
            {"label": f"pretraining over {name}, {kind}", "a": f"pretrained, {kind}", "b": f"{name}, {kind}"}
            for name in ("HOG", "raw pixels")
            for kind in ("kNN", "linear probe")
        ]
    if roles.labelled is not None and roles.target is not None:
        test = "target" if roles.target.labelled else "source"
        where = "" if roles.target.labelled else ", on the labelled domain itself"
        rows += [
            {"group": "Adaptation", "label": label, "stage": stage, "metric": f"{test}/classifier/accuracy"}
            for stage, label in (("control", f"control{where}"), ("adapted", f"MCC{where}"))
        ]
        comparisons += (
            [{"label": "MCC over its control", "a": "MCC", "b": "control", "primary": True}]
            if roles.target.labelled
            else []
        )
    return {"title": "A first try", "rows": rows, "comparisons": comparisons}


def _stage(verb: str, config: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    return {"verb": verb, "config": config, "set": dict(keys)}
