"""Whether candidates that are trained together have room in the memory: asked before features are extracted."""

from __future__ import annotations

from ...core import hostmemory
from ...core.distributed import gather_texts
from ...core.errors import UserError


def check_room(key: str, candidates: int, need: int, remedy: str) -> None:
    """Raises UserError, on all processes together, if `need` bytes are more than half of the free memory of any.

    key: the section, for the message. candidates: how many take these bytes.
    """
    free = hostmemory.available()
    short = (
        "" if free is None or need <= free / 2 else f"{need / 1e6:.1f} MB, more than half of the {free / 1e6:.1f} MB"
    )
    if reasons := [reason for reason in gather_texts(short) if reason]:
        raise UserError(f"{key}: {candidates} candidates take {reasons[0]} of memory that a process has left; {remedy}")
