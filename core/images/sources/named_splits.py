"""Splits that the names of files and archives say, as Hugging Face and WebDataset name them."""

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import TypeVar

from ...printable import printable
from ..notes import Note
from .archives import Archive
from .layout import SPLIT_NAMES

_File = TypeVar("_File")
_NUMBER = r"[-_.][0-9]+(?:-of-[0-9]+(?:-[0-9a-z]+)?)?"
_SPLIT = r"\w+(?:\.\w+)*"
"""A split's name at Hugging Face. Behind the number of a shard, older versions write a digest."""


def split_of_file(file: PurePath) -> str:
    """The split that a file's name, or else that of its folder, says: train of train-00000-of-00002.parquet; '' for none.

    Any name before such a number is one, such as extra; else only those of SPLIT_NAMES.
    """
    plain = re.sub(f"(?:{_NUMBER})?$", "", file.stem)
    shard = re.fullmatch(rf"(?:.*-)?({_SPLIT})-[0-9]+-of-[0-9]+(?:-[0-9a-z]+)?", file.stem)
    named = shard[1] if shard else ""
    return next((name for name in (plain, named, file.parent.name) if name.lower() in SPLIT_NAMES), named)


def split_of_cached(file: PurePath) -> str:
    """The split in a name of `load_dataset`'s cache, such as cifar10-train-00000-of-00002.arrow or cifar10-train.arrow; '' for none."""
    found = re.fullmatch(rf".*-({_SPLIT})", re.sub(r"-[0-9]+-of-[0-9]+$", "", file.stem))
    return found[1] if found else ""


def wanted(files: Sequence[_File], names: list[str], split: str | None, group: str | None) -> list[tuple[_File, str]]:
    """The files to open with their splits, '' for none: of the named split alone if there is one.

    A name that all share and that is no usual one, as in data-00000-of-00002.parquet, is no split unless it is asked for. group: a column;
    then all files are opened, since no split may share a group with another.
    """
    known = set(names) - {""}
    if len(known) == 1 and split not in known and not any(name.lower() in SPLIT_NAMES for name in known):
        names = [""] * len(files)
    chosen = [(file, name) for file, name in zip(files, names, strict=True) if name == split]
    return chosen if chosen and group is None else list(zip(files, names, strict=True))


def about_archives(archives: Sequence[Archive], path: str) -> tuple[str, list[Note]]:
    """Why #train and #test mean no part of some archives ("" if they may), and a note: if the names of only some say a split, or several.

    path: the pattern of the archives.
    """
    names = [split_of_archive(one.path) for one in archives]
    known = sorted({name for name in names if name.lower() in SPLIT_NAMES})
    if not known or set(names) == set(known[:1]):
        return "", []
    first = archives[names.index(known[0])]
    what = f"archives, of which some are named like splits ({', '.join(known)}), read as one set"
    why = (
        f"the archives of {printable(path)} are named like several splits, or only some of them ({', '.join(known)}); let the pattern "
        f"name those of one split alone, such as those like {printable(first.name)}"
    )
    return why, [Note(len(archives), what, first.shown, "say")]


def split_of_archive(file: PurePath) -> str:
    """As `split_of_file`, of an archive that may be compressed."""
    return split_of_file(file.with_name(file.name.partition(".tar")[0] + ".tar"))
