"""`pack:`: a set as one file of records and an index, for fast random access without one file for each image.

A record is an image's original file, or its decoded pixels. Every record has a checksum, verified on each read. Identities, labels
and splits are those of the original set.

    PACK/pack.json           a description for people, and the sha256 of the index
    PACK/index.safetensors   offsets, checksums, shapes; identities, labels, domains, splits, names, stamps
    PACK/records.bin         the records, one after the other
"""

import hashlib
import json
import os
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ...errors import UserError
from ...printable import printable
from ..decode import decode, decode_scaled
from ..foreign import parsing
from ..open_files import Descriptor
from ..places import abridged, place_named, titled
from ..remote.address import is_remote
from ..sources.archives import refuse_cache
from ..sources.files import Names
from ..sources.layout import SPLIT_NAMES
from ..store import DamagedImage, Scale, Source, Stamp, Uniform
from .files import ABOUT, INDEX, RECORDS, PackFiles, unusable
from .objects import objects_of_pack
from .validate import BYTES, ENCODED, WORDS, WrongField, check_index

PACK_FORMAT = "rootstock pack 1"

PIXELS = {BYTES: (torch.uint8, np.dtype("u1")), WORDS: (torch.uint16, np.dtype("<u2"))}


def checksum(content: bytes | bytearray | memoryview) -> int:
    """CRC-32 (ISO 3309, as in PNG and gzip): finds any error of up to 32 bits in a row, at several GB/s."""
    return zlib.crc32(content)


class PackStore:
    """The records of the pack in a folder, or of the one that `files` reads."""

    def __init__(self, folder: Path | PackFiles) -> None:
        self.files = folder if isinstance(folder, PackFiles) else PackFiles(folder)
        self.folder = self.files.folder
        self.index, self.about = load_index(self.files)
        self.offsets: np.ndarray = self.index["offsets"].numpy()
        self.checksums: np.ndarray = self.index["checksums"].numpy()
        self.names = self._texts("names")
        self.stamps = self._texts("stamps")
        self._check_size(self.files.size())
        self._mapped: tuple[Descriptor, np.ndarray] | None = None
        self._repeats: bool | None = None

    def _texts(self, name: str) -> Names:
        return Names.of_block(self.index[name].numpy().tobytes(), self.index[f"{name}.ends"].numpy())

    def __reduce__(self) -> tuple[Any, ...]:
        return PackStore, (self.files,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def where(self, i: int) -> str:
        """The image's name in errors."""
        return printable(f"{self.files.shown}!{self.names[i]}")

    def record(self, i: int) -> bytearray:
        """The bytes of record i. Raises DamagedImage if they have changed since packing."""
        start, end = int(self.offsets[i]), int(self.offsets[i + 1])
        try:
            content = self.files.read(end - start, start)
        except OSError as error:
            raise DamagedImage(f"{self.where(i)}: cannot be read ({error.strerror or error})") from None
        self._verify(i, content)
        return content

    def _verify(self, i: int, content: bytearray | memoryview) -> None:
        if checksum(content) != self.checksums[i]:
            raise DamagedImage(
                f"{self.where(i)}: its bytes have changed since packing (checksum); {self.files.remedy()}"
            )

    def read(self, i: int) -> Tensor:
        record, kind = self.record(i), int(self.index["kinds"][i])
        if kind == ENCODED:
            return decode(record, self.where(i))
        return torch.frombuffer(record, dtype=PIXELS[kind][0]).view(*self.index["shapes"][i].tolist())

    def read_scaled(self, i: int, scale: Scale) -> tuple[Tensor, tuple[int, int]]:
        if self.index["kinds"][i] == ENCODED:
            return decode_scaled(self.record(i), self.where(i), scale)
        picture = self.read(i)
        return picture, (picture.shape[1], picture.shape[2])

    def encoded(self, i: int) -> bytearray | None:
        return self.record(i) if self.index["kinds"][i] == ENCODED else None

    def name(self, i: int) -> str:
        return self.names[i]

    def full_name(self, i: int) -> str:
        return f"{self.where(i)} (record {i})" if self.repeats() else self.where(i)

    def repeats(self) -> bool:
        if self._repeats is None:  # a pack of several folders or archives
            self._repeats = len({self.names[i] for i in range(len(self))}) < len(self)
        return self._repeats

    def unreadable(self) -> Collection[int]:
        return ()

    def keys(self) -> Tensor:
        return self.index["keys"]

    def stamp(self, i: int) -> str:
        return self.stamps[i]

    def watched(self, watch: Stamp) -> Sequence[str]:
        return [""] * len(self)  # every read compares the record with the index, and the index with its digest

    def uniform(self) -> Uniform | None:
        kinds, shapes = self.index["kinds"], self.index["shapes"]
        if not len(self) or kinds[0] == ENCODED or (kinds != kinds[0]).any() or (shapes != shapes[0]).any():
            return None
        channels, height, width = shapes[0].tolist()
        return Uniform((channels, height, width), PIXELS[int(kinds[0])][0])

    def rows(self, indices: Tensor) -> Tensor | None:
        if not self.files.mapped:
            return self._rows_read(indices)
        if self._mapped is None:
            uniform = self.uniform()
            if uniform is None:
                return None
            self._mapped = self._map(uniform)
        descriptor, mapped = self._mapped
        # If the file has been truncated, reading the mapped memory would kill the process by SIGBUS without a message.
        self._check_size(os.fstat(descriptor.number).st_size)
        pixels = np.asarray(mapped[indices.numpy()])
        for i, row in zip(indices.tolist(), pixels, strict=True):
            self._verify(i, row.data)
        return torch.from_numpy(pixels)

    def _rows_read(self, indices: Tensor) -> Tensor | None:
        """As `rows`, record by record: of a pack that is no file here."""
        uniform = self.uniform()
        if uniform is None:
            return None
        pixels = torch.empty(len(indices), *uniform.shape, dtype=uniform.dtype)
        for row, i in enumerate(indices.tolist()):
            pixels.numpy()[row] = self.read(i).numpy()
        return pixels

    def _map(self, uniform: Uniform) -> tuple[Descriptor, np.ndarray]:
        """The records as pixels [N, C, H, W], and the file behind them, whose size is checked before each read."""
        try:
            descriptor = Descriptor(str(self.folder / RECORDS))
        except OSError as error:
            raise self.files.unusable(f"{RECORDS} cannot be read ({error.strerror})") from None
        self._check_size(os.fstat(descriptor.number).st_size)
        dtype = PIXELS[int(self.index["kinds"][0])][1]
        with open(descriptor.number, "rb", closefd=False) as file:
            return descriptor, np.memmap(file, dtype, "r", shape=(len(self), *uniform.shape))

    def _check_size(self, size: int) -> None:
        if size != self.offsets[-1]:
            raise self.files.unusable(f"{RECORDS} has {size} bytes, but the index expects {self.offsets[-1]}")

    def layout(self, indices: Tensor) -> Tensor:
        return self.index["offsets"][indices]


def load_index(files: PackFiles) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and texts of the index. Raises UserError if pack.json or the index is damaged, or if a field is wrong."""
    try:
        listed = json.loads(files.whole(ABOUT))
        form, expected = listed["format"], listed["index_sha256"]
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError):
        raise files.unusable(f"{ABOUT} is damaged") from None
    if form != PACK_FORMAT:
        raise files.unusable(f"its format is {abridged(repr(form), 60)}, but this program reads {PACK_FORMAT!r}")
    content = files.whole(INDEX)
    if hashlib.sha256(content).hexdigest() != expected:
        raise files.unusable(f"{INDEX} has changed since packing (sha256)")
    with parsing(f"pack:{printable(files.shown)}: {INDEX}", files.remedy()):
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = json.loads(header["__metadata__"]["about"])
    try:
        return tensors, check_index(tensors, about)
    except WrongField as error:
        raise files.unusable(f"{INDEX} is not as packing writes it ({error})") from None


def save_index(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """The bytes of an index, with a single metadata entry, since safetensors does not keep the order of several."""
    return safetensors.torch.save(dict(tensors), {"about": json.dumps(about)})


def open_pack(path: str, split: str | None, *, cache: str | None = None) -> Source:
    """pack:FOLDER, made by `rootstock data URI --pack FOLDER`, or a copy of it among objects (s3://...). cache: as of `tar:`."""
    title = titled("pack", path)
    if is_remote(path):
        return source_of_pack(PackStore(objects_of_pack(path, title, cache)))
    refuse_cache(cache, title)
    folder = place_named(path, title)
    if not (folder / ABOUT).is_file():
        if (folder / INDEX).exists() or (folder / RECORDS).exists():
            raise unusable(folder, f"{ABOUT} is missing" if not (folder / ABOUT).exists() else f"{ABOUT} is no file")
        if Path(f"{folder}.part").is_dir():
            raise UserError(f"{title}: its packing is not finished; run the command that packed it again")
        raise UserError(f"{title}: there is no pack; expected a folder made by rootstock data URI --pack FOLDER")
    return source_of_pack(PackStore(folder.absolute()))


def source_of_pack(store: PackStore) -> Source:
    """The labels, splits, domains and groups that a pack has kept."""
    index, about = store.index, store.about
    like = [name for name in about["classes"] or () if name.lower() in SPLIT_NAMES]
    why = f"its classes {', '.join(map(printable, like))} are folders named like splits; pack each alone, with ?under= of what was packed"
    return Source(
        store,
        labels=index.get("labels"),
        classes=None if about["classes"] is None else tuple(about["classes"]),
        splits={name: index[f"split.{k}"] for k, name in enumerate(about["splits"])},
        domains=index.get("domains"),
        domain_names=tuple(about["domain_names"]),
        groups=index.get("groups"),
        notes=tuple(store.files.notes()),
        uncut=why if len(like) > 1 else "",
    )
