"""A ledger: entries in a JSON file, each of which holds the sha256 of the one before. Entries are added, never changed or removed.

    {"format": 1, "of": TEXT, "since": TIME, "entries": [{..., "before": SHA256}, ...], "own": SHA256}

`before` of the first entry is the digest of the first three members, so an entry stands for all that came before it. A ledger is written
whole or not at all, and by one command at a time. What is damaged is named and left as it is: a new ledger in its place would forget.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .manifest import OWN, DamagedFile, own_digest, read_object, read_record, write_record

LEDGER_FORMAT = 1
_LOCK = ".lock"  # of a folder of ledgers that several commands share
LINK = "before"  # the member of an entry that holds the digest of the one before


class Ledger(NamedTuple):
    """of: what it is about. since: when it was begun, in UTC; what came before is not known. entries: without their links."""

    of: str
    since: str
    entries: tuple[Mapping[str, Any], ...]

    def place(self, entry: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
        """The index of the first entry that is equal in these keys; None if there is none."""
        return next((i for i, one in enumerate(self.entries) if all(one.get(k) == entry.get(k) for k in keys)), None)


def read_ledger(path: Path) -> Ledger | None:
    """A ledger whose chain holds; None if there is no file. Raises DamagedFile, naming the file."""
    try:
        guarded = OWN in read_object(path)
        record = read_record(path)
    except FileNotFoundError:
        return None
    wrong = DamagedFile(f"{path} is damaged (it is no ledger of this version)")
    if not guarded or record.get("format") != LEDGER_FORMAT or not isinstance(record.get("entries"), list):
        raise wrong
    of, since = record.get("of"), record.get("since")
    if not isinstance(of, str) or not isinstance(since, str):
        raise wrong
    entries, link = [], _first_link(of, since)
    for number, entry in enumerate(record["entries"], 1):
        if not isinstance(entry, dict) or entry.get(LINK) != link:
            raise DamagedFile(f"{path} is damaged (entry {number} does not follow from the one before)")
        link = own_digest(entry)
        entries.append({key: value for key, value in entry.items() if key != LINK})
    return Ledger(of, since, tuple(entries))


def add_entry(path: Path, of: str, entry: Mapping[str, Any], keys: tuple[str, ...], shared: bool = False) -> Ledger:
    """Add an entry, unless one that is equal in `keys` is there; begin the ledger if there is none. Returns the ledger as it is then.

    On return the entry is on disk. shared: other commands may write here at the same time. Raises DamagedFile, and OSError if nothing
    can be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path) if shared else contextlib.nullcontext():
        ledger = read_ledger(path) or Ledger(of, utc_now(), ())
        if ledger.of != of:
            raise DamagedFile(f"{path} is damaged (it is the ledger of something else)")
        if ledger.place(entry, keys) is None:
            ledger = ledger._replace(entries=(*ledger.entries, dict(entry)))
            write_record(path, _as_record(ledger), shared=shared)
    return ledger


def utc_now() -> str:
    """The time in UTC, to the second, as ISO 8601 writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _as_record(ledger: Ledger) -> dict[str, Any]:
    linked, link = [], _first_link(ledger.of, ledger.since)
    for entry in ledger.entries:
        linked.append({**entry, LINK: link})
        link = own_digest(linked[-1])
    return {"format": LEDGER_FORMAT, "of": ledger.of, "since": ledger.since, "entries": linked}


def _first_link(of: str, since: str) -> str:
    return own_digest({"format": LEDGER_FORMAT, "of": of, "since": since})


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Among the commands that write ledgers of this folder. The kernel frees the lock of a killed one."""
    handle = os.open(path.parent / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
