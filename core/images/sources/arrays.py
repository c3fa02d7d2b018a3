"""Images in arrays, as `idx:`, `npz:` and torchvision hold them."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ..notes import Note
from ..store import ArrayStore, Source, number_classes

ARRAY_BYTES = "32GB"
"""The default of max_size for arrays, which are read into memory."""

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "t10k": "test"}
IMAGE_WORDS = ("x", "images", "image", "imgs", "data")
LABEL_WORDS = ("y", "labels", "label", "targets")
LAYOUTS = {"NHW": (0, 1, 2), "NHWC": (0, 3, 1, 2), "NCHW": (0, 1, 2, 3)}


def array_source(
    title: str,
    parts: Mapping[str, tuple[Tensor, Tensor | None]],
    advice: str = "",
    unread: Sequence[str] = (),
    rows: str | None = None,
) -> Source:
    """One Source from parts: split name ('' if there are no splits) to pixels [N, C, H, W] and labels [N].

    Class names are the labels as text; there are none if a part has no labels, which is noted with the advice. unread: what else the
    file or folder holds. rows: `?rows=`, START:END of each part; classes are those of all rows. Raises UserError if counts or shapes
    differ.
    """
    for name, (pixels, labels) in parts.items():
        if labels is not None and len(labels) != len(pixels):
            counts = f"{len(pixels)} pictures and {len(labels)} labels"
            raise UserError(f"{title}: {name or 'it'} has {counts}; they must be equally many")
    shapes = {tuple(pixels.shape[1:]) for pixels, _ in parts.values()}
    if len(shapes) > 1:
        raise UserError(f"{title}: its splits hold pictures of different shapes {sorted(shapes)}; make a set of each")
    every = [labels for _, labels in parts.values() if labels is not None]
    if rows is not None:
        parts = {
            name: rows_of_part(pixels, labels, rows, f"{title}: {name or 'it'}")
            for name, (pixels, labels) in parts.items()
        }
    arrays = [part for part, _ in parts.values()]
    pixels = arrays[0] if len(arrays) == 1 else torch.cat(arrays)
    if not len(pixels):
        raise UserError(f"{title}: it holds no pictures")
    if 0 in pixels.shape:
        raise UserError(
            f"{title}: its pictures have no pixels: their shape is {list(pixels.shape[1:])}; make the set again"
        )
    ends = np.cumsum([0, *(len(part) for part, _ in parts.values())])
    splits = {name: torch.arange(ends[k], ends[k + 1]) for k, name in enumerate(parts) if name}
    given = [labels for _, labels in parts.values() if labels is not None]
    if not given or len(given) < len(parts):
        without = [name for name, (_, labels) in parts.items() if labels is None]
        what = "splits without labels, so those of the others are not read either" + (f"; {advice}" if advice else "")
        lacking = [Note(len(without), what, ", ".join(without))] if given else []
        return Source(ArrayStore(pixels, title), splits=splits, notes=(*lacking, *about_unread(unread, advice)))
    _, classes = number_classes([str(label) for label in torch.cat(every).unique().tolist()])
    numbers = {name: number for number, name in enumerate(classes)}
    labels = torch.tensor([numbers[str(label)] for label in torch.cat(given).tolist()], dtype=torch.int64)
    return Source(ArrayStore(pixels, title), labels, classes, splits, notes=about_unread(unread))


def rows_of_part(pixels: Tensor, labels: Tensor | None, rows: str, where: str) -> tuple[Tensor, Tensor | None]:
    """The rows START:END of a part, in the file's order; both ends may be left out."""
    given = re.fullmatch(r"(\d{0,12}):(\d{0,12})", rows, re.ASCII)
    if given is None:
        raise UserError(f"{where}: rows={rows} is no range; write START:END, such as ?rows=10000: or ?rows=:5000")
    first, last = int(given[1] or 0), min(int(given[2] or len(pixels)), len(pixels))
    if first >= last:
        raise UserError(
            f"{where} has {len(pixels)} pictures, and rows={rows} leaves none; name another range, or one file of pictures"
        )
    return pixels[first:last], None if labels is None else labels[first:last]


def about_unread(names: Sequence[str], advice: str = "") -> tuple[Note, ...]:
    """The arrays that are not read. advice: for sets without labels, which may be in one of them."""
    if not names:
        return ()
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    what = "arrays that are not read" + (f"; {advice}" if advice else "")
    return (Note(len(names), what, shown, "say" if advice else "list"),)


def as_nchw(array: np.ndarray, layout: str, where: str) -> Tensor:
    """uint8 or uint16 [N, C, H, W] from any of LAYOUTS. Raises UserError for other dtypes, or if the layout is ambiguous."""
    if array.dtype.newbyteorder("=") not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        saved = (
            "x.astype('uint8'), or 'uint16' for values above 255"
            if array.dtype.kind in "iu"
            else "(255 * x).round().astype('uint8')"
        )
        raise UserError(f"{where} holds {array.dtype}; expected uint8 or uint16; save for example {saved}")
    if layout == "auto":
        few_first, few_last = (array.ndim == 4 and array.shape[axis] <= 4 for axis in (1, -1))
        if array.ndim not in (3, 4) or (array.ndim == 4 and few_first == few_last):
            raise UserError(
                f"{where} has the shape {list(array.shape)}: the axis of the channels is ambiguous; add ?layout=NCHW or ?layout=NHWC"
            )
        layout = "NHW" if array.ndim == 3 else "NCHW" if few_first else "NHWC"
    if array.ndim != len(layout):
        raise UserError(f"{where} has the shape {list(array.shape)}, which is not {layout}")
    moved = array[:, None] if layout == "NHW" else array.transpose(LAYOUTS[layout])
    native = np.ascontiguousarray(moved, dtype=moved.dtype.newbyteorder("="))
    return torch.from_numpy(native)


def as_labels(array: np.ndarray, where: str) -> Tensor:
    """int64 [N] from whole numbers [N] or [N, 1]."""
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or not np.issubdtype(flat.dtype, np.integer):
        raise UserError(
            f"{where} holds {array.dtype} {list(array.shape)}; expected one whole number for each picture, [N]"
        )
    if len(flat) and int(flat.max()) > np.iinfo(np.int64).max:
        raise UserError(f"{where} holds {flat.max()}, which is no class; expected numbers below 2 ** 63")
    return torch.from_numpy(flat.astype(np.int64))
