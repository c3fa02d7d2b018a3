"""The control of one method is that of others: without a transfer loss they train the same classifier, as tables say that share one."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from rootstock.tests.adapt.test_objective import start

SHARED = ("mcc", "bnm", "dan", "deepcoral", "deepjdot")
CONTROLS = {
    "dann": {"name": "dann", "hidden": 8, "reversal": 0},
    "cdan": {"name": "cdan", "hidden": 8, "reversal": 0},
    **{name: {"name": name, "trade_off": 0} for name in SHARED},
    "mdd": {"name": "mdd", "hidden": 8, "trade_off": 0},
    "afn": {"name": "afn", "trade_off": 0},
    "source_only": {"name": "source_only"},
}


def test_methods_that_share_a_control_have_one(tmp_path: Path) -> None:
    weights: dict[str, dict[str, Tensor]] = {}
    for name, method in CONTROLS.items():
        start(tmp_path / name, method, "optim.name=adamw", "optim.lr=0.01", evaluate=None)
        folder = tmp_path / name / "run" / "classifier"
        weights[name] = load_file(folder / "backbone.safetensors") | load_file(folder / "head.safetensors")
    for name in ("cdan", "mdd", *SHARED):
        for key, expected in weights["dann"].items():
            torch.testing.assert_close(weights[name][key], expected, rtol=1e-4, atol=1e-6, msg=f"{name}: {key}")
    # Source-only's BatchNorm does not see the target, and AFN drops features in its control, too.
    for name in ("source_only", "afn"):
        assert any((weights[name][key] - weights["dann"][key]).abs().max() > 1e-3 for key in weights["dann"]), name
