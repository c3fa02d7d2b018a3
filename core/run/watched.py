"""Whether the data of a run changed since it began: by the fingerprints and the watch that run.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORDS = {
    "size": "another name or size of a picture",
    "mtime": "a picture with the same name and size, but another time of change (of an object: another version)",
    "content": "a picture with the same name and size, but another content",
}


def changed_set(run: Path, before: Mapping[str, Any], data: Mapping[str, str], watched: Mapping[str, Any]) -> str:
    """The first set that changed, as the beginning of a sentence; "" if none did.

    run: its folder. before: run.json; one of an earlier version has only `data`, the fingerprints by names and sizes. data, watched: the
    same of now (`watch_sets`).
    """
    old = _mapping(before.get("data"))
    for name, now in data.items():
        if name in old and old[name] != now:
            return f"data.{name} changed since {run} began (fingerprint {str(old[name])[:12]} then, {now[:12]} now)"
    then = _mapping(before.get("watched"))
    if then.get("stamp") != watched.get("stamp"):
        return ""
    sets = _mapping(then.get("sets"))
    for name, now in watched.get("sets", {}).items():
        if name in sets and sets[name] != now:
            return f"data.{name} changed since {run} began (it has {WORDS[watched['stamp']]}; data.stamp is {watched['stamp']})"
    return ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
