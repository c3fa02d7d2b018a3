"""What the page's script needs: the numbers behind the figures, and the library that draws them (Bokeh, BSD-3-Clause), both compressed.

Without script the page shows its static figures; without Bokeh the script leaves them as they are. All bytes follow from the runs: the
same runs give the same page.
"""

from __future__ import annotations

import base64
import functools
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .figures import Figure, LivePlot
from .maps import LiveMap, Thumbnails

_TEMPLATES = Path(__file__).parent / "templates"
_BUNDLES = ("bokeh.min.js", "bokeh-api.min.js")
_MOST_POINTS = 120_000  # of all curves of a page; of more, each curve gives every second point, or fewer
MISSING = (
    "For curves and maps to hover over and zoom: pip install bokeh, then make this page again by rootstock report."
)


@dataclass
class Live:
    """plots, maps: in the order of their numbers on the page. thumbnails: of all maps. notes: sentences on what was left out."""

    plots: list[tuple[str, Figure]] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)  # of the plots, by their identity
    maps: list[tuple[str, LiveMap]] = field(default_factory=list)
    thumbnails: Thumbnails = field(default_factory=Thumbnails)

    def add(self, stage: str, figures: Sequence[Figure]) -> None:
        for figure in figures:
            if figure.live is not None:
                self.numbers[id(figure.live)] = len(self.plots)
                self.plots.append((stage, figure))

    def add_map(self, stage: str, chart: LiveMap | None) -> None:
        if chart is not None:
            self.maps.append((stage, chart))

    def plot_number(self, figure: Figure) -> int | None:
        """The number of a figure's plot, by which the script finds it; None if it has none."""
        return self.numbers.get(id(figure.live)) if figure.live else None

    def map_number(self, chart: LiveMap | None) -> int | None:
        return next((i for i, (_, other) in enumerate(self.maps) if other is chart), None)

    @property
    def library(self) -> str:
        """Bokeh, compressed; "" where it is not installed, or where the page has nothing to draw."""
        return _library() if self.plots or self.maps else ""

    @property
    def notes(self) -> list[str]:
        """What the page says of itself."""
        told = []
        if self.library:
            told.append(
                f"Interactive figures: Bokeh {version('bokeh')}, BSD-3-Clause, © Anaconda, Inc., and Bokeh Contributors."
            )
        elif self.plots or self.maps:
            told.append(MISSING)
        if self.thumbnails.left:
            told.append(
                f"The maps show the first {len(self.thumbnails.pictures)} pictures; {self.thumbnails.left} points have none."
            )
        return told

    @property
    def data(self) -> str:
        """All numbers as JSON, compressed."""
        step = max(1, -(-sum(len(line.x) for _, f in self.plots if f.live for line in f.live.lines) // _MOST_POINTS))
        told = {
            "plots": [_plot(stage, figure, figure.live, step) for stage, figure in self.plots if figure.live],
            "maps": [{"stage": stage, **vars(chart)} for stage, chart in self.maps],
            "thumbs": {
                "src": self.thumbnails.source(),
                "side": self.thumbnails.side,
                "columns": self.thumbnails.columns,
                "count": len(self.thumbnails.pictures),
            },
        }
        return _packed(json.dumps(told, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode())


def _plot(stage: str, figure: Figure, live: LivePlot, step: int) -> dict[str, Any]:
    lines = [
        {"key": line.key, "run": line.run, "c": line.colour, "x": _short(line.x[::step]), "y": _short(line.y[::step])}
        for line in live.lines
    ]
    return {
        "title": figure.title,
        "stage": stage,
        "across": live.across,
        "lines": lines,
        "levels": [[name, value] for name, value in live.levels],
        "smooth": live.smooth,
    }


def _short(values: Sequence[float]) -> list[float]:
    """Five digits, and whole numbers without a point."""
    return [int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.5g}") for value in values]


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


@functools.cache
def _library() -> str:
    """The two bundles that Bokeh's package holds; it is not imported."""
    try:
        spec = find_spec("bokeh")
    except (ImportError, ValueError):
        return ""
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        files = [Path(folder) / "server" / "static" / "js" / name for name in _BUNDLES]
        try:
            version("bokeh")
            return _packed("\n".join(file.read_text(encoding="utf-8") for file in files).encode())
        except (OSError, PackageNotFoundError):
            continue
    return ""


def page_script() -> Markup:
    """The page's own script, as it stands in templates/page.js."""
    return Markup((_TEMPLATES / "page.js").read_text(encoding="utf-8"))
