"""Expands patterns that name the several archives (shards) of one set."""

import glob
import itertools
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError
from ..places import abridged, file_named, place_named

MAX_SHARDS = 100_000
"""The largest number of archives in one set; the largest public sets have some ten thousand."""


def archives_of(path: str, title: str) -> list[Path]:
    """The archive at `path`, or all archives that its pattern names: {000..127}, {a,b}, * and [..], as in a shell.

    Raises UserError if one of them is missing, or if they are more than MAX_SHARDS.
    """
    if not is_pattern(path) or place_named(path, title).exists():
        return [file_named(path, title, "archive")]
    found: list[str] = []
    for one in (str(place_named(one, title)) for one in braces(path, title)):
        matches = sorted(glob.iglob(one)) if re.search(r"[*\[]", one) and not os.path.exists(one) else [one]
        if not matches:
            raise UserError(f"{title}: no archive is called {abridged(one)}; check the path")
        found += matches
        check_number(len(found), title)
    missing = [one for one in found if not os.path.isfile(one)]
    if missing:
        raise UserError(
            f"{title}: {len(missing)} of its {len(found)} archives are not there ({abridged(missing[0])}); fetch them"
        )
    if len({os.path.realpath(one) for one in found}) < len(found):
        raise UserError(f"{title}: it names an archive twice, perhaps by a link, so its pictures would count double")
    return [Path(one) for one in found]


def is_pattern(path: str) -> bool:
    return re.search(r"[*\[{]", path) is not None


def check_number(count: int, title: str) -> None:
    if count > MAX_SHARDS:
        raise UserError(
            f"{title}: its pattern stands for {count:,} archives, more than a set may have ({MAX_SHARDS:,}); "
            "correct it, or name parts of the set as several URIs"
        )


def braces(pattern: str, title: str = "the pattern") -> list[str]:
    """All names that a pattern with {000..127} (leading zeros as in the first number) and {a,b} stands for, in order.

    Raises UserError if a brace has no partner, if a range is empty, or if the names are more than MAX_SHARDS.
    """
    if not re.fullmatch(r"(?:[^{}]|\{[^{}]*\})*", pattern):
        raise UserError(
            f"{title}: its braces {{ }} are nested or have no partner; write for example {{000..127}} or {{a,b}}"
        )
    parts = [choices(text, inside, title) for text, inside in re.findall(r"([^{}]+)|\{([^{}]*)\}", pattern)]
    check_number(math.prod(len(part) for part in parts), title)
    return ["".join(choice) for choice in itertools.product(*parts)]


def choices(text: str, inside: str, title: str) -> Sequence[str]:
    """What a part of a pattern stands for. text: what lies outside of braces; inside: the inner part of braces otherwise."""
    if text:
        return [text]
    found = re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", inside)
    if not found:
        return inside.split(",")
    first, last = found.groups()
    if int(last) < int(first):
        raise UserError(f"{title}: the range {{{inside}}} is empty; write the smaller number first")
    check_number(int(last) - int(first) + 1, title)
    width = len(first) if first.startswith("0") else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]


def pattern_name(path: str) -> str:
    """The domain name of a pattern's images: train for `a/train-{00..99}.tar`, a for `a/*.tar`."""
    start = re.split(r"[*\[{]", Path(path).name)[0].rstrip("-_.")
    return start or Path(path).absolute().parent.name or path
