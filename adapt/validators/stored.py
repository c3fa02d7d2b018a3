"""Candidates as named arrays, and back: what a run keeps of each, and what a later command scores again without the network.

    target/features  target/logits  target/keys  target/units      labels of the target have no name here, and are refused
    source/features  source/logits  source/labels  source/keys     held-out source, if any
    trained/features  trained/keys  trained/units                  training source, if any; units where images have groups
    weight                                                         of a linear head, if any
    mixed                                                          float64 [2], the consistencies of MixVal, if any

Shapes and types are those of `CandidateModel`. Features, logits and the weight may be float16, and are float32 again when they are read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...core.errors import UserError
from .candidate import CandidateModel, SourceFeatures, SourceOutputs, TargetOutputs
from .mixval import mixed_consistency

_PARTS = {
    "target": ("features", "logits", "keys"),
    "source": ("features", "logits", "labels", "keys"),
    "trained": ("features", "keys"),
}
_UNITS = ("target", "trained")  # parts that have units where their images have groups
_NAMES = {f"{part}/{field}" for part, fields in _PARTS.items() for field in fields} | {"weight", "mixed"}
_NAMES |= {f"{part}/units" for part in _UNITS}


def tensors_of(candidate: CandidateModel, half: bool = False) -> dict[str, Tensor]:
    """The arrays of a candidate by name, on the CPU; of its forward on mixed images, what MixVal needs is kept.

    half: features, logits and weight in float16. Raises UserError where a number is too large for it.
    """
    found = {
        f"{part}/{field}": getattr(getattr(candidate, part), field)
        for part, fields in _PARTS.items()
        if candidate.has(part)
        for field in fields
    }
    for part in _UNITS:
        if candidate.has(part) and (units := getattr(candidate, part).units) is not None:
            found[f"{part}/units"] = units
    if candidate.weight is not None:
        found["weight"] = candidate.weight
    if candidate.mixed is not None:
        found["mixed"] = torch.tensor(mixed_consistency(candidate), dtype=torch.float64)
    if half:
        found = {name: tensor if name == "mixed" else _halved(name, tensor) for name, tensor in found.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def _halved(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.half()
    if not bool(rounded.isfinite().all()):
        raise UserError(f"{name} of a candidate has numbers above 65504, beyond float16; take evaluate.half=false")
    return rounded


def candidate_of(name: str, step: int, tensors: Mapping[str, Tensor]) -> CandidateModel:
    """A candidate from `tensors_of`, in float32. Raises UserError for other names, missing arrays, or shapes that don't fit."""
    if odd := sorted(set(tensors) - _NAMES):
        raise UserError(f"candidate {name}: {odd[0]} is no part of a candidate; it has {', '.join(sorted(_NAMES))}")
    tensors = {name: rows.float() if rows.dtype == torch.float16 else rows for name, rows in tensors.items()}
    try:
        parts = {
            part: {field: tensors[f"{part}/{field}"] for field in fields}
            for part, fields in _PARTS.items()
            if part == "target" or any(f"{part}/{field}" in tensors for field in fields)
        }
        for part in _UNITS:
            if part in parts and f"{part}/units" in tensors:
                parts[part]["units"] = tensors[f"{part}/units"]
        return CandidateModel(
            name,
            step,
            TargetOutputs(**parts["target"]),
            SourceOutputs(**parts["source"]) if "source" in parts else None,
            SourceFeatures(**parts["trained"]) if "trained" in parts else None,
            tensors.get("weight"),
            (float(tensors["mixed"][0]), float(tensors["mixed"][1])) if "mixed" in tensors else None,
        )
    except KeyError as error:
        raise UserError(f"candidate {name}: {error.args[0]} is missing; it was written only in part") from error
    except ValueError as error:
        raise UserError(f"candidate {name}: {error}") from error
