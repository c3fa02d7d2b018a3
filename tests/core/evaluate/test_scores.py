"""The scores of a run: kept in its folder, listed in its manifest, and enough to compute result.json again, bit for bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rootstock.core.errors import UserError
from rootstock.core.evaluate.measures import measure
from rootstock.core.evaluate.metrics import classification
from rootstock.core.evaluate.predictions import read_predictions
from rootstock.core.evaluate.scores import Scored, scored_images
from rootstock.core.images.open import open_images
from rootstock.core.manifest import read_manifest
from rootstock.core.run.rows import PREDICTIONS
from rootstock.launch.verbs import execute

DIGITS = "sklearn:digits?size=12"
NET = {"backbone.name": "smallconv", "backbone.args": "{widths: [4, 4, 4, 4]}", "data.size": "12"}
TINY = {**NET, "optim.duration": "2", "optim.batch_size": "8", "run.device": "cpu", "run.workers": "0"}
FINETUNE = {"data.train": f"{DIGITS}#[:40]", "data.test": f"{DIGITS}#[40:70]"}
ADAPT = {
    "data.source": f"{DIGITS}#[:40]",
    "data.target": f"{DIGITS}#[40:80]",
    "data.test.target": f"{DIGITS}#[80:100]",
    "data.test.source": f"{DIGITS}#[100:130]",
    "data.test.target_other_scale": f"{DIGITS}#[130:140]",
}


@pytest.mark.parametrize(
    ("verb", "config", "data"),
    [("finetune", "finetune/digits.yaml", FINETUNE), ("adapt", "adapt/digits_dann.yaml", ADAPT)],
)
def test_result_follows_from_the_file(verb: str, config: str, data: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [f"{key}={value}" for key, value in {**TINY, **data, "run.dir": str(run)}.items()]
    execute(verb, config, words)
    result, found = json.loads((run / "result.json").read_text()), read_predictions(run)
    assert found is not None and PREDICTIONS in (read_manifest(run) or {})
    assert list(found.scores) == [f"{test}/classifier" for test in found.tests]
    metrics: dict[str, float] = {}
    intervals: dict[str, Any] = {}
    for key, saved in found.scores.items():
        test = key.partition("/")[0]
        again = measure(found.tests[test], saved, seed=result["seed"])
        metrics |= {f"{key}/{name}": value for name, value in again.metrics.items()}
        intervals |= {f"{key}/{name}": pair for name, pair in again.intervals.items()}
        assert json.loads(json.dumps(again.details)) == result["details"][key]
        assert result["data"]["split"][test if verb == "finetune" else f"test.{test}"] == found.tests[test].split
    assert metrics == result["metrics"] and intervals == result["intervals"]


def test_accuracy_is_that_of_the_given_scores() -> None:
    """Rounding to float16 moves no prediction, so the four metrics of earlier versions keep their values."""
    images = open_images(f"{DIGITS}#[:200]")
    assert images.labels is not None and images.classes is not None
    close = 500 + torch.rand(200, 10, generator=torch.Generator().manual_seed(0)) / 4
    scored = Scored(images.classes, 0)
    scored.add("test/x", images, close)
    expected = classification(images.labels, close.argmax(1), images.classes)
    assert [scored.metrics[f"test/x/{m}"] for m in ("accuracy", "precision", "recall", "f1")] == [
        expected[m] for m in ("accuracy", "precision", "recall", "f1")
    ]


def test_domains_are_groups_and_clusters_are_what_splits_keep_together(tmp_path: Path) -> None:
    images = open_images([f"{DIGITS}#[:30]", f"{DIGITS}#[30:60]"])
    assert images.labels is not None and images.classes is not None
    assert scored_images(images, images.classes).clusters is None
    patients = images.groups = torch.arange(60) // 6 + 1
    scored = Scored(images.classes, 0)
    logits = torch.eye(10)[images.labels] + torch.randn(60, 10, generator=torch.Generator().manual_seed(0))
    scored.add("test/x", images, logits)
    scored.add("test/y", images, logits.exp(), "votes")
    assert "test/x/worst_group" in scored.metrics and len(scored.details["test/x"]["groups"]["groups"]) == 2
    scored.save(tmp_path)
    found = read_predictions(tmp_path)
    assert found is not None and found.tests["test"].clusters is not None and found.tests["test"].groups is not None
    clusters = found.tests["test"].clusters
    assert clusters.tolist() == images.units().tolist() and len(set(clusters.tolist())) == 10
    assert all(len(set(clusters[patients == patient])) == 1 for patient in range(1, 11))
    assert set(found.scores) == {"test/x", "test/y"}
    json.dumps(scored.as_result(), allow_nan=False)


def test_the_interval_is_over_patients_where_pictures_of_one_fail_together() -> None:
    """Ten patients of six pictures, of which three are all wrong: sixty independent pictures would be much surer."""
    images = open_images(f"{DIGITS}#[:60]")
    assert images.labels is not None and images.classes is not None
    wrong = torch.arange(60) // 6 < 3
    logits = torch.eye(10)[torch.where(wrong, (images.labels + 1) % 10, images.labels)]
    alone, together = Scored(images.classes, 0), Scored(images.classes, 0)
    alone.add("test/x", images, logits)
    images.groups = torch.arange(60) // 6 + 1
    together.add("test/x", images, logits)
    by_picture, by_patient = (one.intervals["test/x/accuracy"] for one in (alone, together))
    assert by_patient[1] - by_patient[0] > 1.8 * (by_picture[1] - by_picture[0])
    assert by_patient == pytest.approx([0.4, 0.9], abs=0.11)


def test_held_out_training_scores_give_a_temperature() -> None:
    images = open_images(f"{DIGITS}#[:100]")
    assert images.labels is not None and images.classes is not None
    generator = torch.Generator().manual_seed(0)
    logits = 10 * (2 * torch.eye(10)[images.labels] + torch.randn(100, 10, generator=generator))
    scored = Scored(images.classes, 0)
    scored.add("test/x", images, logits, held_out=(logits[50:], images.labels[50:]))
    assert scored.metrics["test/x/nll_scaled"] < scored.metrics["test/x/nll"]


def test_nothing_scored_writes_nothing(tmp_path: Path) -> None:
    Scored(("a", "b"), 0).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_scores_that_are_no_numbers_are_refused() -> None:
    images = open_images(f"{DIGITS}#[:4]")
    assert images.classes is not None
    with pytest.raises(UserError, match="test/x: the scores of 1 images are not numbers"):
        Scored(images.classes, 0).add("test/x", images, torch.tensor(np.r_[[[np.nan] * 10], np.zeros((3, 10))]))


def test_scores_in_float64_are_rounded_once() -> None:
    """By way of float32, two that differ by less than its step would be equal, and the first of them the prediction."""
    images = open_images(f"{DIGITS}#[:20]")
    assert images.labels is not None and images.classes is not None
    close = 1.0 + 1e-12 * torch.arange(10, dtype=torch.float64).repeat(20, 1)
    scored = Scored(images.classes, seed=0)
    scored.add("test/linear", images, close)
    assert (scored.kept.scores["test/linear"].scores.argmax(1) == 9).all()
    assert scored.metrics["test/linear/accuracy"] == float((images.labels == 9).double().mean())
