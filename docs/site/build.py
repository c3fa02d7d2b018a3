"""Builds the documentation site; any warning is an error.

Command: `make docs`, or python -m rootstock.docs.site.build [FOLDER]   (build/docs by default; the site is in FOLDER/html)
Needs the extra `docs`. Uses no network, and what it writes needs none.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

from .stage import ROOT, BrokenLink, stage


def build(folder: Path) -> int:
    """Write the site to FOLDER/html; returns the exit code of Sphinx."""
    from sphinx.cmd.build import main as sphinx

    from .generated import generated

    source, html = folder / "source", folder / "html"
    for old in (source, html):
        shutil.rmtree(old, ignore_errors=True)
    stage(source, generated)
    shutil.copy(ROOT / "docs" / "conf.py", source)
    (source / "_static").mkdir()
    shutil.copy(ROOT / "docs" / "site" / "wide.css", source / "_static")
    return sphinx(["-q", "-W", "--keep-going", "-b", "html", "-d", str(folder / "doctrees"), str(source), str(html)])


def main() -> int:
    if missing := [
        name for name in ("sphinx", "myst_parser", "furo", "sphinx_copybutton") if not importlib.util.find_spec(name)
    ]:
        print(f"{', '.join(missing)} is not installed; pip install -c constraints.txt -e '.[docs]'", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "docs").resolve()
    try:
        code = build(folder)
    except BrokenLink as error:
        print(error, file=sys.stderr)
        return 1
    if code == 0:
        print(folder / "html" / "index.html")
    return code


if __name__ == "__main__":
    sys.exit(main())
