"""The page of metrics defines every one in the words of the code."""

from pathlib import Path

from rootstock.core.evaluate.definitions import DEFINITIONS

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "metrics.md").read_text()


def test_the_page_lists_every_metric() -> None:
    part = PAGE.partition("## Every metric")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in part.splitlines() if line.startswith("| `")]
    assert [name.strip("| `") for name, *_ in rows] == list(DEFINITIONS)
    for name, meaning, _ in rows:
        found = DEFINITIONS[name.strip("| `")]
        assert meaning == found.meaning + ("" if found.better == "higher" else "; lower is better")
