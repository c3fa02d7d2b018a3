"""Every pretraining method in a small size, with its published kind of head. The tests of all methods share this file."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from rootstock.core.model.classifier import Classifier
from rootstock.launch.doctor.trial_steps import BACKBONES, LOCAL_SIZE, LOCALS, SIZE, backbone
from rootstock.launch.doctor.trial_steps import views as views
from rootstock.ssl.registry import PRETRAIN_METHODS


@functools.cache
def teacher(kind: str) -> str:
    """The folder of an exported network of `kind`, drawn by a fixed seed; it is there until the process ends."""
    folder = Path(_FOLDER.name) / kind
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        backbone(kind).export(folder)
    return str(folder)


@functools.cache
def teacher_of_digits() -> str:
    """The same for a classifier of ten digits."""
    folder = Path(_FOLDER.name) / "digits"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        Classifier(backbone("conv"), [str(digit) for digit in range(10)]).export(folder)
    return str(folder)


_FOLDER = tempfile.TemporaryDirectory()
# The method's keys, and the backbones that tests use with it.
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "simclr": ({"projection": [12, 8], "temperature": 0.5}, ("conv", "vit")),
    "byol": ({"projection": [12, 6], "prediction": [10, 6]}, ("conv", "vit")),
    "mocov3": ({"projection": [12, 6], "prediction": [10, 6]}, ("conv", "vit")),
    "simsiam": ({"projection": [12, 10, 8], "prediction": [4, 8]}, ("conv", "vit")),
    "barlow": ({"projection": [12, 10, 8]}, ("conv", "vit")),
    "vicreg": ({"projection": [12, 10, 8]}, ("conv", "vit")),
    "swav": ({"projection": [12, 8], "prototypes": 10, "queue": 6}, ("conv", "vit")),
    "dino": ({"prototypes": 10, "hidden": 12, "bottleneck": 6, "head_norm": True}, ("conv", "vit")),
    "ibot": ({"prototypes": 10, "hidden": 256, "bottleneck": 32, "freeze_last_layer": 0.0}, ("vit",)),
    "dinov2": (
        {"prototypes": 10, "patch_prototypes": 8, "hidden": 256, "bottleneck": 32, "freeze_last_layer": 0.0},
        ("vit",),
    ),
    "lejepa": ({"projection": [12, 6], "slices": 16}, ("conv", "vit")),
    "mae": ({"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}, ("vit",)),
    "simmim": ({"mask_patch": 8}, ("vit",)),
    "distill": ({"teacher": [teacher("conv"), teacher("vit")], "depths": 2, "loss": "mse"}, ("conv", "vit")),
    "ijepa": ({"predictor_dim": 8, "predictor_depth": 1, "predictor_heads": 2, "min_context": 2}, ("vit",)),
}


# Keys that tests of whole runs add, so that within a dozen steps a queue of several batches fills and is used, prototypes are frozen
# and then trained, and temperatures rise.
SCHEDULES: dict[str, dict[str, Any]] = {
    "swav": {"queue": 48, "queue_from": 0.25, "freeze_prototypes": 0.3},
    "dino": {"freeze_last_layer": 0.3, "teacher_temperature": 0.07, "teacher_temperature_warmup": 0.8},
    "ibot": {"freeze_last_layer": 0.3, "teacher_temperature_warmup": 0.8},
    "dinov2": {"freeze_last_layer": 0.3, "teacher_temperature_warmup": 0.8},
}
# Taken from a published recipe: the kind of step. Its learning rate, batch size and length do not suit tiny networks.
STEP = ("name", "weight_decay", "weight_decay_end", "layer_decay", "betas", "clip", "clip_by")
CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"


def config(name: str, kind: str, images: str, clip: float, **optim: Any) -> dict[str, Any]:
    """A config of `rootstock pretrain` for the method on a backbone of `kind`: views and kind of step of the config that ships.

    clip: replaces the recipe's gradient clipping, if it has one, by a value that takes effect. optim: more keys of that section.
    """
    recipe = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    preset = recipe["data"]["views"]
    views = dict(preset) if isinstance(preset, dict) else {"name": preset}
    if getattr(PRETRAIN_METHODS[name], "takes_local", False):
        views |= {"local": LOCALS, "local_size": LOCAL_SIZE}
    step = {key: recipe["optim"][key] for key in STEP if key in recipe["optim"]}
    if "clip" in step:
        step["clip"] = clip
    return {
        "data": {"train": images, "size": SIZE, "views": views},
        "backbone": BACKBONES[kind],
        "method": {"name": name, **CASES[name][0], **SCHEDULES.get(name, {})},
        "optim": {**step, **optim},
    }


def method(name: str, kind: str, chunk: int | None = None, seed: int = 0, **changed: Any) -> Any:
    """The method by its registered name, on a backbone of `kind`, the same weights for the same seed."""
    torch.manual_seed(seed)
    return PRETRAIN_METHODS[name](backbone(kind), chunk, **{**CASES[name][0], **changed})
