"""Curves written by hand: round ticks inside the axis, every line inside the frame, one for each run."""

import math
import re

import pytest

from rootstock.launch.report.curves import curves, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.3, 1.1, [0.0, 0.5, 1.0]),
        (2.1, 9.8, [4.0, 6.0, 8.0]),
        (0.0031, 0.0169, [0.005, 0.01, 0.015]),
        (1e6, 2e6, [1e6, 1.2e6, 1.4e6, 1.6e6, 1.8e6, 2e6]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 5) == pytest.approx(expected)


@pytest.mark.parametrize("span", [1e-12, 3e-7, 0.7, 42.0, 9.9e11])
@pytest.mark.parametrize("low", [-5.0, 0.0, 1e3])
def test_ticks_lie_inside_and_are_few(low: float, span: float) -> None:
    if span / max(abs(low), 1.0) < 1e-9:
        return  # beneath what the numbers resolve
    found = ticks(low, low + span, 5)
    assert 1 <= len(found) <= 7 and all(low - 1e-6 * span <= value <= low + 1.000001 * span for value in found)
    assert all(value == int(value) for value in ticks(low, low + span, 5, whole=True))


def test_lines_stay_inside_the_frame() -> None:
    runs = [
        [{"step": s, "loss": math.sin(s + k) * 10**k, "eval/t/knn/accuracy": 0.5} for s in range(40)] for k in range(3)
    ]
    runs.append([{"step": 7, "loss": 1.0}, {"step": 8, "loss": math.nan}, {"step": "x", "loss": "y"}])
    loss, accuracy = curves(runs)
    assert (loss.title, accuracy.title, accuracy.caption[:11]) == ("Training loss", "Online evaluation", "Accuracy, %")
    points = [(float(x), float(y)) for x, y in re.findall(r"[ML]\s?([\d.]+) (-?[\d.]+)", loss.svg)]
    assert len(points) >= 121 and all(0 <= x <= 340 and 0 <= y <= 210 for x, y in points)
    assert loss.svg.count('opacity=".75"') == 5  # four lines, and the dot of the short one
    assert curves([[{"step": 1, "lr": 0.0}], []])[0].title == "Learning rate"
