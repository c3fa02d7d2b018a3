"""The files that URIs name: a path that no file can have, or something that is no regular file, becomes a sentence."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from ..errors import UserError
from ..printable import printable

SHOWN_CHARACTERS = 400
"""Number of characters of a path that errors show."""


def abridged(text: str, most: int = SHOWN_CHARACTERS) -> str:
    """A text that any terminal can print, cut in its middle if it is long."""
    shown = printable(text)
    if len(shown) <= most:
        return shown
    return f"{shown[: most // 2]}...{shown[-most // 4 :]} ({len(text):,} characters)"


def titled(scheme: str, path: str) -> str:
    """How errors begin: the URI without its options."""
    return f"{scheme}:{abridged(path)}"


def uri_path(path: str | Path) -> str:
    """A path with the characters escaped that have a meaning in a URI."""
    return str(path).replace("%", "%25").replace("#", "%23").replace("?", "%3F")


def place_named(path: str, title: str) -> Path:
    """The place of a path, with ~ for the home folder; perhaps nothing is there. Raises UserError if no file can have this path."""
    place = Path(path)
    try:
        place = place.expanduser()
        os.stat(place)
    except RuntimeError:
        raise UserError(
            f"{title}: there is no user whose home folder {abridged(path)} could begin with; write the path in full"
        ) from None
    except ValueError:  # a NUL, or half a surrogate pair
        raise UserError(f"{title}: a path cannot hold a NUL or half a character; check the path") from None
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UserError(f"{title}: cannot be opened ({reason_of(error)}); check the path") from None
    return place


def reason_of(error: OSError) -> str:
    """What the system says of a file, in plain words."""
    words = {
        errno.ENAMETOOLONG: "the path is longer than the file system allows",
        errno.ELOOP: "a link leads back to itself",
        errno.EACCES: "no permission",
        errno.ENOENT: "it is not there",
        errno.ENOTDIR: "a part of its path is no folder",
    }
    return words.get(error.errno or 0) or error.strerror or str(error)


def file_named(path: str, title: str, what: str = "file") -> Path:
    """The regular file at a path. what: its name in errors. Raises UserError if there is none: a pipe or a device may never end."""
    place = place_named(path, title)
    if place.is_file():
        return place
    if place.is_dir():
        raise UserError(
            f"{title}: there is no such {what}; it is a folder: open it as folder:{abridged(uri_path(path))}"
        )
    if place.is_symlink() and not place.exists():
        raise UserError(
            f"{title}: it is a dangling link ({printable(os.readlink(place))} does not exist); restore that file"
        )
    if place.exists():
        raise UserError(
            f"{title}: it is {kind_of_place(os.stat(place).st_mode)}, and no file; copy its content to a file"
        )
    raise UserError(f"{title}: there is no such {what}; check the path")


def kind_of_place(mode: int) -> str:
    """What stands at a place, by its mode."""
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
