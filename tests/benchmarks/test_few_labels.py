"""benchmarks/few_labels.py: passes of both sides, the label-efficiency factor, and the page."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SIZES = {"1": 500, "10": 5000, "100": 50000}


@pytest.fixture(scope="module")
def few(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("few_labels")


def row(stage: str, mean: float) -> dict[str, Any]:
    return {"label": stage, "stage": stage, "mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": 5}


TABLE = {
    "rows": [
        *(row("simclr_1", 0.5), row("scratch_1", 0.4), row("simclr_10", 0.7), row("scratch_10", 0.6)),
        *(row("retuned_10", 0.57), row("longer_10", 0.59)),
    ],
    "comparisons": [row("1 %", 0.1), row("10 %", 0.1), row("10 %, retuned", -0.03), row("10 %, longer", -0.01)],
}
CURVE = {"rows": [row("scratch_100", 0.65)]}


def test_labels_at_which_a_curve_reaches_a_height(few: ModuleType) -> None:
    points = [(5000.0, 0.6), (500.0, 0.4)]
    # Half of the way up, by the logarithm of the labels.
    sign, labels = few.reached(points, 0.5)
    assert sign == "=" and labels == pytest.approx((500 * 5000) ** 0.5)
    assert few.reached(points, 0.61) == (">", 5000.0) and few.reached(points, 0.39) == ("<", 500.0)
    assert [few.factor(points, 500, height) for height in (0.5, 0.61, 0.39)] == ["3.2", "more than 10", "less than 1"]


def test_each_image_of_a_pretraining_passes_twice(few: ModuleType) -> None:
    assert few.passes([{"task": "pretrain", "images_seen": 100}, {"task": "finetune", "images_seen": 10}]) == 210


def test_settings_are_those_that_the_sweep_chose(few: ModuleType) -> None:
    stage = {"optim.lr": 1e-3, "data": {"views": {"scale": [0.3, 1.0]}}, "backbone.name": None}
    assert few.unlike(stage, {"optim.lr": 1e-3, "data.views.scale": [0.3, 1.0]}) == []
    assert few.unlike(stage, {"optim.lr": 2e-3}) == ["optim.lr is 0.001, and the sweep chose 0.002"]
    assert few.unlike(stage, {"optim.weight_decay": 1.0}) == ["optim.weight_decay is None, and the sweep chose 1.0"]


def test_passes_are_counted_for_each_part_of_the_labels(few: ModuleType, tmp_path: Path) -> None:
    study = few.STUDIES["cifar10"]
    later = study.added["longer_10"]
    configs = (*study.sweeps.values(), study.pipeline, *(one for _, *pair in study.added.values() for one in pair))
    folders = {config: tmp_path / Path(config).stem for config in configs}

    def ran(folder: Path, task: str, images: int) -> None:
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"task": task, "images_seen": images}))

    for (side, part), sweep in study.sweeps.items():
        for number in range(3):
            ran(folders[sweep] / f"trial-000{number}", "finetune", 10 * int(part))
        for seed in range(2):
            ran(folders[study.pipeline] / f"seed-{seed}" / few.stage_name(side, part), "finetune", int(part))
    ran(folders[later.sweep] / "trial-0000", "finetune", 7)
    for config, images in ((study.pretraining, 1000), (later.pretraining, 3000)):
        ran(folders[config], "pretrain", images)
    for stage in study.added:
        ran(folders[study.pipeline] / "seed-0" / stage, "finetune", 5)
    compute = few.spent(study, folders)
    assert compute["simclr_1"] == (2000, 30, 2) and compute["scratch_1"] == (0, 30, 2)
    assert compute["simclr_10"] == (2000, 300, 20) and compute["scratch_10"] == (0, 300, 20)
    assert compute["retuned_10"] == (2000, 7, 5) and compute["longer_10"] == (6000, 7, 5)
    assert few.over_these(compute, "simclr_1") == 32 / 2032 and few.over_these(compute, "longer_10") == 320 / 6012


def test_the_page(few: ModuleType) -> None:
    compute = {
        "simclr_1": few.Compute(13_000_000, 1_000_000, 500_000),
        "scratch_1": few.Compute(0, 9_000_000, 6_000_000),
        "scratch_10": few.Compute(0, 9_000_000, 1_750_000),
        "longer_10": few.Compute(20_000_000, 1_000_000, 500_000),
    }
    page = few.text(few.STUDIES["cifar10"], TABLE, CURVE, compute, SIZES, ["python benchmarks/few_labels.py cifar10"])
    assert "| 1 % (500) | 50.0 [49.0, 51.0] | 40.0 [39.0, 41.0] | +10.0 [+9.0, +11.0] | 3.2 |" in page
    assert "| +10.0 [+9.0, +11.0] | more than 10 |" in page and "| 100 % (50,000) | 65.0 [64.0, 66.0] |" in page
    assert "| 1 %, SimCLR, fine-tuned | 13.00 | 1.00 | 0.50 | 14.50 | 1.03 |" in page
    assert "| 1 %, from scratch | 0.00 | 9.00 | 6.00 | 15.00 |  |" in page
    assert "| 10 % (5,000) | 80 epochs, the same keys | 59.0 [58.0, 60.0] | -1.0 [-2.0, +0.0] | 0.89 |" in page
    assert "| 10 %, SimCLR, 80 epochs, the same keys | 20.00 | 1.00 | 0.50 | 21.50 | 0.50 |" in page


@pytest.mark.parametrize("name", ["cifar10", "imagenette"])
def test_the_configs_of_a_study_exist(few: ModuleType, name: str) -> None:
    """Both sides are tuned on the same images, from the same config, over the same crops."""
    study = few.STUDIES[name]
    assert (ROOT / study.pretraining).is_file()
    sweeps = {key: yaml.safe_load((ROOT / config).read_text()) for key, config in study.sweeps.items()}
    for one in study.added.values():
        again, scratch = (
            yaml.safe_load((ROOT / path).read_text()) for path in (one.sweep, study.sweeps["scratch", "10"])
        )
        assert scratch["search"].keys() <= again["search"].keys() and (ROOT / one.pretraining).is_file()
        assert all(again["set"][key] == scratch["set"][key] for key in ("seed", "data.train", "data.test"))
    for part in {part for _, part in sweeps}:
        ours, scratch = sweeps["simclr", part], sweeps["scratch", part]
        assert ours["config"] == scratch["config"] and ours["trials"] <= scratch["trials"]
        for key in ("seed", "data.train", "data.test"):
            assert ours["set"][key] == scratch["set"][key]
        assert f":{part}%," in ours["set"]["data.train"]
