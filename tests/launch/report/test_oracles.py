"""Rows that saw a target's labels are called oracles, whatever their config says of itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from rootstock.core.images.open import open_images
from rootstock.core.images.sets import describe_sets
from rootstock.launch.pipeline.run import printed_tables
from rootstock.launch.pipeline.table import tabulate
from rootstock.launch.report.markdown import pipeline_markdown
from rootstock.launch.report.oracles import whose_target
from rootstock.launch.report.page import write_report
from rootstock.launch.report.results import averaged, summarise
from rootstock.launch.report.tables import caveats, results_tables
from rootstock.tests.launch.report.test_page import Page, make_run

METRIC = "target/classifier/accuracy"
DIGITS = {
    "source": "sklearn:digits?size=8#[:50%]#train",
    "target": "sklearn:digits?size=8#[50%:]#train",
    "test": "sklearn:digits?size=8#[50%:]#test",
    "other": "sklearn:digits?size=8#[:50%]#test",
}
SPLIT: dict[str, str] = describe_sets({name: open_images(uri) for name, uri in DIGITS.items()})["split"]


def result(task: str, selection: str = "last", **split: str) -> dict[str, Any]:
    """A result.json; split: the set of each role, by its name in DIGITS."""
    hashes = {name.replace("_", "."): SPLIT[which] for name, which in split.items()}
    data = {"split": hashes}
    return {
        "task": task,
        "seed": 0,
        "metrics": {METRIC: 0.5},
        "data": data,
        "selection": selection,
        "seen_unlabelled": {},
    }


ADAPTED = result("adapt", source="source", target="target", test_target="test", test_source="other")
RESULTS = {
    "simclr": [result("pretrain", train="target", target="test")],
    "dann": [ADAPTED],
    "plain": [result("finetune", train="source", target="test")],
    "oracle": [result("finetune", train="target", target="test")],
    "knn": [result("probe", train="target", target="test")],
    "later": [result("adapt", source="source", target="target", test_target="test")],
    "elsewhere": [result("finetune", train="target", target="other")],
}


@pytest.mark.parametrize(
    ("stage", "other"),
    [
        ("simclr", ""),
        ("dann", ""),
        ("plain", ""),
        ("oracle", "dann"),
        ("knn", "dann"),
        ("later", ""),
        ("elsewhere", ""),
    ],
)
def test_labels_of_another_rows_target_make_an_oracle(stage: str, other: str) -> None:
    """By the images' content: pretraining read them without labels, and on another test set they are ordinary training data."""
    assert whose_target(stage, METRIC, RESULTS) == other


def test_what_starts_from_an_oracle_is_one() -> None:
    inputs = {"later": ["middle"], "middle": ["oracle"], "oracle": ["simclr"]}
    assert whose_target("later", METRIC, RESULTS, inputs) == "dann"
    assert whose_target("dann", METRIC, RESULTS, {"dann": ["simclr"]}) == ""


def test_two_tasks_with_swapped_domains_are_no_oracles() -> None:
    swapped = {
        "there": [result("adapt", source="source", target="target", test_target="test", test_source="other")],
        "back": [result("adapt", source="target", target="source", test_target="other", test_source="test")],
    }
    assert [whose_target(stage, METRIC, swapped) for stage in swapped] == ["", ""]


def test_no_table_hides_it(tmp_path: Path) -> None:
    rows = [{"label": name.upper(), "stage": name} for name in ("plain", "dann", "oracle")]
    table = tabulate({"rows": rows, "columns": {}, "comparisons": []}, RESULTS)
    assert [row["kind"] for row in table["rows"]] == ["inductive", "inductive", "oracle"]
    why = "trained on the labels of the images that dann adapts to without them"
    assert table["rows"][2]["oracle"] == why and not any("oracle" in row for row in table["rows"][:2])
    plain, oracle = results_tables(table["rows"], {})
    assert [line.label for _, lines in plain.groups for line in lines] == ["PLAIN", "DANN"]
    assert oracle.heading.startswith("Oracle: ") and why in oracle.groups[0][1][0].note
    (line,) = [line for line in pipeline_markdown(table, "x").splitlines() if line.startswith("| ORACLE")]
    assert "| oracle |" in line and why in line


def test_no_column_holds_an_oracle_beside_other_rows() -> None:
    """An upper bound beside last iterates reads like one of them: on the page, in table.md and in the terminal."""
    rows = [{"label": name.upper(), "stage": name} for name in ("plain", "oracle", "dann")]
    tabulated = tabulate({"rows": rows, "columns": {}, "comparisons": []}, RESULTS)
    admitted = summarise(
        [result("finetune", selection="oracle", train="source", target="test")], label="BEST", stage="x"
    )
    table = {**tabulated, "rows": [*tabulated["rows"], admitted], "comparisons": []}
    upper, lower = {"ORACLE", "BEST"}, {"PLAIN", "DANN"}
    on_page = [{line.label for _, lines in one.groups for line in lines} for one in results_tables(table["rows"], {})]
    blocks = [part for part in pipeline_markdown(table, "x").split("\n\n") if part.startswith("|")]
    in_markdown = [{label for label in upper | lower if f"| {label} |" in part} for part in blocks]
    in_terminal = [{str(cell) for cell in one.columns[0].cells} for one in printed_tables(table)]
    assert on_page == in_markdown == [lower, upper]
    assert in_terminal == [lower, {f"{label} \\[oracle]" for label in upper}]
    alone = {**table, "rows": table["rows"][-1:]}
    assert len(printed_tables(alone)) == 1 and pipeline_markdown(alone, "x").count("| BEST |") == 1


def test_a_row_that_admits_it_is_one_too() -> None:
    """Also where it is one of several tasks."""
    admitted = result("finetune", selection="oracle", train="source", target="test")
    row = summarise([admitted], label="upper bound", stage="x")
    assert row["kind"] == "oracle" and "upper bound" in caveats([row])[0]
    mean = summarise(averaged([[admitted], [ADAPTED]]), label="mean", stage="x")
    assert mean["selection"] == ["last and oracle"] and mean["kind"] == "oracle"


def test_a_stream_sorted_by_labels_is_a_diagnostic() -> None:
    """Also where it is one of several tasks; other orders are ordinary results."""
    kinds = {}
    for order in ("shuffled", "sequential", "sorted: a diagnostic"):
        met = {**ADAPTED, "data": {**ADAPTED["data"], "order": order}}
        rows = [summarise(results, label="x", stage="x") for results in ([met], averaged([[met], [ADAPTED]]))]
        kinds[order] = [row["kind"] for row in rows]
    assert kinds == {
        "shuffled": ["inductive", "inductive"],
        "sequential": ["inductive", "inductive"],
        "sorted: a diagnostic": ["diagnostic", "diagnostic"],
    }
    (table,) = results_tables(rows, {})
    assert table.heading.startswith("Diagnostic: the target's images were met sorted by class")


def test_the_page_that_compares_runs_marks_them(tmp_path: Path) -> None:
    folders = []
    for name in ("dann", "oracle"):
        run = make_run(tmp_path / name, method={"name": name})
        kept = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(
            json.dumps({**kept, "task": RESULTS[name][0]["task"], "data": RESULTS[name][0]["data"]})
        )
        folders.append(run)
    words = " ".join(Page(write_report(folders, tmp_path / "r.html")).words)
    assert "trained on the labels of the images that dann adapts to without them" in words and "Oracle: " in words
