"""The masks of a probe's sets: checked before features are extracted, and read again, image by image, where they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.environment import usable_cores
from ...core.errors import UserError
from ...core.evaluate.counts import Ints
from ...core.evaluate.segmentation import IGNORED, cell_modes
from ...core.images.decode import plain_jpeg_size
from ...core.images.images import Images
from ...core.phase import note_progress
from ...core.printable import printable
from ...core.views.view import Evaluation
from .mask_files import LARGEST_VALUE, read_mask

MOST_READERS = 8
MASKS_AT_ONCE = 64


class Look(NamedTuple):
    """What one mask holds. values: its different numbers; cells: the most frequent one of each patch, or IGNORED; digest: of all."""

    values: tuple[int, ...]
    cells: Ints
    digest: bytes


class MaskSurvey(NamedTuple):
    """What the masks of a set hold. first: the first file with each number, by number; cells: int64 [N, P]; digest: sha256 over all."""

    first: Mapping[int, str]
    cells: Tensor
    digest: str


class Masks(NamedTuple):
    """The masks of one set, that of image i in paths[i], as the view shows the image."""

    images: Images
    paths: Sequence[str]
    view: Evaluation

    def survey(self, grid: tuple[int, int], ignore: int | None) -> MaskSurvey:
        """Look at all masks. Raises UserError for the first that cannot be read or has another size than its image.

        grid: rows and columns of patches. Patches are labelled by the mask at the network's own input size.
        """

        def look(i: int) -> Look:
            values = self.read(i)
            cells = cell_modes(self._cut(values, self.view.size), grid, ignore)
            digest = hashlib.sha256(f"{values.shape}".encode() + values.astype("<u2").tobytes()).digest()
            return Look(tuple(np.flatnonzero(np.bincount(values.ravel())).tolist()), cells, digest)

        first, cells, whole = dict[int, str](), list[Ints](), hashlib.sha256()
        # Pillow and hashlib release the GIL.
        with ThreadPoolExecutor(min(MOST_READERS, usable_cores())) as threads:
            for start in range(0, len(self.paths), MASKS_AT_ONCE):
                numbers = range(start, min(start + MASKS_AT_ONCE, len(self.paths)))
                for i, found in zip(numbers, threads.map(look, numbers), strict=True):
                    for value in found.values:
                        first.setdefault(value, self.paths[i])
                    cells.append(found.cells)
                    whole.update(found.digest)
                note_progress(numbers.stop, len(self.paths))
        return MaskSurvey(first, torch.from_numpy(np.stack(cells)), whole.hexdigest())

    def read(self, i: int) -> NDArray[Any]:
        """The numbers of mask i, whole. Raises UserError if its size isn't its image's."""
        values, (height, width) = read_mask(self.paths[i]), picture_size(self.images, i)
        if values.shape != (height, width):
            raise UserError(
                f"{printable(self.paths[i])}: the mask has {values.shape[1]} x {values.shape[0]} px, and its picture "
                f"{printable(self.images.full_name(i))} {width} x {height}; give a mask of the picture's size"
            )
        return values

    def numbers(self, i: int, side: int) -> NDArray[Any]:
        """Mask i as the view shows its image, [side, side], each pixel with the number under its centre."""
        return self._cut(self.read(i), side)

    def _cut(self, values: NDArray[Any], side: int) -> NDArray[Any]:
        height, width = values.shape
        rows, columns = self.view.places(height, width, side)
        return values[np.ix_(rows, columns)]


def picture_size(images: Images, i: int) -> tuple[int, int]:
    """Height and width of image i, upright. Of plain JPEGs only the header is read. Raises DamagedImage."""
    if (uniform := images.uniform()) is not None:
        return uniform.shape[1:]
    content = images.encoded(i)
    size = None if content is None else plain_jpeg_size(content)
    if size is not None:
        return size
    pixels = images.read(i)
    return pixels.shape[1], pixels.shape[2]


class ClassTable(NamedTuple):
    """names: of the classes, in order. values: the number of each class in a mask; ignore: the number that counts nowhere."""

    names: tuple[str, ...]
    values: tuple[int, ...]
    ignore: int | None

    def indices(self, numbers: NDArray[Any]) -> Ints:
        """Numbers of masks as indices of classes; IGNORED for `ignore` and, which `class_table` has refused, for others."""
        table = np.full(LARGEST_VALUE + 1, IGNORED, dtype=np.int64)
        table[list(self.values)] = np.arange(len(self.values))
        if self.ignore is not None:
            table[self.ignore] = IGNORED
        return table[numbers]


def class_table(
    classes: int | Sequence[str] | None, ignore: int | None, surveys: Mapping[str, MaskSurvey]
) -> ClassTable:
    """The classes that a config asks for, or those that the training masks hold. Raises UserError for a mask with other numbers.

    surveys: by name of the set, that of the training masks first. classes: their number, their names, or None.
    """
    train = next(iter(surveys.values()))
    if classes is None:
        values = tuple(sorted(value for value in train.first if value != ignore))
        names = tuple(map(str, values))
        why = "which no training mask has; give evaluate.dense.classes, or set evaluate.dense.ignore to it"
    else:
        names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
        values = tuple(range(len(names)))
        why = (
            f"but evaluate.dense.classes numbers {len(names)} classes 0..{len(names) - 1}; correct the mask, give more classes, or set "
            "evaluate.dense.ignore to it"
        )
    allowed = {*values, ignore}
    for survey in surveys.values():
        if odd := sorted(value for value in survey.first if value not in allowed):
            raise UserError(f"{printable(survey.first[odd[0]])}: the mask has the number {odd[0]}, {why}")
    there = [value for value in train.first if value != ignore]
    if len(there) < 2:
        only = f"the single class {there[0]}" if there else "no class"
        beside = (
            ""
            if ignore is None or ignore not in train.first
            else f" beside {ignore}, which evaluate.dense.ignore leaves out"
        )
        remedy = (
            "; if that is a class, set evaluate.dense.ignore=null" if beside else "; give masks of at least two classes"
        )
        raise UserError(f"evaluate.dense: the training masks hold {only}{beside}{remedy}")
    return ClassTable(names, values, ignore)
