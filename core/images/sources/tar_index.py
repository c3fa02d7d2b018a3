"""The index of an archive: where its pictures lie, what their sidecars say, and what else it holds. Made once, then cached."""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ...errors import MachineError, UserError
from ...ownfiles import OLD_SHEET, is_output, run_folders
from ..cache import entry_name, recall, remember
from ..decode import is_picture
from ..notes import Note
from ..places import abridged
from ..sums import Sums
from .archives import Archive
from .tar_labels import Reading, label_text
from .walk import HIDDEN, OF_RUNS, SHEETS, parents

BLOCK = 512
HEADER_BYTES = 1 << 20
"""The longest header that is read: names and attributes in the pax and GNU formats have some hundred bytes."""

TAIL_BYTES = 64 << 20
"""How far is looked for data behind the end mark of an archive."""


class TarContents(NamedTuple):
    """The contents of an archive.

    pictures: name to (offset, size) in bytes. labels: name of a sidecar to its text. faults: name of a sidecar to what is wrong with
    it. groups, group_faults: likewise of what says the group. others: ending to (number, first name) of the files that are neither. notes:
    what else is worth saying. folders: those with a visible file or an entry of their own, at most three deep.
    """

    pictures: dict[str, tuple[int, int]]
    labels: dict[str, str]
    faults: dict[str, str]
    others: dict[str, tuple[int, str]]
    notes: list[Note]
    folders: list[str]
    groups: dict[str, str]
    group_faults: dict[str, str]


INDEX_VERSION = 4
"""Changes with what an index holds, so that those of earlier versions are made anew."""


def read_index(copy: Path | None, archive: Archive, title: str, reading: Reading) -> TarContents:
    """The contents of an archive; from the cache if the archive is unchanged. copy: the uncompressed one, if it is compressed."""
    name = entry_name(archive.name, archive.stamp, "members", INDEX_VERSION, reading)
    remembered = recall("indices", name)
    if remembered is not None:
        found = TarContents(*json.loads(remembered))
        return found._replace(notes=[Note(*note) for note in found.notes])
    if copy is not None:  # what is found in the copy is remembered, so the copy has to be whole
        try:
            Sums(copy).check()
        except OSError as error:
            raise UserError(f"{title}: {error.strerror}") from None
    with open(copy, "rb") if copy is not None else archive.open() as file:
        contents = scan(file, archive.size if copy is None else copy.stat().st_size, title, reading)
    remember("indices", name, json.dumps(contents).encode(), max(archive.stamp[1:]))
    return contents


class _Headers:
    """A file from which tarfile reads headers, and never a long or a harmful one."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell
        self.mode = "rb"

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {count:,} bytes")
        content = self.file.read(count)
        # tarfile searches the headers by patterns whose time grows with the square of a number's digits
        if count > BLOCK and re.search(rb"[0-9]{100}", content):
            raise tarfile.ReadError("a header with a number of 100 digits")
        return content


def headers(file: BinaryIO, total: int, title: str, ends: list[int]) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """(name, header) of all members, in their order; the place of the archive's end mark is appended to `ends`.

    Raises UserError for what is no archive, and where a header is damaged: the members behind it would be lost without a word.
    """
    archive, last, name = None, -1, ""
    while True:
        try:
            archive = archive or tarfile.TarFile(fileobj=_Headers(file))  # type: ignore[arg-type]
            member = archive.next()
        except tarfile.TarError as error:
            after = f" after {abridged(name)}" if name else ""
            raise UserError(
                f"{title}: not a readable archive ({error}{after}); expected .tar, .tar.gz, .tar.bz2 or .tar.xz"
            ) from None
        except MachineError:  # an object that cannot be read now is not damaged
            raise
        except (ValueError, OverflowError, IndexError, RecursionError, MemoryError, OSError) as error:
            raise UserError(
                f"{title}: the archive is damaged after {abridged(name) or 'its beginning'} ({abridged(str(error))}); fetch it again"
            ) from None
        if member is None:
            break
        # tarfile keeps every header in memory, which is too much for a million members
        archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
        name = inner_name(member.name)
        if member.size < 0 or archive.offset <= last:
            raise UserError(f"{title}: the archive is damaged: {abridged(name)} has a negative size; fetch it again")
        last = archive.offset
        yield name, member
    file.seek(archive.offset)
    if (block := file.read(BLOCK)).strip(b"\0"):
        left = total - archive.offset
        raise UserError(
            f"{title}: the archive is damaged after {abridged(name)}: {left:,} bytes behind it cannot be read; fetch it again"
        )
    ends.append(archive.offset + len(block) if block else -1)


def inner_name(name: str) -> str:
    """A member's name as tar unpacks it: without / and ../ at its beginning."""
    return re.sub(r"^(?:\.\./|/)+", "", os.path.normpath(name).replace(os.sep, "/"))


def scan(file: BinaryIO, total: int, title: str, reading: Reading) -> TarContents:
    """Read the headers of an uncompressed archive of `total` bytes and its sidecars.

    If several members have one name, the last one counts, as in unpacking.
    """
    ends = list[int]()
    files: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    lost: list[str] = []
    twice: list[str] = []
    folders: list[str] = []
    for name, member in headers(file, total, title, ends):
        link, before = links.pop(name, None), files.pop(name, None)
        if link or before:
            twice.append(name)
        if member.islnk():  # another name of an earlier member
            target = inner_name(member.linkname)
            span = before if target == name else files.get(target)
            if span is not None:
                files[name] = span
            elif is_picture(name):
                lost.append(name)
        elif member.issym():
            links[name] = member.linkname
        elif member.isreg():
            files[name] = (member.offset_data, member.size)
            if is_picture(name) or reading.reads(name):
                check_member(name, member, total, title)
        elif member.isdir():
            folders.append(name)
        elif is_picture(name):
            lost.append(name)
    for name in [name for name in links if is_picture(name) or reading.reads(name)]:
        span = files.get(followed(name, links))
        if span is not None:
            files[name] = span
        elif is_picture(name):
            lost.append(name)
    notes = [*notes_of_end(file, ends[0], total), *notes_of_lost(lost), *notes_of_twice(twice)]
    return sorted_out(file, files, reading, notes, folders)


def check_member(name: str, member: tarfile.TarInfo, total: int, title: str) -> None:
    """Raises UserError if the bytes of a member don't lie in the archive as they are."""
    if member.issparse():
        raise UserError(
            f"{title}: {abridged(name)} is stored as a sparse file, without its zeros, which cannot be read in place; "
            "pack the archive again without --sparse, or unpack it and open the folder"
        )
    if member.offset_data + member.size > total:
        raise UserError(f"{title}: the archive is cut short in {abridged(name)}; fetch it again")


def followed(name: str, links: dict[str, str]) -> str:
    """The name that symbolic links inside the archive lead to from `name`; '' if they lead outside or in a circle."""
    for _ in range(40):  # as in Linux
        if name not in links:
            return name
        if links[name].startswith("/"):
            return ""
        name = os.path.normpath(os.path.join(os.path.dirname(name), links[name]))
    return ""


def notes_of_end(file: BinaryIO, end: int, total: int) -> list[Note]:
    """end: where the end mark has been read; -1 if the archive ends without one."""
    if end < 0:
        return [Note(1, "archive without an end mark, so it may be cut short", "", "say")]
    file.seek(end)
    for at in range(end, min(total, end + TAIL_BYTES), HEADER_BYTES):
        if file.read(HEADER_BYTES).strip(b"\0"):
            what = (
                "archive with data behind its end mark, which are not read; two archives were joined, or it is damaged"
            )
            return [Note(1, what, f"{total - at:,} bytes")]
    return []


def notes_of_lost(lost: list[str]) -> list[Note]:
    if not lost:
        return []
    return [
        Note(
            len(lost),
            "things with the name of a picture that are links to nothing in the archive, or no files",
            min(lost),
        )
    ]


def notes_of_twice(twice: list[str]) -> list[Note]:
    if not twice:
        return []
    what = "members whose name comes again later in the archive; only the last of a name is read, as in unpacking"
    return [Note(len(twice), what, min(twice), "say")]


def sorted_out(
    file: BinaryIO,
    files: dict[str, tuple[int, int]],
    reading: Reading,
    notes: list[Note],
    folders: list[str],
) -> TarContents:
    """Pictures, sidecars and others among the members. files: name to (offset, size). folders: those with an entry of their own."""
    runs = run_folders(files)
    seen = {parent for name in [*files, *(f"{folder}/" for folder in folders)] for parent in parents(name)}
    seen -= {parent for run in runs for parent in parents(f"{run}/")}
    found = TarContents({}, {}, {}, {}, notes, [], {}, {})
    found.folders.extend(sorted(folder for folder in seen if not is_output(f"{folder}/", runs)))
    hidden: list[str] = []
    outputs = [name for name in files if is_output(name, runs)]
    sheets = [name for name in files if name.rpartition("/")[2] == OLD_SHEET]
    files = {name: span for name, span in files.items() if name not in {*outputs, *sheets}}
    for name, (offset, size) in files.items():
        last = name.rpartition("/")[2]
        if is_picture(name):
            found.pictures[name] = (offset, size)
        elif last.startswith("."):
            hidden.append(name)
        elif reading.reads(name):
            if reading.labels(name):
                keep_text(file, offset, size, reading, name, found.labels, found.faults)
            if reading.groups(name):
                asked = Reading("json", reading.group)
                keep_text(file, offset, size, asked, name, found.groups, found.group_faults)
        else:
            ending = os.path.splitext(last)[1].lower()
            number, example = found.others.get(ending, (0, name))
            found.others[ending] = (number + 1, min(example, name))
    for names, what in ((hidden, HIDDEN), (outputs, OF_RUNS), (sheets, SHEETS)):
        notes += [Note(len(names), what, min(names), "list")] if names else []
    return found


def keep_text(
    file: BinaryIO, offset: int, size: int, asked: Reading, name: str, texts: dict[str, str], faults: dict[str, str]
) -> None:
    """Put what a sidecar says into `texts`, or what is wrong with it into `faults`."""
    try:
        texts[name] = label_text(file, offset, size, asked)
    except MachineError:  # of an object: it says nothing of the sidecar
        raise
    except UserError as error:
        faults[name] = str(error)
