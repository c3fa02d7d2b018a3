"""`rootstock data URI --pack FOLDER`: its messages and exit codes."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images.open import open_images
from rootstock.core.images.pack.record import Packing
from rootstock.core.images.sources.files import FileStore
from rootstock.launch.pack import pack_set

Command = Callable[..., subprocess.CompletedProcess[str]]
Draw = Callable[[Path, Iterable[str]], Path]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # no path is wrapped
    monkeypatch.chdir(tmp_path)


def test_packing_says_what_was_packed_and_how_to_open_it(rootstock: Command, draw: Draw) -> None:
    draw(Path("set"), [f"{split}/{c}/{i}.png" for split in ("train", "val") for c in "ab" for i in range(2)])
    done = rootstock("data", "folder:set", "--pack", "copies/set #1")
    assert done.returncode == 0, done.stderr
    source = open_images("folder:set#all")
    for said in (
        "pictures     8",
        "2 classes",
        source.fingerprint(),
        source.split_hash(),
        "pixels are those of the source",
    ):
        assert said in done.stdout
    assert "open them as pack:copies/set %231" in done.stdout
    assert open_images("pack:copies/set %231#val").keys().equal(open_images("folder:set#val").keys())
    assert not Path("contact-sheet.png").exists()
    again = rootstock("data", "folder:set", "--pack", "copies/set #1")
    assert again.returncode == 0 and "8 pictures were packed already" in again.stdout
    looked = rootstock("data", "pack:copies/set %231")
    assert looked.returncode == 0 and "no picture is damaged" in looked.stdout


def test_new_pictures_and_unions_are_announced(rootstock: Command, draw: Draw) -> None:
    draw(Path("set"), ["a.png", "b.png"])
    done = rootstock("data", "folder:set", "sklearn:digits#[:3]", "--pack", "x")
    assert done.returncode == 2 and "a union needs them in all of its sets or in none" in done.stderr
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save("set/c.png")
    draw(Path("other"), ["d.png"])
    done = rootstock(
        "data", "folder:set", "folder:other", "--pack", "x", "--format", "jpeg", "--short", "16", "--quality", "80"
    )
    assert done.returncode == 0, done.stderr
    assert "not those of the source: shorter side at most 16 pixels, JPEG of quality 80" in done.stdout
    images = open_images("pack:x")
    assert images.domain_names == ("set", "other")
    assert images.read(2).shape == (3, 16, 19)


def test_damage_is_refused_or_counted(rootstock: Command, draw: Draw) -> None:
    draw(Path("set"), [f"{i}.png" for i in range(4)])
    Path("set/2.png").write_bytes(b"no picture")
    done = rootstock("data", "folder:set", "--pack", "x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: 1 damaged: ") and done.stderr.count("\n") == 1
    assert "2.png" in done.stderr and "--skip-damaged" in done.stderr
    done = rootstock("data", "folder:set", "--pack", "x", "--skip-damaged")
    assert done.returncode == 0
    assert "left out" in done.stdout and "packed 3 pictures" in done.stdout and "1 damaged ones left out" in done.stdout


def test_a_full_disk_is_one_sentence(rootstock: Command, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(Path("set"), ["a.png", "b.png"])

    def full(descriptor: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("rootstock.core.images.pack.journal.os.write", full)
        done = rootstock("data", "folder:set", "--pack", "x")
    assert done.returncode == 1
    assert "the disk is full" in done.stderr and "run the same command to resume" in done.stderr
    assert done.stderr.count("\n") == 1
    assert rootstock("data", "folder:set", "--pack", "x").returncode == 0


def test_a_damaged_pack_is_refused_when_it_is_asked_for_again(rootstock: Command, draw: Draw) -> None:
    draw(Path("set"), ["a.png", "b.png"])
    assert rootstock("data", "folder:set", "--pack", "x").returncode == 0
    content = bytearray(Path("x/records.bin").read_bytes())
    content[5] ^= 1
    Path("x/records.bin").write_bytes(content)
    done = rootstock("data", "folder:set", "--pack", "x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "1 of its 2 records are damaged" in done.stderr
    assert f"remove {Path('x').absolute()} and run the command that packed it again" in done.stderr


def test_an_unreadable_file_is_listed_and_can_be_left_out(
    rootstock: Command, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(Path("set"), [f"{i}.png" for i in range(5)])
    real = FileStore.content

    def content(store: FileStore, i: int) -> bytes | bytearray:
        if store.name(i) == "3.png":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(store, i)

    monkeypatch.setattr(FileStore, "content", content)
    for uri in ("folder:set", "folder:set#[:100%]"):
        done = rootstock("data", uri)
        assert done.returncode == 1 and "1 damaged" in done.stdout
        assert "damaged set/3.png: cannot be read (Permission denied)" in done.stdout
    done = rootstock("data", "folder:set", "--pack", "x")
    assert done.returncode == 2 and "3.png: cannot be read (Permission denied)" in done.stderr
    assert f"remove {Path('x.part').absolute()}, which is kept, or add --skip-damaged" in done.stderr
    done = rootstock("data", "folder:set", "--pack", "x", "--skip-damaged")
    assert done.returncode == 0 and "packed 4 pictures" in done.stdout


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("file/p", "Not a directory"),
        ("file/p/q", "Not a directory"),
        ("/proc/p", "No such file or directory"),
        ("n" * 252, "File name too long"),
        ("n" * 300, "File name too long"),
    ],
    ids=["in a file", "below a file", "in proc", "too long with .part", "too long"],
)
def test_a_place_that_cannot_be_written_is_one_sentence(rootstock: Command, folder: str, reason: str) -> None:
    Path("file").write_text("no folder")
    done = rootstock("data", "sklearn:digits?size=8#[:2]", "--pack", folder)
    assert done.returncode == 2
    assert f"cannot be written ({reason}); name another folder" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--short", "8"], "--short is for packing; add --pack FOLDER"),
        (["--skip-damaged"], "--skip-damaged is for packing"),
        (["--pack", "x", "--out", "y.png"], "--pack draws none"),
        (["--pack", "x", "--short", "8"], "add --format raw or jpeg"),
        (["--pack", "x", "--format", "png"], "known: original, raw, jpeg"),
    ],
)
def test_options_that_make_no_sense_are_refused(rootstock: Command, options: list[str], sentence: str) -> None:
    done = rootstock("data", "sklearn:digits?size=8#[:2]", *options)
    assert done.returncode == 2
    assert sentence in done.stderr and done.stderr.count("\n") == 1
    assert not Path("x").exists()


def test_a_pack_inside_the_set_is_refused(draw: Draw) -> None:
    draw(Path("set"), ["a/1.png", "b/2.png"])
    with pytest.raises(UserError, match=r"--pack: set/a/pack lies in set, which is read as data"):
        pack_set(["folder:set"], Path("set/a/pack"), Packing(), skip_damaged=False)
    assert not Path("set/a/pack.part").exists()
