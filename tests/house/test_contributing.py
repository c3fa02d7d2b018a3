"""CONTRIBUTING.md: every test that it names exists, and "The way of a batch" names the right lines."""

import re
from collections.abc import Iterator

import pytest

from rootstock.tests.house.source import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
WRITTEN = {"benchmarks/test-all.md", "benchmarks/soak.md"}  # by the longer tiers of tests
# A row of the table: | `path:line` | `what stands there` | ...
HOP = re.compile(r"^\| `(?P<path>[\w/.]+):(?P<line>\d+)` \| `(?P<text>[^`]+)` \|", re.MULTILINE)


def hops() -> Iterator[tuple[str, int, str]]:
    """(path, line, text that the line holds) of each hop."""
    section = PAGE.split("## The way of a batch")[1].split("\n## ")[0]
    for found in HOP.finditer(section):
        yield found["path"], int(found["line"]), found["text"]


@pytest.mark.parametrize(("path", "line", "text"), [*hops()], ids=str)
def test_the_way_of_a_batch_names_the_right_lines(path: str, line: int, text: str) -> None:
    lines = (ROOT / path).read_text().splitlines()
    right = [number for number, content in enumerate(lines, 1) if text in content]
    assert right, f"CONTRIBUTING.md: nothing in {path} reads {text!r} any more; name the line that took its place"
    assert line in right, f"CONTRIBUTING.md: `{path}:{line}` should be `{path}:{right[0]}`, where {text!r} stands now"


def test_the_way_of_a_batch_is_short() -> None:
    files = [*dict.fromkeys(path for path, _, _ in hops())]
    assert len(files) <= 4
    assert files[0] == "launch/cli.py" and files[-1] == "ssl/simclr.py"


def test_every_path_exists() -> None:
    paths = {
        path.partition("::")[0]
        for path in re.findall(r"`((?:tests|core|ssl|launch|adapt|finetune|benchmarks)/[\w/.:]+)`", PAGE)
    }
    paths = {re.sub(r":\d+$", "", path) for path in paths} - WRITTEN
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_every_named_test_exists() -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE):
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"
