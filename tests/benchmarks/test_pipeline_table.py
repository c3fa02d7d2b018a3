"""benchmarks/pipeline_table.py: what the page of a pipeline says beside the table."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml


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
