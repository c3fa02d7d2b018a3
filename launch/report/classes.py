"""Accuracy of each class as bars, with intervals over its test images and the line of chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from markupsafe import Markup, escape

from ...core.evaluate.statistics import wilson
from .figures import Figure

MOST_BARS = 30
_WIDTH, _ROW, _LETTER = 340.0, 18.0, 6.4  # pixels
_LONGEST = 16  # letters of a name


def class_bars(counts: numpy.ndarray, classes: Sequence[str], name: str, seeds: int = 1) -> Figure | None:
    """One bar for each class that has test images, in the order of the classes; of more than MOST_BARS, those with the lowest accuracy.

    counts: a confusion matrix [K, K], rows are true classes, summed over so many seeds. name: TEST/PROTOCOL. None where fewer than two
    classes have images.
    """
    hits, support = numpy.diag(counts), counts.sum(1)
    there = [k for k in range(len(classes)) if support[k]]
    if len(there) < 2:
        return None
    shares = {k: float(hits[k] / support[k]) for k in there}
    shown = there if len(there) <= MOST_BARS else sorted(there, key=lambda k: (shares[k], k))[:MOST_BARS]
    # Several seeds may be tested on the same pictures, which say no more of others each time: an interval is as wide as one seed's.
    lines = [(str(classes[k]), shares[k], *wilson(shares[k], support[k] / seeds)) for k in shown]
    commonest = str(classes[int(support.argmax())])
    title = f"Accuracy of each class, {name}"
    left_out = f" The {MOST_BARS} of {len(there)} classes with the lowest accuracy." if len(there) > MOST_BARS else ""
    of_one = " of one seed" if seeds > 1 else ""
    caption = (
        f"Right images of each class, %, with Wilson's 95 % interval over its test images{of_one}, as if each were of its own "
        f"picture and group.{left_out} Dashed: chance "
        f"{100 / len(classes):.1f} %; always the most frequent class, {commonest}, has 100 % of it and 0 % of all others."
    )
    return Figure(_drawn(lines, 1 / len(classes), title), title, caption)


def _drawn(lines: Sequence[tuple[str, float, float, float]], chance: float, title: str) -> Markup:
    """lines: (class, share, low, high)."""
    names = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name, *_ in lines]
    left = 10 + _LETTER * max(map(len, names))
    span, floor = _WIDTH - left - 34, _ROW * len(lines) + 4

    def at(share: float) -> float:
        return left + share * span

    grid = "".join(f"M{at(tenth / 4):.1f} 2V{floor:g}" for tenth in range(5))
    ticks = "".join(
        f'<text x="{at(part):.1f}" y="{floor + 14:g}" text-anchor="middle">{100 * part:g}</text>'
        for part in (0, 0.5, 1)
    )
    drawn = []
    for row, (short, (name, share, low, high)) in enumerate(zip(names, lines, strict=True)):
        y = 4 + _ROW * row
        middle = y + _ROW / 2 - 2
        drawn.append(
            f"<g><title>{escape(name)}: {100 * share:.1f} %</title>"
            f'<text x="{left - 5:.1f}" y="{middle + 4:.1f}" text-anchor="end" fill="var(--ink)">{escape(short)}</text>'
            f'<rect x="{left:.1f}" y="{y:g}" width="{max(share * span, 0.5):.1f}" height="{_ROW - 5:g}" fill="var(--c0)" opacity=".8"/>'
            f'<path d="M{at(low):.1f} {middle:.1f}H{at(high):.1f}" stroke="var(--ink)" stroke-width="1.2"/>'
            f'<text x="{_WIDTH:g}" y="{middle + 4:.1f}" text-anchor="end" fill="var(--muted)">{100 * share:.1f}</text></g>'
        )
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH:g} {floor + 20:g}" role="img" aria-label="{escape(title)}" class="bars">'
        f'<path d="{grid}" stroke="var(--rule)" stroke-width=".8"/><g font-size="11">{"".join(drawn)}</g>'
        f'<path d="M{at(chance):.1f} 2V{floor:g}" stroke="var(--muted)" stroke-dasharray="4 3"/>'
        f'<g fill="var(--muted)" font-size="11">{ticks}</g></svg>'
    )
