"""Names from outside never reach a terminal raw."""

import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from rootstock.core.errors import UserError
from rootstock.core.printable import printable, printable_lines
from rootstock.core.run import state
from rootstock.launch.data import describe_set
from rootstock.launch.exits import answer
from rootstock.launch.runs import list_runs

ESCAPE = "\x1b[31mred\x1b[0m\x07\x9b2J\u202egnp"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name.png", "plain name.png"),
        ("класс один", "класс один"),
        (ESCAPE, r"\x1b[31mred\x1b[0m\x07\x9b2J\u202egnp"),
        ("a\nb\tc\rd\x7f\u2028", r"a\nb\tc\rd\x7f\u2028"),
        (os.fsdecode(b"\xff.png"), r"\xff.png"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown  # so it does no harm twice


def test_messages_keep_their_lines() -> None:
    assert printable_lines("one\ntwo\x1b[2J") == "one\ntwo\\x1b[2J"


def test_names_of_files_and_classes_are_escaped_wherever_they_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], draw: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    draw(tmp_path / "set", [f"{ESCAPE}/a.png", f"other/{ESCAPE}.png", "other/b.png"])  # type: ignore[operator]
    (tmp_path / "set" / "other" / f"{ESCAPE}.png").write_bytes(b"damaged")
    (tmp_path / "set" / "other" / f"x.{ESCAPE}").write_bytes(b"")
    assert describe_set(f"folder:{tmp_path}/set") == 1

    def fail() -> int:
        raise UserError(f"cannot open {ESCAPE}")

    assert answer(fail) == 2
    run = tmp_path / ESCAPE
    run.mkdir()
    (run / "config.yaml").write_text(f"verb: {json.dumps(ESCAPE)}\nseed: 0\n")
    state.write_state(run, "failed", None, ESCAPE)
    list_runs(tmp_path, as_json=False)
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert r"\x1b[31m" in text
        assert not set(ESCAPE[:1] + "\x07\x9b\u202e") & set(text)


def test_the_log_of_a_run_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    from rootstock.core.run.directory import Run

    run = object.__new__(Run)
    run.main, run.silent, run.console = True, False, Console(stderr=True)
    run.log(f"damaged picture replaced by its neighbour: {ESCAPE}")
    assert r"\x1b[31mred" in capsys.readouterr().err
