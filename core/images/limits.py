"""UnpackLimits for what is unpacked: a small file can be made to fill a disk or the memory."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import UserError

RATIO = 200
"""Deflate reaches 1,032 at most, on equal bytes. Sets of real images stay below 2, those of drawn shapes at 115 (dSprites)."""

ALLOWANCE = 64 << 20
"""So many bytes are unpacked whatever the ratio."""

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class UnpackLimits(NamedTuple):
    """How much may come out of a compressed file. size: bytes. ratio: times the bytes that went in, beyond ALLOWANCE."""

    size: int
    ratio: int

    def check(self, made: int, read: int, title: str) -> None:
        """Raises UserError if `made` bytes from `read` bytes are too many."""
        if made > self.size:
            raise UserError(
                f"{title}: unpacked it has more than {sized(self.size)}, which is its limit; add ?max_size={sized(2 * self.size)}, "
                "or more, if you trust it"
            )
        if made > ALLOWANCE + self.ratio * read:
            raise UserError(
                f"{title}: unpacked it grows to more than {self.ratio} times its size, as files do that were made to fill a disk or "
                f"the memory; add ?max_ratio={max(2000, 10 * self.ratio)} if you trust it"
            )


def limits_of(max_size: str, max_ratio: int, title: str) -> UnpackLimits:
    """The limits that a URI's options give. max_size: a number of bytes, or one with a unit, such as 500MB."""
    size = _bytes(max_size)
    if not size:
        raise UserError(f"{title}: max_size={max_size[:40]} is no size; expected for example 500MB or 20GB")
    if max_ratio < 1:
        raise UserError(f"{title}: max_ratio={max_ratio} is too small; expected 1 or more")
    return UnpackLimits(size, max_ratio)


def size_of(text: str | int, key: str) -> int:
    """The bytes of a size that a config gives: a number, or one with a unit, such as 500MB; 0 is allowed. Raises UserError."""
    size = _bytes(str(text))
    if size is None:
        raise UserError(f"{key}: {str(text)[:40]} is no size; expected for example 500MB or 20GB, or 0")
    return size


def _bytes(text: str) -> int | None:
    match = re.fullmatch(r"([0-9]{1,15}) ?([KMGT]?B)?", text.strip().upper())
    return int(match.group(1)) * UNITS[match.group(2) or ""] if match else None


def sized(count: int) -> str:
    """A number of bytes as `max_size` reads it."""
    unit = next(unit for unit in ("TB", "GB", "MB", "KB", "B") if count >= UNITS[unit] or unit == "B")
    return f"{-(-count // UNITS[unit])}{unit}"
