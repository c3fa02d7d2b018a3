"""The index of a pack, field by field: whoever changes it can also make its digest anew, so no field is believed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

ENCODED, BYTES, WORDS = 0, 1, 2
"""Kinds of records: an image file; pixels uint8 [C, H, W]; pixels uint16 [C, H, W], little-endian."""

ITEM_BYTES = {BYTES: 1, WORDS: 2}
MAX_SIDE = 1 << 31
NEEDED = ("offsets", "checksums", "kinds", "shapes", "keys", "names", "names.ends", "stamps", "stamps.ends")

TOLD = ("classes", "domain_names", "splits")


class WrongField(ValueError):
    """A field that no packing writes; the message names it and says what is wrong."""


def check_index(tensors: Mapping[str, Tensor], about: Any) -> dict[str, Any]:
    """The texts `about`, if all fields of the index are as packing writes them. Raises WrongField."""
    if missing := [name for name in NEEDED if name not in tensors]:
        raise WrongField(f"{missing[0]} is missing")
    offsets = vector(tensors, "offsets", torch.int64)
    count = len(offsets) - 1
    if count < 1 or offsets[0] != 0 or (offsets.diff() < 0).any():
        raise WrongField("offsets do not begin with 0 and rise")
    checksums = vector(tensors, "checksums", torch.int64, count)
    if (checksums < 0).any() or (checksums > 0xFFFFFFFF).any():
        raise WrongField("checksums are not numbers of 32 bits")
    check_records(vector(tensors, "kinds", torch.uint8, count), tensors["shapes"], offsets.diff())
    vector(tensors, "keys", torch.int64, count)
    if "groups" in tensors:
        vector(tensors, "groups", torch.int64, count)
    for name in ("names", "stamps"):
        block, ends = vector(tensors, name, torch.uint8), vector(tensors, f"{name}.ends", torch.int64, count + 1)
        if ends[0] != 0 or ends[-1] != len(block) or (ends.diff() < 0).any():
            raise WrongField(f"{name}.ends do not rise from 0 to the end of {name}")
    return check_texts(tensors, about, count)


def vector(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, length: int | None = None) -> Tensor:
    """The tensor of a name, if it has one dimension, this dtype and this length."""
    tensor = tensors[name]
    if tensor.ndim != 1 or tensor.dtype != dtype or (length is not None and len(tensor) != length):
        wanted = f"{dtype} [{'' if length is None else length}]".removeprefix("torch.")
        raise WrongField(f"{name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}, not {wanted}")
    return tensor


def check_records(kinds: Tensor, shapes: Tensor, sizes: Tensor) -> None:
    """kinds: uint8 [N]; shapes: (C, H, W) of each record; sizes: int64 [N], bytes."""
    if shapes.dtype != torch.int64 or shapes.shape != (len(kinds), 3):
        raise WrongField(f"shapes are {list(shapes.shape)}, not [{len(kinds)}, 3] of int64")
    if (kinds > WORDS).any():
        raise WrongField(f"kinds hold {int(kinds.max())}, which is unknown")
    if (shapes < 1).any() or (shapes >= MAX_SIDE).any():
        raise WrongField("shapes hold a side that no picture has")
    # in floating point, where a product of three sides cannot overflow; it is exact as far as a file can reach
    values = shapes.double().prod(1)
    for kind, item in ITEM_BYTES.items():
        mine = kinds == kind
        if (values[mine] * item != sizes[mine].double()).any():
            raise WrongField("a record has another size than its pixels")


def check_labels(tensors: Mapping[str, Tensor], classes: list[str] | None, count: int) -> None:
    """int64 [N] of numbers of classes, or uint8 [N, K] of 0 and 1 where an image may have several."""
    labels = tensors["labels"]
    if labels.ndim == 2 and labels.dtype == torch.uint8:
        if classes is None or labels.shape != (count, len(classes)):
            raise WrongField(f"labels are {list(labels.shape)}, not one for each image and class")
        if (labels > 1).any():
            raise WrongField("labels of several classes hold a number other than 0 and 1")
        return
    labels = vector(tensors, "labels", torch.int64, count)
    if (labels < 0).any() or (classes is not None and int(labels.max()) >= len(classes)):
        raise WrongField("labels hold a number that is no class")


def check_texts(tensors: Mapping[str, Tensor], about: Any, count: int) -> dict[str, Any]:
    """The names of classes, domains and splits, if they fit the numbers."""
    if not isinstance(about, dict):
        raise WrongField("its texts are no table")
    if missing := [name for name in TOLD if name not in about]:
        raise WrongField(f"{missing[0]} is missing")
    classes, domains, splits = (about[name] for name in TOLD)
    if classes is not None:
        check_names("classes", classes)
    domains, splits = check_names("domain_names", domains), check_names("splits", splits)
    if not domains:
        raise WrongField("domain_names are empty")
    if "labels" in tensors:
        check_labels(tensors, classes, count)
    if "domains" in tensors:
        numbers = vector(tensors, "domains", torch.int64, count)
        if (numbers < 0).any() or int(numbers.max()) >= len(domains):
            raise WrongField("domains hold a number that is no domain")
    elif len(domains) > 1:
        raise WrongField("domains are missing")
    for k in range(len(splits)):
        if f"split.{k}" not in tensors:
            raise WrongField(f"split.{k} is missing")
        indices = vector(tensors, f"split.{k}", torch.int64)
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= count):
            raise WrongField(f"split.{k} holds a number that is no picture")
    return about


def check_names(field: str, names: Any) -> list[str]:
    """The names, if they are texts, all different. Raises WrongField."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WrongField(f"{field} is no list of texts")
    if len(set(names)) < len(names):
        raise WrongField(f"{field} has one name twice")
    return names


def check_numbers(numbers: Any, among: Collection[Any]) -> list[int]:
    """A list of different numbers of pictures, as a plan has it. Raises WrongField."""
    if not isinstance(numbers, list) or not all(type(number) is int and 0 <= number < len(among) for number in numbers):
        raise WrongField("unreadable is no list of numbers of pictures")
    return numbers
