"""What a set holds beside the pictures that are read. `rootstock data` prints it as a table, a training in one line for each set."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from ..printable import printable


class Note(NamedTuple):
    """One kind of things. number: how many; what: their name in the plural; example: the first of them.

    level: `warn` if a training warns of it, `say` if it says it, `list` if only the table has it.
    """

    number: int
    what: str
    example: str = ""
    level: Literal["warn", "say", "list"] = "warn"

    def sentence(self) -> str:
        return f"{self.number:,} {self.what}" + (f" ({printable(self.example)})" if self.example else "")


def line_of(uri: str, notes: Sequence[Note]) -> str | None:
    """What a training says of a set, in one line; None if there is nothing to say."""
    said = [note for note in notes if note.level != "list"]
    if not said:
        return None
    head = "WARNING: " if any(note.level == "warn" for note in said) else ""
    return f"{head}{printable(uri)}: " + "; ".join(note.sentence() for note in said)


def merged(groups: Iterable[Sequence[Note]]) -> tuple[Note, ...]:
    """The notes of several sets; equal kinds are counted together."""
    found: dict[str, Note] = {}
    for group in groups:
        for note in group:
            before = found.get(note.what)
            found[note.what] = note if before is None else before._replace(number=before.number + note.number)
    return tuple(found.values())


ALIKE = (
    "classes whose names differ only in case, spaces, zeros in front or the way accents are stored; are they one class?"
)


def with_alike(notes: Iterable[Note], classes: Sequence[str] | None) -> tuple[Note, ...]:
    """The notes, with one about classes of nearly equal names: two spellings of one label make two classes."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in classes or ():
        plain = " ".join(unicodedata.normalize("NFKC", name.lstrip("\ufeff")).casefold().split())
        groups[str(int(plain)) if plain.isascii() and plain.isdigit() and len(plain) < 1000 else plain].append(name)
    alike = [names for names in groups.values() if len(names) > 1]
    number = sum(map(len, alike))
    said = [Note(number, ALIKE, ", ".join(alike[0][:5]), "say")] if alike else []
    return (*(note for note in notes if note.what != ALIKE), *said)
