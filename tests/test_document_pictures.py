"""The URIs of README and docs open: one of every kind of source, and the parts of sets that pages name."""

from __future__ import annotations

import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rootstock.core.images.open import open_images
from rootstock.tests.documents import Draw, commands, documents, drawn


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Draw) -> Path:
    monkeypatch.chdir(drawn(tmp_path, draw))
    return tmp_path


def test_a_set_of_every_kind_is_described(
    here: Path, rootstock: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet, table

    files = sorted((here / "photos").rglob("*.png"))
    rows = [(path.relative_to(here).as_posix(), path.parent.name) for path in files]
    with tarfile.open(here / "photos.tar", "w") as archive:
        archive.add(here / "photos", "photos")
    (here / "photos.txt").write_text("".join(f"{path} {label}\n" for path, label in rows))
    (here / "photos.csv").write_text("path,animal\n" + "".join(f"{path},{label};pet\n" for path, label in rows))
    columns = {
        "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "animal": [one for _, one in rows],
    }
    parquet.write_table(table(columns), here / "photos.parquet")
    pixels = np.stack([np.full((8, 8, 3), 20 * i, np.uint8) for i in range(len(files))])
    np.savez(here / "photos.npz", x=pixels, y=np.arange(len(files)) % 2)
    for command in commands("sources"):
        done = rootstock(*command[1:])
        assert done.returncode == 0, f"{command}: {done.stderr}"
        count = 100 if "sklearn" in command[-1] else 10
        assert re.search(rf"^pictures +{count}\b", done.stdout, re.MULTILINE), done.stdout


def test_sets_that_pages_name_open(here: Path) -> None:
    found = {uri for text in documents().values() for uri in re.findall(r"`(folder:(?:photos|unlabeled)[^`]*)`", text)}
    assert len(found) >= 4
    assert all(0 < len(open_images(uri, role="unlabelled")) <= 10 for uri in found if "dirichlet" not in uri)
