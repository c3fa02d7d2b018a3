"""The documentation site is built without a warning, and reads without a network; its notebook runs."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from rootstock.docs.site.links import anchors, targets, with_links
from rootstock.docs.site.mathml import tex2mathml
from rootstock.docs.site.stage import ROOT, BrokenLink, moved_link, notebook_text, pages

NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


def cells(notebook: Path) -> Iterator[str]:
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, (
                f"{notebook.name}: commit it without outputs"
            )
            yield "".join(cell["source"])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_python_without_outputs(notebook: Path) -> None:
    assert [ast.parse(cell) for cell in cells(notebook)]
    assert notebook_text(notebook.read_text()).count("```python") == len([*cells(notebook)])


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell, as a kernel would: half a minute of one core."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    found: dict[str, Any] = {}
    for cell in cells(notebook):
        exec(compile(cell, notebook.name, "exec"), found)
    accuracy = {name: result["metrics"]["test/knn/accuracy"] for name, result in found["probes"].items()}
    assert accuracy["pretrained"] > accuracy["random"] > 0.3
    assert found["adapted"]["metrics"]["target/classifier/accuracy"] > 0.3  # chance is 0.1
    assert found["features"].shape == (8, 64) and torch.isfinite(found["features"]).all()
    assert (found["FOLDER"] / "exported" / "model.safetensors").is_file()


def test_links_and_anchors_are_found_outside_of_code() -> None:
    text = "# A `b` c\n[x](a.md) `[y](b.md)` [`z`](c.md#a-b-c)\n```sh\n# no heading\n[w](d.md)\n```\n## A b c\n![p](e.png)\n"
    assert targets(text) == ["a.md", "c.md#a-b-c", "e.png"]
    assert anchors(text) == ["a-b-c", "a-b-c-1"]
    assert with_links(text, str.upper) == text.replace("a.md", "A.MD").replace("c.md#a-b-c", "C.MD#A-B-C").replace(
        "e.png", "E.PNG"
    )


def test_links_of_pages_follow_them_to_the_site() -> None:
    places = pages()
    assert moved_link("../results.md#x", "docs/how-to/intervals.md", places) == "../results.md#x"
    assert moved_link("../../benchmarks/demo.md", "docs/how-to/intervals.md", places) == "../benchmarks/demo.md"
    assert moved_link("../../core/method.py", "docs/how-to/intervals.md", places).endswith("/blob/main/core/method.py")
    assert moved_link("https://example.org/a.md", "docs/index.md", places) == "https://example.org/a.md"
    with pytest.raises(BrokenLink, match=r"docs/index\.md: none\.md names no file"):
        moved_link("none.md", "docs/index.md", places)


def equations() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "docs").rglob("*.md")):
        for display, inline in re.findall(
            r"^\$\$\n(.*?)^\$\$|(?<![\w$`])\$([^$`\n]+)\$(?![\w$])", path.read_text(), re.M | re.S
        ):
            yield path.stem, display or inline


def test_every_equation_can_be_drawn() -> None:
    found = [*equations()]
    assert len(found) > 60
    for page, equation in found:
        assert tex2mathml(equation.strip()).startswith("<math"), f"{page}: {equation}"


class Loaded(HTMLParser):
    """The addresses that a page loads without being asked: scripts, styles, pictures, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon", "preconnect"):
            self.found.append(given.get("href") or "")
        self.found.append(given.get("src") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("sphinx", "myst_parser", "furo", "sphinx_copybutton"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "rootstock.docs.site.build", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert Path(done.stdout.strip()) == folder / "html" / "index.html"
    return folder / "html"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(site: Path) -> None:
    for place in pages().values():
        assert (site / place).with_suffix(".html").is_file(), place
    assert "NT-Xent" in (site / "methods" / "pretraining.html").read_text()
    assert 'id="rootstock.api.pretrain"' in (site / "reference" / "api.html").read_text()
    assert "<math" in (site / "methods" / "adaptation.html").read_text()


@pytest.mark.slow
def test_the_site_reads_without_a_network(site: Path) -> None:
    for path in site.rglob("*.html"):
        page = Loaded()
        page.feed(path.read_text())
        assert [address for address in page.found if re.match(r"(https?:)?//", address)] == [], path
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:|@import ['\"]https?:", path.read_text()), path


ONE_PAGE = """
import sys
from pathlib import Path
from rootstock.docs.site import build

def small(to, make):
    to.mkdir(parents=True)
    (to / "index.md").write_text(sys.argv[2])

build.stage = small
sys.exit(build.build(Path(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("page", "fails"), [("# A page\n", False), ("# A page\n\n[nowhere](#nowhere)\n", True)])
def test_a_warning_is_an_error(site: Path, tmp_path: Path, page: str, fails: bool) -> None:
    command = [sys.executable, "-c", ONE_PAGE, str(tmp_path), page]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails and ("nowhere" in done.stderr) == fails, done.stderr
