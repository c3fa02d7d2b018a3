"""The timm model that weights belong to, found by their shapes; attention heads, which have no shape, by the project."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor

from ..errors import UserError
from .names import Encoder

# (width, depth) -> timm's name for the size of a ViT.
SIZES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge", (1408, 40): "giant",
         (1536, 40): "giant"}  # fmt: skip
# Attention heads by width in mae, dino, ibot, dinov2, moco v3, simmim and timm; for exceptions see `_attention_heads`.
ATTENTION_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24}
# (width, blocks of each stage) -> timm's name for the size of a Swin.
SWIN_SIZES: Mapping[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "tiny",
    (96, (2, 2, 18, 2)): "small",
    (128, (2, 2, 18, 2)): "base",
    (192, (2, 2, 18, 2)): "large",
}
RESNETS: Mapping[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
# (ResNet, groups, width of a group at 64 planes) -> timm's name.
GROUPED = {("resnet50", 32, 4): "resnext50_32x4d", ("resnet101", 32, 8): "resnext101_32x8d",
           ("resnet50", 1, 128): "wide_resnet50_2", ("resnet101", 1, 128): "wide_resnet101_2"}  # fmt: skip


class Architecture(NamedTuple):
    """The arguments of core.model.backbone.create. size: side of the images that the weights were trained on, in pixels."""

    name: str
    args: dict[str, Any]
    size: int
    stem: str
    pooling: str | None
    channels: int
    notes: list[str]


def architecture(encoder: Encoder, project: str, path: str, name: str | None, args: Mapping[str, Any]) -> Architecture:
    """The timm model of an encoder. name: as the user gave it; then `args` are its only arguments. Raises UserError."""
    tensors = encoder.tensors
    if "patch_embed.proj.0.weight" in tensors:
        raise UserError(
            f"{path}: a ViT with a convolutional stem (MoCo v3's vit_conv_*), which timm does not have; use the plain ViT"
        )
    if name is not None and not timm.is_model(name):
        raise UserError(f"--name: {name!r} is no timm model; see timm.list_models()")
    if name is not None and project == "timm":
        return _named(encoder, name, dict(args))
    if "patch_embed.proj.weight" in tensors and "blocks.0.norm1.weight" in tensors:
        return _vit(encoder, project, path, name, dict(args))
    if "conv1.weight" in tensors and "layer1.0.conv1.weight" in tensors:
        return _resnet(encoder, project, path, name, dict(args))
    if "layers.0.blocks.0.attn.relative_position_bias_table" in tensors and project != "timm":
        return _swin(tensors, name, dict(args))
    raise UserError(
        f"{path}: holds no plain ViT, ResNet or Swin; timm builds the layers of others differently, so only weights with timm's own names "
        "can be imported (--from timm --name NAME)"
    )


def _named(encoder: Encoder, name: str, args: dict[str, Any]) -> Architecture:
    """Any timm model, from weights with timm's names."""
    config = timm.get_pretrained_cfg(name)
    size = config.input_size[-1] if config else 224
    patches = encoder.tensors.get("patch_embed.proj.weight")
    if patches is not None and patches.ndim == 4 and (grid := _grid(encoder.tensors)):
        size = grid * patches.shape[-1]
    first = encoder.tensors.get(f"{config.first_conv}.weight") if config else None
    return Architecture(name, args, size, "default", None, 3 if first is None else first.shape[1], [])


def _vit(encoder: Encoder, project: str, path: str, name: str | None, args: dict[str, Any]) -> Architecture:
    tensors = encoder.tensors
    width, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
    depth = 1 + max(int(found[1]) for key in tensors if (found := re.match(r"blocks\.(\d+)\.", key)))
    relative = any(key.endswith("relative_position_bias_table") for key in tensors)
    grid = _grid(tensors)
    if not grid:
        raise UserError(
            f"{path}: a ViT whose positions (pos_embed) do not form a square of patches; import weights for square images"
        )
    heads, notes = _attention_heads(tensors, project, width)
    heads = args.get("num_heads", heads)
    wanted: dict[str, Any] = {"num_heads": heads} if name is not None and notes else {}
    if name is None:
        if heads is None:
            raise UserError(
                f"{path}: the shapes do not show how many attention heads share {width} channels; give --args num_heads=N"
            )
        name = _vit_name(tensors, width, depth, patch, relative)
        base = _built(name)
        wanted = _beit_args(tensors) if relative else _vit_args(tensors)
        wanted.update(patch_size=patch, embed_dim=width, depth=depth, num_heads=heads)
        wanted = {key: value for key, value in wanted.items() if value != base.get(key)}
        mlp = tensors["blocks.0.mlp.fc1.weight"].shape[0]
        if mlp != int(width * base["mlp_ratio"]):
            # timm truncates width * ratio, so a rounded quotient may give one channel too few.
            wanted["mlp_ratio"] = mlp / width if int(width * (mlp / width)) == mlp else (mlp + 0.5) / width
    pooling = None
    if not relative and "fc_norm.weight" not in tensors:
        pooling = "token" if "cls_token" in tensors else "mean"
    return Architecture(name, {**wanted, **args}, grid * patch, "default", pooling, channels, notes)


def _grid(tensors: Mapping[str, Tensor]) -> int:
    """Patches on a side, from absolute positions or a table of relative ones ((2g - 1)^2 + 3 rows); 0 if they form no square."""
    table = next((t for name, t in tensors.items() if name.endswith("relative_position_bias_table")), None)
    if "pos_embed" not in tensors:
        return 0 if table is None else (math.isqrt(max(0, len(table) - 3)) + 1) // 2
    count = tensors["pos_embed"].shape[1]
    for prefix in (1, 0):  # with a position for the class token, or without; no count fits both
        side = math.isqrt(count - prefix)
        if side and side**2 + prefix == count:
            return side
    return 0


def _attention_heads(tensors: Mapping[str, Tensor], project: str, width: int) -> tuple[int | None, list[str]]:
    table = next((t for key, t in tensors.items() if key.endswith("relative_position_bias_table")), None)
    if table is not None:
        return table.shape[1], []
    positions = tensors.get("pos_embed")
    fixed = positions is not None and "cls_token" in tensors and not bool(positions[:, 0].any())
    if width in (192, 384) and project in ("moco", "solo") and fixed:
        # moco-v3's vits.py and solo-learn's ViTs of MoCo v3 and MAE, which have fixed sine positions.
        return 12, [
            "12 attention heads, as in the project's code (timm's models of this width have fewer); shapes do not show it"
        ]
    if width in (192, 384) and project == "mae":
        return None, []
    return ATTENTION_HEADS.get(width), []


def _vit_name(tensors: Mapping[str, Tensor], width: int, depth: int, patch: int, relative: bool) -> str:
    size = SIZES.get((width, depth))
    if relative:
        return "beit_large_patch16_224" if size == "large" else "beit_base_patch16_224"
    if "blocks.0.ls1.gamma" in tensors:
        swiglu = tensors["blocks.0.mlp.fc1.weight"].shape[0] != tensors["blocks.0.mlp.fc2.weight"].shape[1]
        size = "giant" if swiglu else size if size in ("small", "base", "large") else "base"
        return f"vit_{size}_patch14{'_reg4' if 'reg_token' in tensors else ''}_dinov2"
    if "reg_token" in tensors:
        return "vit_base_patch14_reg4_dinov2"
    exact = f"vit_{size}_patch{patch}_224"
    near = {"huge": "vit_huge_patch14_224", "giant": "vit_giant_patch14_224"}.get(size or "", f"vit_{size}_patch16_224")
    return next((name for name in (exact, near) if size and timm.is_model(name)), "vit_base_patch16_224")


def _vit_args(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """timm's arguments that follow from the tensors' names; init_values only makes the layer exist."""
    token, registers = "cls_token" in tensors, tensors.get("reg_token")
    return {
        "class_token": token,
        "reg_tokens": 0 if registers is None else registers.shape[1],
        "no_embed_class": registers is not None,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in tensors else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        # The norm after pooling is what MAE fine-tunes with.
        "global_pool": "avg" if "fc_norm.weight" in tensors else "token",
    }


def _beit_args(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """As `_vit_args`, for BEiT. SimMIM never trains its class token, so the features are the mean of the patches."""
    return {
        "use_abs_pos_emb": "pos_embed" in tensors,
        "use_shared_rel_pos_bias": "rel_pos_bias.relative_position_bias_table" in tensors,
        "use_rel_pos_bias": "blocks.0.attn.relative_position_bias_table" in tensors,
        "init_values": 0.1 if "blocks.0.gamma_1" in tensors else None,
        "qkv_bias": "blocks.0.attn.q_bias" in tensors,
        "global_pool": "avg",
        "use_fc_norm": "fc_norm.weight" in tensors,
    }


def _swin(tensors: Mapping[str, Tensor], name: str | None, args: dict[str, Any]) -> Architecture:
    """A Swin (v1) of its authors' code. Its size is the one at which the last stage is one window, as in the published models."""
    width, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
    blocks = [match for key in tensors if (match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.norm1\.weight", key))]
    depths = [0] * (1 + max(int(found[1]) for found in blocks))
    for found in blocks:
        depths[int(found[1])] += 1
    tables = [tensors[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(len(depths))]
    window, heads = (math.isqrt(len(tables[0])) + 1) // 2, [table.shape[1] for table in tables]
    wanted: dict[str, Any] = {}
    if name is None:
        known = SWIN_SIZES.get((width, tuple(depths)))
        name = f"swin_{known or 'tiny'}_patch4_window7_224"
        wanted = {} if known and patch == 4 else {"patch_size": patch, "embed_dim": width, "depths": depths}
        if heads != [width // 32 << stage for stage in range(len(depths))] or not known:
            wanted["num_heads"] = heads
        if window != 7:
            wanted["window_size"] = window
    size = patch * window << (len(depths) - 1)
    return Architecture(name, {**wanted, **args}, size, "default", None, channels, [])


def _built(name: str) -> dict[str, Any]:
    """The arguments that timm sets for the plain ViT or BEiT of that name, read from a model on the meta device."""
    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=0)
    block = model.blocks[0]
    found = {
        "patch_size": model.patch_embed.patch_size[0],
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.weight.shape[0] / model.embed_dim,
        "global_pool": model.global_pool,
        "qkv_bias": block.attn.qkv.bias is not None or getattr(block.attn, "q_bias", None) is not None,
    }
    if name.startswith("vit"):
        found |= {
            "class_token": model.cls_token is not None,
            "reg_tokens": model.num_reg_tokens,
            "no_embed_class": model.no_embed_class,
            "init_values": 1e-5 if hasattr(block.ls1, "gamma") else None,
        }
    return found


def _resnet(encoder: Encoder, project: str, path: str, name: str | None, args: dict[str, Any]) -> Architecture:
    tensors = encoder.tensors
    out, channels, kernel, _ = tensors["conv1.weight"].shape
    if out < 64:
        raise UserError(
            f"{path}: a ResNet with {out} channels in its stem (as He et al.'s for CIFAR: ResNet-20, -32, -44, -56, -110), and timm's have "
            "64, so it cannot be imported; use weights of a ResNet-18 or larger"
        )
    if out > 64:
        raise UserError(
            f"{path}: a ResNet with {out} channels in its stem (widened, as SwAV's RN50-w2), and timm's have 64, so it cannot be imported; "
            "use weights of the plain width"
        )
    if kernel not in (3, 7):
        raise UserError(
            f"{path}: a ResNet whose stem is {kernel} x {kernel}; expected 7 x 7, or 3 x 3 for small pictures"
        )
    stem = "default" if kernel == 7 else encoder.stem or ("solo" if project == "solo" else "small")
    if kernel == 7 and encoder.stem == "lightly":
        raise UserError(
            f"{path}: lightly's nn.Sequential with a 7 x 7 stem runs without a ReLU, which timm's ResNet has; it cannot be imported"
        )
    wanted: dict[str, Any] = {}
    if name is None:
        name, wanted = _resnet_name(tensors)
    notes = []
    if stem != "default":
        notes.append(
            "a CIFAR stem: if its pictures were normalised with CIFAR's mean and std, give them as --mean and --std"
        )
    return Architecture(name, {**wanted, **args}, 224 if stem == "default" else 32, stem, None, channels, notes)


def _resnet_name(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    stages = range(1, 1 + max(int(found[1]) for key in tensors if (found := re.match(r"layer(\d+)\.", key))))
    kind = "bottleneck" if "layer1.0.conv3.weight" in tensors else "basic"
    last, expansion = ("conv3", 4) if kind == "bottleneck" else ("conv2", 1)
    layers = tuple(len({key.split(".")[1] for key in tensors if key.startswith(f"layer{stage}.")}) for stage in stages)
    planes = tuple(tensors[f"layer{stage}.0.{last}.weight"].shape[0] // expansion for stage in stages)
    name = RESNETS.get((kind, layers))
    wanted: dict[str, Any] = {} if name else {"layers": list(layers)}
    name = name or ("resnet50" if kind == "bottleneck" else "resnet18")
    if planes != (64, 128, 256, 512):
        wanted["channels"] = list(planes)
    if kind == "bottleneck":
        inner, per_group = tensors["layer1.0.conv2.weight"].shape[:2]
        groups = inner // per_group
        base_width = round(inner / groups / planes[0] * 64)
        if (groups, base_width) != (1, 64):
            if grouped := GROUPED.get((name, groups, base_width)):
                return grouped, wanted
            wanted.update(cardinality=groups, base_width=base_width)
    return name, wanted
