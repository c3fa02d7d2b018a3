"""The rows of one experiment: what is no accuracy says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rootstock.launch.report.records import RunRecord, StageRuns
from rootstock.launch.report.stages import protocol_rows


def test_a_row_of_another_metric_has_its_name() -> None:
    metrics = {
        "test/knn/accuracy": 0.5, "test/knn/balanced_accuracy": 0.4, "test/linear/accuracy": 0.6,
        "wrong_labels/classifier/memorised": 0.9, "wrong_labels/classifier/recovered": 0.1, "speed/features/ms_an_image": 2.5,
    }  # fmt: skip
    result: dict[str, Any] = {"task": "finetune", "seed": 0, "metrics": metrics}
    rows = protocol_rows(StageRuns("noisy", [RunRecord(Path("noisy"), result=result)]))
    assert [(row["label"], row["mean"]) for row in rows] == [
        ("test/knn", 0.5), ("test/linear", 0.6), ("wrong_labels/classifier, memorised", 0.9), ("speed/features, ms an image", 2.5),
    ]  # fmt: skip
