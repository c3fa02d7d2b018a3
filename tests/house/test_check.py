"""`make check` chooses the tests of a changed file."""

from pathlib import Path

import pytest

from rootstock.tests import check
from rootstock.tests.house.source import ROOT

TESTS = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize(
    ("changed", "chosen"),
    [
        ("ssl/simclr.py", ["tests/ssl/test_simclr.py"]),
        ("tests/ssl/test_simclr.py", ["tests/ssl/test_simclr.py"]),
        ("docs/how-to/runs.md", ["tests/test_documents.py"]),
        ("finetune/baselines/registry.py", ["tests/finetune/baselines/test_registry.py"]),
    ],
)
def test_a_file_has_the_test_of_its_name(changed: str, chosen: list[str]) -> None:
    assert [test.as_posix() for test in check.tests_of(Path(changed), TESTS)] == chosen


@pytest.mark.parametrize("room", ["ssl", "adapt"])
def test_a_file_without_one_has_those_that_import_it(room: str) -> None:
    """The test of another room's file of the same name is not its test."""
    chosen = [test.as_posix() for test in check.tests_of(Path(room, "registry.py"), TESTS)]
    assert "tests/core/test_method.py" in chosen and "tests/finetune/baselines/test_registry.py" not in chosen
