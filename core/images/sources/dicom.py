"""`dicom:`: pictures in DICOM files, one a frame. Read by pydicom in each worker; nothing is copied."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ...errors import UserError
from ...printable import printable
from ..cache import entry_name, recall, remember
from ..decode import EXTENSIONS
from ..groups import BY_FOLDER, numbered_groups
from ..notes import Note
from ..open_files import read_whole
from ..places import abridged, place_named, titled
from ..store import Scale, Source
from .dicom_pixels import decode_dicom, pydicom_for
from .files import FileStore, check_folder, checked_under
from .layout import arrange
from .walk import PICTURE_ENDINGS, listing_of
from .windows import Windowing, windowing_of

DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
NO_DICOM_ENDINGS = (*EXTENSIONS, *(PICTURE_ENDINGS - frozenset(DICOM_ENDINGS)), *(
    ".txt", ".csv", ".tsv", ".json", ".xml", ".html", ".htm", ".md", ".pdf", ".rtf", ".doc", ".docx", ".xls", ".xlsx", ".yaml", ".yml",
    ".ini", ".inf", ".cfg", ".log", ".sql", ".db", ".zip", ".gz", ".bz2", ".xz", ".tar", ".tgz", ".7z", ".rar", ".exe", ".dll", ".bat",
    ".sh", ".py", ".jar", ".js", ".css", ".parquet", ".arrow", ".safetensors", ".pt",
))  # fmt: skip
"""Endings of pictures, documents, archives and programs: such a file is not looked at."""

BY_HEADER = {"patient": "PatientID", "study": "StudyInstanceUID", "series": "SeriesInstanceUID"}
WHICH_FRAMES = ("all", "first", "middle")


class Header(NamedTuple):
    """What a file says before its pixels. frames: 0 if it holds no picture. bits: of a value. ids: of patient, study and series."""

    frames: int
    bits: int
    ids: tuple[str, str, str]


class DicomStore(FileStore):
    """Frames of DICOM files. files: the file of each picture, below `root`; frames: its frame, -1 if the file has a single one.

    deep: whether any file of the set has more than 8 bits. Then all pictures have 16, or what a resize rounds to would depend on which
    pictures share a batch.
    """

    kind = "dicom"

    def __init__(
        self,
        root: str,
        names: list[str],
        stamps: np.ndarray,
        files: list[str],
        frames: list[int],
        window: Windowing,
        deep: bool,
    ) -> None:
        super().__init__(root, names, stamps)
        self.files, self.frames = tuple(files), np.array(frames, dtype=np.int64)
        self.window, self.deep = window, deep

    def content(self, i: int) -> bytes:
        return read_whole(os.path.join(self.root, self.files[i])) + self._mark(i)

    def _mark(self, i: int) -> bytes:
        """What tells the identities of the frames of one file apart, behind its bytes."""
        return b"" if self.frames[i] < 0 else b"\0frame %d" % self.frames[i]

    def decoded(self, i: int, content: bytes | bytearray) -> Tensor:
        file, frame = content[: len(content) - len(self._mark(i))], max(int(self.frames[i]), 0)
        return decode_dicom(file, frame, self.window, self.deep, self.where(i))

    def read_scaled(self, i: int, scale: Scale) -> tuple[Tensor, tuple[int, int]]:
        picture = self.read(i)
        return picture, (picture.shape[1], picture.shape[2])

    def encoded(self, i: int) -> None:
        return None  # the bytes alone do not say which frame and which window

    def stamp(self, i: int) -> str:
        return f"{super().stamp(i)}\twindow={self.window.text}"

    def identity(self) -> str:
        return entry_name(super().identity(), self.window.text)

    def holds(self, file: Path) -> bool:
        return any(os.path.realpath(os.path.join(self.root, one)) == str(file) for one in set(self.files))


def open_dicom(
    path: str,
    split: str | None,
    *,
    under: str = "",
    labels: str = "folders",
    group: str | None = None,
    frames: str = "all",
    window: str = "file",
) -> Source:
    """dicom:PATH: a folder of DICOM files, with classes and splits as of `folder:`; or one file.

    Values become brightness in the order of DICOM: modality (LUT or rescaling), window, MONOCHROME1 inverted; more than 8 bits become 16.
    What an enhanced file says of each frame, or of all, goes before what it says of itself. window: file, for the first window of each
    file or frame (where it has none, its range); range, from the least value of each picture to its greatest, without padding; or
    CENTER,WIDTH, for all, such as 40,400 of CT. frames: all, first or middle, of a file with several. group: patient, study,
    series (by the files' headers) or folder (as of `folder:`): no split tears them; by default the frames of a file stay together.
    """
    title = titled("dicom", path)
    pydicom_for(title)
    shown = windowing_of(window, title)
    check_choice("frames", frames, WHICH_FRAMES, title)
    check_choice("group", group or BY_FOLDER, (*BY_HEADER, BY_FOLDER), title)
    place = place_named(path, title)
    root = (place.parent if place.is_file() else place) / checked_under(under, title)
    check_folder(root, path, title)
    listing = listing_of(str(root), may_be_dicom)
    chosen = [k for k, name in enumerate(listing.names) if not place.is_file() or name == place.name]
    names, stamps = [listing.names[k] for k in chosen], listing.stamps[chosen]
    headers = headers_of(str(root), names, stamps, title)
    parts = pictures_of(names, headers, frames)
    notes = listing.notes
    if without := [name for name, header in zip(names, headers, strict=True) if not header.frames]:
        what = "files that were looked at and hold no picture of DICOM, which are not read"
        notes = [*notes, Note(len(without), what, without[0], "list")]
    if not parts:
        raise UserError(
            f"{title}: no picture of DICOM under {printable(str(root))} ({len(names)} files were looked at); check the path"
        )
    layout = arrange(parts, labels, title, printable(str(root)), archive=False, empty=listing.empty, beside=notes)
    if group is None:
        layout = layout._replace(notes=(*layout.notes, *about_patients(headers)))
    ordered = [parts[layout.prefix + name] for name in layout.names]
    files = [k for k, _ in ordered]
    store = DicomStore(
        os.path.join(root, layout.prefix),
        layout.names,
        stamps[files],
        [names[k][len(layout.prefix) :] for k in files],
        [frame for _, frame in ordered],
        shown,
        any(headers[k].bits > 8 for k in files),
    )
    if group in BY_HEADER:
        groups = groups_by_header(group, [headers[k] for k in files], layout.names, title)
    elif group is None:
        groups = numbered_groups([names[k] for k in files]) if len(set(files)) < len(files) else None
    else:
        groups = layout.groups(group, title)
    return dataclasses.replace(layout.source(store), folder=str(root), groups=groups)


def pictures_of(names: list[str], headers: list[Header], which: str) -> dict[str, tuple[int, int]]:
    """Name of a picture, file#frame where a file has several, to (number of its file, frame or -1)."""
    parts: dict[str, tuple[int, int]] = {}
    for k, header in enumerate(headers):
        for frame in frames_of(header.frames, which):
            suffix = "" if header.frames == 1 else f"#{frame:0{len(str(header.frames - 1))}}"
            parts[names[k] + suffix] = (k, frame if suffix else -1)
    return parts


def check_choice(key: str, value: str, known: tuple[str, ...], title: str) -> None:
    """Raises UserError for a value of an option that is not known."""
    if value not in known:
        raise UserError(f"{title}: {key}={abridged(value, 40)} is unknown (known: {', '.join(known)})")


def may_be_dicom(name: str) -> bool:
    """Whether a file of this name is looked at: by its ending, or because that says nothing, as where archives name files by their UID."""
    return not name.lower().endswith(NO_DICOM_ENDINGS) and name.upper() != "DICOMDIR"


def frames_of(count: int, which: str) -> list[int]:
    """The frames that are read of a file with `count`."""
    chosen = {"all": list(range(count)), "first": [0], "middle": [count // 2]}[which]
    return chosen if count else []


def about_patients(headers: list[Header]) -> list[Note]:
    """A note if several files with pictures are of one patient (or study, or series), which splits tear without ?group=."""
    ids = [header.ids for header in headers if header.frames]
    for k, kind in enumerate(BY_HEADER):
        found = {one[k] for one in ids}
        if "" not in found and 1 < len(found) < len(ids):
            named = {"patient": "patients", "study": "studies"}.get(kind, kind)
            what = f"files with pictures of {len(found):,} {named}, which splits tear; ?group={kind} keeps each on one side"
            return [Note(len(ids), what, level="say")]
    return []


def groups_by_header(group: str, headers: list[Header], names: list[str], title: str) -> Tensor:
    """The groups by an entry of the files' headers. Raises UserError for a file that lacks it."""
    ids = [header.ids[list(BY_HEADER).index(group)] for header in headers]
    if "" in ids:
        raise UserError(
            f"{title}: {ids.count('')} of {len(ids)} pictures have no {BY_HEADER[group]} ({abridged(names[ids.index('')])}), so "
            f"?group={group} cannot keep them together; leave it out, or put each group into a folder and add ?group=folder"
        )
    return numbered_groups(ids)


def headers_of(root: str, names: list[str], stamps: np.ndarray, title: str) -> list[Header]:
    """The header of each file; from the cache if no file has changed."""
    name = entry_name(os.path.abspath(root), names, stamps.tolist(), "dicom headers 1")
    if (stored := recall("indices", name)) is not None:
        return [Header(frames, bits, (a, b, c)) for frames, bits, a, b, c in json.loads(stored)]
    found = [header_of(os.path.join(root, one), title) for one in names]
    content = json.dumps([[header.frames, header.bits, *header.ids] for header in found]).encode()
    remember("indices", name, content, int(stamps[:, 1:].max(initial=0)))
    return found


def header_of(file: str, title: str) -> Header:
    """What a file says before its pixels. A damaged file with an ending of DICOM counts as one picture: reading it says what is wrong."""
    pydicom, ending = pydicom_for(title), file.lower().endswith(DICOM_ENDINGS)
    wanted = ["SOPClassUID", "Rows", "NumberOfFrames", "BitsStored", *BY_HEADER.values()]
    try:
        with open(file, "rb") as opened:
            if not ending and opened.read(132)[128:] != b"DICM":
                return Header(0, 0, ("", "", ""))
            opened.seek(0)
            found = pydicom.dcmread(opened, stop_before_pixels=True, specific_tags=wanted, force=ending)
        whole = found.get("Rows") or found.get("SOPClassUID") or not ending
        frames = int(found.get("NumberOfFrames") or 1) if found.get("Rows") or not whole else 0
        bits = int(found.get("BitsStored") or 0)
        one, two, three = (str(found.get(tag) or "").strip() for tag in BY_HEADER.values())
    except Exception:  # a damaged file makes pydicom raise anything
        return Header(1 if ending else 0, 0, ("", "", ""))
    return Header(min(max(frames, 0), 1 << 20), bits, (one, two, three))
