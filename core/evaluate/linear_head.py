"""The linear classifier that a probe fitted, kept beside its result: small, since the network itself is found by the probe's config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from ..files import write_tensors, write_text
from ..formats import FORMAT
from ..manifest import DamagedFile, guard, read_object, write_manifest
from .logreg import LogisticRegression

LINEAR_FOLDER = "linear"
TENSORS_FILE, NAMES_FILE = "linear.safetensors", "linear.json"


class LinearHead(NamedTuple):
    """logits = features @ weight.T + bias. weight: float32 [K, D]; bias: float32 [K]; classes: the K names.

    network: sha256 of the weights of the network whose pooled features it reads, where that is known. channels: of its pictures.
    """

    weight: Tensor
    bias: Tensor
    classes: tuple[str, ...]
    network: str = ""
    channels: int = 3


def head_of(model: LogisticRegression, classes: Sequence[str]) -> LinearHead:
    """The same classifier for features as they are, not centred and scaled; classes without training images have no output."""
    weight = model.weight / model.scale
    bias = model.bias - weight @ model.mean
    names = tuple(str(classes[number]) for number in model.classes.tolist())
    return LinearHead(weight.float().cpu(), bias.float().cpu(), names)


def save_head(run: Path, head: LinearHead) -> None:
    """Write run/linear/."""
    folder = run / LINEAR_FOLDER
    folder.mkdir(exist_ok=True)
    write_tensors(folder / TENSORS_FILE, {"weight": head.weight, "bias": head.bias})
    told = {"format": FORMAT, "classes": list(head.classes), "weights_sha256": head.network, "channels": head.channels}
    write_text(folder / NAMES_FILE, json.dumps(told, indent=1) + "\n")
    write_manifest(folder, (TENSORS_FILE, NAMES_FILE))


def read_linear_head(run: Path) -> LinearHead:
    """Raises UserError if the probe kept none, or if it is damaged."""
    folder = run / LINEAR_FOLDER
    if not (folder / TENSORS_FILE).is_file():
        raise UserError(
            f"{run} is a probe without a linear classifier of pooled features; run it again with evaluate.linear={{}} and another run.dir "
            "(earlier versions kept none)"
        )
    guard(folder, (TENSORS_FILE, NAMES_FILE), str(run))
    try:
        tensors, told = load_file(folder / TENSORS_FILE), read_object(folder / NAMES_FILE)
        names, network, channels = tuple(told["classes"]), str(told["weights_sha256"]), int(told["channels"])
        return LinearHead(tensors["weight"], tensors["bias"], names, network, channels)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError, DamagedFile) as error:
        raise UserError(f"{folder} is damaged ({error}); run the probe again in another run.dir") from error
