"""Networks by name: timm's, without their classifiers, and ours; with the stems that small images need."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import timm
from timm.models import ResNet
from torch import nn

from ..errors import UserError, first_line
from .cifar_resnet import CifarResNet
from .hub import without_retries
from .lenet import LeNet
from .smallconv import SmallConv
from .weights import FC_NORM, with_new_fc_norm

OWN: Mapping[str, Callable[..., nn.Module]] = {"cifar_resnet": CifarResNet, "lenet": LeNet, "smallconv": SmallConv}
# ResNet stems for small images, 3x3 with stride 1 and no max-pooling: (padding, whether a ReLU follows). `small` is He et al.
# 2016 (arXiv:1512.03385, section 4.2) for CIFAR and SimCLR's appendix B.9. solo-learn pads by 2 (a map of 34 x 34), and lightly's
# ResNet, taken apart into nn.Sequential, loses the ReLU. Weights of these projects give their features only with their stems.
STEMS: Mapping[str, tuple[int, bool]] = {"small": (1, True), "solo": (2, True), "lightly": (1, False)}

# Arguments of create_model that load weights from elsewhere (checkpoint_path unpickles them) or change how timm works.
NOT_OF_THE_NETWORK = (
    "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "cache_dir", "scriptable",
    "exportable", "no_jit", "features_only",
)  # fmt: skip


def build_network(
    spec: dict[str, Any], channels: int, own: Mapping[str, Callable[..., nn.Module]], pretrained: bool
) -> nn.Module:
    """The network of a backbone's spec {name, args, size, stem, pooling}: [N, channels, size, size] -> [N, D]. Raises UserError."""
    name, args = spec["name"], spec["args"]
    if name in own:
        if spec["stem"] != "default" or spec["pooling"] is not None:
            raise UserError(
                f"backbone: {name} has one stem and one pooling; leave backbone.stem and backbone.pooling out"
            )
        if pretrained:
            raise UserError(
                f"backbone.weights: timm has no weights for {name}, which is Rootstock's own; use none or a run"
            )
        try:
            return own[name](size=spec["size"], channels=channels, **args)
        except (UserError, MemoryError):
            raise
        except TypeError as error:
            raise UserError(f"backbone.args: {name} does not take {args} ({error}); leave them out") from error
        except Exception as error:
            raise UserError(
                f"backbone: {name} cannot be built for data.size {spec['size']} and backbone.args {args} ({error}); change one of them"
            ) from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*timm.list_models(), *own], n=3)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        known = f"any of timm.list_models(), or {', '.join(sorted(own))}"
        raise UserError(f"backbone.name: unknown backbone {name!r}{meant} ({known})")
    kwargs = timm_arguments(spec, channels)
    if pretrained and spec["stem"] != "default":
        raise UserError(
            f"backbone.stem: {spec['stem']} has no weights at timm, whose stems are large; use stem: default or weights: none"
        )
    fresh = pretrained and spec["pooling"] == FC_NORM  # timm's weights have the norm before pooling
    model = _timm_model(spec, kwargs, pretrained and not fresh)
    if fresh:
        mean = {**spec, "pooling": "mean"}
        state = _timm_model(mean, timm_arguments(mean, channels), True).state_dict()
        model.load_state_dict(with_new_fc_norm(model.state_dict(), state))
    if spec["stem"] != "default":
        if not isinstance(model, ResNet):
            raise UserError(
                f"backbone.stem: {spec['stem']} is for ResNets, {name} is a {type(model).__name__}; leave backbone.stem out"
            )
        replace_layers(model, stem_layers(model, channels, spec["stem"]))
        stem: Any = model.conv1
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return model


def _timm_model(spec: Mapping[str, Any], kwargs: Mapping[str, Any], pretrained: bool) -> nn.Module:
    """timm's model. Raises UserError for whatever timm raises: the arguments are the user's."""
    name = spec["name"]
    try:
        with without_retries() if pretrained else nullcontext():
            return timm.create_model(name, pretrained=pretrained, **kwargs)
    except MemoryError:
        raise
    except Exception as error:
        said = first_line(error)
        if pretrained and isinstance(error, OSError | RuntimeError):
            raise UserError(
                f"backbone.weights: timm's weights for {name} cannot be loaded ({said}); where there is a network, "
                f"`python -c \"import timm; timm.create_model('{name}', pretrained=True)\"` puts them into the cache (HF_HOME); or give a "
                ".safetensors file or none"
            ) from error
        if spec["pooling"]:
            raise UserError(
                f"backbone: timm cannot build {name} with pooling {spec['pooling']} and args {spec['args']} ({said}); "
                "backbone.pooling is for ViTs, which masked methods such as mae need: set backbone.name to a ViT "
                "(vit_small_patch16_224), or leave backbone.pooling out"
            ) from error
        raise UserError(
            f"backbone: timm cannot build {name} with {dict(kwargs)} ({said}); see its documentation for the arguments"
        ) from error


def timm_arguments(spec: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """The keyword arguments of timm's create_model for a backbone's spec; plain JSON. Raises UserError."""
    args, size, config = dict(spec["args"]), spec["size"], timm.get_pretrained_cfg(spec["name"])
    if args.get("img_size", size) not in (size, [size, size], (size, size)):
        raise UserError(f"backbone.args.img_size: {args['img_size']} contradicts data.size: {size}; leave it out")
    if config is not None and config.fixed_input_size:
        args["img_size"] = size
    if spec["pooling"] is not None:
        # The final norm comes before pooling, so that token and mean share one set of weights.
        args.update(
            {
                "token": {"global_pool": "token"},
                "mean": {"global_pool": "avg", "fc_norm": False},
                FC_NORM: {"global_pool": "avg", "fc_norm": True},
            }[spec["pooling"]]
        )
    if foreign := [key for key in NOT_OF_THE_NETWORK if key in args]:
        raise UserError(
            f"backbone.args.{foreign[0]}: args are those of the network, and its weights come from backbone.weights alone; leave it out"
        )
    for key, value in {"num_classes": 0, "in_chans": channels}.items():
        if key in args and args[key] != value:
            why = "backbones have no classifier" if key == "num_classes" else "the pictures have so many channels"
            raise UserError(f"backbone.args.{key}: {args[key]} contradicts {value}, since {why}; leave it out")
        args[key] = value
    return args


def stem_layers(model: ResNet, channels: int, stem: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """The layers of a ResNet that one of STEMS replaces: name -> (class of torch.nn, its arguments), plain JSON."""
    norm: Any = model.bn1  # BatchNorm or GroupNorm
    width = len(norm.weight)
    padding, activation = STEMS[stem]
    convolution = {
        "in_channels": channels,
        "out_channels": width,
        "kernel_size": 3,
        "stride": 1,
        "padding": padding,
        "bias": False,
    }
    layers: dict[str, tuple[str, dict[str, Any]]] = {"conv1": ("Conv2d", convolution), "maxpool": ("Identity", {})}
    return layers if activation else {**layers, "act1": ("Identity", {})}


def replace_layers(model: nn.Module, layers: Mapping[str, tuple[str, dict[str, Any]]]) -> None:
    """Put new layers in the place of a model's own. layers: as `stem_layers` gives them."""
    for name, (kind, kwargs) in layers.items():
        setattr(model, name, getattr(nn, kind)(**kwargs))
