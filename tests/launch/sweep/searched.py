"""A small architecture search, its trials, and how a test writes it down."""

from pathlib import Path
from typing import Any

import yaml

_RUN = {"dir": "x", "device": "cpu", "log_every": 1, "workers": 0, "checkpoint": {"every": "100%"}}
STEPS = 6
FINETUNE: dict[str, Any] = {
    "data": {"train": "sklearn:digits#[:96]", "size": 16, "views": "none"},
    "backbone": {"name": "smallconv", "args": {"widths": [4, 4, 8, 8]}},
    "optim": {"name": "adamw", "lr": 3e-3, "batch_size": 16, "duration": STEPS},
    "run": _RUN,
}
PRETRAIN: dict[str, Any] = {
    "data": {"train": "sklearn:digits#[:64]", "size": 16, "views": "digits"},
    "backbone": FINETUNE["backbone"],
    "method": {"name": "simclr", "projection": [16, 8]},
    "optim": {**FINETUNE["optim"], "duration": STEPS},
    "evaluate": {"knn": {"k": 5}, "watch": None, "every": None},
    "run": _RUN,
}
_PROBE: dict[str, Any] = {
    "data": {"train": "sklearn:digits#[:64]", "size": 16},
    "backbone": {"weights": "none"},
    "evaluate": {"knn": {"k": 5}},
    "run": {"dir": "x", "device": "cpu", "workers": 0},
}
PIPELINE: dict[str, Any] = {
    "run": {"dir": "x"},
    "stages": {
        "ssl": {"verb": "pretrain", "config": "pretrain.yaml", "set": {"evaluate.knn": None}},
        "probe": {"verb": "probe", "config": "probe.yaml", "set": {"backbone.weights": "@ssl"}},
    },
}
WIDTHS = {
    "backbone.args.widths": {"list": [{"choice": [2, 4]}, {"int": [2, 8]}, {"choice": [4, 8, 16]}, {"choice": [8]}]}
}
SEARCH: dict[str, Any] = {
    "run": {"dir": "sweep"},
    "verb": "finetune",
    "config": "finetune.yaml",
    "search": WIDTHS,
    "trials": 6,
    "objective": "test/classifier/accuracy",
    "cost": "macs",
    "sampler": "random",
}


def search(**sections: Any) -> str:
    """Write SEARCH with some sections replaced, None removes one, beside the configs of its trials; returns its path."""
    for name, config in {"finetune": FINETUNE, "pretrain": PRETRAIN, "probe": _PROBE, "pipeline": PIPELINE}.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    config = {key: value for key, value in {**SEARCH, **sections}.items() if value is not None}
    Path("sweep.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return "sweep.yaml"
