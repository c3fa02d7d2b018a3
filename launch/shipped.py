"""The configs that ship, with a line about each: what a verb says when it is called without one. Imports no torch."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from ..core.config.yaml_file import CONFIGS
from .examples import HELP_EXAMPLES

WIDTH = 110
_ENTRY = re.compile(r"# (Command|Time|Expected)\b")  # where the header's description ends
# An aside in parentheses, which may hold others, or the end of the first statement.
_ASIDE = re.compile(r"\s*\((?:[^()]|\([^()]*\))*\)")
_END = re.compile(r"\.(?=\s+[A-Z]|$)|[:;](?=\s)")
_ROOT = {"run": "", "attribute": "attribute_"}  # verbs whose configs lie beside the folders, and how their names begin


def shipped(verb: str) -> dict[str, str]:
    """The configs of a verb that ship: as the command line takes them, and a line about each; first those for pictures of one's own."""
    found = {name: first_statement(path.read_text(encoding="utf-8")) for name, path in _files(verb)}
    return dict(sorted(found.items(), key=lambda item: (item[0] != "small", item[0])))


def first_statement(text: str) -> str:
    """What a config's header says first, without what stands in parentheses, after a colon or after a semicolon."""
    words = list[str]()
    for line in text.splitlines():
        if not line.startswith("#") or _ENTRY.match(line):
            break
        words.append(line.removeprefix("#").strip())
    plain = _ASIDE.sub("", " ".join(words))
    end = _END.search(plain)
    return plain[: end.start()] if end else plain


def listing(verb: str, launched: bool = False) -> str:
    """What a verb says without its CONFIG. launched: whether `rootstock launch` was asked to run the verb."""
    begin = f"rootstock launch {verb}" if launched else f"rootstock {verb}"
    known = shipped(verb)
    wide = max(map(len, known), default=0)
    lines = [
        textwrap.fill(line, WIDTH, initial_indent=f"  {name:{wide}}  ", subsequent_indent=" " * (wide + 4))
        for name, line in known.items()
    ]
    example = HELP_EXAMPLES[verb][0].replace(f"rootstock {verb}", begin, 1)
    return "\n".join(
        [
            f"error: {begin} needs a config: one of those that ship, or a YAML file of yours. Any key of it may follow, for example:",
            "",
            f"  {example}",
            "",
            *lines,
            "",
            f"How to call it: rootstock {'launch' if launched else verb} --help. What a key means: rootstock help KEY.",
        ]
    )


def _files(verb: str) -> Iterator[tuple[str, Path]]:
    """(name, file) of each config of a verb."""
    if verb not in _ROOT:
        yield from ((path.stem, path) for path in (CONFIGS / verb).glob("*.yaml"))
        return
    others = tuple(begin for name, begin in _ROOT.items() if name != verb and begin)
    for path in CONFIGS.glob(f"{_ROOT[verb]}*.yaml"):
        if verb != "run" or not path.name.startswith(others):
            yield path.stem, path
