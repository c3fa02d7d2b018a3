"""Measured values -> the levels of a picture, as DICOM defines it (PS3.3, C.11.2.1.2 and C.11.2.1.3)."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

import numpy as np

from ...errors import UserError
from ..places import abridged
from ..store import DamagedImage

Shape = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


class Window(NamedTuple):
    """What becomes black, white and between. width: above 0; for LINEAR 1 or more."""

    center: float
    width: float
    shape: Shape = "LINEAR"

    def share(self, values: np.ndarray) -> np.ndarray:
        """Values -> brightness, float64 in 0 to 1."""
        x = values.astype(np.float64)
        if self.shape == "SIGMOID":
            return 1 / (1 + np.exp(-4 * (x - self.center) / self.width))
        if self.shape == "LINEAR_EXACT":
            return ((x - self.center) / self.width + 0.5).clip(0, 1)
        if self.width == 1:  # no value lies between
            return (x > self.center - 0.5).astype(np.float64)
        return ((x - (self.center - 0.5)) / (self.width - 1) + 0.5).clip(0, 1)


class Windowing(NamedTuple):
    """The option `window`. own: one for all pictures; of_file: that of each file. Without, the range of each picture's values."""

    text: str
    own: Window | None
    of_file: bool

    def of_range(self, values: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """Brightness by the range of those values that are counted (bool, of the same shape); black where all of these are equal."""
        if not counted.any():
            return np.zeros(values.shape)
        low, high = float(values[counted].min()), float(values[counted].max())
        if not np.isfinite([low, high]).all():
            raise DamagedImage("it holds values that are no finite numbers; correct them, or add ?window=CENTER,WIDTH")
        share = (values.astype(np.float64) - low) / (high - low) if high > low else np.zeros(values.shape)
        return share.clip(0, 1)


def windowing_of(text: str, title: str) -> Windowing:
    """The option `window`: file, range, or CENTER,WIDTH. Raises UserError for others."""
    if text in ("file", "range"):
        return Windowing(text, None, text == "file")
    number = r"[-+]?[0-9]{1,9}(?:\.[0-9]{1,9})?"
    found = re.fullmatch(f"({number}),({number})", text)
    if not found or float(found.group(2)) < 1:
        raise UserError(
            f"{title}: window={abridged(text, 40)} is not understood; expected file, range, or CENTER,WIDTH with a width of at least 1, "
            "such as window=40,400"
        )
    return Windowing(text, Window(float(found.group(1)), float(found.group(2))), False)


def by_lookup_table(values: np.ndarray, table: Any, little: bool) -> tuple[np.ndarray, int]:
    """(values by a lookup table of a file, int64; their bits), as PS3.3 has it in C.11.1.1.1. little: the order of bytes in the file.

    pydicom's own function counts the places of a table of 8 bits in 8 bits, so that the 256th place would be the first again.
    """
    count, first, bits = (int(number) for number in table.LUTDescriptor)
    count, entries = count or 1 << 16, table.LUTData
    if isinstance(entries, bytes):
        wide = len(entries) >= 2 * count
        entries = np.frombuffer(entries, ("<u2" if little else ">u2") if wide else "u1")
    known = np.atleast_1d(entries).astype(np.int64)[:count]
    return known[(values.astype(np.float64) - first).clip(0, len(known) - 1).astype(np.int64)], bits


def levels(share: np.ndarray, deep: bool) -> np.ndarray:
    """Brightness in 0 to 1 -> uint8, or uint16 if `deep`, rounded."""
    return np.rint(share * (65535 if deep else 255)).astype(np.uint16 if deep else np.uint8)


def first_number(value: Any) -> float | None:
    """The first of one or several numbers of a header; None without."""
    if value is None or value == "":
        return None
    several = value if hasattr(value, "__len__") and not isinstance(value, str) else [value]
    return float(several[0]) if len(several) else None
