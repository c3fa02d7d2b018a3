"""What a frozen teacher gives for a view, kept on disk and found again by the view's own pixels.

A view is a function of seed and position, so a second student with the same data, views and seed finds all that the first one's teacher
computed, and so does a run that is repeated or resumed. Where anything differs, the pixels do, and the teacher is asked.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...core.draws import GOLDEN, splitmix64, stream_key
from ...core.errors import UserError
from ...core.files import expanded

ENDING = ".rows"
AskTeacher = Callable[[Tensor], list[Tensor]]


class TeacherCache:
    """Files of records, appended to: key and digest of a row, int64 each, and its numbers, float32. Each process writes its own file.

    folder: of all caches. name: of the teacher and of how its features are taken; another name is another cache. shapes: of one view's
    features, as `AskTeacher` returns them. A record that was cut off, or is damaged, counts as missing.

    The folder is made with the first record, so that what is only built leaves none. Raises UserError for one that cannot be made.
    """

    def __init__(self, folder: str, name: str, shapes: Sequence[Sequence[int]]) -> None:
        self.folder = expanded(folder) / name
        self.shapes = [tuple(shape) for shape in shapes]
        self.widths = [int(np.prod(shape)) for shape in self.shapes]
        self.record = np.dtype([("key", "<i8"), ("digest", "<i8"), ("row", "<f4", (sum(self.widths),))])
        there = next(place for place in (self.folder, *self.folder.parents) if os.path.lexists(place))
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            why = "cannot be written" if there.is_dir() else "is no folder"
            raise UserError(
                f"method.cache: {self.folder} cannot be made ({there} {why}); name another folder, or leave cache out"
            )
        # A folder can hold files of processes that died, and of one that had this name and host before.
        self.own = self.folder / f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}{ENDING}"
        self.found: dict[int, tuple[Path, int]] = {}  # file and place of the record with this key
        self.written = 0
        for path in sorted(self.folder.glob(f"*{ENDING}")):
            self._read(path)

    def __len__(self) -> int:
        return len(self.found)

    @property
    def bytes_of_view(self) -> int:
        return self.record.itemsize

    def _read(self, path: Path) -> None:
        count = path.stat().st_size // self.record.itemsize
        if count:
            keys = np.memmap(path, self.record, "r", shape=(count,))["key"].tolist()
            self.found.update({key: (path, place) for place, key in enumerate(keys)})

    def __call__(self, images: Tensor, rows: AskTeacher) -> list[Tensor]:
        """What `rows(images)` returns, float32. images: [N, C, H, W] of the teacher; one that is missing has the whole batch computed."""
        keys = (row_digests(images) ^ _precision(images)).tolist()
        stored = [self._stored(key) for key in keys]
        if all(row is not None for row in stored):
            whole = torch.from_numpy(np.stack([row for row in stored if row is not None])).to(images.device)
        else:
            whole = torch.cat([part.detach().float().flatten(1) for part in rows(images)], 1)
            self._write([i for i, row in enumerate(stored) if row is None], keys, whole)
        return [part.unflatten(1, shape) for part, shape in zip(whole.split(self.widths, 1), self.shapes, strict=True)]

    def _stored(self, key: int) -> np.ndarray | None:
        if key not in self.found:
            return None
        path, place = self.found[key]
        size = self.record.itemsize
        with open(path, "rb") as file:
            content = os.pread(file.fileno(), size, place * size)
        if len(content) == size:
            record = np.frombuffer(content, self.record)
            row = record["row"].copy()
            if torch.equal(row_digests(torch.from_numpy(row)), torch.from_numpy(record["digest"].astype(np.int64))):
                return row[0]
        del self.found[key]
        return None

    def _write(self, which: Sequence[int], keys: Sequence[int], whole: Tensor) -> None:
        rows = whole[list(which)].cpu()
        records = np.empty(len(which), self.record)
        records["key"], records["digest"], records["row"] = (
            [keys[i] for i in which],
            row_digests(rows).numpy(),
            rows.numpy(),
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.own, "ab") as file:
            file.write(records.tobytes())
        self.found.update({keys[i]: (self.own, self.written + place) for place, i in enumerate(which)})
        self.written += len(which)


def _read_or_ask(cache: TeacherCache, images: Tensor, rows: AskTeacher) -> list[Tensor]:
    return cache(images, rows)


# The call of a cache, outside of compiled code, since it reads files.
read_or_ask: Callable[[TeacherCache, Tensor, AskTeacher], list[Tensor]] = torch.compiler.disable(_read_or_ask)  # pyright: ignore[reportAssignmentType]


def _precision(images: Tensor) -> int:
    """0, or a number of the half precision in which networks compute here: what a teacher gives in it is kept apart."""
    kind = images.device.type
    return stream_key(0, str(torch.get_autocast_dtype(kind))) if torch.is_autocast_enabled(kind) else 0


def row_digests(rows: Tensor) -> Tensor:
    """A number of 64 bits for the bits of each row: float32 [N, ...] -> int64 [N], on the CPU. Equal rows have equal numbers on any device.

    Each value's bits are hashed together with its place, so rows that hold the same values in another order differ.
    """
    bits = rows.detach().float().flatten(1).contiguous().view(torch.int32).to(torch.int64)
    places = torch.arange(bits.shape[1], device=bits.device) * GOLDEN
    return splitmix64(splitmix64(bits ^ places).sum(1)).cpu()
