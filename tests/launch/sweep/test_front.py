"""The Pareto front beside its definition, and its points as configs that are the trials' own."""

import itertools
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rootstock.core.draws import Draws
from rootstock.launch.pipeline.plan import plan_pipeline
from rootstock.launch.sweep.front import pareto_front, write_point
from rootstock.launch.sweep.plan import Sweep, plan_sweep, without_run
from rootstock.launch.verbs import resolve
from rootstock.tests.launch.sweep.searched import PIPELINE, search


def trials_of(pairs: list[tuple[float | None, float | None]]) -> list[dict[str, Any]]:
    return [{"number": i, "params": {}, "value": value, "cost": cost} for i, (value, cost) in enumerate(pairs)]


def slowly(trials: list[dict[str, Any]], sign: int) -> set[int]:
    """Trials that no other is as good as in both and better than in one; of equal ones the first."""
    known = [trial for trial in trials if trial["value"] is not None and trial["cost"] is not None]

    def surpasses(a: dict[str, Any], b: dict[str, Any]) -> bool:
        as_good = sign * a["value"] >= sign * b["value"] and a["cost"] <= b["cost"]
        equal = a["value"] == b["value"] and a["cost"] == b["cost"]
        return as_good and (not equal or a["number"] < b["number"])

    return {b["number"] for b in known if not any(surpasses(a, b) for a in known if a is not b)}


@pytest.mark.parametrize("seed", range(20))
def test_no_point_of_the_front_is_surpassed_and_no_other_is_left_out(seed: int) -> None:
    """Few different values, so that there are ties; some trials have failed, some cost too much."""
    drawn = Draws(seed, torch.arange(12)).integers("points", 5, 2).tolist()
    pairs: list[tuple[float | None, float | None]] = [(value / 5, cost) for value, cost in drawn]
    trials = trials_of([*pairs, (None, 1.0), (None, None)])
    for maximize, sign in ((True, 1), (False, -1)):
        front = pareto_front(trials, maximize)
        assert {point["number"] for point in front} == slowly(trials, sign)
        assert all(a["cost"] < b["cost"] for a, b in itertools.pairwise(front))
    assert pareto_front(trials_of([(None, 3.0)]), True) == []


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(**sections: Any) -> Sweep:
    sweep = plan_sweep(search(**sections), [])
    sweep.dir.mkdir()
    return sweep


def test_a_point_is_a_config_that_resolves_to_its_trial() -> None:
    """Wherever it is read from; a method that the trials' config has not is replaced as an override replaces it."""
    keys = {"search": {
        "backbone.args.widths": {"list": [{"int": [2, 8]}, {"choice": [4]}, {"choice": [8]}, {"choice": [8]}]},
        "optim.lr": {"log": [1e-5, 1e-2]},
        "method": {"choice": ["simclr", {"name": "vicreg", "projection": [16, 8]}]},
    }}  # fmt: skip
    sweep = planned(verb="pretrain", config="pretrain.yaml", objective="test/knn/accuracy", set={"seed": 3}, **keys)
    params = {f"backbone.args.widths.{i}": width for i, width in enumerate((3, 4, 8, 8))}
    params |= {"optim.lr": 1e-5, "method": {"name": "vicreg", "projection": [16, 8]}}
    point = {"number": 7, "params": params, "value": 0.5, "cost": 1234}
    written = write_point(sweep, point)
    assert written == {
        "config": "sweep/front/trial-0007.yaml",
        "command": "rootstock pretrain sweep/front/trial-0007.yaml",
    }
    found, own = resolve("pretrain", written["config"]), resolve("pretrain", sweep.file, sweep.overrides(7, params))
    assert without_run(found) == without_run(own)
    assert found["backbone"]["args"]["widths"] == [3, 4, 8, 8] and found["optim"]["lr"] == 1e-5 and found["seed"] == 3
    assert found["run"] == {**own["run"], "dir": "sweep/front/trial-0007"}
    header = Path(written["config"]).read_text().splitlines()[:4]
    assert header[0] == "# Trial 7 of the sweep sweep, a point of its Pareto front." and header[3].endswith(
        "macs 1234."
    )
    assert shlex.split(header[1])[2:] == shlex.split(written["command"])


def test_a_point_over_a_shipped_config_names_it() -> None:
    sweep = planned(config="finetune/digits.yaml", set={"data.test": None}, search={"optim.lr": {"log": [1e-4, 1e-2]}})
    written = write_point(sweep, {"number": 0, "params": {"optim.lr": 1e-3}, "value": 0.5, "cost": 1})
    assert yaml.safe_load(Path(written["config"]).read_text())["extends"] == "finetune/digits.yaml"
    assert resolve("finetune", written["config"])["optim"]["lr"] == 1e-3


def test_a_point_of_a_pipeline_is_the_whole_pipeline() -> None:
    keys = {"search": {"stages.ssl.backbone.args.widths": {"choice": [[4, 4, 8, 8], [2, 4, 8, 8]]}}}
    sweep = planned(verb="run", config="pipeline.yaml", objective="probe/test/knn/accuracy", **keys)
    params = {"stages.ssl.backbone.args.widths": [2, 4, 8, 8]}
    written = write_point(sweep, {"number": 1, "params": params, "value": 0.5, "cost": 1})
    config, jobs = plan_pipeline(written["config"], [], resolve)
    assert config["run"]["dir"] == "sweep/front/trial-0001" and list(config["stages"]) == list(PIPELINE["stages"])
    assert jobs[0].resolved["backbone"]["args"]["widths"] == [2, 4, 8, 8]
    _, own = plan_pipeline(sweep.file, sweep.overrides(1, params), resolve)
    assert [without_run(a.resolved)["data"] for a in jobs] == [without_run(b.resolved)["data"] for b in own]
