"""Expands patterns that name the several archives (shards) of one set."""

import glob
import itertools
import os
import re
from pathlib import Path

from ...errors import UserError
from .files import printable


def archives_of(path: str, title: str) -> list[Path]:
    """The archive at `path`, or all archives that its pattern names: {000..127}, {a,b}, * and [..], as in a shell.

    Raises UserError if one of them is missing.
    """
    whole = Path(path).expanduser()
    if whole.exists() or not is_pattern(path):
        return [existing_archive(whole, path, title)]
    spelled = [str(Path(one).expanduser()) for one in braces(path)]
    found = []
    for one in spelled:
        matches = sorted(glob.glob(one)) if re.search(r"[*\[]", one) and not os.path.exists(one) else [one]
        if not matches:
            raise UserError(f"{title}: no archive is called {printable(one)}; check the path")
        found += matches
    missing = [one for one in found if not os.path.isfile(one)]
    if missing:
        raise UserError(
            f"{title}: {len(missing)} of its {len(found)} archives are not there ({printable(missing[0])}); fetch them"
        )
    if len(set(found)) < len(found):
        raise UserError(f"{title}: it names an archive twice, so its pictures would count double")
    return [Path(one) for one in found]


def is_pattern(path: str) -> bool:
    return re.search(r"[*\[{]", path) is not None


def existing_archive(archive: Path, path: str, title: str) -> Path:
    if not archive.is_file():
        remedy = f"it is a folder: open it as folder:{path}" if archive.is_dir() else "check the path"
        raise UserError(f"{title}: there is no such archive; {remedy}")
    return archive


def braces(pattern: str) -> list[str]:
    """All names that a pattern with {000..127} (leading zeros as in the first number) and {a,b} stands for, in order."""
    parts: list[list[str]] = []
    for text, inside in re.findall(r"([^{}]+)|\{([^{}]*)\}", pattern):
        if text:
            parts.append([text])
        elif found := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
            first, last = found.groups()
            numbers = range(int(first), int(last) + 1)
            parts.append([str(number).zfill(len(first) if first.startswith("0") else 0) for number in numbers])
        else:
            parts.append(inside.split(","))
    return ["".join(choice) for choice in itertools.product(*parts)]


def pattern_name(path: str) -> str:
    """The domain name of a pattern's images: train for `a/train-{00..99}.tar`, a for `a/*.tar`."""
    start = re.split(r"[*\[{]", Path(path).name)[0].rstrip("-_.")
    return start or Path(path).absolute().parent.name or path
