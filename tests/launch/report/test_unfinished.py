"""The page of a pipeline that was interrupted: what is done, what that says, what is missing, and the command that goes on."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from rootstock.launch.report.page import write_report
from rootstock.launch.report.records import read_run, stages_of
from rootstock.launch.report.unfinished import results_so_far, standing
from rootstock.tests.launch.report.test_page import Page, check_standing_alone, make_pipeline


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """Two stages over three seeds, of which the method has one run, another one is half done, and a third stage is to come."""
    folder = make_pipeline(tmp_path / "p", 3)
    (folder / "result.json").unlink()
    half = folder / "seed-1" / "cdan"
    (half / "result.json").unlink()
    (half / "state.json").write_text(json.dumps({"state": "running", "steps": 900, "why": ""}))
    shutil.rmtree(folder / "seed-2" / "cdan")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["stages"] = {
        name: {"verb": "adapt", "config": "adapt/digits_dann.yaml", "set": {}}
        for name in ("control", "cdan", "begun", "late")
    }
    begun = folder / "seed-0" / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text("{verb: adapt, seed: 0}")
    config["report"]["rows"].append({"label": "Late", "stage": "late"})
    config["report"]["comparisons"].append({"label": "later", "a": "Late", "b": "Control"})
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def test_states_of_all_runs_and_the_command(interrupted: Path) -> None:
    pipeline = read_run(interrupted)
    found = standing(pipeline, stages_of(pipeline))
    assert found is not None
    assert found.rows == [
        ("control", "adapt", ["finished"] * 3),
        ("cdan", "adapt", ["finished", "stopped, step 400 of 900", "not begun"]),
        ("begun", "adapt", ["stopped", "not begun", "not begun"]),
        ("late", "adapt", ["not begun"] * 3),
    ]
    assert found.sentence() == "Not finished: 4 of 12 runs are done, 2 stopped, 6 not begun."
    assert found.command == f"rootstock run {interrupted / 'config.yaml'}"


def test_results_are_those_of_finished_runs_alone(interrupted: Path) -> None:
    pipeline = read_run(interrupted)
    found = results_so_far(pipeline, stages_of(pipeline))
    assert [(row["label"], row["n"], row["values"]) for row in found["rows"]] == [
        ("Control", 3, [0.7, 0.71, 0.72]), ("A rather long name of a method, CDAN+E", 1, [0.8])
    ]  # fmt: skip
    (one,) = found["comparisons"]  # paired over the seed that both have; the late stage has none
    assert (one["n"], one["seeds"]) == (1, [0]) and one["mean"] == pytest.approx(0.1)


def test_its_page_says_so_and_a_finished_one_does_not(interrupted: Path, tmp_path: Path) -> None:
    page = Page(write_report([interrupted], tmp_path / "r.html"))
    check_standing_alone(page)
    for words in (
        "How far it is",
        "4 of 12 runs are done",
        "stopped, step 400 of 900",
        "rootstock run",
        "Control",
        "71.0",
    ):
        assert words in page.text, words
    done = Page(write_report([make_pipeline(tmp_path / "q", 1)], tmp_path / "s.html"))
    assert "How far it is" not in done.text and "Not finished" not in done.text


def test_a_pipeline_of_files_of_its_own_names_no_command_that_would_fail(interrupted: Path) -> None:
    config = yaml.safe_load((interrupted / "config.yaml").read_text())
    config["stages"]["late"]["config"] = "mine.yaml"
    (interrupted / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    pipeline = read_run(interrupted)
    found = standing(pipeline, stages_of(pipeline))
    assert found is not None and found.command == ""
    assert (
        "The same command that began it goes on with it"
        in Page(write_report([interrupted], interrupted / "r.html")).text
    )
