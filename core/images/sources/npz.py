"""`npz:`: arrays saved by numpy.savez. Read into memory as a whole, since these sets are small.

The sizes that an archive announces are compared with each other and with the limits before anything is unpacked.
"""

import dataclasses
import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ..foreign import parsing
from ..groups import numbered_groups
from ..limits import RATIO, UnpackLimits, limits_of
from ..pixels import full_range
from ..places import abridged, file_named, titled
from ..store import Source
from .arrays import (
    ARRAY_BYTES,
    IMAGE_WORDS,
    LABEL_WORDS,
    LAYOUTS,
    SPLITS,
    array_source,
    as_labels,
    as_nchw,
    rows_of_part,
)
from .files import checked_bits

MADE_BY = "expected arrays of numbers saved by numpy.savez"
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
ENCRYPTED = 0x1
"""The bit of a zip member's flags that says so (PKWARE's APPNOTE, 4.4.4)."""


def open_npz(
    path: str,
    split: str | None,
    *,
    images: str | None = None,
    labels: str | None = None,
    layout: str = "auto",
    bits: int | None = None,
    rows: str | None = None,
    group: str | None = None,
    max_size: str = ARRAY_BYTES,
    max_ratio: int = RATIO,
) -> Source:
    """npz:FILE with x or images (y or labels) or, by split, train_images, x_test and the like.

    images, labels: the names of the arrays, if they have other names. layout: NHW, NHWC or NCHW; auto infers it from the shape.
    Pixels are uint8 or uint16. bits: how many bits of uint16 are used, as of `folder:`. rows: START:END of each array's pictures in the
    array's order. group: the array that says what belongs together, such as patient, or train_patient and test_patient: no split tears
    it. max_size, max_ratio: how large the arrays may be, in bytes and in times the file's size.
    """
    title = titled("npz", path)
    file, limits = file_named(path, title), limits_of(max_size, max_ratio, title)
    if layout not in ("auto", *LAYOUTS):
        raise UserError(f"{title}: layout={layout} is unknown (known: auto, {', '.join(LAYOUTS)})")
    with parsing(title, "check its permissions"), open(file, "rb") as content:
        start = content.read(6)
    if start.startswith(b"\x93NUMPY"):
        raise UserError(f"{title}: a single array; expected an .npz of named arrays")
    if not start.startswith(b"PK"):
        # numpy would suggest loading it as a pickle if it is trusted, which is bad advice
        raise UserError(f"{title}: cannot be read (it is no .npz file); {MADE_BY}")
    with parsing(title, MADE_BY):
        archive = zipfile.ZipFile(file)
    with archive:
        members = members_by_key(archive.infolist(), title)
        chosen = npz_keys(members, images, labels, title)
        grouped = group_keys(members, chosen, group, title)
        wanted = {key: members[key] for pair in chosen.values() for key in pair if key}
        wanted |= {key: members[key] for key in grouped.values()}
        check_sizes(wanted, file, limits, title)
        arrays = {key: read_array(archive, member, f"{title}: {key}") for key, member in wanted.items()}
    parts = {}
    for name, (image_key, label_key) in chosen.items():
        where = f"{title}: {abridged(image_key)}"
        pixels = full_range(as_nchw(arrays[image_key], layout, where), checked_bits(bits, title) or 16, where)
        parts[name] = pixels, as_labels(arrays[label_key], f"{title}: {label_key}") if label_key else None
    unread = [key for key in members if key not in wanted]
    advice = "?images=KEY&labels=KEY would read one array of pictures with its labels"
    groups = [
        groups_of_part(arrays[key], parts[name][0], rows, f"{title}: {abridged(key)}") for name, key in grouped.items()
    ]
    source = array_source(title, parts, advice, unread, rows)
    return dataclasses.replace(source, groups=torch.cat(groups)) if groups else source


def group_keys(
    keys: Iterable[str], parts: Mapping[str, tuple[str, str | None]], group: str | None, title: str
) -> dict[str, str]:
    """Split name to the name of its array of groups; none without the option. Raises UserError if there is none, or if it is the labels."""
    listed = list(keys)
    found: dict[str, str] = {}
    for name, (_, label_key) in parts.items() if group is not None else ():
        own = [key for key in listed if key == group or (name and group == without_split(key, name))]
        if len(own) != 1 or own[0] == label_key:
            wrong = "is the array of the labels" if own and own[0] == label_key else "names no single array"
            of = f" of {abridged(name, 60)}" if name else ""
            raise UserError(
                f"{title}: group={abridged(group or '', 60)} {wrong}{of} (it has: {listed_keys(listed)}); name the array that says what "
                "belongs together, such as the patient"
            )
        found[name] = own[0]
    return found


def without_split(key: str, name: str) -> str | None:
    """The name of an array without the word of its split: patient for train_patient; None if it is of another split."""
    words = key.split("_")
    splits = [word for word in words if SPLITS.get(word.lower()) == name]
    return "_".join(word for word in words if word not in splits) if splits else None


def groups_of_part(array: np.ndarray, pixels: Tensor, rows: str | None, where: str) -> Tensor:
    """int64 [N]: the groups of a part, from whole numbers or texts [N]. Raises UserError for other arrays."""
    if array.ndim != 1 or array.dtype.kind not in "iuUS":
        raise UserError(
            f"{where} holds {array.dtype} {list(array.shape)}; expected one whole number or text for each picture, [N]"
        )
    if len(array) != len(pixels):
        raise UserError(f"{where} has {len(array)} groups for {len(pixels)} pictures; they must be equally many")
    groups = numbered_groups([str(name) for name in array.tolist()])
    if rows is None:
        return groups
    _, kept = rows_of_part(pixels, groups, rows, where)
    assert kept is not None
    return kept


def members_by_key(members: Iterable[zipfile.ZipInfo], title: str) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by the names of their arrays. Raises UserError if two have one name."""
    found: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        key = member.filename.removesuffix(".npy")
        if key in found:
            raise UserError(f"{title}: it holds two arrays {abridged(key)}; {MADE_BY}")
        found[key] = member
    return found


def check_sizes(members: Mapping[str, zipfile.ZipInfo], file: Path, limits: UnpackLimits, title: str) -> None:
    """Raises UserError if members are encrypted, or would become larger than the limits."""
    size = file.stat().st_size
    for key, member in members.items():
        if member.flag_bits & ENCRYPTED:
            raise UserError(f"{title}: {abridged(key)} is encrypted; save it again without a password")
        limits.check(member.file_size, min(size, member.compress_size), f"{title}: {abridged(key)}")
    limits.check(sum(member.file_size for member in members.values()), size, title)


def read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> np.ndarray:
    """The array of a member. Its header is read first: numpy would reserve the memory of any shape that it announces."""
    with parsing(where, MADE_BY), archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in HEADERS:
            raise UserError(f"{where}: its format is {version[0]}.{version[1]}; {MADE_BY}")
        shape, _, dtype = HEADERS[version](stream)
        start = stream.tell()
    if dtype.hasobject:
        raise UserError(f"{where}: cannot be read (it holds objects of Python); {MADE_BY}")
    if dtype.names or dtype.subdtype or len(shape) > 4 or min(shape, default=1) < 0:
        raise UserError(f"{where}: it holds {abridged(str(dtype), 60)} {abridged(str(list(shape)), 60)}; {MADE_BY}")
    announced = math.prod(shape) * dtype.itemsize
    if announced != member.file_size - start:
        raise UserError(
            f"{where}: it announces {abridged(str(list(shape)), 60)} of {dtype}, which are {announced:,} bytes, "
            f"and holds {member.file_size - start:,}; fetch it again"
        )
    with parsing(where, MADE_BY), archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def npz_keys(
    keys: Iterable[str], images: str | None, labels: str | None, title: str
) -> dict[str, tuple[str, str | None]]:
    """Split name ('' for none) to the names of its arrays of images and labels."""
    listed = list(keys)
    for key in (images, labels):
        if key is not None and key not in listed:
            raise UserError(f"{title}: it has no array {abridged(key)} (it has: {listed_keys(listed)})")
    if images is not None:
        return {"": (images, labels)}
    found: dict[str, dict[str, str]] = {"image": {}, "label": {}}
    for key in listed:
        words = key.lower().split("_")
        name = next((SPLITS[word] for word in words if word in SPLITS), "")
        rest = [word for word in words if word not in SPLITS]
        for role, known in ("image", IMAGE_WORDS), ("label", LABEL_WORDS):
            if len(rest) == 1 and rest[0] in known:
                if name in found[role]:
                    raise UserError(
                        f"{title}: both {abridged(found[role][name])} and {abridged(key)} may be its {role}s; add ?images=KEY&labels=KEY"
                    )
                found[role][name] = key
    if not found["image"]:
        raise UserError(
            f"{title}: no array is called like images (it has: {listed_keys(listed)}); add ?images=KEY&labels=KEY"
        )
    if "" in found["image"] and len(found["image"]) > 1:
        raise UserError(
            f"{title}: it has pictures with and without a split ({listed_keys(found['image'].values())}); add ?images=KEY"
        )
    return {name: (key, labels or found["label"].get(name)) for name, key in found["image"].items()}


def listed_keys(keys: Iterable[str]) -> str:
    """The names of arrays in errors."""
    return abridged(", ".join(keys)) or "none"
