"""The folder in which a pack is made: one process at a time writes it, and what keeps it from being written is one sentence."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...errors import UserError
from .journal import JOURNAL


@contextmanager
def writable(part: Path) -> Iterator[None]:
    """Within it, what keeps files from being written is one sentence; a full disk has its own, and its own exit code."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE) or error.strerror is None:
            raise
        raise UserError(
            f"{part} cannot be written ({error.strerror}); name another folder, or see to it that this one can be"
        ) from None


@contextmanager
def locked(journal: Path) -> Iterator[int]:
    """A descriptor for appending to the journal, locked against other processes; the kernel lets go however this one ends."""
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
    """Take away the folder that was made in vain; what somebody began in it stays."""
    if os.fstat(journal).st_size == 0:
        with suppress(OSError):
            (part / JOURNAL).unlink(missing_ok=True)
            part.rmdir()
