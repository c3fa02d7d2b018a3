"""Every pretraining method at one size, with the widths, losses and views of lightly's example of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from fitted import Setting

SGD = {"name": "sgd", "lr": 0.06, "weight_decay": 5e-4}
ADAMW = {"name": "adamw", "lr": 1.5e-4, "weight_decay": 0.05}
# lightly cuts every image's context to the smallest of its batch: 12.7 patches of 64 on average over batches of 64, of 21.6.
CONTEXT: dict[str, Any] = {"min_context": 9, "max_context": 13}
MASKS: dict[str, Any] = {"target_scale": (0.15, 0.2), "target_aspect": (0.75, 1.5), "context_scale": (0.85, 1.0)}


class Scale(NamedTuple):
    """size: pixels. wide, narrow: hidden widths and outputs of heads. prototypes: of every head with prototypes."""

    size: int
    batch: int
    conv: dict[str, Any]
    vit: dict[str, int]
    wide: int
    narrow: int
    prototypes: int
    slices: int


FULL = Scale(
    32, 64, {"name": "resnet18"}, {"patch_size": 4, "embed_dim": 192, "depth": 4, "num_heads": 3}, 512, 64, 2048, 1024
)
TOY = Scale(
    16, 4, {"name": "smallconv"}, {"patch_size": 2, "embed_dim": 32, "depth": 1, "num_heads": 2}, 16, 8, 16, 1024
)


def settings(scale: Scale) -> Iterable[Setting]:
    """The settings of all methods, in the order of the registry."""
    wide, narrow = scale.wide, scale.narrow
    head: dict[str, Any] = {"prototypes": scale.prototypes, "hidden": wide, "bottleneck": narrow}
    # lightly's blur has the same width in pixels for every picture size; ours is given for 224 pixels.
    drawn: dict[str, Any] = {"blur_sigma": tuple(sigma * 224 / scale.size for sigma in (0.1, 2.0))}
    crops: dict[str, Any] = {**drawn, "local": 6}

    def conv(name: str, views: dict[str, Any], optim: dict[str, Any] = SGD, **method: Any) -> Setting:
        return Setting(scale.size, scale.batch, scale.conv, {"name": name, **method}, optim, {**drawn, **views})

    def vit(
        name: str, views: dict[str, Any], pooling: str = "token", args: dict[str, Any] = {}, **method: Any
    ) -> Setting:
        backbone = {"name": "vit_tiny_patch16_224", "pooling": pooling, "args": {**scale.vit, **args}}
        return Setting(scale.size, scale.batch, backbone, {"name": name, **method}, ADAMW, {**drawn, **views})

    bilinear = {"interpolation": "bilinear"}
    deep = {"init_values": 1e-5, "drop_path_rate": 0.1}
    decoder: dict[str, Any] = {
        "decoder_dim": scale.vit["embed_dim"] // 2,
        "decoder_depth": 2,
        "decoder_heads": scale.vit["num_heads"],
    }
    predictor: dict[str, Any] = {key.replace("decoder", "predictor"): value for key, value in decoder.items()}
    byol: dict[str, Any] = {"projection": [2 * wide, wide // 2], "prediction": [2 * wide, wide // 2]}
    return [
        conv("simclr", {}, temperature=0.5, projection=[wide, 2 * narrow]),
        conv("byol", bilinear, **byol),
        conv("mocov3", {}, prediction_norm=False, **byol),
        conv("simsiam", {"name": "moco"}, projection=[wide, wide, 2 * narrow], prediction=[narrow, 2 * narrow]),
        conv("barlow", bilinear, lambd=0.005, scale_loss=1.0, projection=[4 * wide] * 3),
        conv("vicreg", bilinear, projection=[4 * wide] * 3),
        conv("swav", crops, ADAMW, projection=[wide, 2 * narrow], prototypes=wide),
        conv("dino", crops, ADAMW, **head),
        vit("ibot", {"name": "dino", "scale": (0.25, 1.0), "local_scale": (0.05, 0.25), **crops}, args=deep, **head),
        vit(
            "dinov2", {"name": "dino", "scale": (0.32, 1.0), "local_scale": (0.05, 0.32), **crops}, args=deep,
            patch_prototypes=scale.prototypes, patch_bottleneck=narrow, **head,
        ),
        vit("mae", {}, mask_ratio=0.75, norm_pix=False, **decoder),
        # lightly's example masks one patch at a time.
        vit("simmim", {"name": "mae"}, mask_ratio=0.75, mask_patch=scale.vit["patch_size"]),
        vit("ijepa", {"name": "mae"}, "mean", {"class_token": False}, targets=4, **CONTEXT, **MASKS, **predictor),
        vit(
            "lejepa", {"name": "dino", "scale": (0.3, 1.0), "local_scale": (0.05, 0.3), "blur": 0.5, **crops},
            slices=scale.slices, projection=[wide, wide, narrow],
        ),
    ]  # fmt: skip
