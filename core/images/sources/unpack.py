"""The uncompressed copy of an archive, in the cache. Its size is limited while it is written."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import UserError
from ..cache import entry_name
from ..limits import UnpackLimits
from .archives import Archive, CopyRoom, made_copy

COMPRESSIONS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
UNPACKED_AT_ONCE = 1 << 20


def unpack(archive: Archive, title: str, limits: UnpackLimits) -> Path | None:
    """The archive's uncompressed copy in the cache; None if it is uncompressed itself.

    Raises UserError if it is damaged, exceeds its limits, or if the cache cannot be written.
    """
    try:
        with archive.open() as file:
            start = file.read(6)
    except OSError as error:
        raise UserError(f"{title}: cannot be opened ({error.strerror}); check its permissions") from None
    opener = next((opener for magic, opener in COMPRESSIONS.items() if start.startswith(magic)), None)
    if opener is None:
        return None
    place = archive.place_of_copy(entry_name(archive.name, archive.stamp), ".tar")
    by_hand = ", or unpack it by hand and open the .tar"
    return made_copy(
        place, lambda target: decompress(archive, opener, target, title, limits), title, "unpacked", by_hand
    )


def decompress(
    archive: Archive, opener: Callable[[BinaryIO], Any], target: BinaryIO, title: str, limits: UnpackLimits
) -> None:
    """Write the uncompressed archive to `target`. Raises UserError if it is damaged or exceeds its limits."""
    made, room = 0, CopyRoom(archive, title)
    with archive.open() as packed:
        source = opener(packed)
        while content := next_part(source, title):
            made += len(content)
            # how far the file has been read: a bomb is seen before it is whole
            limits.check(made, packed.tell(), title)
            room.take(made)
            target.write(content)


def next_part(source: Any, title: str) -> bytes:
    try:
        return source.read(UNPACKED_AT_ONCE)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the file, not of its content
            raise UserError(f"{title}: cannot be read ({error.strerror}); check the disk") from None
        raise UserError(f"{title}: the archive is damaged or cut short ({error}); fetch it again") from None
    except MemoryError:  # an xz file names the memory that it needs, up to 4 GiB
        raise UserError(f"{title}: unpacking it needs more memory than there is; pack it with gzip") from None
