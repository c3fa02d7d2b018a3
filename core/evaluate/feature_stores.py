"""Where the rows of an extraction go: into the cache, into the memory, or into a temporary file, whichever of them can take them.

Every process decides the same: what fails on one has failed for all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .. import hostmemory
from ..distributed import all_reduce_min, gather_texts, rank, world
from ..errors import UserError
from ..images.limits import sized
from ..launchlog import warn
from ..peers import identity
from .feature_cache import Entry, drop, entry_size, new_files, publish
from .rounds import RowStore, StorageFailed, failure_words, stores_in_memory
from .tensor_file import TensorFile, mapped

Way = Literal["cache", "memory", "file"]
MEMORY_SHARE = 2
"""Features may take 1 / MEMORY_SHARE of the memory that each process has left."""


def leads_node() -> bool:
    """Whether this process is the first one on its machine, so that it writes for the others. Every process calls it."""
    if world() == 1:
        return True
    places = gather_texts(identity()["where"])
    return places.index(places[rank()]) == rank()


class FeatureStores:
    """Makes the stores of an extraction, as `extract_taps` asks for them.

    n: images. dtypes: of the features by name. entries: the places in the cache by name; empty if there is no cache. limit: bytes of the
    whole cache. log: for a line that is no warning.
    """

    def __init__(
        self,
        n: int,
        dtypes: Mapping[str, torch.dtype],
        entries: Mapping[str, Entry],
        limit: int,
        leads: bool,
        device: torch.device,
        log: Callable[[str], None],
    ) -> None:
        self.n, self.dtypes, self.entries, self.limit = n, dict(dtypes), entries, limit
        self.leads, self.device, self.log = leads, device, log
        self.failed: dict[Way, str] = {}
        self.way: Way = "memory"

    def __call__(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, RowStore]:
        """Raises UserError if nothing can take so much."""
        need = sum(entry_size((self.n, *shape), self.dtypes[name]) for name, shape in shapes.items())
        for way in self._ways(need):
            if way not in self.failed:
                self.way = way
                try:
                    return self._make(way, need, shapes)
                except StorageFailed as error:
                    self.give_up(str(error))
        reasons = "; ".join(dict.fromkeys(self.failed.values()))
        raise UserError(
            f"the features of {self.n} images ({', '.join(shapes)}) take {sized(need)}, for which there is no room: {reasons}; free some "
            "space there, or take a slice of the set, for example URI#[:10%,seed=0]"
        )

    def give_up(self, reason: str) -> None:
        """The present way has failed; the next call takes another."""
        self.failed[self.way] = reason
        if self.way == "cache":
            warn(f"WARNING: features are not cached ({reason}); this run goes on without the cache")

    def _ways(self, need: int) -> tuple[Way, ...]:
        if not self.entries:
            return ("memory", "file")
        return ("cache", "memory", "file") if need <= self.limit else ("file", "memory")

    def _make(self, way: Way, need: int, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, RowStore]:
        """Every process calls it. Raises StorageFailed on all processes."""
        if way == "memory":
            free = hostmemory.available()
            # All processes must decide the same; otherwise some would wait for the others.
            least = int(all_reduce_min(torch.tensor(-1 if free is None else free, device=self.device)))
            if 0 <= least < need * MEMORY_SHARE:
                raise StorageFailed(f"each process has {sized(least)} of memory left")
            stores, failed = dict[str, RowStore](), ""
            try:
                stores = dict(stores_in_memory(self.n, self.dtypes, checked=True)(shapes))
            except (RuntimeError, MemoryError):  # as torch says it
                failed = f"the memory has no {sized(need)} in one piece"
            _fail_together(failed)
            return stores
        files, failed = dict[str, TensorFile](), ""
        if self.leads:
            try:
                files = self._files(way, {name: (self.n, *shape) for name, shape in shapes.items()})
            except (OSError, RuntimeError) as error:  # RuntimeError: no home folder is known
                failed = failure_words(error)
        own = [
            identity()["where"] if world() > 1 else "",
            failed,
            {name: str(file.path) for name, file in files.items()},
        ]
        every = [json.loads(text) for text in gather_texts(json.dumps(own))]
        if reasons := [reason for _, reason, _ in every if reason]:
            for file in files.values():
                drop(file)
            raise StorageFailed(reasons[0])
        paths = next(paths for place, _, paths in every if place == own[0])
        keep = self.entries if way == "cache" else {}
        made = {
            name: _InFile(files.get(name), Path(paths[name]), (self.n, *shape), self.dtypes[name], keep.get(name))
            for name, shape in shapes.items()
        }
        try:
            _fail_together(next(filter(None, (store.unmappable() for store in made.values())), ""))
        except StorageFailed:
            for store in made.values():
                store.discard()
            raise
        if way == "file" and self.entries and need > self.limit:
            self.log(
                f"features of {self.n} images ({', '.join(shapes)}) take {sized(need)}, more than run.feature_cache ({sized(self.limit)}): "
                f"they go to a temporary file in {Path(next(iter(paths.values()))).parent}, which is deleted at the end"
            )
        return made

    def _files(self, way: Way, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorFile]:
        """New files, in the cache's folder; temporary ones elsewhere if that cannot be. Raises OSError; then there are none."""
        if way == "cache":
            return new_files(shapes, self.dtypes, self.limit)
        try:
            return new_files(shapes, self.dtypes)
        except (OSError, RuntimeError):
            return new_files(shapes, self.dtypes, folder=Path(tempfile.gettempdir()))


class _InFile:
    """Rows in a file, which the first process of each machine writes and all processes map.

    file: the open file, of who writes. entry: the place that it takes in the cache; None for a temporary file.
    """

    checked = True

    def __init__(
        self, file: TensorFile | None, path: Path, shape: tuple[int, ...], dtype: torch.dtype, entry: Entry | None
    ) -> None:
        self.file, self.path, self.shape, self.dtype, self.entry = file, path, shape, dtype, entry

    def put(self, start: int, rows: Tensor) -> None:
        if self.file is not None:
            try:
                self.file.put(start, rows)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path.parent)) from error

    def unmappable(self) -> str:
        """Why this process could not map the rows, as a limit of its memory; "" if it could. So it is known before any work."""
        try:
            mapped(self.path, self.shape, self.dtype)
        except OSError as error:
            return failure_words(error, self.path.parent)
        return ""

    def finish(self) -> Tensor:
        found, failed = None, ""
        try:
            if self.file is not None:
                self.file.sync()
        except OSError as error:
            failed = failure_words(error, self.path.parent)
        _fail_together(failed)
        try:
            found = mapped(self.path, self.shape, self.dtype)
        except OSError as error:
            failed = failure_words(error, self.path.parent)
        _fail_together(failed)
        if self.file is not None:
            if self.entry is not None:
                try:
                    publish(self.entry, self.file)
                except (OSError, UserError) as error:
                    warn(
                        f"WARNING: features are not cached ({failure_words(error, self.path.parent)}); this run goes on without the cache"
                    )
            self.discard()
        assert found is not None
        return found

    def discard(self) -> None:
        """Delete the file, unless it has become an entry; who has mapped it keeps it."""
        if self.file is not None:
            drop(self.file)
            self.file = None


def _fail_together(reason: str) -> None:
    """Raises StorageFailed on all processes if one has a reason."""
    if reasons := [text for text in gather_texts(reason) if text]:
        raise StorageFailed(reasons[0])
