"""configs/schema.json is what the constructors give, describes every key, and knows when it is out of date."""

from pathlib import Path

import pytest

from rootstock.core.config.json_schema import undescribed
from rootstock.launch import schema_file
from rootstock.launch.schema_file import SCHEMA_FILE, is_current, schema_text, stored_schema
from rootstock.launch.verbs import EXTRA, VERBS


def test_the_file_is_what_the_constructors_give() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), "run `make schema`"


def test_every_key_has_a_description() -> None:
    assert undescribed(VERBS, EXTRA) == []


SOURCE = '''
"""A method."""
NAMES = {"a": 1}
class A:
    width: int = 3
    def __init__(self, backbone, *, temperature: float = 0.2) -> None:
        self.sum = 1
'''


@pytest.mark.parametrize(
    ("old", "new", "current"),
    [
        ("= 0.2", "= 0.3", False),
        ("temperature", "tau", False),
        ('"a": 1', '"a": 1, "b": 2', False),
        ("width: int", "width: float", False),
        ("self.sum = 1", "self.sum = 2", True),
        ("A method", "A good method", True),
    ],
)
def test_an_edit_of_a_key_makes_the_schema_old(
    old: str, new: str, current: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_file, "PACKAGE", tmp_path)
    (tmp_path / "ssl").mkdir()
    file = tmp_path / "ssl" / "method.py"
    file.write_text(SOURCE)
    written = {"x-sources": schema_file._interfaces()}  # pyright: ignore[reportPrivateUsage]
    assert list(written["x-sources"]) == ["ssl/method.py"] and is_current(written)
    file.write_text(SOURCE.replace(old, new))
    assert is_current(written) is current


def test_a_damaged_file_is_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stored_schema() is not None
    (tmp_path / "schema.json").write_text("{")
    for path in (tmp_path / "schema.json", tmp_path / "nowhere.json"):
        monkeypatch.setattr(schema_file, "SCHEMA_FILE", path)
        stored_schema.cache_clear()
        assert stored_schema() is None
    stored_schema.cache_clear()
