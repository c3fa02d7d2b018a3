"""Published weights as a Backbone: loaded strictly, with a report of every tensor that was used, filled in, dropped or not used."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor

from ..errors import UserError
from ..model.backbone import Backbone, create
from ..model.weights import load_strictly
from .file import Contents
from .names import HEADS, PROJECTS, Encoder, count_with_examples, find_encoder, recognise
from .prefixes import only_prefix, without_prefix
from .shapes import Architecture, architecture

# All projects here except timm normalise with these.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def adopt(
    contents: Contents,
    project: str = "auto",
    *,
    name: str | None = None,
    size: int | None = None,
    args: Mapping[str, Any] = {},
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    prefix: str | None = None,
) -> tuple[Backbone, dict[str, Any]]:
    """Build the backbone that a file's weights belong to, load them, and report.

    project: a name of PROJECTS, or auto. name, args: the timm model and its arguments; None: found by the tensors' shapes.
    size: side of the images in pixels; position embeddings are resampled if the weights have another. mean, std: the normalisation
    that the weights were trained with; None: ImageNet's, for timm the model's own. prefix: what stands before the names of the network's
    tensors; None: found. Raises UserError if a weight is missing, unknown or
    has another shape.
    """
    contents, prefix, others = _below_prefix(contents, project, name, prefix)
    evidence = None
    if project == "auto":
        project, evidence = _recognised(contents, name)
    path = str(contents.path)
    encoder, built = _encoder(contents, project, name, args)
    backbone = _empty_backbone(built, encoder, path, size)
    own_mean, own_std = (backbone.mean, backbone.std) if project == "timm" else (IMAGENET_MEAN, IMAGENET_STD)
    backbone.mean, backbone.std = tuple(mean or own_mean), tuple(std or own_std)
    if not len(backbone.mean) == len(backbone.std) == built.channels:
        raise UserError(f"--mean and --std: expected {built.channels} numbers each, one a channel")
    own = backbone.model.state_dict()
    tensors, heads = _without_heads(encoder.tensors, own, built.name)
    filled = _fill_in(tensors, own, path)
    resampled = "pos_embed" in own and "pos_embed" in tensors and own["pos_embed"].shape != tensors["pos_embed"].shape
    load_strictly(backbone.model, tensors, path, remedy="check --from, --name and --args")
    backbone.provenance = [
        {"task": "external", "weights": contents.path.name, "sha256": contents.sha256, "from": project}
    ]
    notes = [*encoder.notes, *built.notes]
    if resampled:
        notes.append(f"positions resampled from {built.size} to {backbone.size} px, by timm")
    if evidence and project == "torchvision":
        notes.append("many projects keep ResNets under these names; all of them are read in the same way")
    return backbone, {
        "file": path,
        "sha256": contents.sha256,
        "from": project,
        "recognised_by": evidence,
        "place": encoder.place,
        "prefix": prefix + encoder.prefix,
        "backbone": {**backbone.spec, "mean": backbone.mean, "std": backbone.std, "feature_dim": backbone.feature_dim},
        "parameters": sum(parameter.numel() for parameter in backbone.model.parameters()),
        "used": sorted(tensors.keys() - set(filled)),
        "filled": filled,
        "heads": heads,
        "unused": sorted([*encoder.unused, *others]),
        "notes": notes,
    }


def _below_prefix(
    contents: Contents, project: str, name: str | None, prefix: str | None
) -> tuple[Contents, str, list[str]]:
    """(contents, prefix, other tensors): the file below a prefix that is given, or that no project uses; as it is without one."""
    if prefix is None:
        with contextlib.suppress(UserError):
            recognise(contents)
            return contents, "", []
        prefix = only_prefix(contents, name, PROJECTS[project].prefixes if project in PROJECTS else ())
    if not prefix:
        return contents, "", []
    below, others = without_prefix(contents, prefix)
    return below, prefix, others


def _recognised(contents: Contents, name: str | None) -> tuple[str, str]:
    """The project of a file and the evidence; timm where only --name tells what it is. Raises UserError."""
    try:
        return recognise(contents)
    except UserError:
        if name is None:
            raise
        return "timm", "--name"


def _encoder(
    contents: Contents, project: str, name: str | None, args: Mapping[str, Any]
) -> tuple[Encoder, Architecture]:
    """The encoder in a file and its architecture. Raises UserError."""
    if project == "timm" and name is None and contents.arch and timm.is_model(contents.arch):
        name = contents.arch
    path = str(contents.path)
    try:
        encoder = find_encoder(contents, project, named=name is not None)
        return encoder, architecture(encoder, project, path, name, args)
    except UserError:
        raise
    except (LookupError, ValueError, RuntimeError) as error:
        # A layer that every such network has is missing, or has another shape.
        raise UserError(
            f"{path}: no complete network of {project} ({error!r}); the file is damaged, or of another project"
        ) from error


def _empty_backbone(built: Architecture, encoder: Encoder, path: str, size: int | None) -> Backbone:
    """A backbone of that architecture with random weights. Raises UserError if it cannot have that size."""
    relative = any(key.endswith("relative_position_bias_table") for key in encoder.tensors)
    if relative and size not in (None, built.size):
        raise UserError(
            f"--size: {path} has relative positions for {built.size} px, which are not resampled; leave --size out"
        )
    stem: Any = built.stem
    pooling: Any = built.pooling
    return create(size or built.size, built.channels, name=built.name, stem=stem, pooling=pooling, args=built.args)


def _fill_in(tensors: dict[str, Tensor], own: Mapping[str, Tensor], path: str) -> list[str]:
    """Add zeros for missing batch counters, and return their names. Raises UserError for tensors with NaN or infinity."""
    # torch before 0.4.1 did not save BatchNorm's batch counters; they are no weights.
    filled = [key for key in own if key.endswith("num_batches_tracked") and key not in tensors]
    tensors |= {key: torch.zeros_like(own[key]) for key in filled}
    if broken := [key for key, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]:
        raise UserError(
            f"{path}: NaN or infinite numbers in {count_with_examples(broken)} tensors; the file is damaged"
        )
    return filled


def _without_heads(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors without classifiers, decoders and mask tokens, which no backbone has; and the names of these."""
    config = timm.get_pretrained_cfg(name)
    classifier = config.classifier if config else None
    layers = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    known = (*HEADS, *(f"{layer}." for layer in layers))
    heads = sorted(key for key in tensors if key not in own and key.startswith(known))
    return {key: tensor for key, tensor in tensors.items() if key not in set(heads)}, heads
