"""What a picture's file holds beside the pixels that are read: further pages or frames, and values that use few of 16 bits."""

import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .bands import form_in
from .notes import Note
from .pixels import open_picture

MOST_PAGES = 65_536
MOST_BLOCKS = 1_000_000
"""Where counting pages ends: a hostile file of some megabytes can announce very many."""

MANY_PAGES = (".tif", ".tiff", ".gif", ".webp", ".avif")
"""Endings of formats that often hold several pages or frames."""

JPEG_2000 = b"\xff\x4f\xff\x51"
"""How a codestream of JPEG 2000 begins."""

BOXES_END = 1 << 14
"""Bytes in which the boxes of a picture's form lie."""

BITS_PER_SAMPLE = 258
"""A TIFF's tag of the bits of each channel."""

DIM_BITS = 14
"""16-bit files whose greatest value needs at most so many bits are dark: cameras have 10, 12 or 14."""


def pages_of(content: bytes | bytearray) -> int:
    """The number of pages or frames in a file of TIFF, GIF, WebP, PNG or AVIF, at most MOST_PAGES; 1 for other formats or damage."""
    counter = next((counter for start, counter in COUNTERS.items() if content.startswith(start)), None)
    if counter is None and content[4:12] in (b"ftypavis", b"ftypavif"):
        counter = pages_by_pillow
    if counter is None:
        return 1
    try:
        return min(max(counter(content), 1), MOST_PAGES)
    except (struct.error, IndexError, ValueError):
        return 1


def tiff_pages(content: bytes | bytearray) -> int:
    """Pages of a TIFF or BigTIFF; smaller versions of a page (NewSubfileType, bit 0) don't count."""
    order = "<" if content[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", content, 2)[0] == 43
    head, entry, pointer = ("Q", 20, "Q") if big else ("H", 12, "L")
    at = struct.unpack_from(order + pointer, content, 8 if big else 4)[0]
    seen: set[int] = set()
    pages = 0
    while at and at not in seen and len(seen) < MOST_PAGES:
        seen.add(at)
        number = struct.unpack_from(order + head, content, at)[0]
        start = at + struct.calcsize(order + head)
        # tags are sorted, and NewSubfileType (254) is the lowest that is in use
        tag, kind = struct.unpack_from(f"{order}HH", content, start)
        value = struct.unpack_from(f"{order}L", content, start + (12 if big else 8))[0] if kind == 4 else 0
        pages += not (tag == 254 and value & 1)
        at = struct.unpack_from(order + pointer, content, start + number * entry)[0]
    return pages


def gif_frames(content: bytes | bytearray) -> int:
    at, frames = 13 + colour_table(content[10]), 0
    for _ in range(MOST_BLOCKS):
        block = content[at]
        if block == 0x2C:  # an image
            frames += 1
            at += 10 + colour_table(content[at + 9]) + 1
        elif block == 0x21:  # an extension
            at += 2
        else:
            break
        for _ in range(MOST_BLOCKS):
            length = content[at]
            at += 1 + length
            if not length:
                break
    return frames


def colour_table(flags: int) -> int:
    """Bytes of the colour table that a GIF's flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def webp_frames(content: bytes | bytearray) -> int:
    if content[8:12] != b"WEBP":
        return 1
    at, frames = 12, 0
    for _ in range(MOST_BLOCKS):
        if at + 8 > len(content):
            break
        frames += content[at : at + 4] == b"ANMF"
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        at += 8 + length + length % 2
    return frames


def png_frames(content: bytes | bytearray) -> int:
    """Frames of an animated PNG: its chunk acTL stands before the pixels."""
    at = 8
    for _ in range(MOST_BLOCKS):
        length, kind = struct.unpack_from(">L4s", content, at)
        if kind == b"acTL":
            return struct.unpack_from(">L", content, at + 8)[0]
        if kind == b"IDAT":
            break
        at += 12 + length
    return 1


def pages_by_pillow(content: bytes | bytearray) -> int:
    try:
        with open_picture(content) as picture:
            return int(getattr(picture, "n_frames", 1))
    except Exception:  # damage is found, and said, when it is decoded
        return 1


COUNTERS: dict[bytes, Callable[[bytes | bytearray], int]] = {
    b"II*\0": tiff_pages,
    b"MM\0*": tiff_pages,
    b"II+\0": tiff_pages,
    b"MM\0+": tiff_pages,
    b"GIF8": gif_frames,
    b"RIFF": webp_frames,
    b"\x89PNG\r\n\x1a\n": png_frames,
}


def may_be_deep(content: bytes | bytearray) -> bool:
    """Whether a file may have 16 bits a value, told from its header."""
    if content.startswith(b"\x89PNG"):
        return content[24:25] == b"\x10"
    if not content.startswith((b"II", b"MM", b"P5", b"P6", b"\0\0\0\x0cjP")):
        return False
    try:
        if (form := form_in(content)) is not None:
            return form.bits == 16
        with open_picture(content) as picture:
            return picture.mode.startswith("I")
    except Exception:  # damage is found, and said, when it is decoded
        return False


def is_reduced(content: bytes | bytearray) -> bool:
    """Whether a file has colours of more than 8 bits of which Pillow keeps the upper 8: PPM, JPEG 2000, AVIF, and TIFFs of CMYK or Lab."""
    if content[4:12] in (b"ftypavif", b"ftypavis"):
        return bits_of_avif(content) > 8
    if content.startswith((b"\0\0\0\x0cjP", JPEG_2000)):
        return is_deep_jpeg_2000(content)
    if not content.startswith((b"II", b"MM", b"P6")):
        return False
    try:
        if form_in(content) is not None:
            return False
        with open_picture(content) as picture:
            if picture.mode.startswith("I"):
                return False
            if content.startswith(b"P6"):
                return "65535" in str(picture.tile[0].args)  # other maxima are scaled
            bits = getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, ())
            return max(bits if isinstance(bits, tuple) else (bits,), default=8) > 8
    except Exception:  # damage is found, and said, when it is decoded
        return False


def is_deep_jpeg_2000(content: bytes | bytearray) -> bool:
    """Whether a codestream's header (ITU-T T.800, A.5.1) announces several components, one of more than 8 bits."""
    at = content.find(JPEG_2000, 0, BOXES_END)
    count = int.from_bytes(content[at + 40 : at + 42], "big")
    depths = [(value & 0x7F) + 1 for value in content[at + 42 : at + 42 + 3 * min(count, 4) : 3]]
    return at >= 0 and count > 1 and max(depths, default=8) > 8


def bits_of_avif(content: bytes | bytearray) -> int:
    """The bits of a channel that the box of the picture's pixels (ISO/IEC 23008-12, 6.5.6) says; 8 without it."""
    at = content.find(b"pixi", 0, BOXES_END)
    return max(content[at + 9 : at + 9 + min(content[at + 8], 4)], default=8) if 0 <= at < len(content) - 9 else 8


class Tally(NamedTuple):
    """What the files of a set hold. several: files with further pages; unread: these pages in all. deep: pictures of 16 bits.

    dim: those of them that are dark; highest: the greatest value of the dark ones. examples: the first of several, and of dim.
    reduced: files of which the upper 8 of more bits are read; first_reduced: the first of them.
    """

    several: int = 0
    unread: int = 0
    deep: int = 0
    dim: int = 0
    highest: int = 0
    examples: tuple[str, str] = ("", "")
    reduced: int = 0
    first_reduced: str = ""

    def plus(self, pages: int, highest: int | None, name: Callable[[], str], reduced: bool = False) -> "Tally":
        """With one more picture. highest: the greatest value of one of 16 bits, None for 8 bits. reduced: see `is_reduced`."""
        found = self
        if reduced:
            found = found._replace(reduced=self.reduced + 1, first_reduced=self.first_reduced or name())
        if pages > 1:
            found = found._replace(
                several=self.several + 1,
                unread=self.unread + pages - 1,
                examples=(self.examples[0] or name(), self.examples[1]),
            )
        if highest is not None:
            found = found._replace(deep=self.deep + 1)
            if 0 < highest.bit_length() <= DIM_BITS:
                found = found._replace(
                    dim=self.dim + 1,
                    highest=max(self.highest, highest),
                    examples=(found.examples[0], self.examples[1] or name()),
                )
        return found

    def notes(self, of_sample: int | None = None, advice: str = "") -> list[Note]:
        """of_sample: the number of pictures that were looked at, if it isn't all. advice: what to do about dim ones, by `{bits}`."""
        among = "" if of_sample is None else f" among {of_sample:,} that were looked at"
        notes = []
        if self.several:
            what = f"files of several pages or frames{among}; only the first is read, {self.unread:,} are not"
            notes.append(Note(self.several, what, self.examples[0]))
        if self.dim:
            bits = max(8, self.highest.bit_length())
            share = self.highest / 65535
            advice = (advice or "?bits={bits} would use the whole range").format(bits=bits)
            remedy = advice if self.dim == self.deep else "others are brighter"
            what = (
                f"pictures of 16 bits{among} with no value above {self.highest:,} of 65,535, so they are read at up to "
                f"{share:.0%} of full brightness; {remedy}"
            )
            notes.append(Note(self.dim, what, self.examples[1]))
        if self.reduced:
            what = (
                f"pictures of deep colour{among}, of which only the upper 8 bits are read, so values of 12 bits in a file of 16 are "
                "read at 6% of full brightness; 16-bit PNGs and TIFFs are read whole"
            )
            notes.append(Note(self.reduced, what, self.first_reduced))
        return notes


def evenly(numbers: list[int], most: int) -> Iterable[int]:
    """At most `most` of the numbers, evenly spaced."""
    return numbers if len(numbers) <= most else [numbers[k * len(numbers) // most] for k in range(most)]
