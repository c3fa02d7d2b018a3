"""Somebody else's weights as a Backbone: strict, and with a report of every tensor that was used, filled in, dropped or left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor

from ..errors import UserError
from ..model.backbone import Backbone, create
from ..model.weights import load_strictly
from .file import Contents
from .names import HEADS, find, listed, recognise
from .shapes import architecture

# Every project here but timm normalises with these.
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
) -> tuple[Backbone, dict[str, Any]]:
    """Build the backbone that a file's weights are of, load them, and report.

    project: a name of PROJECTS, or auto. name, args: the timm model and its arguments, told by the shapes where name is None.
    size: pixels; positions are resampled where the weights are for another. mean, std: of the normalisation they were trained
    with, ImageNet's (timm's own for timm) by default. Raises UserError where a weight is missing, unknown or misshapen.
    """
    evidence = None
    if project == "auto":
        project, evidence = recognise(contents)
    if project == "timm" and name is None and contents.arch and timm.is_model(contents.arch):
        name = contents.arch
    path = str(contents.path)
    try:
        encoder = find(contents, project, named=name is not None)
        built = architecture(encoder, project, path, name, args)
    except UserError:
        raise
    except (LookupError, ValueError, RuntimeError) as error:
        # A layer that every such network has is missing or misshapen.
        raise UserError(
            f"{path}: no whole network of {project} ({error!r}); the file is damaged, or of another project"
        ) from error
    relative = [key for key in encoder.tensors if key.endswith("relative_position_bias_table")]
    if relative and size not in (None, built.size):
        raise UserError(
            f"--size: {path} has relative positions for {built.size} px, which are not resampled; leave --size out"
        )
    stem: Any = built.stem
    pooling: Any = built.pooling
    backbone = create(size or built.size, built.channels, name=built.name, stem=stem, pooling=pooling, args=built.args)
    if project != "timm":
        backbone.mean, backbone.std = IMAGENET_MEAN, IMAGENET_STD
    backbone.mean, backbone.std = tuple(mean or backbone.mean), tuple(std or backbone.std)
    if not len(backbone.mean) == len(backbone.std) == built.channels:
        raise UserError(f"--mean and --std: expected {built.channels} numbers each, one a channel")

    own = backbone.model.state_dict()
    tensors, heads = _without_heads(encoder.tensors, own, built.name)
    # Counts of batches, which torch before 0.4.1 did not keep, are no weights.
    filled = [key for key in own if key.endswith("num_batches_tracked") and key not in tensors]
    tensors |= {key: torch.zeros_like(own[key]) for key in filled}
    if broken := [key for key, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]:
        raise UserError(
            f"{path}: numbers that are none (NaN or infinite) in {listed(broken)} tensors; the file is damaged"
        )
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
        "prefix": encoder.prefix,
        "backbone": {**backbone.spec, "mean": backbone.mean, "std": backbone.std, "feature_dim": backbone.feature_dim},
        "parameters": sum(parameter.numel() for parameter in backbone.model.parameters()),
        "used": sorted(tensors.keys() - set(filled)),
        "filled": filled,
        "heads": heads,
        "unused": encoder.unused,
        "notes": notes,
    }


def _without_heads(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors without classifiers, decoders and mask tokens, which a backbone has not; and the names of those."""
    config = timm.get_pretrained_cfg(name)
    classifier = config.classifier if config else None
    layers = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    known = (*HEADS, *(f"{layer}." for layer in layers))
    heads = sorted(key for key in tensors if key not in own and key.startswith(known))
    return {key: tensor for key, tensor in tensors.items() if key not in set(heads)}, heads
