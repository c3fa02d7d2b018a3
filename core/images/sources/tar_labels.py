"""The label in a sidecar of an archive: a whole text, or the value of a key in a .json."""

import json
from typing import Any, BinaryIO, NamedTuple

from ...errors import UserError
from ..places import abridged

LABEL_BYTES = {"json": 1 << 20}
TEXT_BYTES = 4096
"""The largest sidecars that are read, by their ending; TEXT_BYTES for the others."""


class Reading(NamedTuple):
    """Which sidecars are read: their ending without what comes before its last dot, and the key of a .json.

    group: the key of every .json that says the group of a picture; None if none does.
    """

    suffix: str
    field: str | None
    group: str | None = None

    def labels(self, name: str) -> bool:
        return has_ending(name, self.suffix)

    def groups(self, name: str) -> bool:
        return self.group is not None and has_ending(name, "json")

    def reads(self, name: str) -> bool:
        return self.labels(name) or self.groups(name)


def has_ending(name: str, ending: str) -> bool:
    """Whether a name has an ending, in any case: 000.CLS goes with 000.PNG."""
    return name.lower().endswith(f".{ending.lower()}")


def label_text(file: BinaryIO, offset: int, size: int, reading: Reading) -> str:
    """The label in a sidecar, as a text. Raises UserError with the part of a sentence that says what is wrong."""
    most = LABEL_BYTES.get(reading.suffix, TEXT_BYTES)
    if size > most:
        raise UserError(f"has {size:,} bytes, more than a label's file may have ({most:,})")
    file.seek(offset)
    try:
        text = file.read(size).decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UserError("is no text in UTF-8") from None
    label = text if reading.field is None else json_label(text, reading.field)
    if not label or "\n" in label or "\0" in label:
        raise UserError("is empty" if not label else "has several lines")
    return label


def json_label(text: str, field: str) -> str:
    """The value of a key of a .json, as a text."""
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError("is no JSON") from None
    if not isinstance(values, dict):
        raise UserError("holds no keys")
    if field not in values:
        raise UserError(f"has no key {abridged(field)} (it has: {abridged(', '.join(map(str, values))) or 'none'})")
    value = values[field]
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"has {abridged(json.dumps(value), 40)} as {field}, which is neither a text nor a whole number")
    try:
        return str(value).strip()
    except ValueError:  # a number of more than 4,300 digits
        raise UserError(f"has a number as {field} that is too long") from None
