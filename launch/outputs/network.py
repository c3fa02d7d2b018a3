"""A trained network as others build it: timm's arguments and tensors, the layers above the backbone in plain PyTorch, config.json."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.evaluate.trained import TrainedRun
from ...core.files import write_tensors, write_text
from ...core.formats import FORMAT
from ...core.model.classifier import Classifier
from ...core.model.heads import CosineHead, WeightNormHead
from ...core.model.networks import OWN
from ...core.model.plain_timm import timm_entry
from ...core.model.pruned import PRUNED
from ...core.views.view import per_channel
from .scripts import OF_OURS, OF_TIMM, SCRIPT_NAME

CONFIG_FILE, TENSORS, HEAD_TENSORS = "config.json", "model.safetensors", "head.safetensors"
KEPT_OF_TIMM = ("first_conv", "classifier", "pool_size", "fixed_input_size")


class PlainNetwork(NamedTuple):
    """What an exported folder holds of a network. about: the entry `rootstock` of config.json.

    config: the rest of config.json, by which `timm.create_model("local-dir:...")` builds it; empty where it cannot, and `reason` says why.
    tensors: of model.safetensors. head: of head.safetensors; empty where there is no head, or timm's own holds it.
    """

    script: str
    config: dict[str, Any]
    about: dict[str, Any]
    tensors: dict[str, Tensor]
    head: dict[str, Tensor]
    reason: str = ""

    def write(self, folder: Path) -> list[str]:
        """Write the files, and return their names."""
        write_text(folder / CONFIG_FILE, json.dumps({**self.config, "rootstock": self.about}, indent=1) + "\n")
        # Of PyTorch, as the Hub's readers of safetensors expect it said.
        write_tensors(folder / TENSORS, self.tensors, {"format": "pt"})
        write_text(folder / SCRIPT_NAME, self.script)
        if self.head:
            write_tensors(folder / HEAD_TENSORS, self.head, {"format": "pt"})
        return [CONFIG_FILE, TENSORS, SCRIPT_NAME, *([HEAD_TENSORS] if self.head else [])]


def plain_network(trained: TrainedRun, whole: bool = True) -> PlainNetwork:
    """The network without Rootstock's classes. whole: let timm's own classifier hold the head, where one linear layer is all there is.

    Raises UserError for a network that neither timm nor a script of ours can build.
    """
    backbone, classifier = trained.backbone, trained.classifier
    tensors, name = backbone.model.state_dict(), backbone.spec["name"]
    layers, head = ([], {}) if classifier is None else plain_head(classifier)
    about: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "features": backbone.feature_dim,
        "pruned": backbone.spec.get(PRUNED),
        "outputs": None if classifier is None else classifier.outputs,
        "preprocessing": preprocessing(trained),
        "temperature": None if trained.calibration is None else trained.calibration.temperature,
    }
    if name in OF_OURS:
        about |= {"kwargs": own_arguments(trained), "layers": {}, "classifier": None, "head": layers}
        reason = f"{name} is a network of Rootstock's own, which timm does not have"
        return PlainNetwork(OF_OURS[name], {}, about, tensors, head, reason)
    entry = timm_entry(backbone.spec, backbone.channels, tensors)
    if "reason" in entry:
        raise UserError(f"{trained.title} cannot be exported: {entry['reason'].partition(';')[0]}")
    plain = not entry["layers"] and PRUNED not in entry
    place = timm_classifier(name, entry["kwargs"]) if whole and plain and len(layers) == 1 else None
    if place is not None and layers[0][0] == "Linear" and classifier is not None:
        kwargs = {**entry["kwargs"], "num_classes": len(classifier.outputs)}
        tensors = {**tensors, **{f"{place}.{key.removeprefix('0.')}": value for key, value in head.items()}}
        about |= {"kwargs": kwargs, "layers": {}, "classifier": place, "head": None}
        return PlainNetwork(OF_TIMM, timm_config(trained, kwargs), about, tensors, {})
    about |= {"kwargs": entry["kwargs"], "layers": entry["layers"], "classifier": None, "head": layers or None}
    if PRUNED in entry:
        reason = f"it is pruned, and timm's {name} has no argument for the sizes of single layers"
        return PlainNetwork(OF_TIMM, {}, about, tensors, head, reason)
    if entry["layers"]:
        replaced = ", ".join(entry["layers"])
        reason = (
            f"its stem is `{backbone.spec['stem']}`, for which timm's {name} has no argument ({replaced} are replaced)"
        )
        return PlainNetwork(OF_TIMM, {}, about, tensors, head, reason)
    return PlainNetwork(OF_TIMM, timm_config(trained, entry["kwargs"]), about, tensors, head)


def plain_head(classifier: Classifier) -> tuple[list[list[Any]], dict[str, Tensor]]:
    """What lies above the backbone as layers of torch.nn: [[class, *arguments], ...], and the tensors of their nn.Sequential.

    A weight-normalised head becomes the linear layer that it is, and a cosine head `Cosine` of model.py.
    """
    layers: list[list[Any]] = []
    tensors: dict[str, Tensor] = {}
    if classifier.bottleneck is not None:
        linear, norm, _ = classifier.bottleneck
        layers += [["Linear", linear.in_features, linear.out_features], ["BatchNorm1d", norm.num_features], ["ReLU"]]
        tensors |= {f"0.{key}": value for key, value in linear.state_dict().items()}
        names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        tensors |= {f"1.{key}": norm.state_dict()[key] for key in names}
    place, head = len(layers), classifier.head
    if isinstance(head, CosineHead):
        layers.append(["Cosine", head.in_features, head.out_features, head.temperature])
        return layers, {**tensors, f"{place}.weight": head.weight.detach()}
    weight = head.scale * F.normalize(head.direction, dim=1) if isinstance(head, WeightNormHead) else head.weight
    layers.append(["Linear", head.in_features, head.out_features])
    return layers, {**tensors, f"{place}.weight": weight.detach(), f"{place}.bias": head.bias.detach()}


def own_arguments(trained: TrainedRun) -> dict[str, Any]:
    """All arguments of a network of ours, defaults included."""
    spec = trained.backbone.spec
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(OWN[spec["name"]]).parameters.items()
        if parameter.default is not parameter.empty
    }
    return {**defaults, "size": spec["size"], **spec["args"], "channels": trained.backbone.channels}


def timm_classifier(name: str, kwargs: Mapping[str, Any]) -> str | None:
    """Where timm's own classifier lies in a network that it builds so, if that is one linear layer; None elsewhere."""
    with torch.random.fork_rng(devices=[]):
        model: Any = timm.create_model(name, **{**kwargs, "num_classes": 2})
    own = getattr(model, "get_classifier", lambda: None)()
    places = [place for place, module in model.named_modules() if module is own]
    return places[0] if places and isinstance(own, nn.Linear) and own.bias is not None else None


def timm_config(trained: TrainedRun, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as timm writes it: architecture, arguments, and how pictures are prepared."""
    spec, view = trained.backbone.spec, trained.view
    known = timm.get_pretrained_cfg(spec["name"])
    of_timm = {key: getattr(known, key, None) for key in KEPT_OF_TIMM}
    side = (trained.backbone.channels, view.size, view.size)
    classes = kwargs.get("num_classes", 0)
    config: dict[str, Any] = {
        "architecture": spec["name"],
        "num_classes": classes,
        "num_features": trained.backbone.feature_dim,
        "model_args": {key: value for key, value in kwargs.items() if key != "num_classes"},
        "pretrained_cfg": {
            **{key: value for key, value in of_timm.items() if value is not None},
            "tag": "rootstock",
            "custom_load": False,
            "input_size": side,
            "num_classes": classes,
            "mean": list(per_channel(view.mean, trained.backbone.channels)),
            "std": list(per_channel(view.std, trained.backbone.channels)),
            "interpolation": view.interpolation,
            "crop_pct": crop_share(view.size, view.short),
            "crop_mode": "center",
        },
    }
    if classes and trained.classifier is not None:
        config["label_names"] = trained.classifier.outputs
    if kwargs.get("global_pool") is not None:
        config["global_pool"] = kwargs["global_pool"]
    return config


def crop_share(size: int, short: int) -> float:
    """The largest part for which timm, which resizes the shorter side to floor(size / part), resizes it to `short`.

    size / short is a rounded number, of which timm may make a pixel less.
    """
    part = size / short
    while math.floor(size / part) < short:
        part = math.nextafter(part, 0.0)
    while math.floor(size / (larger := math.nextafter(part, math.inf))) == short:
        part = larger
    return part


CROPPED_FROM = "round((side - size) / 2), halves to the even number"  # as torchvision's CenterCrop


def preprocessing(trained: TrainedRun) -> dict[str, Any]:
    """How a picture becomes the network's input, as plain JSON: all that the card says, and `Evaluation` does.

    mean, std: one number for each channel.
    """
    view, channels = trained.view, trained.backbone.channels
    return {
        "channels": channels,
        "range": [0.0, 1.0],
        "divided_by": "255, or 65535 for values of 16 bits",
        **view.describe(),
        "mean": list(per_channel(view.mean, channels)),
        "std": list(per_channel(view.std, channels)),
        "longer_side": "in proportion, rounded down",
        "antialias": True,
        "resized_values": "rounded to whole numbers",
        "crop": "center",
        "crop_from": CROPPED_FROM,
        "of_size_already": "taken whole",
    }
