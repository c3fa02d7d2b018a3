"""Damages every file that Rootstock writes, one at a time, and tells what the commands say that read it.

    python benchmarks/corruption.py --markdown benchmarks/corruption.md        some minutes on one core

Six kinds of damage: a flipped bit in the middle, a file cut to its half, zeros, an empty file, no file, and a folder in its place. After
each, the commands that use the folder run again, in this process. Which files a command opens is known from Python's audit hook.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from corruption_cases import Scenario, scenarios
from page import machine

from rootstock.core import launchlog
from rootstock.launch.cli import main

DAMAGES = ("flip", "truncate", "zero", "empty", "delete", "folder")
PEOPLE, READ, REBUILT, WRONG = "for people only", "read", "rebuilt", "UNNOTICED"
EXPLAINED = """*read*: the file is named, and the exit code is not 0, or a warning says what is used instead. *rebuilt*: a warning names it,
and it is made anew. *for people only*: none of the commands opens it, after any damage. `verify` compares digests; a file that is *not
guarded* has none."""
# Words of which a line has one that tells of damage.
TELLING = ("WARNING", "error: ", "damaged ", "is missing", "is damaged", "was changed", "has lost")
_opened: set[str] = set()
_watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        # Opening only to write is no reading. Without a mode, it is os.open, whose flags say it.
        mode, flags = arguments[1], arguments[2] or 0
        if ("r" in mode or "+" in mode) if isinstance(mode, str) else not flags & os.O_WRONLY:
            _opened.add(os.path.abspath(os.fsdecode(arguments[0])))


sys.addaudithook(_watch)


class Ended(NamedTuple):
    """How a command ended: its exit code, and all that it printed."""

    code: int
    said: str


def command(*arguments: str) -> Ended:
    """`rootstock ARGUMENTS` in this process."""
    launchlog._said.clear()
    said, before = io.StringIO(), sys.argv
    sys.argv = ["rootstock", *arguments]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main()
    except SystemExit as end:
        return Ended(int(end.code or 0), said.getvalue())
    finally:
        sys.argv = before
    return Ended(0, said.getvalue())


def damage(path: Path, kind: str) -> bool:
    """Damage a file in this way. Returns whether it could be done: an empty file cannot be cut."""
    content = path.read_bytes()
    if not content and kind in ("flip", "truncate", "zero", "empty"):
        return False
    path.unlink()
    if kind == "flip":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif kind == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif kind in ("zero", "empty"):
        path.write_bytes(bytes(len(content)) if kind == "zero" else b"")
    elif kind == "folder":
        path.mkdir()
    return True


@contextlib.contextmanager
def fresh(case: Scenario) -> Iterator[Path]:
    """The scenario's folder as it was made, in its place; what a command changed in it is dropped again."""
    kept = case.folder.with_name(f"{case.folder.name}.kept")
    if not kept.exists():
        shutil.copytree(case.folder, kept, symlinks=True)
    shutil.rmtree(case.folder)
    shutil.copytree(kept, case.folder, symlinks=True)
    for extra in case.beside:
        shutil.rmtree(extra, ignore_errors=True)
    yield case.folder


class Verdict(NamedTuple):
    """kind: PEOPLE, READ, REBUILT or WRONG. what: what happened, in a word or the sentence. verified: what `verify` said."""

    kind: str
    what: str
    verified: str


def judge(case: Scenario, name: str, kind: str, read: bool) -> Verdict | None:
    """What the commands say of the file `name` damaged in this way; None if that damage is none. read: whether a command opens it."""
    with fresh(case) as folder:
        path = folder / name
        if not damage(path, kind):
            return None
        checked = command("verify", str(folder))
        verified = "named" if checked.code == 1 and path.name in checked.said else "passed"
        ended = [command(*arguments) for arguments in case.commands]
        for end in ended:
            if "Traceback" in end.said:
                return Verdict(WRONG, "a traceback: " + end.said.splitlines()[-1], verified)
        words = (path.name, case.said_as.get(path.name, path.name))
        lines = [(end.code, line) for end in ended for line in end.said.splitlines() if any(w in line for w in words)]
        told = [(code, line) for code, line in lines if any(word in line for word in TELLING)]
    if any(word in line for _, line in told for word in ("made anew", "made again", "goes on")):
        return Verdict(REBUILT, "a warning", verified)
    if told:
        code = max(code for code, _ in told)
        return Verdict(READ, f"exit {code}" if code else "a warning, and a fall-back", verified)
    if not read:
        return Verdict(PEOPLE, "no command opens it", verified)
    if kind in ("delete", "folder") and path.name in case.may_be_missing:
        return Verdict(REBUILT, case.may_be_missing[path.name], verified)
    return Verdict(WRONG, f"exits {[end.code for end in ended]}", verified)


def files_read(case: Scenario) -> set[str]:
    """The names of the scenario's files that its commands open for reading; `verify`, which reads all, is not among them."""
    global _watching
    with fresh(case) as folder:
        _opened.clear()
        _watching = True
        for arguments in case.commands:
            command(*arguments)
        _watching = False
        return {
            str(Path(path).relative_to(folder.absolute()))
            for path in _opened
            if path.startswith(f"{folder.absolute()}/")
        }


def files_of(case: Scenario) -> list[str]:
    with fresh(case) as folder:
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def matrix(case: Scenario, kinds: Sequence[str] = DAMAGES) -> dict[str, dict[str, Verdict | None]]:
    """Of each file of the scenario, the verdict by kind of damage."""
    read = files_read(case)
    return {name: {kind: judge(case, name, kind, name in read) for kind in kinds} for name in files_of(case)}


def class_of(row: Mapping[str, Verdict | None]) -> str:
    """The one class of a file: unnoticed damage is the worst; a file that is made anew after any damage counts as rebuilt."""
    kinds = {verdict.kind for verdict in row.values() if verdict is not None}
    return next(kind for kind in (WRONG, REBUILT, READ, PEOPLE) if kind in kinds or not kinds)


def _cell(verdict: Verdict | None) -> str:
    """What one damage led to. Only a row is called for people only, since other damages of the same file may be noticed."""
    if verdict is None:
        return ""
    return verdict.what if verdict.kind == PEOPLE else f"{verdict.kind}: {verdict.what}"


def as_markdown(case: Scenario, table: Mapping[str, Mapping[str, Verdict | None]]) -> list[str]:
    """A section of the page."""
    words = ", ".join(
        f"`{' '.join(w for w in line if not w.startswith(('run.', 'data.', 'backbone.a')))}`" for line in case.shown
    )
    lines = ["", f"## {case.name}", "", f"Commands: {words}.", ""]
    lines += [f"| file | class | {' | '.join(DAMAGES)} | verify |", f"|---|---|{'---|' * len(DAMAGES)}---|"]
    for name, row in table.items():
        cells = [_cell(row[kind]) for kind in DAMAGES]
        named = [verdict.verified == "named" for verdict in row.values() if verdict is not None]
        verified = (
            "names it"
            if named and all(named)
            else f"names {sum(named)} of {len(named)}"
            if any(named)
            else "not guarded"
        )
        lines.append(f"| {name} | {class_of(row)} | {' | '.join(cells)} | {verified} |")
    return lines


def write_page(out: Path | None, only: Sequence[str], say: Callable[[str], None] = print) -> int:
    """Make the folders, damage each file and write the page. Returns how many damages nobody noticed."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    lines = ["# What happens to damaged files", "", __doc__.strip().split("\n\n")[0] if __doc__ else ""]
    lines += ["Made by `python benchmarks/corruption.py --markdown benchmarks/corruption.md`.", "", machine(), ""]
    lines.append(EXPLAINED)
    unnoticed = 0
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        try:
            for case in scenarios(Path(place), command):
                if only and case.name not in only:
                    continue
                table = matrix(case)
                wrong = [
                    (n, k, v) for n, row in table.items() for k, v in row.items() if v is not None and v.kind == WRONG
                ]
                unnoticed += len(wrong)
                say(f"{case.name}: {len(table)} files, {len(wrong)} damages unnoticed")
                for name, kind, verdict in wrong:
                    say(f"  {kind} {name}: {verdict.what}")
                lines += as_markdown(case, table)
        finally:
            os.chdir(before)
    if out is not None:
        out.write_text("\n".join(lines) + "\n")
    return unnoticed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, help="the page")
    parser.add_argument("--only", action="append", default=[], help="a section's name; may be repeated")
    asked = parser.parse_args()
    sys.exit(1 if write_page(asked.markdown, asked.only) else 0)
