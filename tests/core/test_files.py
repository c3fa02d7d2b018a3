"""Only regular files are read and written, and an output is refused before any work is done for it."""

import os
import stat
from pathlib import Path

import pytest
import torch

from rootstock.core.errors import UserError
from rootstock.core.files import check_output, path_beside, read_regular, sha256, write_tensors, write_text


def test_a_device_a_pipe_and_a_folder_are_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "null").symlink_to("/dev/null")
    for path, kind in (
        (Path("/dev/null"), "a device"),
        (tmp_path / "null", "a device"),
        (tmp_path / "pipe", "a named pipe"),
        (tmp_path / "folder", "a folder"),
    ):
        with pytest.raises(UserError, match=f"{path} is {kind}, and only a regular file is written"):
            write_text(path, "text")
        with pytest.raises(UserError, match=kind):
            write_tensors(path, {"a": torch.zeros(1)})
        with pytest.raises(UserError, match=kind):
            check_output(path, "--out")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_a_link_is_followed_and_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for text in ("first", "second"):
        write_text(tmp_path / "link", text)
        assert (tmp_path / "target").read_text() == text and (tmp_path / "link").is_symlink()


def test_reading_never_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a named pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")):
        for read in (read_regular, sha256):
            with pytest.raises(OSError, match=kind):
                read(path)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nowhere/x.png", r"there is no folder .*nowhere; make it"),
        ("x.xyz", r"x\.xyz ends in none of \.png, \.pdf; name a file"),
        ("x", "ends in none"),
        ("loop.png", "cannot be written"),
        (f"{'n' * 300}.png", "File name too long"),
        ("file/x.png", "cannot be written|there is no folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"^--out: .*({why})"):
        check_output(tmp_path / name, "--out", (".png", ".pdf"))
    check_output(tmp_path / "x.PNG", "--out", (".png",))
    check_output(tmp_path / "new" / "deep" / "x.html", "--out", make=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop.png"]


@pytest.mark.parametrize("mask", [0o022, 0o007, 0o077])
def test_who_may_read_other_new_files_may_read_tensors(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "text", "a")
        write_tensors(tmp_path / "tensors", {"a": torch.zeros(2)})
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "text").stat().st_mode


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("runs/one", "runs/one-pruned"),
        ("runs/one/", "runs/one-pruned"),
        (".", "{here}-pruned"),
        ("", "{here}-pruned"),
        ("..", "{above}-pruned"),
        ("below/..", "{here}-pruned"),
        ("~/one", "{home}/one-pruned"),
    ],
)
def test_a_folder_beside_another_has_its_name(
    given: str, made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here := tmp_path / "here" / "run").mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(path_beside(given, "-pruned")) == made.format(here=here, above=here.parent, home=tmp_path)
