"""What each key means, read from docstrings: a line `key: One sentence.` of its own, continued by indented lines."""

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

_LINE = re.compile(r"(\w+): +(\S.*)")


@functools.cache
def described_keys(constructor: Callable[..., Any]) -> dict[str, str]:
    """The description of every key that the constructor's docstrings explain.

    Of a class: its docstring, then that of `__init__`, then those of its bases. The first one that explains a key wins.
    """
    found: dict[str, str] = {}
    for text in _docstrings(constructor):
        for key, description in _lines(text):
            found.setdefault(key, description)
    return found


def summary(constructor: Callable[..., Any]) -> str:
    """The first paragraph of a constructor's docstring, on one line; empty if it has none."""
    paragraph = next(_docstrings(constructor), "").split("\n\n")[0]
    return " ".join(paragraph.split())


def first_sentence(text: str) -> str:
    """A text up to the end of its first sentence."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", text, maxsplit=1)[0]


def _docstrings(constructor: Any) -> Iterator[str]:
    """The docstrings that may explain a constructor's keys, nearest first, without their indentation."""
    while isinstance(constructor, functools.partial):
        constructor = constructor.func
    if isinstance(constructor, type):
        owners = [owner for base in constructor.__mro__[:-1] for owner in (base, base.__dict__.get("__init__"))]
    else:
        owners = [inspect.unwrap(constructor)]
    for owner in owners:
        text = owner.__dict__.get("__doc__") if isinstance(owner, type) else getattr(owner, "__doc__", None)
        if isinstance(text, str):
            yield inspect.cleandoc(text)


def _lines(docstring: str) -> Iterator[tuple[str, str]]:
    """(key, description) of every line of the form `key: description`, with its continuation lines."""
    key, parts = "", list[str]()
    for line in [*docstring.splitlines(), ""]:
        if key and line.startswith("    "):
            parts.append(line.strip())
            continue
        if key:
            yield key, " ".join(parts)
        match = _LINE.fullmatch(line)
        key, parts = (match[1], [match[2].strip()]) if match else ("", [])
