"""benchmarks/edge.py at toy size: every form is measured, and its row says what the outcome says. Nothing is timed here."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rootstock.core.evaluate.trained import load_trained
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier

DIGITS = "sklearn:digits?size=16&classes=3"

for extra in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(extra, reason=f"{extra} is not installed")


def test_the_table_has_every_form(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    whole = Classifier(create(16, name="smallconv"), ["0", "1", "2"])
    whole.export(tmp_path)
    edge = script("edge")
    weighed = dict[str, int]()
    own_row = edge.form_row

    def form_row(form: str, sizes: dict[str, int], *rest: Any) -> str:
        weighed.update(sizes)
        return own_row(form, sizes, *rest)

    monkeypatch.setattr(edge, "form_row", form_row)
    asked = edge.Asked([f"{DIGITS}#[:300]"], [f"{DIGITS}#[300:]"], lose=5.0, pictures=16, rounds=2)
    lines = edge.measured(load_trained(tmp_path), asked)
    assert lines[0].startswith("n = 237 test pictures; 128 others calibrate, and 172 others choose. ")
    # In PyTorch, as in a file of ONNX, the head and the statistics of BatchNorm count, too.
    assert weighed[""] == sum(tensor.numel() * tensor.element_size() for tensor in whole.state_dict().values())
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    assert [cells[0] for cells in rows] == list(edge.FORMS) and {len(cells) for cells in rows} == {len(edge.HEADS)}
    sizes = [float(cells[1]) for cells in rows]
    assert sizes[2] < sizes[1] / 2 and sizes[0] == pytest.approx(0.37, abs=0.02)
    assert rows[1][2] == rows[1][5] == "1" and float(rows[2][2]) == pytest.approx(sizes[1] / sizes[2], rel=0.05)
    assert rows[0][6] == rows[1][6] and rows[0][6].endswith(" %")
    assert all("%" in cells[8] and "[" in cells[7] for cells in rows[2:])
    assert " of 5" in rows[3][9] and [cells[9] for cells in rows[:3]] == ["", "", ""]
