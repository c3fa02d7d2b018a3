"""benchmarks/budget.py: the curve of accuracy over epochs, and where it crosses handcrafted features."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from matplotlib.axes import Axes
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def budget(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("budget")


def row(label: str, mean: float, knn: float = 0.1) -> dict[str, Any]:
    return {
        "label": label,
        "mean": mean,
        "low": mean - 0.01,
        "high": mean + 0.01,
        "n": 3,
        "beside": {"kNN": {"mean": knn}},
    }


TABLE = {
    "rows": [
        row("raw pixels", 0.45, 0.5),
        row("HOG", 0.9),
        *(row(f"A, {epochs} epochs", mean) for epochs, mean in ((20, 0.6), (5, 0.4), (80, 0.7))),
        *(row(f"B, {epochs} epochs", mean) for epochs, mean in ((5, 0.55), (20, 0.8), (80, 0.95))),
    ]
}  # fmt: skip


def test_where_a_curve_crosses(budget: ModuleType) -> None:
    (a, b), fixed = budget.curves(TABLE)
    assert list(a.rows) == [5, 20, 80] and list(fixed) == ["raw pixels", "HOG"]
    # Half of the way from 0.4 to 0.6, by the logarithm of the epochs: the geometric mean of 5 and 20.
    assert budget.crossing(a, 0.5) == pytest.approx(10.0)
    assert budget.crossing(a, 0.71) is None and budget.crossing(b, 0.5) == pytest.approx(5.0)
    said = "A reaches raw pixels (kNN, 50.0) at about 10 epochs and stays 20.0 points below HOG (linear, 90.0) up to 80 epochs."
    assert budget.sentence(a, fixed) == said
    assert budget.sentence(b, fixed).startswith("B is above raw pixels (kNN, 50.0) from 5 epochs on and reaches HOG")


def test_page_and_picture(budget: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = budget.text(TABLE, "rootstock run configs/x.yaml", "configs/x.yaml", "Title")
    assert "| A | 40.0 [39.0, 41.0] | 60.0 [59.0, 61.0] | 70.0 [69.0, 71.0] |" in page and "(x.png)" in page
    run, pixels = (
        tmp_path / "seed-0" / "pixels",
        {**TABLE["rows"][0], "stage": "pixels", "metric": "test/linear/accuracy"},
    )
    run.mkdir(parents=True)
    details = {"test/linear": {"confusion": [[3, 1], [0, 4]]}}
    (run / "result.json").write_text(json.dumps({"details": details}))
    assert budget.levels({"rows": [pixels]}, tmp_path) == [("chance", 0.5)]
    free, labels = [("chance", 0.25), ("most frequent class", 0.4)], list[str]()
    drawn = Axes.axhline
    monkeypatch.setattr(Axes, "axhline", lambda self, y, **how: labels.append(how["label"]) or drawn(self, y, **how))
    budget.draw(TABLE, free, "Title", tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (768, 504)
    assert labels[2:] == ["chance, 25.0 %", "most frequent class, 40.0 %"]


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_only_the_length_differs(script: Callable[[str], ModuleType], name: str) -> None:
    """Of a method's stages; and each row reads the probe of its stage, by the protocol of the method's family."""
    methods, pipeline = (
        script("methods"),
        yaml.safe_load((ROOT / f"configs/budget_{name}.yaml").read_text()),
    )
    stages, rows = pipeline["stages"], {row["label"]: row for row in pipeline["report"]["rows"]}
    for label in ("SimCLR", "LeJEPA", "MAE"):
        same = set()
        for epochs in (5, 20, 80, 320):
            stage, row = stages[f"{label.lower()}_{epochs}"], rows[f"{label}, {epochs} epochs"]
            changed = dict(stage["set"])
            assert changed.pop("optim.duration") == f"{epochs}ep"
            same.add((stage["config"], str(changed)))
            assert row["stage"] == f"{label.lower()}_{epochs}_probe"
            protocol = "attentive" if label.lower() in methods.FAMILIES["attentive"] else "linear"
            assert row["metric"] == f"test/{protocol}/accuracy"
        assert len(same) == 1
