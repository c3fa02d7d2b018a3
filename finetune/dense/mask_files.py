"""Where the mask of each image lies, and what one file of a mask holds: the class number of each pixel."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...core.errors import UserError
from ...core.files import expanded
from ...core.images.decode import EXTENSIONS, MAX_PIXELS, is_picture
from ...core.images.images import Images
from ...core.images.look import pages_of
from ...core.images.open_files import read_whole
from ...core.images.pixels import open_picture, upright
from ...core.printable import printable

MASKS_KEY = "evaluate.dense.masks"
STEM = "{stem}"
# Formats that keep every number, and how their rows may be stored: elsewhere Pillow inverts or scales numbers.
EXACT_FORMATS = ("PNG", "TIFF", "BMP", "GIF")
RAW_MODES = ("1", "L", "P", "P;1", "P;2", "P;4")
# Gray PNGs of 2 and 4 bits, whose numbers Pillow multiplies to fill 0..255.
FACTORS = {"L;2": 85, "L;4": 17}
LARGEST_VALUE = 65535
AS_PNG = "save it as a PNG of 8 bits, gray or with a palette, whose numbers are the classes"


class MissingMask(UserError):
    """A picture has no mask."""


class MaskFiles:
    """Finds the file of each image's mask, over all sets of a probe, so that two pictures never share one by mistake.

    masks: a folder, or a pattern that holds {stem}, for all sets; or one for each set by name. An image's stem is its name inside its set
    without the ending: cat/01 for cat/01.jpg.
    """

    def __init__(self, masks: str | Mapping[str, str]) -> None:
        self.masks = masks
        self._folders: dict[str, dict[str, list[str]]] = {}
        self._taken: dict[str, tuple[int, str]] = {}

    def of_sets(self, sets: Mapping[str, Images]) -> dict[str, list[str]]:
        """The paths of the masks of each set, by its name, in the order of its images. Raises UserError for the first that is missing."""
        masks = self.masks
        if not isinstance(masks, str) and (masks.keys() != sets.keys()):
            odd = sorted(masks.keys() ^ sets.keys())[0]
            what = "has no masks" if odd in sets else "is no set of this probe"
            raise UserError(f"{MASKS_KEY}: {odd} {what}; give one folder, or one for each of: {', '.join(sets)}")
        return {
            name: self._of_set(masks if isinstance(masks, str) else masks[name], name, images)
            for name, images in sets.items()
        }

    def _of_set(self, place: str, name: str, images: Images) -> list[str]:
        found, keys = list[str](), images.keys().tolist()
        for i in range(len(images)):
            path = self._path(place, images.name(i), images.full_name(i))
            key, other = self._taken.setdefault(path, (keys[i], f"{name}: {images.full_name(i)}"))
            if key != keys[i]:
                raise UserError(
                    f"{printable(path)} would be the mask of two pictures ({printable(other)}, and {name}: "
                    f"{printable(images.full_name(i))}); give {MASKS_KEY} a folder for each set, as in {{train: PATH, test: PATH}}, or the "
                    "pictures different names"
                )
            found.append(path)
        return found

    def _path(self, place: str, name: str, shown: str) -> str:
        stem = name[: name.rindex(".")] if is_picture(name) else name
        if os.path.isabs(stem) or os.pardir in Path(stem).parts:
            raise UserError(
                f"{printable(shown)} lies outside its set's folder, so its mask has no relative name; name pictures inside one folder"
            )
        wanted = place.replace(STEM, stem) if STEM in place else os.path.join(place, stem)
        wanted = str(expanded(Path(wanted)))
        folder, last = os.path.split(wanted)
        known = self._listed(folder or os.curdir)
        if STEM in place and last.lower().endswith(EXTENSIONS):
            found = [last] if last in known.get(last[: last.rindex(".")], []) else []
        else:
            found = known.get(last, [])
        exact = [file for file in found if not file.lower().endswith((".jpg", ".jpeg", ".jfif"))] or found
        if len(exact) != 1:
            raise _not_one(wanted, exact, shown)
        return os.path.join(folder, exact[0])

    def _listed(self, folder: str) -> dict[str, list[str]]:
        """The picture files of a folder by their stem. A folder that cannot be read has none."""
        if folder not in self._folders:
            listed: dict[str, list[str]] = {}
            try:
                names = sorted(os.listdir(folder))
            except OSError:
                names = []
            for name in names:
                if is_picture(name):
                    listed.setdefault(name[: name.rindex(".")], []).append(name)
            self._folders[folder] = listed
        return self._folders[folder]


def _not_one(wanted: str, found: list[str], shown: str) -> UserError:
    folder, last = os.path.split(wanted)
    if found:
        several = f"{len(found)} masks ({', '.join(map(printable, found))} in {printable(folder)})"
        return UserError(f"{MASKS_KEY}: {printable(shown)} has {several}; keep one")
    if not os.path.isdir(folder or os.curdir):
        return MissingMask(
            f"{MASKS_KEY}: {printable(shown)} has no mask, because there is no folder {printable(folder)}; check the path"
        )
    ending = "" if last.lower().endswith(EXTENSIONS) else ".png"
    return MissingMask(
        f"{MASKS_KEY}: {printable(shown)} has no mask {printable(wanted + ending)}; add it, or leave the picture out (if it is a mask "
        "itself, keep the masks outside the folder of the pictures)"
    )


def read_mask(path: str) -> NDArray[Any]:
    """The numbers of a mask, uint8 or uint16 [H, W], upright as its picture is. Raises UserError, naming the file and a remedy."""
    where = printable(path)
    try:
        content = read_whole(path)
    except OSError as error:
        raise UserError(f"{where}: the mask cannot be read ({error.strerror or error})") from None
    if (pages := pages_of(content)) > 1:
        raise UserError(f"{where}: the mask's file has {pages} pages or frames; save one mask a file")
    try:
        with open_picture(content) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(
                    f"{where}: the mask has more than {MAX_PIXELS // 1_000_000} million pixels; scale it down"
                )
            return _numbers(picture, where)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # on damaged bytes decoders raise anything
        kind = (
            "not a picture of a format that is read" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        )
        raise UserError(f"{where}: the mask cannot be decoded ({kind}); replace it") from None


def _numbers(picture: Any, where: str) -> NDArray[Any]:
    if picture.format not in EXACT_FORMATS:
        raise UserError(f"{where}: the mask is a {picture.format}, which doesn't keep class numbers; {AS_PNG}")
    mode = picture.mode
    if mode not in ("1", "L", "P") and not mode.startswith("I"):
        raise UserError(
            f"{where}: the mask has several numbers a pixel ({mode}), and a class is one number; {AS_PNG}"
            if mode != "F"
            else f"{where}: the mask holds floating-point numbers; {AS_PNG}"
        )
    args = picture.tile[0].args if picture.tile and picture.format in ("PNG", "TIFF") else mode
    raw = args if isinstance(args, str) else str(args[0])
    if raw not in RAW_MODES and raw not in FACTORS and not raw.startswith("I"):
        raise UserError(f"{where}: the mask stores its numbers as {raw}, scaled or inverted; {AS_PNG}")
    if picture.info.get("compression") == "jpeg":
        raise UserError(f"{where}: the mask is compressed as JPEG, which doesn't keep class numbers; {AS_PNG}")
    values = np.asarray(upright(picture))
    if values.dtype.itemsize > 2:
        if values.size and (values.min() < 0 or values.max() > LARGEST_VALUE):
            raise UserError(f"{where}: the mask has numbers beyond 0..{LARGEST_VALUE}; {AS_PNG}")
        return values.astype(np.uint16)
    return values.astype(np.uint8) // FACTORS.get(raw, 1) if values.dtype.itemsize == 1 else values.astype(np.uint16)
