"""Image URIs: SCHEME:PATH[?OPTION=VALUE&...][#FRAGMENT...].

The options of a scheme are the keyword-only parameters of its opener, so none is declared twice and none is ignored.
In a path, %23, %3F and %25 stand for #, ? and %.
"""

import difflib
import inspect
import os
import re
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ..errors import UserError
from .places import abridged, uri_path
from .remote.address import refuse_secrets

MAX_CHARACTERS = 100_000
ESCAPES = {"%23": "#", "%3f": "?", "%25": "%"}


class Uri(NamedTuple):
    """A parsed URI; `text` is the whole URI, and `path` is unescaped."""

    text: str
    scheme: str
    path: str
    options: dict[str, str]
    fragments: tuple[str, ...]

    @property
    def location(self) -> str:
        """The URI without its splits."""
        return self.text.partition("#")[0]


def parse_uri(text: str) -> Uri:
    """Parse a URI. Raises UserError if it has no scheme, or if its options are not key=value, each given once."""
    if "\0" in text or len(text) > MAX_CHARACTERS:
        wrong = "it holds a NUL" if "\0" in text else f"a URI has at most {MAX_CHARACTERS:,} characters"
        raise UserError(f"{abridged(text)}: {wrong}; check how it was made")
    refuse_secrets(text)
    shown = abridged(text)
    location, *fragments = text.strip().split("#")
    scheme, colon, rest = location.partition(":")
    if not colon:
        named = abridged(uri_path(text)) if os.path.isdir(text) else shown
        raise UserError(f"'{shown}' is not an image URI: it has no scheme; write for example folder:{named}")
    path, mark, query = rest.partition("?")
    if not path:
        raise UserError(
            f"{shown}: the path is missing after '{abridged(scheme, 40)}:'; expected {abridged(scheme, 40)}:PATH"
        )
    if mark and not query:
        raise UserError(f"{shown}: no option is given after '?'; remove it, or write ?key=value")
    options: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UserError(f"{shown}: '{abridged(pair)}' is not an option; expected ?key=value&key=value")
        if key in options:
            raise UserError(f"{shown}: the option {abridged(key, 40)} is given twice")
        options[key] = unescaped(value)
    if "" in fragments:
        raise UserError(f"{shown}: no split is given after '#'; write for example #train or #[:80%,seed=0]")
    return Uri(text.strip(), scheme, unescaped(path), options, tuple(fragments))


def unescaped(text: str) -> str:
    return re.sub("%(23|3f|25)", lambda match: ESCAPES[match.group().lower()], text, flags=re.IGNORECASE)


def keyword_options(opener: Callable[..., Any], uri: Uri) -> dict[str, Any]:
    """The URI's options as arguments of its opener. Raises UserError for an unknown, unreadable or missing one."""
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(opener).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    arguments = {}
    for key, text in uri.options.items():
        if key not in parameters:
            raise UserError(
                f"{abridged(uri.text)}: unknown option {abridged(key, 40)}{suggestion(key[:100], parameters)}"
            )
        arguments[key] = converted(uri, key, text, parameters[key].annotation)
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in arguments:
            raise UserError(f"{abridged(uri.text)}: the option {name} is needed; write ?{name}=...")
    return arguments


def converted(uri: Uri, key: str, text: str, annotation: Any) -> str | int | bool:
    """An option's text as the type that the opener declares (str, int, bool, or one of these or None)."""
    if isinstance(annotation, types.UnionType):
        annotation = next(choice for choice in annotation.__args__ if choice is not types.NoneType)
    if annotation is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise UserError(f"{abridged(uri.text)}: {key}={abridged(text, 40)} is neither true nor false")
        return text.lower() in ("true", "1")
    if annotation is int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise UserError(f"{abridged(uri.text)}: {key}={abridged(text, 40)} is not a whole number")
        return int(text)
    return text


def suggestion(name: str, known: Iterable[str]) -> str:
    """'; did you mean X? (known: X, Y)' for an error about a name that is not known."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    listed = ", ".join(known) or "none"
    return (f"; did you mean {near[0]}?" if near else "") + f" (known: {listed})"
