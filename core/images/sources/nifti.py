"""`nifti:`: slices of volumes in NIfTI files. A compressed volume has no random access, so its slices are copied to the cache once."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...printable import printable
from ..cache import file_stamp
from ..foreign import parsing
from ..groups import BY_FOLDER, numbered_groups
from ..limits import RATIO, UnpackLimits, limits_of
from ..notes import Note
from ..places import place_named, titled
from ..store import Scale, Source, three_channels
from .archives import LocalArchive
from .copies import copied_rows
from .dicom import check_choice
from .files import check_folder, checked_under
from .layout import arrange
from .parquet import ShardedRows
from .walk import listing_of
from .windows import Windowing, levels, windowing_of

AXES = ("sagittal", "coronal", "axial")
ENDINGS_OF_VOLUMES = (".nii", ".nii.gz")
MOST_VOXELS = 1 << 30
"""Values of a file, which is in memory once while its slices are copied."""

DAMAGED_VOLUME = "check the file, or fetch it again"


class Volume(NamedTuple):
    """A file's slices in the cache. spans: as of `Shard`, of size 0 for slices of one value only. shape: (H, W); deep: of 16 bits."""

    place: Path
    spans: np.ndarray
    shape: tuple[int, int]
    deep: bool


class SliceStore(ShardedRows):
    """Slices, stored as pixels. shapes: int64 [N, 2]; deep: bool [N], whether they are of 16 bits: if one is, all are shown with 16."""

    kind = "slices"
    shapes: np.ndarray
    deep: np.ndarray

    def decoded(self, i: int, content: bytes | bytearray) -> Tensor:
        pixels = torch.frombuffer(bytearray(content), dtype=torch.uint16 if self.deep[i] else torch.uint8)
        if not self.deep[i] and self.deep.any():
            pixels = (pixels.int() * 257).to(torch.uint16)
        return three_channels(pixels.view(1, *self.shapes[i].tolist()))

    def read_scaled(self, i: int, scale: Scale) -> tuple[Tensor, tuple[int, int]]:
        picture = self.read(i)
        return picture, (picture.shape[1], picture.shape[2])

    def encoded(self, i: int) -> None:
        return None


def open_nifti(
    path: str,
    split: str | None,
    *,
    under: str = "",
    labels: str = "folders",
    group: str | None = None,
    axis: str = "axial",
    window: str = "range",
    max_size: str = "200GB",
    max_ratio: int = RATIO,
) -> Source:
    """nifti:PATH: a folder of .nii and .nii.gz, with classes and splits as of `folder:`, or one file; each slice is a picture.

    axis: axial, coronal or sagittal, after the volume is turned to the nearest standard orientation (RAS); of four dimensions all volumes.
    window: range, from the least value of the volume to its greatest, or CENTER,WIDTH as of `dicom:`. Slices of one value only are left
    out. group: folder, as of `folder:`; by default the slices of a file stay together. max_size, max_ratio: as of `tar:`.
    """
    title = titled("nifti", path)
    nibabel_for(title)
    check_choice("axis", axis, AXES, title)
    check_choice("group", group or BY_FOLDER, (BY_FOLDER,), title)
    shown, limits = windowing_of(window, title), limits_of(max_size, max_ratio, title)
    if shown.of_file:
        raise UserError(f"{title}: window=file is of dicom:, since NIfTI stores none; give range, or CENTER,WIDTH")
    place = place_named(path, title)
    root = (place.parent if place.is_file() else place) / checked_under(under, title)
    check_folder(root, path, title)
    listing = listing_of(str(root), lambda name: name.lower().endswith(ENDINGS_OF_VOLUMES))
    names = [name for name in listing.names if not place.is_file() or name == place.name]
    stamps = [file_stamp(root / name) for name in names]
    volumes = [
        volume_of(root / name, stamp, axis, shown, limits, titled("nifti", str(root / name)))
        for name, stamp in zip(names, stamps, strict=True)
    ]
    parts: dict[str, tuple[int, int]] = {}
    for k, volume in enumerate(volumes):
        digits = len(str(len(volume.spans)))
        parts |= {f"{names[k]}#{row:0{digits}}": (k, row) for row in np.flatnonzero(volume.spans[:, 1]).tolist()}
    blank = sum(len(volume.spans) for volume in volumes) - len(parts)
    notes = [
        *listing.notes,
        *([Note(blank, "slices of one value only, which are left out", "", "list")] if blank else []),
    ]
    if not parts:
        raise UserError(
            f"{title}: no slice of a volume under {printable(str(root))}; expected files ending in .nii or .nii.gz"
        )
    layout = arrange(parts, labels, title, printable(str(root)), archive=False, empty=listing.empty, beside=notes)
    ordered = [parts[layout.prefix + name] for name in layout.names]
    store = slice_store(root, layout.prefix, layout.names, names, stamps, volumes, ordered)
    groups = numbered_groups([names[k] for k, _ in ordered]) if group is None else layout.groups(group, title)
    return dataclasses.replace(layout.source(store), folder=str(root), groups=groups)


def slice_store(
    root: Path,
    prefix: str,
    names: list[str],
    files: list[str],
    stamps: list[tuple[int, int, int]],
    volumes: list[Volume],
    ordered: list[tuple[int, int]],
) -> SliceStore:
    """The slices of volumes. names: of the slices, below `prefix`; ordered: the number of the file of each, and its row there."""
    number = np.array([k for k, _ in ordered])
    spans = np.array([volumes[k].spans[row] for k, row in ordered], dtype=np.int64)
    times = np.array(stamps, dtype=np.int64)[number, 1:]
    copies, shown = [str(volume.place) for volume in volumes], [str(root / file) for file in files]
    sizes = np.column_stack([spans[:, 1], times])
    store = SliceStore(os.path.join(root, prefix), copies, shown, names, number, spans[:, 0], sizes)
    store.sums = spans[:, 2]
    store.shapes = np.array([volume.shape for volume in volumes])[number]
    store.deep = np.array([volume.deep for volume in volumes])[number]
    return store


def nibabel_for(title: str) -> Any:
    """The package nibabel. Raises UserError without it."""
    try:
        import nibabel
    except ImportError:
        raise UserError(
            f"{title}: nibabel reads it, which is not installed; `pip install 'rootstock[medical]'` or `pip install nibabel`"
        ) from None
    return nibabel


def volume_of(
    file: Path, stamp: tuple[int, int, int], axis: str, window: Windowing, limits: UnpackLimits, title: str
) -> Volume:
    """The slices of a file, copied to the cache if they are not there yet."""
    nibabel = nibabel_for(title)
    with parsing(title, DAMAGED_VOLUME):
        image = nibabel.load(file)
        turned = nibabel.as_closest_canonical(image)
        size = tuple(int(side) for side in turned.shape)
        kind = np.dtype(turned.get_data_dtype())
    if not 3 <= len(size) <= 4 or 0 in size:
        raise UserError(
            f"{title}: it has the shape {list(size)}; expected a volume of three dimensions, or several of them"
        )
    if kind.kind not in "iuf":
        raise UserError(f"{title}: its values are {kind}, and not plain numbers; convert it")
    if np.prod([float(side) for side in size]) > MOST_VOXELS:
        raise UserError(f"{title}: it has more than {MOST_VOXELS:,} values; cut it into smaller volumes")
    plain = kind == np.uint8 and image.dataobj.slope == 1 and image.dataobj.inter == 0
    number = AXES.index(axis)
    sides = [side for k, side in enumerate(size[:3]) if k != number]

    def slices() -> Iterator[bytes]:
        with parsing(title, DAMAGED_VOLUME):
            values = np.asanyarray(turned.dataobj)
        share = brightness_of_volume(values, window, title)
        for volume in [share] if share.ndim == 3 else np.moveaxis(share, 3, 0):
            # seen from the front, the left or above: the second remaining axis points up
            for one in np.moveaxis(volume, number, 0):
                blank = one.size == 0 or one.min() == one.max()
                yield b"" if blank else np.ascontiguousarray(levels(np.rot90(one), not plain)).tobytes()

    what = f"nifti 1 {axis} {window.text}"
    place, spans = copied_rows(LocalArchive(file, stamp), what, slices, limits, title)
    return Volume(place, spans, (sides[1], sides[0]), not plain)


def brightness_of_volume(values: np.ndarray, window: Windowing, title: str) -> np.ndarray:
    """Brightness in 0 to 1, float32: by the window, or by the range of the volume; what is no number becomes the least value."""
    values = values.astype(np.float32)
    known = np.isfinite(values)
    if not known.any() or np.isinf(values).any():
        raise UserError(f"{title}: it holds infinite values, or no numbers at all; correct it")
    low, high = float(values[known].min()), float(values[known].max())
    values = np.where(known, values, np.float32(low))
    if window.own is not None:
        return window.own.share(values).astype(np.float32)
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
