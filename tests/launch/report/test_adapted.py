"""What the page says of an adaptation beside its accuracy; runs of earlier versions, which lack it, still have a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rootstock.launch.report.adapted import adapted_view
from rootstock.launch.report.folder import odd_map
from rootstock.launch.report.page import write_report
from rootstock.launch.report.records import StageRuns, read_run
from rootstock.tests.launch.report.test_page import Page, make_run

CLASSES = ["cat", "dog & <b>"]


def diagnosed(run: Path, shift: float = 0.0, **diagnostics: Any) -> Path:
    """A run's folder with what an adaptation says of itself. shift: added to distances, so that seeds differ."""
    result = json.loads((run / "result.json").read_text())
    distance = {"value": 1.5 + shift, "low": 1.25, "high": 1.75, "error": 0.1, "images": 80, "C": 1.0}
    result["diagnostics"] = {
        "target": {"effective": 4.0 + shift, "classes": 10, "largest": 0.5, "alarm": None},
        "a_distance": {"before": distance, "after": None},
        "mmd": {"before": {"value": 0.5, "p": 0.005}, "after": {"value": -0.25, "p": 0.3 + shift}},
        "batchnorm": {"before": None, "after": None},
        "training": {"rows": 40, "first": {}, "last": {}, "lost": "the discriminator won: at the end"},
        **diagnostics,
    }
    known = {"total_variation": 0.25 + shift, "interval": [0.125, 0.375]}
    result["label_shift"] = {
        "bbse": known, "mlls": known, "measured_on": "held-out source", "true": {"target": {"total_variation": 0.5}},
    }  # fmt: skip
    accuracy = {"cat": 0.5 + shift, "dog & <b>": None}
    result["by_class"] = {
        "target": {"images": 4, "accuracy": accuracy},
        "source": {"images": 4, "accuracy": {"cat": 0.75, "dog & <b>": 0.25}, "measured_on": "held-out source"},
    }
    result["changes"] = {
        "before": "the nearest mean",
        "tests": {"target": {"images": 30, "to_right": 9, "to_wrong": 2}},
    }
    (run / "result.json").write_text(json.dumps(result))
    with (run / "metrics.jsonl").open("w") as rows:
        for step in range(40):
            rows.write(json.dumps({"step": step, "loss": 1.0, "domain_accuracy": 0.7, "gradient_ratio": 0.1}) + "\n")
    chart = json.loads((run / "map.json").read_text())
    chart["before"] = {axis: [float(i) for i in range(60)] for axis in "xy"}
    (run / "map.json").write_text(json.dumps(chart))
    return run


def view(*runs: Path) -> Any:
    return adapted_view(StageRuns("dann", [read_run(run) for run in runs]))


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (None, " on held-out source images."),
        ({"source": 6}, " on 6 held-out source images, few for 2 classes, so the estimates are rough."),
        ({"source": 20}, " on 20 held-out source images."),
    ],
)
def test_few_images_under_the_estimates_of_priors_are_said(images: Any, told: str, tmp_path: Path) -> None:
    run = diagnosed(make_run(tmp_path / "a"))
    result = json.loads((run / "result.json").read_text())
    result["label_shift"] |= {"source": {"cat": 0.5, "dog & <b>": 0.5}, **({"images": images} if images else {})}
    (run / "result.json").write_text(json.dumps(result))
    assert view(run).foot[1].endswith(f"The classifier's confusion was measured{told}")


def test_one_run_shows_its_own_intervals(tmp_path: Path) -> None:
    found = view(diagnosed(make_run(tmp_path / "a")))
    told = {line.name: (line.before, line.after) for line in found.lines}
    assert told == {
        "A-distance": ("1.50 [1.25, 1.75]", "not measured"),
        "MMD": ("0.50 (p = 0.005)", "−0.25 (p = 0.300)"),
        "Effective number of predicted classes, of 10": ("", "4.00"),
    }
    assert [value for _, value in found.priors] == ["0.25 [0.12, 0.38]", "0.25 [0.12, 0.38]", "0.50"]
    assert found.domains == ["source", "target"]
    assert found.classes == [("cat", ["75.0", "50.0"]), ("dog & <b>", ["25.0", "–"])]
    assert [figure.title for figure in found.curves] == ["Discriminator accuracy", "Gradient of transfer over task"]
    assert found.changes[0].startswith("Of 30 images of target, 9 were wrong before the training")


def test_several_seeds_are_means_with_intervals_between_them(tmp_path: Path) -> None:
    found = view(diagnosed(make_run(tmp_path / "a")), diagnosed(make_run(tmp_path / "b", 1), 0.1))
    distance, mmd, _ = found.lines
    mean, half = 1.55, 12.7062 * 0.05  # Student's t with one degree of freedom, times the standard error
    assert distance.before == f"{mean:.2f} [{mean - half:.2f}, 2.00]"  # never beyond what a distance can be
    assert mmd.after.endswith("(p = 0.400)")  # the largest
    assert found.classes[0] == ("cat", ["75.0", "55.0"])
    assert "Of 60 images of target over 2 seeds, 18 were wrong" in found.changes[0]


def test_the_page_says_all_of_it_and_that_the_game_was_lost(tmp_path: Path) -> None:
    page = Page(write_report([diagnosed(make_run(tmp_path / "a"))], tmp_path / "page.html"))
    text = " ".join(" ".join(page.words).split())
    for words in (
        "seed 0: the discriminator won: at the end.",
        "1.50 [1.25, 1.75]",
        "true, of the test target",
        "By class, before the training",
        "By domain, after the training",
        "9 were wrong before the training and are right after it",
        "Discriminator accuracy",
    ):
        assert words in text, words
    assert text.count("domain accuracy") == 0  # not among the other curves once more


def test_a_run_of_an_earlier_version_has_its_page_without_these(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert not view(run).shown
    text = " ".join(Page(write_report([run], tmp_path / "page.html")).words)
    assert "before the training" not in text and "By class" in text
    result = json.loads((run / "result.json").read_text())
    distance = {"value": 1.5, "low": 1.25, "high": 1.75, "error": 0.1, "images": 80, "C": 1.0}
    target = {"effective": 4.0, "classes": 10, "largest": 0.5, "alarm": None}
    result["diagnostics"] = {"target": target, "a_distance": {"before": None, "after": distance}}  # as 0.2 wrote it
    (run / "result.json").write_text(json.dumps(result))
    assert "1.50 [1.25, 1.75]" in " ".join(Page(write_report([run], tmp_path / "page.html")).words)


@pytest.mark.parametrize("before", [[1.0], {"x": [1.0], "y": [1.0]}, {"x": ["a", "b"], "y": [1.0, 2.0]}])
def test_a_map_with_an_odd_beginning_is_damaged(before: Any) -> None:
    chart = {"x": [1.0, 2.0], "y": [1.0, 2.0], "label": [0, 1], "domain": [0, 0]}
    assert odd_map({**chart, "before": {"x": [1.0, 2.0], "y": [1.0, 2.0]}}) == odd_map(chart) == ""
    assert odd_map({**chart, "before": before})
