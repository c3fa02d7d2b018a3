"""Wording of messages about configs: types, values, and the name that was probably meant."""

import difflib
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from .auto import AUTO, OrAuto


def words(annotation: Any) -> str:
    """A type in the words of a message: `float | None` is "a number or null". A class may bring its own: `in_words`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated and OrAuto in arguments:
        return f"{words(arguments[0])} or {AUTO}"
    own = [mark.in_words for mark in (annotation, *arguments) if isinstance(mark, type) and hasattr(mark, "in_words")]
    if origin is Annotated or (own and origin is None):
        return own[0] if own else words(arguments[0])
    if origin in (Union, types.UnionType, Literal) or annotation is bool:
        *most, last = dict.fromkeys(_options(annotation))
        return f"{', '.join(most)} or {last}" if most else last
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} ({', '.join(words(argument) for argument in arguments)})"
    if origin in (list, tuple, Sequence):
        return f"a list (each {words(arguments[0])})"
    if origin in (dict, Mapping):
        return "a mapping" if arguments[1] is Any else f"a mapping (each value {words(arguments[1])})"
    plain = {float: "a number", int: "an integer", str: "text", type(None): "null", Any: "any value"}
    plain |= {list: "a list", tuple: "a list", dict: "a mapping", Mapping: "a mapping"}
    return plain.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _options(annotation: Any) -> list[str]:
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [argument if isinstance(argument, str) else show(argument) for argument in get_args(annotation)]
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for argument in get_args(annotation) for option in _options(argument)]
    return [words(annotation)]


def literals(annotation: Any) -> list[str]:
    """The texts that a type lists by name."""
    arguments = get_args(annotation)
    if annotation is OrAuto:
        return [AUTO]
    if get_origin(annotation) is Literal:
        return [argument for argument in arguments if isinstance(argument, str)]
    return [text for argument in arguments for text in literals(argument)]


def show(value: Any) -> str:
    """A value as JSON writes it, shortened to fit into a sentence."""
    text = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def spelt(name: Any) -> str:
    """A key or name in a sentence: unchanged if it is printable text, else as JSON writes it."""
    return name if isinstance(name, str) and name.isprintable() and 0 < len(name) <= 300 else show(name)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name closest to a misspelt one; None if none is close."""
    plain = {name.lower().replace("-", "_"): name for name in known}
    word = word.lower().replace("-", "_")
    close = difflib.get_close_matches(word, plain, n=1)
    close = close or [name for name in plain if len(word) > 1 and name.startswith(word)]
    return plain[close[0]] if close else None


def among(word: str, known: Iterable[str], kind: str = "known", guess: str | None = None, most: int = 30) -> str:
    """The tail of a message about a name that is not known: `; did you mean b? (known: a, b, c)`.

    guess: proposed if no known name is close. Lists are cut after `most` names.
    """
    names = list(known)
    close = nearest(word, names) or guess
    more = f" and {len(names) - most} more" if len(names) > most else ""
    question = f"; did you mean {close}?" if close else ""
    return f"{question} ({kind}: {', '.join(names[:most]) or 'none'}{more})"
