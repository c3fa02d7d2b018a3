"""The control of one method is that of others: without a transfer loss, DANN, CDAN and MCC train the same classifier."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from rootstock.tests.adapt.test_objective import start

CONTROLS = {
    "dann": {"name": "dann", "hidden": 8, "reversal": 0},
    "cdan": {"name": "cdan", "hidden": 8, "reversal": 0},
    "mcc": {"name": "mcc", "trade_off": 0},
    "source_only": {"name": "source_only"},
}


def test_the_demos_methods_have_one_control(tmp_path: Path) -> None:
    weights: dict[str, dict[str, Tensor]] = {}
    for name, method in CONTROLS.items():
        start(tmp_path / name, method, "optim.name=adamw", "optim.lr=0.01", evaluate=None)
        folder = tmp_path / name / "run" / "classifier"
        weights[name] = load_file(folder / "backbone.safetensors") | load_file(folder / "head.safetensors")
    for name in ("cdan", "mcc"):
        for key, expected in weights["dann"].items():
            torch.testing.assert_close(weights[name][key], expected, rtol=1e-4, atol=1e-6, msg=f"{name}: {key}")
    assert any((weights["source_only"][key] - weights["dann"][key]).abs().max() > 1e-3 for key in weights["dann"])
