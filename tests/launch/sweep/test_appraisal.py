"""What is known before the trials: which networks cannot be built, and whether any is within the budget."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from rootstock.core.errors import UserError
from rootstock.core.model.macs import parameters_of
from rootstock.launch.sweep.appraisal import offered_points
from rootstock.launch.sweep.plan import Sweep, plan_sweep
from rootstock.launch.sweep.untrained import untrained_at
from rootstock.tests.launch.sweep.searched import FINETUNE, search


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begun(name: str = "sweep", **sections: Any) -> Sweep:
    """A sweep whose folder is there."""
    sweep = plan_sweep(search(run={"dir": name}, **sections), [])
    sweep.dir.mkdir()
    return sweep


def warnings_of(**sections: Any) -> list[str]:
    said: list[str] = []
    offered_points(begun(**sections), said.append)
    return [line for line in said if line.startswith("WARNING")]


def test_what_cannot_be_is_said_before_any_trial() -> None:
    """A budget below all points, and an end of the search whose network cannot be built."""
    assert warnings_of(cost={"name": "macs", "budget": 10.0}) == [
        "WARNING: cost.budget: 10 is below the macs of the cheapest network that was found, 8144, and a trial beyond it trains nothing; "
        "raise it, or search smaller networks, in another run.dir"
    ]
    wrong = begun("wrong", search={"backbone.args.widths": {"list": [{"int": [0, 4]}, {"choice": [4]}]}})
    with pytest.raises(
        UserError,
        match=r"backbone: smallconv cannot be built for data.size 16 and backbone.args .*widths of at least 1",
    ):
        offered_points(wrong, lambda line: None)


@pytest.mark.parametrize(
    "order", [["data.size", "backbone.args.patch_size"], ["backbone.args.patch_size", "data.size"]]
)
def test_the_cheapest_network_is_found_by_the_cost_itself(order: list[str]) -> None:
    """Larger patches of a ViT take fewer multiply-adds and more parameters, and of small pictures even more so."""
    args = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
    keys = {"data.size": {"choice": [96, 32]}, "backbone.args.patch_size": {"choice": [16, 4]}}
    vit = {**FINETUNE, "backbone": {"name": "vit_tiny_patch16_224", "args": args}}
    Path("vit.yaml").write_text(yaml.safe_dump(vit))
    sections = {
        "config": "vit.yaml",
        "search": {key: keys[key] for key in order},
    }
    sweep = begun("any", **sections)
    costs = [
        parameters_of(untrained_at(sweep, {"data.size": size, "backbone.args.patch_size": patch}).network)
        for size, patch in itertools.product((96, 32), (4, 16))
    ]
    assert min(costs) == costs[2]
    assert warnings_of(**sections, name="in", cost={"name": "parameters", "budget": float(min(costs))}) == []
    (warning,) = warnings_of(**sections, name="out", cost={"name": "parameters", "budget": float(min(costs) - 1)})
    assert f"of the cheapest network that was found, {min(costs):g}, " in warning
