"""benchmarks/edge.py at toy size: every form is measured, and its row says what the outcome says. Nothing is timed here."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rootstock.core.evaluate.trained import load_trained
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier

DIGITS = "sklearn:digits?size=16&classes=3"

for extra in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(extra, reason=f"{extra} is not installed")


def test_the_table_has_every_form(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    torch.manual_seed(0)
    Classifier(create(16, name="smallconv"), ["0", "1", "2"]).export(tmp_path)
    edge = script("edge")
    lines = edge.measured(load_trained(tmp_path), [f"{DIGITS}#[:64]"], [f"{DIGITS}#[64:264]"], trials=2, seconds=0.01)
    assert lines[0].startswith("n = 200 test pictures; 64 others calibrate. ")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    assert [cells[0] for cells in rows] == list(edge.FORMS)
    sizes = [float(cells[1]) for cells in rows]
    assert sizes[2] < sizes[1] / 2 and sizes[0] == pytest.approx(0.37, abs=0.02)
    assert rows[0][3] == "1" and rows[0][4] == rows[1][4] and rows[0][4].endswith(" %")
    assert all("%" in cells[6] and "[" in cells[5] for cells in rows[2:])
