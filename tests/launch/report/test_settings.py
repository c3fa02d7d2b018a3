"""Where configs differ: a table for each verb, without what every run has for itself."""

from pathlib import Path
from typing import Any

from rootstock.launch.report.records import RunRecord, StageRuns
from rootstock.launch.report.settings import settings_that_differ


def stage(name: str, verb: str, **config: Any) -> StageRuns:
    return StageRuns(name, [RunRecord(Path(name), {"seed": 0, "run": {"dir": name}, **config}, {"verb": verb})])


def test_only_keys_that_differ_stand_there_and_only_runs_of_one_verb_together() -> None:
    stages = [
        stage("a", "adapt", method={"name": "dann", "weight": 1.0}, data={"size": 32}),
        stage("p", "probe", data={"size": 64}),
        stage("b", "adapt", method={"name": "cdan", "entropy": True}, data={"size": 32}),
    ]
    (table,) = settings_that_differ(stages)
    assert (table.verb, table.names) == ("adapt", ["a", "b"])
    assert table.rows == [
        ("method.name", ["dann", "cdan"]), ("method.weight", ["1.0", ""]), ("method.entropy", ["", "true"])
    ]  # fmt: skip
    assert (
        settings_that_differ(
            [stages[0], stage("c", "adapt", method={"name": "dann", "weight": 1.0}, data={"size": 32})]
        )
        == []
    )


def test_long_values_and_many_keys_stay_small() -> None:
    wide = [stage(name, "adapt", data={f"k{i}": f"{name}{i}" for i in range(200)}, long=name * 500) for name in "xy"]
    (table,) = settings_that_differ(wide)
    assert len(table.rows) == 80 and table.notes == ["The first 80 of 201 keys that differ."]
    (other,) = settings_that_differ([stage(name, "adapt", long=name * 500) for name in "xy"])
    assert all(len(value) < 60 and "…" in value for value in other.rows[0][1])
