"""Milliseconds an image by a clock of our own, and where a result has them."""

from __future__ import annotations

from itertools import accumulate, chain

import pytest
import torch

from rootstock.core.evaluate.taps import Taps
from rootstock.core.images.open import open_images
from rootstock.core.model.backbone import create
from rootstock.core.views.view import Evaluation
from rootstock.finetune.baselines.registry import BASELINES
from rootstock.finetune.speed import measured_speed
from rootstock.launch.report.results import metrics_of, summarise


def test_the_median_of_batches_without_the_first_two() -> None:
    """A batch takes 100 s, 90 s, then 4, 1, 2, 3 and 100 seconds; between batches the clock goes on."""
    passed = accumulate(chain.from_iterable((7.0, seconds) for seconds in (100, 90, 4, 1, 2, 3, 100)))
    images = open_images("sklearn:digits?size=16#[:3]")
    taps = Taps(create(16, 3, BASELINES, name="pixels"))
    found = measured_speed(
        taps, images, Evaluation(16), batch_size=8, batches=5, device=torch.device("cpu"), clock=lambda: next(passed)
    )
    assert found["ms_an_image"] == pytest.approx(3000 / 8) and found["quartiles"] == pytest.approx([250, 500])
    assert found["threads"] == torch.get_num_threads() and found["device"] == "cpu" and found["processor"]
    assert next(passed, None) is None


def test_a_table_has_the_time_as_a_column_and_never_as_the_headline() -> None:
    results = [
        {"seed": seed, "metrics": {"test/knn/accuracy": 0.5}, "speed": {"ms_an_image": 2.0 + seed}} for seed in (0, 1)
    ]
    row = summarise(results, label="a", stage="a", also={"ms an image": "speed/features/ms_an_image"})
    assert row["metric"] == "test/knn/accuracy" and row["beside"]["ms an image"]["values"] == [2.0, 3.0]
    assert row["beside"]["ms an image"]["low"] == 0.0  # no interval leaves the range of a time
    assert metrics_of({"metrics": None}) == {}
