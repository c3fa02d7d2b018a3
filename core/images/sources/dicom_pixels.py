"""A frame of a DICOM file -> the levels of a picture: modality, window and inversion (PS3.3, C.11.1 and C.11.2)."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ..decode import MAX_PIXELS
from ..store import DamagedImage, three_channels
from .windows import Window, Windowing, by_lookup_table, first_number, levels

MODALITY = ("PixelValueTransformationSequence", ("ModalityLUTSequence", "RescaleSlope"))
VOI = ("FrameVOILUTSequence", ("WindowCenter", "VOILUTSequence"))
"""The functional group in which an enhanced file keeps a step, and the attributes of which it has one (PS3.3, C.7.6.16.2)."""


def pydicom_for(title: str) -> Any:
    """The package pydicom. Raises UserError without it."""
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        raise UserError(
            f"{title}: pydicom reads it, which is not installed; `pip install 'rootstock[medical]'` or `pip install pydicom`"
        ) from None
    # what is odd in a header is no business of who trains; what cannot be read is said
    warnings.filterwarnings("ignore", module=r"pydicom\.")
    return pydicom


def decode_dicom(content: bytes | bytearray, frame: int, window: Windowing, deep: bool, where: str) -> Tensor:
    """A frame of a DICOM file as uint8, or uint16 if `deep`, [3, H, W]. where: the file's name in errors. Raises DamagedImage."""
    pydicom = pydicom_for(where)
    try:
        found = pydicom.dcmread(io.BytesIO(content), force=True)
        if int(found.Rows) * int(found.Columns) > MAX_PIXELS:
            raise DamagedImage(f"more than {MAX_PIXELS // 1_000_000} million pixels; leave it out")
        pixels = pydicom.pixels.pixel_array(found, index=frame if int(found.get("NumberOfFrames") or 1) > 1 else None)
        if found.PhotometricInterpretation == "PALETTE COLOR":
            pixels = pydicom.pixels.apply_color_lut(pixels, found)
        shown = colours_of(pixels, deep) if pixels.ndim == 3 else brightness_of(found, frame, pixels, window, deep)
        return three_channels(torch.from_numpy(np.ascontiguousarray(shown)))
    except DamagedImage as error:
        raise DamagedImage(f"{where}: {error}") from None
    except (MemoryError, UserError):
        raise
    except Exception as error:  # as of damaged files of other formats
        words = " ".join(str(error).split())
        remedy = "replace or remove it"
        if "missing dependencies" in words:
            remedy = "`pip install 'pylibjpeg[all]'` adds decoders of compressed DICOM"
        raise DamagedImage(f"{where}: cannot be decoded ({words[:200]}); {remedy}") from None


def colours_of(pixels: np.ndarray, deep: bool) -> np.ndarray:
    """[H, W, C] -> [3, H, W], uint16 if `deep`. Raises DamagedImage for more than 16 bits."""
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DamagedImage(f"its colours are {pixels.dtype}; save it with 8 or 16 bits")
    pixels = pixels[..., :3].transpose(2, 0, 1)
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint16) * 257 if deep else pixels
    return pixels if deep else (pixels >> 8).astype(np.uint8)


def brightness_of(found: Any, frame: int, pixels: np.ndarray, window: Windowing, deep: bool) -> np.ndarray:
    """Gray values [H, W] of a frame as uint8, or uint16 if `deep`, [1, H, W]."""
    low, high = int(pixels.min()), int(pixels.max())
    if pixels.dtype.kind not in "iu" or high - low + 1 >= pixels.size:
        return levels_of_values(found, frame, pixels, np.ones(pixels.shape, dtype=bool), window, deep)[None]
    # every value once, then by a table: far less to compute
    places = pixels.astype(np.int64) - low
    there = np.zeros(high - low + 1, dtype=bool)
    there[places] = True
    values = np.arange(low, high + 1).astype(pixels.dtype)
    return levels_of_values(found, frame, values, there, window, deep)[places][None]


def levels_of_values(
    found: Any, frame: int, stored: np.ndarray, there: np.ndarray, window: Windowing, deep: bool
) -> np.ndarray:
    """Stored values -> levels of the same shape, by modality, window and inversion. there: bool, which of them the frame has.

    Without a window the range is that of values which are no padding, and padding is black, also of MONOCHROME1.
    """
    values, shown = modality_of(found, frame, stored), said_of(found, frame, *VOI)
    own = window.own or (window_of_file(shown) if window.of_file else None)
    padding = np.zeros(stored.shape, dtype=bool)
    if own is not None:
        share = own.share(values)
    elif window.of_file and shown.get("VOILUTSequence"):
        values, bits = by_lookup_table(values, shown.VOILUTSequence[0], found.original_encoding[1])
        share = (values / (2**bits - 1)).clip(0, 1)
    else:
        padding = padding_among(found, stored)
        share = window.of_range(values, there & ~padding)
    if found.PhotometricInterpretation == "MONOCHROME1":
        share = 1 - share
    return levels(np.where(padding, 0, share), deep)


def modality_of(found: Any, frame: int, stored: np.ndarray) -> np.ndarray:
    """Stored values -> measured ones, by the lookup table or the rescaling of the frame; as they are without."""
    said = said_of(found, frame, *MODALITY)
    if said.get("ModalityLUTSequence"):
        return by_lookup_table(stored, said.ModalityLUTSequence[0], found.original_encoding[1])[0]
    slope, intercept = first_number(said.get("RescaleSlope")), first_number(said.get("RescaleIntercept"))
    return stored if slope is None or intercept is None else stored.astype(np.float64) * slope + intercept


def said_of(found: Any, frame: int, group: str, names: tuple[str, ...]) -> Any:
    """The part of a file that has one of the attributes `names` for a frame: its own functional group, that of all, or the file itself."""
    own, shared = (found.get(f"{whose}FunctionalGroupsSequence") or () for whose in ("PerFrame", "Shared"))
    for groups in (*own[frame : frame + 1], *shared[:1]):
        for said in groups.get(group) or ():
            if any(said.get(name) not in (None, "", []) for name in names):
                return said
    return found


def padding_among(found: Any, stored: np.ndarray) -> np.ndarray:
    """bool, of the shape of stored values: those that only fill the rectangle of a picture (PS3.3, C.7.5.1.1.2)."""
    kind = {"f4": "Float", "f8": "DoubleFloat"}.get(stored.dtype.str[1:], "")
    value, limit = (first_number(found.get(f"{kind}PixelPadding{name}")) for name in ("Value", "RangeLimit"))
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    ends = [value, value if limit is None else limit]
    if stored.dtype.kind == "i":  # some writers declare the bits of a negative number as a positive one
        ends = np.array(ends).astype(np.int64).astype(stored.dtype).tolist()
    return (stored >= min(ends)) & (stored <= max(ends))


def window_of_file(said: Any) -> Window | None:
    """The first window of a file, or of a part of it; None without one that can be used."""
    center, width = first_number(said.get("WindowCenter")), first_number(said.get("WindowWidth"))
    shape = str(said.get("VOILUTFunction") or "LINEAR").upper()
    if center is None or width is None or width <= 0 or (shape == "LINEAR" and width < 1):
        return None
    return Window(center, width, shape if shape in ("LINEAR_EXACT", "SIGMOID") else "LINEAR")  # pyright: ignore[reportArgumentType]
