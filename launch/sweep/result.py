"""The result of a sweep: result.json, and the table on the command line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from ...core.manifest import write_record
from ..report.tables import duration
from .cost import cost_in_words
from .front import pareto_front, write_front

if TYPE_CHECKING:
    from .plan import Sweep
    from .study import Study

BEYOND_BUDGET = "over budget"  # the state of a trial that cost too much to be trained
_ROWS = 30  # rows of the printed table
_FEWEST = 6  # trials needed to compute importances


def record_result(study: Study) -> dict[str, Any]:
    """Write result.json of a finished study and return it."""
    sweep = study.sweep
    trials = [_trial(sweep, frozen) for frozen in study.trials()]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    against = _against_cost(sweep, trials)
    best = (max if sweep.maximize else min)(complete, key=lambda trial: trial["value"], default=None)
    if against.get("front"):  # of trials that are equally good, the cheapest
        best = trials[against["front"][-1]["number"]]
    result = {
        "task": "sweep",
        "run": str(sweep.dir),
        "verb": sweep.verb,
        "config": sweep.file,
        "objective": "/".join(filter(None, sweep.objective)),
        "direction": sweep.config["direction"],
        "selection": sweep.selection,
        "sampler": sweep.config["sampler"],
        "best": best
        and {
            **{key: best[key] for key in ("number", "params", "value", "run")},
            "command": sweep.command(best["params"], f"run.dir={sweep.dir}_best"),
        },
        **against,
        "importance": _importance(study, len(complete)),
        "trials": trials,
        "seconds": round(sum(trial["seconds"] for trial in trials), 1),
    }
    write_record(sweep.dir / "result.json", result, shared=True)
    return result


def _against_cost(sweep: Sweep, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The entries of a sweep with a cost: what it is, and its Pareto front, each point also as a config; {} of one without."""
    if sweep.cost is None:
        return {}
    front = write_front(sweep, pareto_front(trials, sweep.maximize))
    return {"cost": {**sweep.cost.section, "budget": sweep.cost.budget}, "front": front}


def _trial(sweep: Sweep, frozen: Any) -> dict[str, Any]:
    facts = frozen.user_attrs
    # The folder of the trial that was trained with these parameters.
    folder = sweep.folder(facts.get("same_as", frozen.number))
    untrained = BEYOND_BUDGET if frozen.state.name == "PRUNED" else "failed"
    return {
        "number": frozen.number,
        "state": "complete" if frozen.values else untrained,
        "params": {key: span.value(frozen.params[key]) for key, span in sweep.space.items() if key in frozen.params},
        "value": frozen.values[0] if frozen.values else None,
        **(facts.get("cost", {"cost": None}) if sweep.cost is not None else {}),
        # A trial of a machine that shares no disk with this one: its place there.
        "run": str(folder) if folder.is_dir() else f"{facts.get('host')}:{facts.get('dir')}/{folder.name}",
        "seconds": facts.get("seconds", 0.0),
        "attempts": facts.get("attempts", 0),
        "host": facts.get("host", ""),
        **({"same_as": facts["same_as"]} if "same_as" in facts else {}),
        **({"why": facts["why"]} if facts.get("why") else {}),
    }


def _importance(study: Study, complete: int) -> dict[str, float]:
    """Each parameter's share of the objective's variance by fANOVA (Hutter et al. 2014); empty if it cannot be computed."""
    if complete < _FEWEST or len(study.sweep.space) < 2:
        return {}
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = get_param_importances(
                study.study, evaluator=FanovaImportanceEvaluator(seed=0), target=lambda trial: trial.values[0]
            )
        except RuntimeError:  # all trials have the same value
            return {}
    return {key: round(float(share), 4) for key, share in found.items()}


def begun_in_words(trial: Mapping[str, Any]) -> str:
    """How many processes worked on a trial, or which one had its parameters before."""
    return f"as {trial['same_as']}" if "same_as" in trial else f"{trial['attempts']} x"


def best_first(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trials by value, failed ones last."""
    sign = -1 if result["direction"] == "maximize" else 1
    return sorted(result["trials"], key=lambda t: (t["value"] is None, sign * (t["value"] or 0), t["number"]))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted key, with as many parts before it as make it unique."""
    names = {}
    for key in keys:
        parts = key.split(".")
        fewest = 2 if parts[-1].isdigit() and len(parts) > 1 else 1  # the element of a list, with its name
        ends = [".".join(parts[-depth:]) for depth in range(fewest, len(parts) + 1)]
        names[key] = next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1)
    return names


def brief(value: Any) -> str:
    """A value as short text."""
    if isinstance(value, float):
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e+")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def params_in_words(params: Mapping[str, Any]) -> str:
    names = short_names(list(params))
    return "  ".join(f"{names[key]} {brief(value)}" for key, value in params.items())


def trials_table(result: Mapping[str, Any]) -> Table:
    """The table of trials for the terminal, best first."""
    keys = list(dict.fromkeys(key for trial in result["trials"] for key in trial["params"]))
    table = Table(box=None, header_style="dim", pad_edge=False)
    price = [result["cost"]["name"]] if result.get("cost") else []
    headings = ["trial", *short_names(keys).values(), result["objective"], *price, "time", "begun", ""]
    for heading in headings:
        table.add_column(escape(heading), justify="left" if heading == "" else "right")
    trials = best_first(result)
    for trial in trials[:_ROWS]:
        value = trial["state"] if trial["value"] is None else f"{trial['value']:.4f}"
        costs = ["" if trial["cost"] is None else cost_in_words(trial["cost"])] if price else []
        params = [escape(brief(trial["params"][key])) if key in trial["params"] else "" for key in keys]
        cells = [*params, value, *costs, duration(trial["seconds"]), begun_in_words(trial)]
        table.add_row(str(trial["number"]), *cells, escape(trial.get("why", "")))
    if len(trials) > _ROWS:
        table.add_row(*[""] * (len(headings) - 1), f"and {len(trials) - _ROWS} more in result.json")
    return table
