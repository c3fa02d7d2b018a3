"""A pack among objects: pack.json, index.safetensors and records.bin below one address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import UserError
from ...printable import printable
from ..notes import Note
from ..remote.blocks import DEFAULT_MOST, most_of
from ..remote.client import RemoteObject, found_object
from ..remote.faults import MissingObject
from ..remote.reading import ObjectReader
from .files import ABOUT, INDEX, RECORDS, PackFiles

NAMES = (ABOUT, INDEX, RECORDS)


class PackObjects(PackFiles):
    """The files of a pack, in the versions that they had when it was opened. objects: in the order of NAMES."""

    mapped = False

    def __init__(self, address: str, objects: tuple[RemoteObject, ...], most: int) -> None:
        self.folder, self.shown = Path(address), address
        self.objects: dict[str, RemoteObject] = dict(zip(NAMES, objects, strict=True))
        self.most = most
        self._reader = ObjectReader(objects, most)

    def __reduce__(self) -> tuple[Any, ...]:
        return PackObjects, (self.shown, tuple(self.objects.values()), self.most)

    def unusable(self, reason: str) -> UserError:
        return UserError(f"pack:{printable(self.shown)}: {reason}; {self.remedy()}")

    def remedy(self) -> str:
        return "copy the finished pack there once more"

    def whole(self, name: str) -> bytes:
        one = self.objects[name]
        return self._reader.read(one.url, one.size, 0)

    def size(self) -> int:
        return self.objects[RECORDS].size

    def read(self, size: int, offset: int) -> bytearray:
        return bytearray(self._reader.read(self.objects[RECORDS].url, size, offset))

    def notes(self) -> list[Note]:
        return self._reader.notes()


def objects_of_pack(address: str, title: str, cache: str | None) -> PackObjects:
    """The files of the pack below an address. Raises UserError."""
    address = address.rstrip("/")
    try:
        objects = tuple(found_object(f"{address}/{name}") for name in NAMES)
    except MissingObject as error:
        raise UserError(
            f"{title}: there is no pack ({error}); expected a copy of a folder made by rootstock data URI --pack FOLDER"
        ) from None
    return PackObjects(address, objects, most_of(cache or DEFAULT_MOST, title))
