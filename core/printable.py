"""Text that any terminal can show: names of files and classes come from outside, and may hold escape sequences."""

import os
import re

# Control characters (C0, DEL, C1), line and paragraph separators, and marks that turn the direction of writing.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")
_UNSAFE_BUT_LINES = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")


def printable(path: str) -> str:
    """A path or name on one line: bytes that are not UTF-8 and control characters become escapes such as \\xff and \\x1b."""
    return _escaped(path, _UNSAFE)


def printable_lines(text: str) -> str:
    """A message of one or several lines, with everything else escaped as by `printable`."""
    return _escaped(text, _UNSAFE_BUT_LINES)


def capital(text: str) -> str:
    """A text as the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def _escaped(text: str, unsafe: re.Pattern[str]) -> str:
    if text.isascii() and text.isprintable():  # nearly all, and millions of names come here
        return text
    try:
        shown = os.fsencode(text).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a surrogate pair, as JSON can hold
        shown = text.encode("utf-8", "backslashreplace").decode()
    return unsafe.sub(lambda found: found.group().encode("unicode_escape").decode(), shown)
