"""The rows of metrics.jsonl, kept until the disk takes them, and read whatever a kill or a disk has left of it; and which files of a
finished run its manifest lists."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..files import read_regular

METRICS, PREDICTIONS = "metrics.jsonl", "predictions.safetensors"
CELLS = "cells"  # the pipeline's folder inside that of an attribution
LOOKS, CANDIDATES = "looks.json", "candidates.safetensors"
# Of a run that ends, besides result.json. What is rewritten later (state.json) or is for people alone (report.html) is not listed.
GUARDED = (
    METRICS,
    PREDICTIONS,
    CANDIDATES,
    LOOKS,
    "candidates/*.safetensors",
    "map.json",
    "map.webp",
    "pictures/captions.json",
    "pictures/*.png",
    "*/MANIFEST.json",
)


class RowFile:
    """Appends rows to metrics.jsonl. Those that the disk does not take wait in memory, in their order, and follow with a later row.

    warn: gets one sentence when rows begin to wait.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path, self.warn, self.waiting = path, warn, list[str]()

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row after those that wait."""
        self.waiting.append(json.dumps(row) + "\n")
        try:
            self.write()
        except OSError as error:
            if len(self.waiting) == 1:
                why = f"{self.path} cannot be written ({error.strerror})"
                self.warn(f"WARNING: {why}; its rows wait in memory until it can; free some space")

    def write(self) -> None:
        """Write what waits: all of it or nothing. Raises OSError."""
        if not self.waiting:
            return
        content = "".join(self.waiting).encode()
        with open(self.path, "ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            try:
                if file.write(content) < len(content):  # there was room for a part of it
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            except OSError:
                file.truncate(before)
                raise
        self.waiting.clear()


def read_rows(path: Path, complain: Callable[[str], None]) -> list[dict[str, Any]]:
    """The readable rows, [] if there is no file. A half-written last line is no damage: a kill in the middle of a write leaves one.

    complain: gets one sentence if the file cannot be read, or how many other lines cannot.
    """
    try:
        content = read_regular(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        complain(f"{path} cannot be read ({error.strerror})")
        return []
    rows, wrong, last = [], 0, False
    for line in content.decode("utf-8", "replace").splitlines():
        wrong += last
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        last = not (isinstance(row, dict) and isinstance(row.get("step"), int | float))
        if not last:
            rows.append(row)
    if last and content.endswith(b"\n"):
        wrong += 1
    if wrong:
        complain(f"{path} is damaged ({wrong} of its lines cannot be read)")
    return rows


def digest_of_rows(path: Path) -> dict[str, Any] | None:
    """The length in bytes and the digest of metrics.jsonl; None if it cannot be read, as before the first row."""
    try:
        content = read_regular(path)
    except OSError:
        return None
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def differs(path: Path, digest: Any) -> bool:
    """Whether the beginning of metrics.jsonl is not what `digest_of_rows` found; rows after it do not count."""
    try:
        content = read_regular(path)
        return digest["sha256"] != hashlib.sha256(content[: digest["bytes"]]).hexdigest()
    except FileNotFoundError:
        return bool(digest)
    except OSError:
        return True
    except (TypeError, KeyError):  # no digest
        return False


def guarded_files(folder: Path) -> list[str]:
    """The names of the files that the manifest of a finished run lists."""
    return sorted(str(path.relative_to(folder)) for name in GUARDED for path in folder.glob(name) if path.is_file())
