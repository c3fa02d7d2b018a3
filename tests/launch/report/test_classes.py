"""Bars of classes: their lengths are the recalls of the summed counts; and the lines of chance in the figures of confidence."""

import re

import numpy as np
import pytest

from rootstock.core.evaluate.predictions import ScoredImages
from rootstock.core.evaluate.statistics import wilson
from rootstock.launch.report.answers import Answers
from rootstock.launch.report.classes import MOST_BARS, class_bars
from rootstock.launch.report.confusion import confusions
from rootstock.launch.report.levels import Levels
from rootstock.launch.report.reliability import confidence_figures

CLASSES = ["cat", "dog <b>", "a very long class's name"]
COUNTS = np.array([[8, 2, 0], [5, 5, 0], [0, 0, 0]])


def widths(svg: str) -> list[float]:
    return [float(found) for found in re.findall(r'<rect [^>]*width="([\d.]+)"', svg)]


def test_bars_are_recalls_with_wilsons_intervals() -> None:
    figure = class_bars(COUNTS, CLASSES, "test/classifier")
    assert figure is not None
    first, second = widths(figure.svg)
    assert first / second == pytest.approx(0.8 / 0.5, rel=0.01)
    full = first / 0.8
    left = float(re.findall(r'<rect x="([\d.]+)"', figure.svg)[0])
    low, high = wilson(0.8, 10)
    ends = re.findall(r'<path d="M([\d.]+) [\d.]+H([\d.]+)" stroke="var\(--ink\)"', figure.svg)[0]
    assert [float(end) for end in ends] == pytest.approx([left + low * full, left + high * full], abs=0.2)
    dashed = float(re.findall(r'M([\d.]+) 2V[\d.]+" stroke="var\(--muted\)" stroke-dasharray', figure.svg)[0])
    assert dashed == pytest.approx(left + full / 3, abs=0.2)
    assert "dog &lt;b&gt;: 50.0 %" in figure.svg and "<b>" not in figure.svg
    assert (
        "chance 33.3 %" in figure.caption and "always the most frequent class, cat, has 100 % of it" in figure.caption
    )


def test_of_many_classes_the_worst_are_shown() -> None:
    counts = np.diag(np.arange(1, 61)) + np.eye(60, k=1).astype(int) * 10
    figure = class_bars(counts, [f"c{k}" for k in range(60)], "test/classifier")
    assert figure is not None and len(widths(figure.svg)) == MOST_BARS
    assert f"The {MOST_BARS} of 60 classes with the lowest accuracy" in figure.caption
    assert ">c0<" in figure.svg and ">c59<" not in figure.svg


def test_one_class_has_no_bars_and_seeds_are_summed() -> None:
    assert class_bars(np.diag([3, 0, 0]), CLASSES, "t") is None
    results = [
        {"details": {"test/knn": {"classes": CLASSES, "confusion": one.tolist()}}} for one in (COUNTS, 3 * COUNTS)
    ]
    (found,) = confusions(results)
    assert (
        found.bars is not None and "cat: 80.0 %" in found.bars.svg and "test images of one seed" in found.bars.caption
    )
    alone, together = class_bars(COUNTS, CLASSES, "t"), class_bars(2 * COUNTS, CLASSES, "t", seeds=2)
    assert (
        alone is not None and together is not None and alone.svg == together.svg
    )  # seeds on the same pictures narrow nothing


def test_confidence_has_the_lines_of_guesses() -> None:
    images = ScoredImages(np.arange(4), np.array([0, 0, 0, 1]), ("a", "b"))
    right, sure = np.array([1.0, 1, 0, 1]), np.array([0.9, 0.8, 0.7, 0.6])
    answers = Answers(images, "logits", right, np.array([0, 0, 1, 1]), np.ones(4), sure)
    calibration, risk = confidence_figures([{"test/classifier": answers}], {"test": Levels(0.5, 0.75)})
    assert "Dashed: chance 50.0 %, most frequent class 75.0 %." in calibration.caption
    assert calibration.live is not None and calibration.live.levels == [("chance", 50.0), ("most frequent class", 75.0)]
    assert calibration.svg.count("stroke-dasharray") == 1
    assert "chance has 50.0 %, most frequent class has 25.0 %" in risk.caption
    plain, _ = confidence_figures([{"test/classifier": answers}])
    assert "Dashed" not in plain.caption and "stroke-dasharray" not in plain.svg
