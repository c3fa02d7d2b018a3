"""`run.pictures=none`: a run without pictures and maps; nothing else about it changes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rootstock.launch.report.page import write_report
from rootstock.launch.verbs import execute
from rootstock.tests.core.run.test_keep import files

DIGITS = "sklearn:digits?size=12"
NETWORK = {"name": "smallconv", "args": {"widths": [4, 4, 8, 8]}}
OPTIM = {"lr": 1e-2, "batch_size": 16, "duration": 4}
TRAINED = {"train": f"{DIGITS}#[:60,seed=1]", "test": f"{DIGITS}#[60:120,seed=1]", "size": 12}
DOMAINS = {"source": f"{DIGITS}#[:60,seed=1]", "target": f"{DIGITS}#[60:120,seed=1]", "size": 12}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "pretrain, watched": ("pretrain", {"data": {"train": TRAINED["train"], "size": 12}, "method": "simclr"}),
    "pretrain, tested": (
        "pretrain",
        {
            "data": {"train": TRAINED["train"], "size": 12},
            "method": "simclr",
            "evaluate": {"bank": TRAINED["train"], "test": TRAINED["test"], "knn": {}},
        },
    ),
    "finetune": ("finetune", {"data": TRAINED}),
    "probe": ("probe", {"data": TRAINED, "evaluate": {"knn": {}}}),
    "adapt": ("adapt", {"data": {**DOMAINS, "test": f"{DIGITS}#[120:180,seed=1]"}, "method": "mcc"}),
    "adapt, unmeasured": ("adapt", {"data": DOMAINS, "method": "mcc", "evaluate": None}),
}
DRAWN = ("pictures/", "map.")


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_without_pictures(kind: str, tmp_path: Path) -> None:
    verb, sections = RUNS[kind]
    found = {}
    for pictures in ("all", "none"):
        run = {"dir": str(tmp_path / pictures), "workers": 0, "device": "cpu", "pictures": pictures}
        config = {**sections, "backbone": NETWORK, "run": run} | ({} if verb == "probe" else {"optim": OPTIM})
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
        found[pictures] = execute(verb, str(tmp_path / "a.yaml"), quiet=True)
    every, few = (files(tmp_path / pictures) for pictures in found)
    drawn = {name for name in every if name.startswith(DRAWN)}
    assert drawn and few == every - drawn
    assert found["none"]["metrics"] == found["all"]["metrics"]
    assert found["none"].get("changes") == found["all"].get("changes")
    write_report([tmp_path / "none"], tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 1000
