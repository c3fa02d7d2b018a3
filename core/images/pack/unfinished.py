"""The folder of an unfinished pack: one process at a time writes it, and errors of writing become one sentence."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...errors import UserError
from ..places import kind_of_place
from .files import RECORDS
from .journal import JOURNAL

PLAN = "plan.json"


@contextmanager
def writable(part: Path) -> Iterator[None]:
    """Turn errors of writing into UserError; a full disk passes as OSError, since it has its own message and exit code."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE) or error.strerror is None:
            raise
        raise UserError(
            f"{part} cannot be written ({error.strerror}); name another folder, or make this one writable"
        ) from None


@contextmanager
def locked(journal: Path) -> Iterator[int]:
    """A descriptor for appending to the journal, locked against other processes; the kernel releases it however this process ends."""
    for name in (JOURNAL, RECORDS, PLAN):  # opening a pipe would wait for its other end
        file = journal.with_name(name)
        if file.exists() and not file.is_file():
            raise UserError(
                f"{file} is {kind_of_place(file.stat().st_mode)}, and no file; remove {journal.parent} to begin anew"
            )
    descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{journal.parent} is being written by another process; wait for it to end") from None
        yield descriptor
    finally:
        os.close(descriptor)


def withdraw(part: Path, journal: int) -> None:
    """Remove the folder if nothing was packed into it."""
    if os.fstat(journal).st_size == 0:
        with suppress(OSError):
            (part / JOURNAL).unlink(missing_ok=True)
            part.rmdir()
