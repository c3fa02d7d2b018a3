"""`rootstock verify`: compare every file that has a digest with it: of runs, checkpoints, exports, packs and the cache, in any folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import typer

from ..core.errors import UserError
from ..core.files import expanded
from ..core.ledger import read_ledger
from ..core.manifest import MANIFEST, OWN, DamagedFile, check_file, read_manifest, read_object, read_record
from ..core.printable import printable
from ..core.run.folder import ABOUT, CONFIG, RESULT, check_config
from ..core.run.rows import LOOKS, METRICS, differs
from ..core.run.state import FILE as STATE
from ..core.run.state import read_state
from .pipeline.contrasts import DECLARED

OF_RUN = (ABOUT, STATE, "inputs.json")  # each carries its own digest
BEGUN = {METRICS, RESULT, MANIFEST, "checkpoints", "backbone"}  # a run refused before any of them has no run.json yet
EXPORT, PACK = "backbone.json", "pack.json"
CACHED = ("keys", "indices", "surveys", "archives", "features", "looks")


class Found(NamedTuple):
    """A file. why: what is wrong with it, "" if it is what was written. guarded: whether it has a digest at all."""

    path: Path
    why: str = ""
    guarded: bool = True


def verify_folders(places: Sequence[Path]) -> int:
    """Print a line for each file that has a digest, or should have one. Returns 0, or 1 if any differs. Raises UserError."""
    counts = {"ok": 0, "no digest": 0}
    wrong: list[Path] = []
    for place in places:
        place = expanded(place)
        if not place.is_dir():
            what = "is a file" if place.exists() else "does not exist"
            raise UserError(
                f"{place} {what}; expected the folder of a run, an export or a pack, or a folder with some below it"
            )
        for found in examine_below(place):
            if found.path in wrong:  # a missing list is missed where it should be, and by the list that names it
                continue
            word = "DIFFERS" if found.why else "ok" if found.guarded else "no digest"
            typer.echo(f"{word:9}  {printable(str(found.path))}" + (f": {printable(found.why)}" if found.why else ""))
            if found.why:
                wrong.append(found.path)
            else:
                counts[word] += 1
    if not wrong and not sum(counts.values()):
        raise UserError(
            f"{', '.join(map(str, places))}: nothing below it has a digest; expected a run, an export or a pack"
        )
    unguarded = (
        f", {counts['no digest']} without a digest (an earlier version wrote them)" if counts["no digest"] else ""
    )
    typer.echo(f"{counts['ok']} files are what was written{unguarded}, {len(wrong)} differ")
    if wrong:
        typer.echo(f"error: damaged: {', '.join(printable(str(path)) for path in wrong)}", err=True)
    return 1 if wrong else 0


def examine_below(place: Path) -> Iterator[Found]:
    """Every file with a digest at and below a folder, in order. Links are not followed; a hidden folder is an unfinished one."""
    for folder, below, files in os.walk(place):
        below[:] = sorted(name for name in below if not name.startswith("."))
        path, names = Path(folder), {*files, *below}
        if PACK in names:
            below.clear()
            yield from _pack(path)
        elif path.name in CACHED and path.parent.name == "rootstock":
            below.clear()
            yield from _cache(path, sorted(files))
        else:
            yield from _folder(path, names)


def _folder(path: Path, names: set[str]) -> Iterator[Found]:
    """A run, a checkpoint, an export, a pipeline or a sweep."""
    checkpoint = path.parent.name == "checkpoints" and re.fullmatch(r"step-\d+", path.name) is not None
    run = not checkpoint and _is_signed(path)
    signed = run or (path.name in ("backbone", "classifier") and _is_signed(path.parent))
    for name in () if checkpoint else OF_RUN:
        if name in names:
            yield _record(path / name, signed)
        elif run and name != "inputs.json" and (name != ABOUT or BEGUN & names):
            yield Found(path / name, "it is missing")
    if run or CONFIG in names:
        told: list[str] = []
        guarded = check_config(path, told.append)
        if run and not guarded and not told:
            told.append("it has lost the digest in its first line")
        yield Found(path / CONFIG, told[0] if told else "", guarded)
    if run and METRICS in names and MANIFEST not in names:
        yield _rows(path)
    if LOOKS in names:
        yield _ledger(path / LOOKS)
    if DECLARED in names:
        yield _record(path / DECLARED, True)
    if MANIFEST in names:
        yield from _manifest(path)
        return
    if checkpoint or (signed and {RESULT, EXPORT} & names):
        yield Found(path / MANIFEST, "it is missing")
    elif RESULT in names and not run:
        yield _record(path / RESULT, False)
    else:
        unguarded = (EXPORT, "backbone.safetensors", "seen.safetensors", RESULT)
        yield from (Found(path / name, guarded=False) for name in unguarded if name in names)


def _is_signed(path: Path) -> bool:
    """Whether the run was written by a version that gives every record a digest: then none may lack one."""
    for name in (ABOUT, STATE):
        try:
            if OWN in read_object(path / name):
                return True
        except (FileNotFoundError, DamagedFile):
            continue
    return False


def _record(path: Path, signed: bool) -> Found:
    try:
        guarded = OWN in read_object(path)
        read_record(path)
    except DamagedFile as error:
        return Found(path, str(error))
    return Found(
        path, "it has no digest, and the others of this run have one" if signed and not guarded else "", guarded
    )


def _rows(path: Path) -> Found:
    """metrics.jsonl of an unfinished run, up to its last checkpoint."""
    digest = read_state(path).get("rows")
    wrong = "it differs from what it was at the last checkpoint" if differs(path / METRICS, digest) else ""
    return Found(path / METRICS, wrong, digest is not None)


def _manifest(path: Path) -> Iterator[Found]:
    try:
        digests = read_manifest(path) or {}
    except DamagedFile as error:
        yield Found(path / MANIFEST, str(error))
        return
    yield Found(path / MANIFEST)
    for name in sorted(digests):
        try:
            check_file(path, name, digests)
            if name != LOOKS:  # it has a line already
                yield Found(path / name)
        except DamagedFile as error:
            yield Found(path / name, str(error))


def _ledger(path: Path) -> Found:
    try:
        read_ledger(path)
    except DamagedFile as error:
        return Found(path, str(error))
    return Found(path)


def _pack(path: Path) -> Iterator[Found]:
    from ..core.images.pack.files import INDEX, RECORDS
    from ..core.images.pack.reader import PackStore
    from ..core.images.pack.writer import verify

    try:
        store = PackStore(path.absolute())
    except UserError as error:
        yield Found(path / PACK, str(error))
        return
    yield Found(path / PACK)
    yield Found(path / INDEX)
    try:
        verify(store, lambda numbers, count: numbers)
        yield Found(path / RECORDS)
    except UserError as error:
        yield Found(path / RECORDS, str(error))


def _cache(path: Path, names: Sequence[str]) -> Iterator[Found]:
    from ..core.images.cache import read_entry
    from ..core.images.sums import Sums

    if path.name == "features":
        from ..core.evaluate.feature_cache import entries_below

        yield from (Found(file, why) for file, why in entries_below(path))
        return
    for name in names:
        if name.startswith(".") or name.endswith((".lock", ".sums")):
            continue
        if path.name == "looks":
            yield _ledger(path / name)
            continue
        try:
            Sums(path / name).check() if path.name == "archives" else read_entry(path / name)
            yield Found(path / name)
        except OSError as error:
            yield Found(path / name, error.strerror or str(error))
