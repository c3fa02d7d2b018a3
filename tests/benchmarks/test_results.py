"""benchmarks/methods.py: its table from results that were made up."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from rootstock.launch.report.results import summarise
from rootstock.ssl.registry import PRETRAIN_METHODS

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def methods(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("methods")


def leave(folder: Path, stage: str, network: str, rows: list[str], **result: Any) -> None:
    for seed in SEEDS:
        run = folder / f"seed-{seed}" / stage
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(yaml.safe_dump({"backbone": {"name": network}, "method": {"name": stage}}))
        (run / "metrics.jsonl").write_text("".join(row + "\n" for row in rows))
        (run / "result.json").write_text(json.dumps(result))


def results(accuracies: dict[str, float], spread: float) -> list[dict[str, Any]]:
    """One a seed: the first as it is, the others beside it."""
    return [
        {"seed": seed, "metrics": {name: value + spread * (seed - 1) for name, value in accuracies.items()}}
        for seed in SEEDS
    ]


def table(gains: dict[str, dict[str, float]], spread: float) -> dict[str, Any]:
    """A pipeline's result of a random network at 30 % and of methods that gain so much over it."""
    rows = []
    for stage, gained in {"random_vit": {}, **gains}.items():
        frozen = {f"test/{name}/accuracy": 0.3 + gained.get(name, 0.0) for name in ("knn", "linear", "attentive")}
        label, shift = stage.upper(), spread if gained else 0.0
        also = {"Linear": "test/linear/accuracy", "Attentive": "test/attentive/accuracy"}
        rows.append(summarise(results(frozen, shift), label=label, stage=f"{stage}_probe", also=also))
        tuned = {"test/classifier/accuracy": 0.3 + gained.get("tuned", 0.0)}
        rows.append(summarise(results(tuned, shift), label=f"{label}, tuned", stage=f"{stage}_finetune"))
    return {"rows": rows}


@pytest.mark.parametrize(
    ("stage", "gained", "spread", "warned", "said"),
    [
        ("simclr", {"linear": 0.2}, 0.0, 0, "1 of 1 methods have learned. No log warns."),
        ("simclr", {"knn": 0.2, "attentive": 0.5, "tuned": 0.5}, 0.0, 0, "0 of 1 methods have learned. No log warns."),
        ("simclr", {"linear": 0.2}, 0.1, 0, "0 of 1 methods have learned. No log warns."),  # +-0.25 over three seeds
        ("simclr", {"linear": 0.2}, 0.0, 1, "1 of 1 methods have learned. Warnings in the logs of SIMCLR."),
        ("mae", {"attentive": 0.05, "tuned": 0.05}, 0.01, 0, "1 of 1 methods have learned. No log warns."),
    ],
)
def test_the_table_is_read_from_a_pipelines_folders(
    methods: ModuleType, tmp_path: Path, stage: str, gained: dict[str, float], spread: float, warned: int, said: str
) -> None:
    leave(tmp_path, "random_vit_probe", "vit", [])
    leave(tmp_path, f"{stage}_probe", "None", [])
    rows = ['{"step": 1, "loss": 1.0}'] + ['{"step": 1, "warning": "collapsed"}'] * warned
    leave(tmp_path, stage, "vit", rows, images_seen=1200, seconds=61.7)
    every = methods.rows(table({stage: gained}, spread), tmp_path)
    assert [(row.stage, row.images, row.warnings) for row in every] == [
        ("random_vit", None, None),
        (stage, 1200, 3 * warned),
    ]
    versions = {"versions": {"rootstock": "0", "faiss-cpu": "1"}}
    page, summary = methods.text(every, versions, "rootstock run x.yaml", "x.yaml", "Methods on x")
    assert summary == said and page.endswith(f"\n\n{said}\n")
    assert page.startswith("# Methods on x\n\nCommand: `rootstock run x.yaml`") and "other parts" not in page
    assert f"| {stage.upper()} | vit | 1,200 | {100 * (0.3 + gained.get('knn', 0.0)):.1f} [" in page
    assert f" | 62 | {3 * warned} |" in page and f"| {100 * gained.get('tuned', 0.0):+.1f} [" in page


def test_the_pipeline_has_every_method_with_all_protocols(methods: ModuleType) -> None:
    config = yaml.safe_load((ROOT / "configs" / "methods.yaml").read_text())
    stages, rows = config["stages"], {row["stage"]: row for row in config["report"]["rows"]}
    trained = [name for name, stage in stages.items() if stage["verb"] == "pretrain"]
    alone = {name for name, kind in PRETRAIN_METHODS.items() if not kind.takes_teacher}
    missing = alone - set(trained)
    expected = {row for name in trained for row in (f"{name}_probe", f"{name}_finetune")}
    remedy = "copy lejepa's three stages and two rows of the report in configs/methods.yaml"
    assert not missing and expected <= rows.keys(), f"{', '.join(missing | (expected - rows.keys()))}: {remedy}"
    assert sorted(trained) == sorted(alone) and sorted(sum(methods.FAMILIES.values(), ())) == sorted(trained)
    for name in trained:
        section = stages[name].get("set", {}).get("method")
        base = yaml.safe_load((ROOT / "configs" / stages[name]["config"]).read_text())
        assert (section or base["method"])["name"] == name
        assert {heading.lower() for heading in rows[f"{name}_probe"]["also"]} < set(methods.PROTOCOLS)
        assert (
            set(rows[f"{name}_probe"]["also"]) == {"Linear", "Attentive", "Other parts"} and f"{name}_finetune" in rows
        )
        for verb in ("probe", "finetune"):
            assert stages[f"{name}_{verb}"]["set"]["backbone.weights"] == f"@{name}"
