"""The figures of a page: inline SVG in the colours of the page's style, so that light and dark mode both work.

matplotlib draws the plots of a sweep with placeholder colours, which are then replaced by CSS variables. It is imported when it draws.
Maps of thousands of points are written by hand: with one path per colour they take a fifth of the space.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERIES_COLOURS = 10  # number of series colours in the page's style: --c0 ... --c9
_PLACEHOLDERS = {"#010101": "var(--ink)", "#020202": "var(--muted)", "#030303": "var(--rule)"} | {
    f"#0400{index:02x}": f"var(--c{index})" for index in range(SERIES_COLOURS)
}
POINTS_OF_MAP = 3000
_MAP_SIDE, _MAP_MARGIN = 340.0, 12.0  # pixels


class LiveLine(NamedTuple):
    """A curve for the page's script. key: what was measured. run: "seed 0", or "". x, y: float [T] each; colour: number of it."""

    key: str
    run: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, eq=False)
class LivePlot:
    """What the page's script draws in place of a figure. levels: (name, y) of horizontal lines. smooth: whether steps pass along x."""

    across: str
    lines: list[LiveLine]
    levels: list[tuple[str, float]] = field(default_factory=list)
    smooth: bool = False


@dataclass(frozen=True)
class Figure:
    """One panel. legend: (colour, name) pairs, which the page prints as text. live: None where the SVG is all there is."""

    svg: Markup
    title: str
    caption: str = ""
    legend: list[tuple[str, str]] = field(default_factory=list)
    live: LivePlot | None = None


def colour(index: int) -> str:
    return f"var(--c{index % SERIES_COLOURS})"


def is_dotted(index: int) -> bool:
    """Whether a line is drawn dotted, since its colour is an earlier one's."""
    return index >= SERIES_COLOURS


def in_legend(label: str, index: int) -> str:
    """The name of a line beside its colour."""
    return f"{label} (dotted)" if is_dotted(index) else label


def ink(index: int) -> str:
    """The placeholder colour to give matplotlib for `colour(index)`."""
    return f"#0400{index % SERIES_COLOURS:02x}"


def render(draw: Callable[[Axes], None], title: str, owner: str) -> Markup:
    """A panel as SVG in the page's style. draw: plots in placeholder colours (`ink`); ticks that it sets are kept."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import AutoLocator, FuncFormatter, MaxNLocator, NullLocator

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "rootstock",
        "font.size": 11,
        "text.parse_math": False,
        "text.color": "#020202",
        "axes.edgecolor": "#020202",
        "axes.labelcolor": "#020202",
        "xtick.color": "#020202",
        "ytick.color": "#020202",
        "axes.linewidth": 0.8,
    }
    with rc_context(style), warnings.catch_warnings():
        # The browser renders the text, so a glyph missing from matplotlib's font does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas = Canvas(figsize=(340 / 72, 210 / 72), layout="constrained")
        axes = canvas.add_subplot()
        draw(axes)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y", color="#030303", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, axis="y")
        axes.tick_params(length=3, width=0.8, axis="x")
        if type(axes.yaxis.get_major_locator()) is AutoLocator:
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axes.yaxis.set_minor_locator(NullLocator())
        if type(axes.xaxis.get_major_locator()) is AutoLocator:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        out = io.StringIO()
        canvas.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return _inline(out.getvalue(), title, owner)


def tick(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return (
        f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    )


def _inline(svg: str, title: str, owner: str) -> Markup:
    """matplotlib's SVG document as an element of the page: without prolog, fixed size and fonts, in the page's colours."""
    svg = svg[svg.index("<svg") :]
    # The style element has a rule for `*`, which would apply to the whole page.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    head = f'<svg {box[0]} role="img" aria-label="{escape(title)}" stroke-linejoin="round">'
    svg = re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    own = hashlib.sha256(f"{owner}/{title}".encode()).hexdigest()[:8]
    svg = re.sub(r'( id="|url\(#|xlink:href="#)', rf"\g<1>{own}-", svg).replace("xlink:href", "href")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d+\.\d{2})\d+", r"\1", tag[0]), svg)
    for placeholder, variable in _PLACEHOLDERS.items():
        svg = svg.replace(placeholder, variable)
    return Markup(re.sub(r"\n\s*", "\n", svg))


def scatter(chart: Mapping[str, Any], by: str, when: str = "") -> Figure:
    """A map of features (map.json), coloured by `label` or by `domain`; a class's name stands at the median of its points.

    when: "before" or "after" the training, of a chart that has both; "" for one that hasn't.
    """
    x, y, groups = _placed({**chart, **chart["before"]} if when == "before" else chart, by)
    present = sorted(set(groups.tolist()))
    given = [str(name) for name in chart.get({"label": "classes", "domain": "domains"}[by]) or []]
    names = {
        group: given[group] if 0 <= group < len(given) else ("unlabelled" if group < 0 else str(group))
        for group in present
    }
    few = len(present) <= 2 * SERIES_COLOURS
    texts = [
        f'<text x="{median(x[groups == group]):.1f}" y="{median(y[groups == group]):.1f}">{escape(names[group])}</text>'
        for group in (present if by == "label" and few else [])
    ]
    legend = [(colour(group), names[group]) for group in present if group >= 0] if few else []
    title = {"label": "By class", "domain": "By domain"}[by] + (f", {when} the training" if when else "")
    label = f"{escape(chart.get('method', 'map of features'))}, {title.lower()}"
    svg = (
        f'<svg viewBox="0 0 {_MAP_SIDE:g} {_MAP_SIDE:g}" role="img" aria-label="{label}" class="map">'
        f'<g class="dots">{_dots(x, y, groups)}</g><g class="names">{"".join(texts)}</g></svg>'
    )
    note = f"{len(present)} classes; colours repeat" if len(present) > SERIES_COLOURS and by == "label" else ""
    return Figure(Markup(svg), title, note, legend if by == "domain" or len(present) > 1 else [])


def _placed(chart: Mapping[str, Any], by: str) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """(x, y, group) of the finite points, thinned to about POINTS_OF_MAP; x and y in pixels of the figure."""
    x, y, groups = (numpy.asarray(chart[key], dtype=float) for key in ("x", "y", by))
    keep = numpy.isfinite(x) & numpy.isfinite(y)
    keep &= numpy.arange(len(x)) % max(1, -(-len(x) // POINTS_OF_MAP)) == 0
    x, y, groups = x[keep], y[keep], groups[keep].astype(int)
    if not len(x):
        return x, y, groups
    scale = (_MAP_SIDE - 2 * _MAP_MARGIN) / max(float(numpy.ptp(x)), float(numpy.ptp(y)), 1e-9)
    across = _MAP_SIDE / 2 + (x - (x.max() + x.min()) / 2) * scale
    down = _MAP_SIDE / 2 - (y - (y.max() + y.min()) / 2) * scale
    return across, down, groups


def _dots(x: numpy.ndarray, y: numpy.ndarray, groups: numpy.ndarray) -> str:
    """The points as SVG paths, in four layers, so that no class completely covers the others."""
    paths = []
    for layer in range(4):
        for group in sorted(set(groups.tolist())):
            chosen = (groups == group) & (numpy.arange(len(groups)) % 4 == layer)
            dots = "".join(f"M{a:.0f} {b:.0f}h0" for a, b in zip(x[chosen], y[chosen], strict=True))
            stroke = colour(group) if group >= 0 else "var(--muted)"
            paths.append(f'<path d="{dots}" stroke="{stroke}"/>' if dots else "")
    return "".join(paths)


def shade(counts: numpy.ndarray) -> numpy.ndarray:
    """Darkness 0..1 of each cell of a confusion matrix [K, K]: the square root of its share of the row, so that rare mistakes show."""
    return numpy.sqrt(counts / numpy.maximum(counts.sum(1, keepdims=True), 1))


def heat(matrix: Sequence[Sequence[float]], title: str) -> Figure:
    """A large confusion matrix [K, K] as shades without numbers; rows: true class, columns: predicted class."""
    shades = shade(numpy.asarray(matrix, dtype=float))
    size = len(shades)
    cells = []
    for tenth in range(1, 11):
        marked = numpy.argwhere(numpy.ceil(shades * 10) == tenth)
        path = "".join(f"M{column} {row}h1v1h-1z" for row, column in marked.tolist())
        cells.append(f'<path d="{path}" fill-opacity="{tenth / 10:g}"/>' if path else "")
    svg = (
        f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="{escape(title)}" class="heat">{"".join(cells)}</svg>'
    )
    return Figure(Markup(svg), title)
