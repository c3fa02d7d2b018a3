"""From sets and a budget of minutes to a pipeline: network, size, batch and steps, by what a few steps cost on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...core.train.remaining import time_left
from ..settle import INPUT_SIDES, facts_about, settle, side_for
from .pictures import Roles

SPARE = 0.85  # of the budget is planned; the rest is for what no step shows, such as pages and slower moments
PRETRAINED, ADAPTED = 0.65, 0.175  # of the planned time after fixed costs; adaptation twice, with its control
FEWEST_EPOCHS, MOST_EPOCHS = 20, 200
FEWEST_STEPS = 20
FIRST_ON_CPU = 96  # to begin with: where the minutes are too short for it, pictures become smaller
PRETRAINING, ADAPTATION = "pretrain/small.yaml", "adapt/small.yaml"


class RunCosts(NamedTuple):
    """What a run costs on this machine, in seconds: of each step, and besides (start, evaluation, export)."""

    step: float
    fixed: float


class Plan(NamedTuple):
    """pipeline: as a file holds it. network, size: for the probes. steps: by verb. seconds: expected in all."""

    pipeline: dict[str, Any]
    network: str
    size: int
    batch: dict[str, int]
    steps: dict[str, int]
    seconds: float


Measure = Callable[[str, Mapping[str, Any]], RunCosts]
Resolve = Callable[[str, str, list[str]], dict[str, Any]]


def plan_story(roles: Roles, minutes: float, folder: str, resolve: Resolve, measure: Measure, probe: float) -> Plan:
    """The pipeline that ends within the minutes. probe: seconds that a probe is expected to take.

    Pictures become smaller until the pretraining sees each at least twenty times, or 32 px are reached. Raises UserError.
    """
    unlabelled = _pretraining_uris(roles)
    measured = 0.0
    words = [f"data.train={_quoted(unlabelled)}", "run.dir=unused"]
    size = side_for(facts_about("pretrain", resolve("pretrain", PRETRAINING, words)), FIRST_ON_CPU)
    while True:
        config = settle("pretrain", resolve("pretrain", PRETRAINING, [*words, f"data.size={size}"]))
        side: int = config["data"]["size"]
        batch, network = config["optim"]["batch_size"], config["backbone"]["name"]
        count = sum(len(one.images) for one in roles.all)
        costs = measure("pretrain", config)
        measured += costs.fixed + costs.step * FEWEST_STEPS
        adaptation = _adaptation(roles, side, network, resolve, measure)
        planned = 60 * minutes * SPARE - measured - costs.fixed - 4 * probe
        if adaptation is not None:
            planned -= 2 * adaptation[1].fixed
        share = PRETRAINED if adaptation is not None else 1.0
        steps = int(max(planned, 0.0) * share / costs.step)
        smaller = [one for one in INPUT_SIDES if one < side]
        if steps * batch >= FEWEST_EPOCHS * count or not smaller:
            break
        size = smaller[-1]
    trained = max(FEWEST_STEPS, min(steps, MOST_EPOCHS * count // batch))
    keys = {
        "data.size": side, "backbone.name": network, "backbone.args": config["backbone"]["args"], "optim.batch_size": batch,
    }  # fmt: skip
    keys = {key: value for key, value in keys.items() if value not in (None, {})}
    stages: dict[str, Any] = {
        "pretrained": _stage(
            "pretrain",
            PRETRAINING,
            {"data.train": unlabelled, **keys, "optim.duration": trained, "evaluate.every": "50%"},
        )
    }
    lengths, batches = {"pretrain": trained}, {"pretrain": batch}
    seconds = measured + costs.fixed + costs.step * trained
    if roles.labelled is not None:
        stages |= _probes(roles.labelled.uri, side, network)
        seconds += 4 * probe
    if adaptation is not None:
        given, cost = adaptation
        adapted = max(
            FEWEST_STEPS,
            min(int(max(planned, 0.0) * ADAPTED / cost.step), MOST_EPOCHS * count // given["optim"]["batch_size"]),
        )
        lengths["adapt"], batches["adapt"] = adapted, given["optim"]["batch_size"]
        stages |= _adaptations(roles, side, batches["adapt"], adapted)
        seconds += 2 * (cost.fixed + cost.step * adapted)
    pipeline = {"run": {"dir": folder}, "seeds": 1, "stages": stages, "report": _report(roles)}
    return Plan(pipeline, network, side, batches, lengths, seconds)


def plan_words(plan: Plan, roles: Roles, minutes: float, machine: str) -> list[str]:
    """What will be done, in four lines."""
    parts = [f"pretraining with batches of {plan.batch['pretrain']} for {plan.steps['pretrain']} steps"]
    parts += ["probes against raw pixels, HOG and a random network"] if roles.labelled is not None else []
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
    ]


def _pretraining_uris(roles: Roles) -> list[str]:
    """All pictures that may train without labels: no held-out fifth of a set that is tested on."""
    uris = [] if roles.unlabelled is None else [roles.unlabelled.uri]
    uris += [] if roles.labelled is None else [f"{roles.labelled.uri}#[:80%]"]
    return uris + ([] if roles.target is None else [f"{roles.target.uri}#[:80%]"])


def _probes(labelled: str, size: int, network: str) -> dict[str, Any]:
    data = {"data.train": f"{labelled}#[:80%]", "data.test": f"{labelled}#[80%:]", "data.size": size}

    def of(**backbone: Any) -> dict[str, Any]:
        return _stage(
            "probe", "probe/small.yaml", {**data, **{f"backbone.{key}": value for key, value in backbone.items()}}
        )

    return {
        "pixels": of(name="pixels"),
        "hog": of(name="hog"),
        "random": of(name=network),
        "probe": of(name=None, weights="@pretrained"),
    }


def _adaptations(roles: Roles, size: int, batch: int, steps: int) -> dict[str, Any]:
    assert roles.labelled is not None and roles.target is not None
    source, target = roles.labelled.uri, roles.target.uri
    tests = {"source": f"{source}#[80%:]"} | ({"target": f"{target}#[80%:]"} if roles.target.labelled else {})
    common = {
        "data.source": f"{source}#[:80%]", "data.target": f"{target}#[:80%]", "data.test": tests, "data.size": size,
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
    words = [
        f"data.source={roles.labelled.uri}#[:80%]", f"data.target={roles.target.uri}#[:80%]", f"data.size={size}",
        f"data.test={roles.labelled.uri}#[80%:]", f"backbone.name={network}", "run.dir=unused",
    ]  # fmt: skip
    config = settle("adapt", resolve("adapt", ADAPTATION, words))
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
    if roles.labelled is not None and roles.target is not None:
        test = "target" if roles.target.labelled else "source"
        rows += [
            {"group": "Adaptation", "label": label, "stage": stage, "metric": f"{test}/classifier/accuracy"}
            for stage, label in (("control", "control"), ("adapted", "MCC"))
        ]
        comparisons += (
            [{"label": "MCC over its control", "a": "MCC", "b": "control", "primary": True}]
            if roles.target.labelled
            else []
        )
    return {"title": "A first try", "rows": rows, "comparisons": comparisons}


def _stage(verb: str, config: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    return {"verb": verb, "config": config, "set": dict(keys)}


def _quoted(uris: list[str]) -> str:
    return "[" + ", ".join(f'"{uri}"' for uri in uris) + "]"
