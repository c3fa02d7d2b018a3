"""benchmarks/pipeline_table.py: what the page of a pipeline says beside the table."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from rootstock.launch.report.layer_tables import layer_tables
from rootstock.tests.launch.report.test_layer_gradients import row
from rootstock.tests.launch.report.test_layer_gradients import stage as logged
from rootstock.tests.launch.report.test_layers import metrics, stage


def test_the_page_has_title_machine_command_and_table(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "label": "linear", "metric": "test/linear/accuracy", "stage": "probe", "stages": ["probe"], "mean": 0.5, "low": 0.4, "high": 0.6,
        "n": 3, "seeds": [0, 1, 2], "values": [0.4, 0.5, 0.6], "kind": "inductive", "selection": "last", "note": "",
        "beside": {}, "also": {},
    }  # fmt: skip
    config = tmp_path / "some.yaml"
    config.write_text(yaml.safe_dump({"report": {"title": "Some heads"}}))
    page = script("pipeline_table").text(
        str(config), {"rows": [row], "comparisons": []}, "rootstock run some.yaml seeds=3"
    )
    assert (
        page.startswith("# Some heads\n\nMachine: ")
        and f"python benchmarks/pipeline_table.py {config}` runs it" in page
    )
    assert "Made by `rootstock run some.yaml seeds=3`." in page and "| linear |" in page and "50.0" in page


def test_the_page_is_written_with_what_the_runs_say_by_layer(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, asked = script("pipeline_table"), list[Any]()
    config = tmp_path / "some.yaml"
    config.write_text(yaml.safe_dump({"run": {"dir": "runs/some"}, "seeds": 2, "report": {}}))
    stages = [
        logged("deep", [row(1, 1e-3, head=1.0)], [row(1, 1e-3, head=1.0)]),
        stage("net", metrics(0.2, 0.4), metrics(0.2, 0.4)),
    ]

    def run_to_its_end(*given: Any) -> tuple[Path, list[str]]:
        asked.append(given)
        return tmp_path / "run", ["rootstock", "run", "some.yaml", "seeds=2"]

    def tables_of_pipeline(folder: Path) -> list[str]:
        asked.append(folder)
        return layer_tables(stages, {}, {})

    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "run_to_its_end", run_to_its_end)
    monkeypatch.setattr(module, "made", lambda folder: ({"rows": [], "comparisons": []}, {}))
    monkeypatch.setattr(module, "tables_of_pipeline", tables_of_pipeline)
    assert module.main([str(config)]) == 0
    said = (tmp_path / "some.md").read_text()
    assert asked == [(["run", str(config)], "runs/some", 2, []), tmp_path / "run"]
    assert said.startswith("# some\n") and "| net | 2 | 20.0 [20.0, 20.0] | 40.0 [40.0, 40.0] |\n\n## Gradients" in said
    assert "| deep | 2 | −3.00 [−3.00, −3.00] |" in said and said.count("## ") == 3
