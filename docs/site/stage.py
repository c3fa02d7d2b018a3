"""Gathers the pages of the site in one folder: docs/, benchmarks/*.md, the changelog and CONTRIBUTING.md as they are committed.

Links between pages stay links between pages; links to other files of the repository lead to it. Where a page says
`<!-- generated: NAME -->` stands what docs/site/generated.py makes of the schema and the registries. A notebook becomes a page.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from .links import with_links

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/rootstock-ml/rootstock"
SINGLE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
_GENERATED = re.compile(r"^<!-- generated: ([\w -]+) -->$", re.MULTILINE)
_TEST = re.compile(r"^<!-- test: .*? -->\n", re.MULTILINE | re.DOTALL)


class BrokenLink(Exception):
    """A link to nothing, with page and target."""


def pages(root: Path = ROOT) -> dict[str, str]:
    """Every page of the site: its path in the repository, and its path on the site."""
    docs = [path.relative_to(root).as_posix() for path in sorted((root / "docs").rglob("*.md"))]
    found = {path: path.removeprefix("docs/") for path in docs if not path.startswith("docs/site/")}
    measured = [path.relative_to(root).as_posix() for path in sorted((root / "benchmarks").glob("*.md"))]
    notebooks = [path.relative_to(root).as_posix() for path in sorted((root / "docs").rglob("*.ipynb"))]
    found |= {path: path for path in measured}
    found |= {path: path.removeprefix("docs/").removesuffix("ipynb") + "md" for path in notebooks}
    return found | SINGLE


def page_text(path: str, root: Path = ROOT) -> str:
    """A page as Markdown."""
    text = (root / path).read_text(encoding="utf-8")
    return notebook_text(text) if path.endswith(".ipynb") else text


def notebook_text(text: str) -> str:
    """A notebook as Markdown: its text, its code, and what the code printed where outputs were kept."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            said = "".join("".join(one.get("text", ())) for one in cell["outputs"]).strip()
            parts += [f"```text\n{said}\n```"] if said else []
    return "\n\n".join(parts) + "\n"


def resolved(target: str, page: str) -> tuple[str, str]:
    """A relative link of a page: the file that it names, as a path in the repository, and the anchor behind `#`."""
    path, _, anchor = target.partition("#")
    named = os.path.normpath(PurePosixPath(page).parent / path) if path else page
    return PurePosixPath(named).as_posix(), anchor


def is_outside(target: str) -> bool:
    """Whether a link names an address and no file."""
    return bool(re.match(r"[a-z][a-z+.-]*:", target))


def moved_link(target: str, page: str, places: Mapping[str, str], root: Path = ROOT) -> str:
    """A link of a page as the site has it. Raises BrokenLink."""
    if is_outside(target):
        return target
    named, anchor = resolved(target, page)
    behind = f"#{anchor}" if anchor else ""
    if named in places:
        return (os.path.relpath(places[named], PurePosixPath(places[page]).parent) if named != page else "") + behind
    if not (root / named).exists():
        raise BrokenLink(f"{page}: {target} names no file")
    if named.endswith((".png", ".ipynb")):
        moved = named.removeprefix("docs/")
        return os.path.relpath(moved, PurePosixPath(places[page]).parent)
    return f"{REPOSITORY}/blob/main/{named}{behind}"


def staged_text(path: str, places: Mapping[str, str], make: Callable[[str], str], root: Path = ROOT) -> str:
    """A page as the site's builder reads it. make: text for the name in `<!-- generated: NAME -->`."""
    text = _GENERATED.sub(lambda found: make(found[1]), _TEST.sub("", page_text(path, root)))
    return with_links(text, lambda target: moved_link(target, path, places, root))


def stage(to: Path, make: Callable[[str], str], root: Path = ROOT) -> None:
    """Write all pages, and the pictures and notebooks beside them, into an empty folder. Raises BrokenLink."""
    places = pages(root)
    for path, place in places.items():
        target = to / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(staged_text(path, places, make, root), encoding="utf-8")
    for folder, pattern in (("docs", "**/*.png"), ("docs", "**/*.ipynb"), ("benchmarks", "*.png")):
        for file in (root / folder).glob(pattern):
            target = to / file.relative_to(root).as_posix().removeprefix("docs/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
