"""The report's figures: SVG that sits inside the page, takes its colours from the page's style and so follows light and dark.

matplotlib draws axes with placeholder colours which are then replaced by CSS variables; maps of thousands of points are
written by hand, because one path per colour is a fifth of the size.
"""

import hashlib
import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import AutoLocator, FuncFormatter, MaxNLocator, NullLocator

COLOURS = 10  # series colours of the page's style: --c0 ... --c9
_PLACEHOLDERS = {"#010101": "var(--ink)", "#020202": "var(--muted)", "#030303": "var(--rule)"} | {
    f"#0400{index:02x}": f"var(--c{index})" for index in range(COLOURS)
}
_NOT_CURVES = {"step", "epoch", "data_wait", "images_per_s", "seconds", "time"}
_POINTS_OF_CURVE = 160
_POINTS_OF_MAP = 3000
_PANELS = 8


@dataclass(frozen=True)
class Figure:
    """One panel: its SVG, what it shows, and the legend, which the page sets as text."""

    svg: Markup
    title: str
    caption: str = ""
    legend: list[tuple[str, str]] = field(default_factory=list)


def colour(index: int) -> str:
    return f"var(--c{index % COLOURS})"


def ink(index: int) -> str:
    """The placeholder, for matplotlib, of what `colour` is to the page."""
    return f"#0400{index % COLOURS:02x}"


def curves(runs: Sequence[Sequence[Mapping[str, Any]]], owner: str = "") -> list[Figure]:
    """Loss, learning rate, online evaluation and whatever else was logged; one thin line for each run (seed).

    owner: whose curves they are; makes the figures' inner identifiers differ from those of another's on the same page.
    """
    keys = dict.fromkeys(key for rows in runs for row in rows for key in row if key not in _NOT_CURVES)
    accuracies = [key for key in keys if key.startswith("eval/") and key.endswith("/accuracy")]
    online = accuracies or [key for key in keys if key.startswith("eval/")]
    rates = [key for key in keys if key == "lr" or key.startswith("lr/")]
    rest = [key for key in keys if key not in rates and key != "loss" and not key.startswith("eval/")]
    rest = [key for key in rest if key != "skipped" or any(row.get(key) for rows in runs for row in rows)]
    panels = [("Training loss", ["loss"]), ("Online evaluation", online[:COLOURS]), ("Learning rate", rates[:COLOURS])]
    panels += [(key.replace("_", " "), [key]) for key in rest]
    drawn = (_panel(title, names, runs, owner) for title, names in panels)
    return [figure for figure in drawn if figure is not None][:_PANELS]


def _panel(title: str, keys: Sequence[str], runs: Sequence[Sequence[Mapping[str, Any]]], owner: str) -> Figure | None:
    lines = [(index, series) for index, key in enumerate(keys) for rows in runs if len(series := _series(rows, key)[0])]
    if not lines:
        return None
    percent = title == "Online evaluation" and all(
        series[:, 1].min() >= 0 and series[:, 1].max() <= 1 for _, series in lines
    )
    binned = max((_series(rows, key)[1] for key in keys for rows in runs), default=1)

    def draw(axes: Axes) -> None:
        for index, series in lines:
            few = len(series) <= 25
            axes.plot(
                series[:, 0],
                series[:, 1] * (100 if percent else 1),
                color=ink(index),
                linewidth=1.6 if len(runs) == 1 else 1.1,
                alpha=1 if len(runs) == 1 else 0.75,
                marker="o" if few else "",
                markersize=3.2,
            )
        axes.set_xlabel("step", loc="right")

    legend = (
        [(colour(i), _short(key)) for i, key in enumerate(keys)]
        if len(keys) > 1 or title == "Online evaluation"
        else []
    )
    notes = ["accuracy, %" if percent else "", f"mean of {binned} logged steps a point" if binned > 1 else ""]
    caption = "; ".join(filter(None, notes))
    return Figure(render(draw, title, owner), title, caption, legend)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[numpy.ndarray, int]:
    """[T, 2] of step and value, thinned to means of bins; and the bin's size. Rows without a finite value are left out."""
    pairs = [
        (row["step"], float(row[key]))
        for row in rows
        if isinstance(row.get(key), (int, float))
        and math.isfinite(row[key])
        and isinstance(row.get("step"), (int, float))
    ]
    size = -(-len(pairs) // _POINTS_OF_CURVE) or 1
    bins = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return numpy.array([numpy.mean(part, axis=0) for part in bins]).reshape(-1, 2), size


def _short(key: str) -> str:
    return key.removeprefix("eval/").removesuffix("/accuracy").removeprefix("lr/").replace("/", " · ")


def render(draw: Callable[[Axes], None], title: str, owner: str) -> Markup:
    """A panel as SVG in the page's style. draw: plots in placeholder colours (`ink`), with ticks of its own where it sets them."""
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
        # The browser sets the text, so a glyph that matplotlib's font lacks does not matter.
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
    """matplotlib's SVG document as an element of the page: no prolog, no fixed size, no own fonts, the page's colours."""
    svg = svg[svg.index("<svg") :]
    # The style element is a rule for `*`, which would reach the whole page.
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


def scatter(chart: Mapping[str, Any], by: str) -> Figure:
    """A map of features (`map.json`) coloured by `label` or by `domain`; class names stand at the median of their points."""
    x, y, groups = (numpy.asarray(chart[key], dtype=float) for key in ("x", "y", by))
    names = [str(name) for name in chart.get({"label": "classes", "domain": "domains"}[by]) or []]
    keep = numpy.isfinite(x) & numpy.isfinite(y)
    keep &= numpy.arange(len(x)) % max(1, -(-len(x) // _POINTS_OF_MAP)) == 0
    x, y, groups = x[keep], y[keep], groups[keep].astype(int)
    side, margin = 340.0, 12.0
    span = max(float(numpy.ptp(x)), float(numpy.ptp(y)), 1e-9) if len(x) else 1.0
    scale = (side - 2 * margin) / span
    px = side / 2 + (x - (x.max() + x.min()) / 2) * scale if len(x) else x
    py = side / 2 - (y - (y.max() + y.min()) / 2) * scale if len(y) else y
    present = sorted(set(groups.tolist()))
    paths, labels = [], []
    # In four layers, so that no class lies wholly on top of the others.
    for layer in range(4):
        for group in present:
            chosen = (groups == group) & (numpy.arange(len(groups)) % 4 == layer)
            dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(px[chosen], py[chosen], strict=True))
            stroke = colour(group) if group >= 0 else "var(--muted)"
            paths.append(f'<path d="{dots}" stroke="{stroke}"/>' if dots else "")
    named = {
        group: names[group] if 0 <= group < len(names) else ("unlabelled" if group < 0 else str(group))
        for group in present
    }
    if by == "label" and len(present) <= 2 * COLOURS:
        labels = [
            f'<text x="{median(px[groups == g]):.1f}" y="{median(py[groups == g]):.1f}">{escape(named[g])}</text>'
            for g in present
        ]
    legend = [(colour(group), named[group]) for group in present if group >= 0] if len(present) <= 2 * COLOURS else []
    title = {"label": "By class", "domain": "By domain"}[by]
    svg = (
        f'<svg viewBox="0 0 {side:g} {side:g}" role="img" aria-label="{escape(chart.get("method", "map of features"))}, {title.lower()}"'
        f' class="map"><g class="dots">{"".join(paths)}</g><g class="names">{"".join(labels)}</g></svg>'
    )
    note = f"{len(present)} classes; colours repeat" if len(present) > COLOURS and by == "label" else ""
    return Figure(Markup(svg), title, note, legend if by == "domain" or len(present) > 1 else [])


def shade(counts: numpy.ndarray) -> numpy.ndarray:
    """How dark each cell of a confusion matrix [K, K] is, 0..1: the square root of its share of the row, so that rare mistakes
    show.
    """
    return numpy.sqrt(counts / numpy.maximum(counts.sum(1, keepdims=True), 1))


def heat(matrix: Sequence[Sequence[float]], title: str) -> Figure:
    """A large confusion matrix [K, K] as shades without numbers: rows are the true class, columns the predicted one."""
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
