"""The benchmark of sources runs, and measures all of them."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from rootstock.tests.objectstore import needs_objects

pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra `parquet`)")
needs_objects()


def test_every_source_is_measured(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert script("sources").main(["--toy", "--markdown", str(tmp_path / "out.md")]) == 0
    page = (tmp_path / "out.md").read_text()
    assert all(
        f"| {name} |" in page
        for name in ("tar", "folder", "parquet", "hf", "tar, S3 cached", "parquet, S3 cached", "tar, S3")
    )
