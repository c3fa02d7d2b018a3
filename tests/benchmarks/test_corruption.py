"""benchmarks/corruption.py: a part of its matrix, and that the committed page holds no damage that nobody notices."""

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
STOPPED, PROBED, CACHED = "a pretraining that was stopped", "a finished probe", "the cache of frozen features"


@pytest.fixture(scope="module")
def corruption(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("corruption")


@pytest.mark.parametrize(("name", "kind"), [(STOPPED, "truncate"), (PROBED, "flip"), (PROBED, "delete")])
def test_each_file_has_its_class(
    corruption: ModuleType, name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    case = next(case for case in corruption.scenarios(tmp_path, corruption.command) if case.name == name)
    table = corruption.matrix(case, (kind,))
    assert not {
        file: row[kind] for file, row in table.items() if row[kind] is not None and row[kind].kind == corruption.WRONG
    }
    if kind != "delete":
        assert all(
            row[kind].verified == "named" for file, row in table.items() if row[kind] and file != "metrics.jsonl"
        )
    else:
        assert table["report.html"][kind].kind == corruption.PEOPLE if "report.html" in table else True


@pytest.mark.soak
def test_no_damage_goes_unnoticed(corruption: ModuleType, tmp_path: Path) -> None:
    cache = os.environ["XDG_CACHE_HOME"]
    try:
        assert corruption.write_page(tmp_path / "corruption.md", ()) == 0
    finally:
        os.environ["XDG_CACHE_HOME"] = cache


def test_the_page_is_whole(corruption: ModuleType) -> None:
    page = (ROOT / "benchmarks" / "corruption.md").read_text()
    assert corruption.WRONG not in page and page.count("\n## ") == 10
