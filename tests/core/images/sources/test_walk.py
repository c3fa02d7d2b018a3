"""Listing a folder: what is passed over and counted, and that our own output never becomes data."""

import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from rootstock.core.errors import UserError
from rootstock.core.images.notes import Note, line_of
from rootstock.core.images.open import DamagedImage, open_images
from rootstock.core.images.open_files import OpenFiles, read_whole
from rootstock.core.images.sources import walk
from rootstock.core.images.sources.walk import listing_of

Draw = Callable[[Path, Iterable[str]], Path]


def tallies(folder: Path) -> dict[str, tuple[int, str, str]]:
    return {note.what: (note.number, note.example, note.level) for note in listing_of(str(folder)).notes}


def test_what_is_passed_over_is_counted(tmp_path: Path, draw: Draw) -> None:
    folder = draw(tmp_path, ["a/1.png", "a/.2.png", ".hidden/3.png", "a/contact-sheet.png"])
    for name in ("a/4.heic", "a/5.HEIC", "a/6.txt", "a/README"):
        (folder / name).write_bytes(b"")
    assert listing_of(str(folder)).names == ["a/1.png"]
    assert tallies(folder) == {
        "files ending in .heic, which are not read": (2, "a/4.heic", "warn"),
        "files ending in .txt, which are not read": (1, "a/6.txt", "list"),
        "files without an ending, which are not read": (1, "a/README", "list"),
        "hidden files and folders": (2, ".hidden", "list"),
        "contact sheets of earlier versions": (1, "a/contact-sheet.png", "list"),
    }


def test_many_endings_are_summed_up(tmp_path: Path, draw: Draw) -> None:
    folder = draw(tmp_path, ["1.png"])
    for k in range(walk.ENDINGS_LISTED + 5):
        (folder / f"x.e{k}").write_bytes(b"")
    notes = listing_of(str(folder)).notes
    assert len(notes) == walk.ENDINGS_LISTED + 1
    assert sum(note.number for note in notes) == walk.ENDINGS_LISTED + 5


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "folder"])
def test_only_regular_files_are_opened(tmp_path: Path, draw: Draw, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe would be waited for, /dev/zero never ends."""
    folder = draw(tmp_path / "set", ["1.png"])
    odd = folder / "odd.png"
    if kind == "fifo":
        os.mkfifo(odd)
    elif kind == "socket":
        monkeypatch.chdir(folder)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("odd.png")
    elif kind == "device":
        odd.symlink_to("/dev/zero")
    else:
        odd.mkdir()
    images = open_images(f"folder:{folder}")
    assert [images.name(i) for i in range(len(images))] == ["1.png"]
    if kind != "folder":
        assert [note.level for note in images.notes] == ["warn"]
    for uri, text in ((f"list:{folder}/l.txt", "odd.png\n"), (f"csv:{folder}/t.csv", "path\nodd.png\n")):
        Path(uri.partition(":")[2]).write_text(text)
        with pytest.raises(UserError, match=r"odd\.png is (a pipe|a socket|a device|a folder)"):
            open_images(uri)
    with pytest.raises(OSError, match=r"not a regular file|No such device"):
        read_whole(str(odd))
    with pytest.raises(OSError, match=r"not a regular file|No such device"):
        OpenFiles().read(str(odd), 1, 0)


def test_a_file_that_is_replaced_by_a_pipe_is_damaged(tmp_path: Path, draw: Draw) -> None:
    images = open_images(f"folder:{draw(tmp_path, ['1.png'])}")
    (tmp_path / "1.png").unlink()
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(DamagedImage, match=r"1\.png: cannot be read .*not a regular file"):
        images.read(0)


def test_a_file_larger_than_any_picture_is_not_read(tmp_path: Path, draw: Draw) -> None:
    folder = draw(tmp_path, ["1.png", "2.png"])
    os.truncate(folder / "2.png", 1 << 40)  # sparse: it takes no space
    images = open_images(f"folder:{folder}")
    with pytest.raises(DamagedImage, match=r"2\.png: cannot be read \(1,099,511,627,776 bytes, more than"):
        images.read(1)
    assert len(images.keys().unique()) == 2


def test_links(tmp_path: Path, draw: Draw) -> None:
    folder = draw(tmp_path / "top" / "set", ["a/1.png"])
    draw(tmp_path / "top" / "beside", ["2.png"])
    (folder / "b").symlink_to("../beside")
    (folder / "c").symlink_to("../beside")  # the same folder again
    (folder / "up").symlink_to("..")  # leads out of the set, to everything beside it
    (folder / "root").symlink_to("/")
    (folder / "self").symlink_to("self")
    (folder / "gone").symlink_to("nowhere")
    (folder / "a" / "back").symlink_to("..")
    assert listing_of(str(folder)).names == ["a/1.png", "b/2.png"]
    assert tallies(folder) == {
        "links to folders that are read already": (2, "a/back", "list"),
        "links to a folder above, which are not followed": (2, "root", "list"),
        "links that lead nowhere": (2, "gone", "warn"),
    }
    assert listing_of(str(folder)).empty == []
    (folder / "a" / "x.png").symlink_to("x.png")
    with pytest.raises(UserError, match=r"x\.png cannot be opened: it is a link that leads back to itself"):
        open_images(f"folder:{folder}")
    (folder / "a" / "x.png").unlink()
    (folder / "a" / "x.png").symlink_to("/nowhere/y.png")
    with pytest.raises(UserError, match=r"it is a dangling link \(/nowhere/y.png does not exist\)"):
        open_images(f"folder:{folder}")
    with pytest.raises(UserError, match=r"gone is a dangling link \(nowhere does not exist\)"):
        open_images(f"folder:{folder}/gone")
    (folder / "l.txt").write_text("a/x.png\n")
    with pytest.raises(UserError, match=r"x\.png is a dangling link"):
        open_images(f"list:{folder}/l.txt")


def test_folders_nested_deeper_than_calls_can_be(tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    deep = "/".join("d" * 900)
    os.makedirs(deep)
    (tmp_path / deep / "1.png").write_bytes(draw(tmp_path / "x", ["1.png"]).joinpath("1.png").read_bytes())
    assert f"{deep}/1.png" in listing_of(".").names


@pytest.mark.parametrize("record", ["run.json", "state.json"])
def test_folders_of_runs_are_not_entered(tmp_path: Path, draw: Draw, record: str) -> None:
    folder = draw(tmp_path, ["cat/1.png", "dog/2.png", "runs/a/pictures/views.png", "cat/run/pictures/views.png"])
    for run in (folder / "runs" / "a", folder / "cat" / "run"):
        (run / "config.yaml").write_text("")
        (run / record).write_text("")
    images = open_images(f"folder:{folder}")
    assert images.classes == ("cat", "dog")
    assert images.notes == (Note(2, "folders of runs, which are no data", "cat/run", "list"),)
    draw(folder, ["runs/a/3.png"])
    with pytest.raises(UserError, match=r"a is the folder of a run, but 1 pictures lie beside its files \(3.png\)"):
        open_images(f"folder:{folder}")


def test_a_link_into_a_run_is_not_followed(tmp_path: Path, draw: Draw) -> None:
    run = draw(tmp_path / "run", ["pictures/views.png", "mine/1.png"])
    for name in ("config.yaml", "run.json"):
        (run / name).write_text("")
    folder = draw(tmp_path / "set", ["a/1.png"])
    (folder / "pics").symlink_to(run / "pictures")
    (folder / "own").symlink_to(run / "mine")
    assert list(listing_of(str(folder)).names) == ["a/1.png", "own/1.png"]
    assert open_images(f"folder:{folder}").notes == (Note(1, "folders of runs, which are no data", "pics", "list"),)


def test_a_run_in_the_folder_of_the_data_itself_adds_nothing(tmp_path: Path, draw: Draw) -> None:
    folder = draw(tmp_path, ["cat/1.png", "dog/2.png", "pictures/views.png"])
    (folder / "config.yaml").write_text("")
    assert open_images(f"folder:{folder}").classes == ("cat", "dog", "pictures")
    (folder / "run.json").write_text("")
    assert open_images(f"folder:{folder}").classes == ("cat", "dog")


def test_the_cache_is_not_entered(tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = draw(tmp_path, ["1.png", "cache/rootstock/sheets/x.png"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    assert listing_of(str(folder)).names == ["1.png"]


def test_the_line_of_a_training() -> None:
    warn, say, listed = (
        Note(2, "files ending in .heic", "dog/\x1b.heic"),
        Note(1, "folders", "w", "say"),
        Note(1, "x", "", "list"),
    )
    assert line_of("folder:h", [listed]) is None
    assert line_of("folder:h", [say, listed]) == "folder:h: 1 folders (w)"
    assert (
        line_of("folder:h", [warn, say]) == "WARNING: folder:h: 2 files ending in .heic (dog/\\x1b.heic); 1 folders (w)"
    )
