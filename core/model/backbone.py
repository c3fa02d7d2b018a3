"""Backbones: timm models by name as [N, C, H, W] -> [N, D] features, with strict loading and a readable export.

An export is a folder `backbone/` with backbone.safetensors, backbone.json (name, arguments, input size, normalisation,
provenance) and seen.safetensors (which images earlier stages saw), so that any stage can start from any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from timm.layers.format import Format
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..config.schema import Section
from ..errors import UserError
from ..files import expanded, write_tensors, write_text
from ..formats import FORMAT
from ..manifest import guard, guard_alone, write_manifest
from ..views.augmentation import LARGEST_SIDE
from .boundary import Boundary
from .description import DESCRIPTION, SEEN, WEIGHTS, normalisation_of, read_description
from .drop_path import key_drop_path, takes_drop_path, with_drop_path
from .freezing import frozen_modules
from .layer_numbers import layer_numbers
from .lora import add_lora, folded, lora_options
from .networks import OWN, build_network
from .plain_timm import timm_entry
from .pruned import PRUNED, resized, sizes_in
from .sincos import give_fixed_positions
from .sizes import say_size, trained_size
from .vit_blocks import pooled
from .weights import import_options, load_file_strictly, read_tensors

LOOKED = ("tuned-on-target", "oracle")


class Backbone(nn.Module):
    """A model without its classifier, and what is needed to build it again.

    forward: float [N, channels, H, W] -> [N, feature_dim]. model: the timm model. spec: {name, args, size, stem, pooling}, and
    `pruned` (core/model/pruned.py) where it is smaller than these build it.
    boundary: where the frozen layers end; with it forward also takes what they give for the images, [N, *boundary.shape].
    mean, std: the normalisation that its inputs must have. provenance: the stages that trained it, oldest first.
    seen: keys of the images that these stages trained on: without labels by kind of stage ("pretrain", "adapt"), with labels under
    "labelled".
    """

    def __init__(
        self, model: nn.Module, spec: dict[str, Any], mean: Sequence[float], std: Sequence[float], channels: int = 3
    ) -> None:
        super().__init__()
        self.model, self.spec, self.channels = model, spec, channels
        self.mean, self.std = tuple(mean), tuple(std)
        self.frozen, self.still = False, list[nn.Module]()  # wholly; the parts that are
        self.boundary: Boundary | None = None
        # head_hidden_size is the width of the classifier's input: in some timm models layers follow those of num_features.
        widths = (getattr(model, name, None) for name in ("head_hidden_size", "num_features", "feature_dim"))
        self.feature_dim = int(next(width for width in widths if width))
        self.provenance: list[dict[str, Any]] = []
        self.seen: dict[str, Tensor] = {}

    @property
    def size(self) -> int:
        return self.spec["size"]

    def forward(self, images: Tensor) -> Tensor:
        if self.boundary is None or images.shape[1:] != self.boundary.shape:
            return pooled(self.model, images, self.training or self.frozen)
        with self.boundary.above(images) as (above, shown):
            return pooled(above, shown, self.training)

    def tokens(self, images: Tensor) -> Tensor:
        """The tokens before pooling, float [N, C, H, W] -> [N, L, D]; one token if the model has none.

        Of a ViT all tokens, class token and registers included; of other networks the places of the last map, row by row, from
        [N, D, h, w] (or [N, h, w, D], as Swin has it). Raises UserError if the model returns several maps.
        """
        forward_features = getattr(self.model, "forward_features", None)
        if forward_features is None:
            return self.model(images)[:, None]
        return self.as_tokens(forward_features(images))

    def as_tokens(self, found: Any) -> Tensor:
        """`tokens` of what the model's forward_features returned. Raises UserError if it is no single tensor."""
        if not isinstance(found, Tensor) or found.ndim not in (2, 3, 4):
            raise UserError(
                f"backbone.name: {self.spec['name']} returns no single feature map to take tokens from; choose another model"
            )
        if found.ndim == 2:
            return found[:, None]
        if found.ndim == 4:
            return found.flatten(1, 2) if self.channels_are_last(found) else found.flatten(2).mT
        return found

    def channels_are_last(self, found: Tensor) -> bool:
        """Whether a feature map is [N, h, w, D], as Swin has it, and not [N, D, h, w]."""
        width = getattr(self.model, "num_features", None)
        return getattr(self.model, "output_fmt", "NCHW") == "NHWC" or width not in (None, found.shape[1])

    def layer_scales(self, decay: float | None, stages: bool = False) -> dict[str, float]:
        """The learning rate's factor for each parameter of `model`: decay^(layers above it), 1 without decay. Raises UserError."""
        if decay is None:
            return {name: 1.0 for name, _ in self.model.named_parameters()}
        numbers, head = layer_numbers(self.model, self.spec["name"], stages)
        return {name: decay ** (head - number) for name, number in numbers.items()}

    def undecayed(self) -> set[Tensor]:
        """Parameters that the model itself exempts from weight decay (position embeddings, class tokens)."""
        names = getattr(self.model, "no_weight_decay", lambda: set())()
        return {parameter for name, parameter in self.model.named_parameters() if name in names}

    def allow_any_size(self, who: str) -> None:
        """Accept any image size; ViTs interpolate positions. who: the method's name, for the error. Raises UserError."""
        if isinstance(self.model, VisionTransformer) and isinstance(self.model.patch_embed, PatchEmbed):
            self.model.dynamic_img_size = True
            self.model.patch_embed.strict_img_size = False
            self.model.patch_embed.flatten = False
            self.model.patch_embed.output_fmt = Format.NHWC
        elif getattr(getattr(self.model, "patch_embed", None), "strict_img_size", False):
            raise UserError(
                f"data.views.local: {self.spec['name']} takes one size of image, so {who} cannot show it local crops; "
                "set it to 0, or use a ViT or a convolutional network"
            )

    def freeze(self, up_to: str = "all") -> None:
        """No gradients up to a stage, and eval mode there whatever mode the method is put in, so BatchNorm keeps its statistics.

        up_to: as of `frozen_modules`. Raises UserError.
        """
        self.still = frozen_modules(self.model, up_to, self.spec["name"])
        for module in self.still:
            module.requires_grad_(False).eval()
        self.frozen = self.model in self.still

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode and not self.frozen)
        for module in self.still:
            module.eval()
        return self

    def selection(self, own: str) -> str:
        """How a result on this backbone was selected: `own`, or an earlier stage's selection if that one looked at target labels."""
        looked = [stage["selection"] for stage in self.provenance if stage.get("selection") in LOOKED]
        return own if own in LOOKED or not looked else looked[0]

    def export(self, run: Path, folder: str = "backbone") -> None:
        """Write run/backbone/."""
        path = run / folder
        path.mkdir(parents=True, exist_ok=True)
        weights = folded(self.model)
        write_tensors(path / WEIGHTS, weights)
        write_tensors(path / SEEN, self.seen or {"none": torch.empty(0, dtype=torch.int64)})
        described = {
            "format": FORMAT,
            **self.spec,
            "feature_dim": self.feature_dim,
            "mean": self.mean,
            "std": self.std,
            "channels": self.channels,
            "timm": timm_entry(self.spec, self.channels, weights),
            "provenance": self.provenance,
        }
        write_text(path / DESCRIPTION, json.dumps(described, indent=1))
        write_manifest(path, (WEIGHTS, SEEN, DESCRIPTION))


def create(
    size: int,
    channels: int = 3,
    own: Mapping[str, Callable[..., nn.Module]] = OWN,
    *,
    name: str | None = None,
    weights: str = "none",
    stem: Literal["default", "small", "solo", "lightly"] | None = None,
    pooling: Literal["token", "mean", "fc_norm"] | None = None,
    positions: Literal["sincos"] | None = None,
    norm: str = "auto",
    freeze: str = "none",
    drop_path: float | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    lora: Annotated[dict[str, Any] | None, Section(lora_options)] = None,
    args: dict[str, Any] = {},
) -> Backbone:
    """Build a backbone for inputs of size x size pixels.

    own: networks of ours by name, beside timm's.

    name: Name of a timm model or of one of ours (smallconv, lenet, cifar_resnet). Left out, the run's of `weights`; auto: the run's, or one
        that fits.
    weights: Weights to start from: none (random), timm (its hub), a .safetensors file, or the folder of an exported run.
    stem: First layers of a ResNet. `small`, for small images, is a 3x3 convolution of stride 1 without max-pooling; `solo` and
        `lightly` are those projects' variants of it, for weights of theirs. null: the run's, or timm's own.
    pooling: Features of a ViT: its class token (`token`), the mean over its patches (`mean`), or that mean before a new norm in place of
        the last one (`fc_norm`), as MAE is fine-tuned. null: the run's, or the model's own.
    positions: `sincos` gives a new ViT fixed sine-cosine positions, since a short training hardly learns any. null: learned ones,
        except in methods that always fix them (MAE, MoCo v3, I-JEPA).
    norm: Which images share BatchNorm statistics: `batch` (the whole batch of all processes), `group:G` (each G consecutive images) or
        `local` (each process's own). auto: batch if several processes train a method that compares images, else local.
    freeze: Layers that keep their weights, their BatchNorms and dropout in eval mode: none, stem, stageN (all up to the N-th stage, of a
        ViT the N-th block) or all. With data.views without augmentation, adaptation runs these layers once for each image.
    drop_path: Rate of drop path in the last block, 0 to below 1, to which it rises with depth. null: the run's, or the model's own.
    mean: Mean that is subtracted from inputs in 0..1, one number a channel. null: the run's, or timm's for this model.
    std: Standard deviation that inputs are then divided by, above 0, one number a channel. null: as for `mean`.
    lora: Low-rank adapters: train few parameters of given weights. null: train all.
    args: Further arguments of the model, as timm's create_model takes them.

    Raises UserError for unknown names, contradictions with the run, and weights that do not fit.
    """
    described = _described(size, weights, name=name, stem=stem, args=args or None, mean=mean, std=std)
    if described:
        name, stem, args = described["name"], described["stem"], described["args"]
    if name is None:
        raise UserError("backbone.name: missing; give a timm model (for example resnet18), or backbone.weights: RUN")
    spec = {"name": name, "args": dict(args), "size": size, "stem": stem or "default"}
    spec |= {"pooling": pooling or described.get("pooling"), **sizes_in(described)}
    model = _network(spec, channels, own, weights, drop_path)
    say_size(model, name, size, trained_size(model, weights, described))
    backbone = Backbone(model, spec, *normalisation_of(model, described, channels, mean, std), channels)
    if positions is not None:
        give_fixed_positions(model, name, weights)
    _load_weights(backbone, weights, described)
    if lora is not None:
        add_lora(model, name, trained=weights != "none", **lora)
    backbone.freeze(freeze)
    return backbone


def _network(
    spec: dict[str, Any],
    channels: int,
    own: Mapping[str, Callable[..., nn.Module]],
    weights: str,
    drop_path: float | None,
) -> nn.Module:
    """`build_network`, with a rate of drop path, which is no part of what is exported, and with the sizes of the run in `weights` where
    that is pruned. Raises UserError."""
    with takes_drop_path(spec["name"], drop_path):
        model = build_network(
            {**spec, "args": with_drop_path(spec["args"], drop_path)}, channels, own, pretrained=weights == "timm"
        )
    if drop_path is not None:
        key_drop_path(model, spec["name"], drop_path)
    if PRUNED in spec:
        resized(model, spec[PRUNED], f"{DESCRIPTION} of {weights}")
    return model


def _described(size: int, weights: str, **given: Any) -> dict[str, Any]:
    """backbone.json of the run in `weights`; empty if that is none. Raises UserError if a given value (not None) differs from the run's."""
    if not 1 <= size <= LARGEST_SIDE:
        raise UserError(f"data.size: {size} px are given; expected 1 to {LARGEST_SIDE}")
    if weights in ("none", "timm") or weights.endswith(".safetensors"):
        return {}
    described = read_description(weights)
    for key, value in given.items():
        value = list(value) if key in ("mean", "std") and value is not None else value
        if value is not None and value != described[key]:
            null = "" if key == "args" else f", or say backbone.{key}=null"
            raise UserError(
                f"backbone.{key}: {value!r} contradicts {described[key]!r} of the run {weights}; leave the key out{null}"
            )
    return described


def _load_weights(backbone: Backbone, weights: str, described: Mapping[str, Any]) -> None:
    """Load a run's or a file's weights, and note where they come from. described: backbone.json of the run. Raises UserError."""
    model = backbone.model
    if described:
        guard(Path(described["path"]), (WEIGHTS, SEEN), "backbone.weights")
        load_file_strictly(
            model, Path(described["path"]) / WEIGHTS, "backbone.weights", pooling=backbone.spec["pooling"]
        )
        backbone.provenance = described["provenance"]
        seen = read_tensors(Path(described["path"]) / SEEN, "backbone.weights")
        backbone.seen = {stage: keys for stage, keys in seen.items() if stage != "none"}
    elif weights.endswith(".safetensors"):
        config, path = getattr(model, "pretrained_cfg", None) or {}, expanded(weights)
        guard_alone(path, "backbone.weights")
        load_file_strictly(
            model,
            path,
            "backbone.weights",
            config.get("classifier"),
            import_options(backbone.spec),
            backbone.spec["pooling"],
        )
    if weights == "timm" or weights.endswith(".safetensors"):
        backbone.provenance = [{"task": "external", "weights": Path(weights).name}]
