"""What a run finds out once, before its first step, and keeps: every process, and a command that goes on with the run, has the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ..digested import read_digested, write_digested
from ..distributed import broadcast_text
from ..errors import UserError
from ..manifest import DamagedFile
from .directory import Run


def kept_once(run: Run, file: str, find: Callable[[], Mapping[str, Tensor]], again: str) -> Mapping[str, Tensor]:
    """The tensors of RUN/checkpoints/kept/FILE; where they are not there, or are damaged, `find` makes them, and rank 0 writes them.

    Called on every process; `find` too, and has to give the same tensors on all. again: what is done anew where the file is damaged, for
    the log. Raises UserError where other processes do not see what rank 0 reads.
    """
    path, stored = run.checkpoints / "kept" / file, None
    if broadcast_text("yes" if run.main and path.is_file() else ""):
        try:
            stored = read_digested(path)
        except DamagedFile as error:
            run.log(f"WARNING: {error}; {again}")
    if not broadcast_text("yes" if stored is not None else ""):
        found = find()
        if run.main:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_digested(path, found)
        return found
    if stored is None:
        raise UserError(
            f"run.dir: rank 0 reads {path}, which other processes do not find; put run.dir on a disk that all nodes share"
        )
    return stored
