"""Obstacles to packing: temporary errors, damaged packs, other processes, other options."""

import contextlib
import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch

from rootstock.core.errors import UserError
from rootstock.core.images.images import Images
from rootstock.core.images.open import DamagedImage, open_images, open_with_splits
from rootstock.core.images.pack import journal
from rootstock.core.images.pack import writer as pack_writer
from rootstock.core.images.pack.files import ABOUT, INDEX, RECORDS
from rootstock.core.images.pack.journal import JOURNAL
from rootstock.core.images.pack.record import JPEG_SIDE, Packing, PackRecord, record_of
from rootstock.core.images.pack.writer import PLAN, Packed, pack
from rootstock.core.images.sources.files import FileStore

Draw = Callable[[Path, Iterable[str]], Path]
ORIGINAL, RAW = Packing(), Packing("raw")
N = 12


def packed(uri: str | list[str], folder: Path, packing: Packing = ORIGINAL, *, skip: bool = False) -> Packed:
    images, splits = open_with_splits(uri)
    return pack(images, splits, folder, packing, skip_damaged=skip)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path, draw: Draw) -> Path:
    """Twelve pictures in two classes."""
    return draw(tmp_path / "set", [f"{c}/{i}.png" for c in "ab" for i in range(N // 2)])


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "AT_ONCE", 2)


def unreadable(monkeypatch: pytest.MonkeyPatch, name: str, number: int = errno.EACCES) -> None:
    """Make opening the file `name` fail, as without permission (which root always has) or on a bad disk."""
    real = FileStore.content

    def content(store: FileStore, i: int) -> bytes | bytearray:
        if store.name(i) == name:
            raise OSError(number, os.strerror(number))
        return real(store, i)

    monkeypatch.setattr(FileStore, "content", content)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_an_unreadable_file_is_left_out_like_any_other_damage(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patched:
        unreadable(patched, "a/3.png", number)
        with pytest.raises(UserError, match=rf"1 damaged: .*a/3\.png: cannot be read \({os.strerror(number)}\)"):
            packed(f"folder:{folder}", tmp_path / "out")
        result = packed(f"folder:{folder}", tmp_path / "out", skip=True)
        assert (result.pictures, [i for i, _ in result.damaged]) == (N - 1, [3])
        # packed images are found again while the same file is still unreadable
        assert packed(f"folder:{folder}", tmp_path / "out", skip=True).resumed == N - 1
    others = torch.tensor([i for i in range(N) if i != 3])
    source, copy = open_images(f"folder:{folder}").select(others), open_images(f"pack:{tmp_path}/out")
    assert copy.keys().equal(source.keys()) and copy.fingerprint() == source.fingerprint()


@pytest.mark.parametrize("mended", [1, 2])
def test_packing_goes_on_when_a_file_can_be_read_again(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, mended: int
) -> None:
    """Two files could be neither hashed nor packed at first; one or both of them become readable."""
    uri, out = f"folder:{folder}", tmp_path / "out"
    with monkeypatch.context() as patched:
        unreadable(patched, "a/3.png")
        unreadable(patched, "b/4.png")
        with pytest.raises(UserError, match="2 damaged"):
            packed(uri, out)
    if mended == 1:
        unreadable(monkeypatch, "b/4.png")
    assert packed(uri, out, skip=True).resumed == 3
    packed(uri, tmp_path / "straight", skip=True)
    assert contents(out) == contents(tmp_path / "straight")


def test_a_file_that_cannot_be_read_any_more_stops_packing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, out = f"folder:{folder}", tmp_path / "out"
    killed_at_write(monkeypatch, 2, uri, out)
    with monkeypatch.context() as patched:
        unreadable(patched, "a/3.png")
        with pytest.raises(
            UserError, match=r"begun from other pictures .*, or try again when all pictures can be read$"
        ):
            packed(uri, out)
    packed(uri, out)
    packed(uri, tmp_path / "straight")
    assert contents(out) == contents(tmp_path / "straight")


@pytest.mark.parametrize("content", [b"7", b"{", b'{"unreadable": [99]}', b'{"unreadable": "all"}'])
def test_a_damaged_plan_is_a_sentence(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    killed_at_write(monkeypatch, 2, f"folder:{folder}", tmp_path / "out")
    (tmp_path / "out.part" / PLAN).write_bytes(content)
    with pytest.raises(
        UserError, match=r"out\.part is an unfinished packing .*plan\.json that is damaged now; remove it"
    ):
        packed(f"folder:{folder}", tmp_path / "out")


def test_an_error_that_passes_leaves_no_trace(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None
) -> None:
    """Image 5 cannot be read at first, but can be when packing continues; 2 and 8 stay damaged."""
    for name in ("a/2.png", "b/2.png"):
        (folder / name).write_bytes(b"no picture")

    def failing(images: Images, i: int, packing: Packing) -> PackRecord:
        if i == 5:
            raise DamagedImage("5: cannot be read (Input/output error)")
        return record_of(images, i, packing)

    uri, out = f"folder:{folder}", tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(journal, "record_of", failing)
        with pytest.raises(
            UserError, match=r"^3 damaged: .*a/2\.png.* and 2 more; repair .*out\.part, which is kept, or add"
        ):
            packed(uri, out)
    result = packed(uri, out, skip=True)
    assert (result.pictures, [i for i, _ in result.damaged], result.resumed) == (N - 2, [2, 8], 5)
    assert "not a picture" in result.damaged[0][1]
    packed(uri, tmp_path / "straight", skip=True)
    assert contents(out) == contents(tmp_path / "straight")


class Killed(BaseException):
    """Plays the role of SIGKILL: nothing catches it."""


def killed_at_write(monkeypatch: pytest.MonkeyPatch, number: int, uri: str, out: Path) -> None:
    """Pack, and stop at the write of this number."""
    real, calls = os.write, list[int]()

    def write(descriptor: int, content: bytes) -> int:
        calls.append(descriptor)
        if len(calls) == number:
            raise Killed
        return real(descriptor, content)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        with pytest.raises(Killed):
            packed(uri, out)


def test_a_second_interruption_loses_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None
) -> None:
    """An incomplete entry is truncated first; otherwise nothing written after it would be valid."""
    uri, out, part = f"folder:{folder}", tmp_path / "out", tmp_path / "out.part"
    killed_at_write(monkeypatch, 5, uri, out)  # after two chunks, each a write of records and one of entries
    for name in (RECORDS, JOURNAL):
        with open(part / name, "ab") as file:
            file.write(b"torn")
    killed_at_write(monkeypatch, 5, uri, out)
    assert packed(uri, out).resumed == 8
    packed(uri, tmp_path / "straight")
    assert contents(out) == contents(tmp_path / "straight")


@pytest.mark.parametrize("packing", [ORIGINAL, RAW], ids=lambda packing: packing.format)
def test_a_damaged_pack_is_not_packed_already(tmp_path: Path, folder: Path, packing: Packing) -> None:
    uri, out = f"folder:{folder}", tmp_path / "out"
    packed(uri, out, packing)
    good = contents(out)
    remedy = rf"; remove {out} and run the command that packed it again$"

    def flipped(name: str, at: int) -> bytes:
        content = bytearray(good[name])
        content[at] ^= 1
        return bytes(content)

    size = len(good[RECORDS])
    for name, content, sentence in (
        (RECORDS, flipped(RECORDS, 0), r"1 of its 12 records are damaged, the first is that of a/0\.png"),
        (RECORDS, flipped(RECORDS, size - 1), r"1 of its 12 records are damaged, the first is that of b/5\.png"),
        (RECORDS, bytes(size), r"12 of its 12 records are damaged"),
        (RECORDS, good[RECORDS][:-1], rf"records\.bin has {size - 1} bytes, but the index expects {size}"),
        (INDEX, flipped(INDEX, len(good[INDEX]) // 2), r"index\.safetensors has changed since packing"),
        (INDEX, None, r"index\.safetensors cannot be read \(No such file"),
        (ABOUT, good[ABOUT][:-9], r"its pack\.json is damaged or missing"),
        (ABOUT, good[ABOUT].replace(b'"plan": {', b'"plan": 7, "x": {'), r"its pack\.json is damaged"),
        (ABOUT, None, r"its pack\.json is damaged or missing"),
    ):
        if content is None:
            (out / name).unlink()
        else:
            (out / name).write_bytes(content)
        with pytest.raises(UserError, match=sentence + ".*" + remedy):
            packed(uri, out, packing)
        (out / name).write_bytes(good[name])
    assert packed(uri, out, packing) == (N, size, [], N)
    (out / RECORDS).write_bytes(flipped(RECORDS, 0))
    with pytest.raises(DamagedImage, match=r"a/0\.png: its bytes have changed since packing \(checksum\)" + remedy):
        open_images(f"pack:{out}").read(0)
    (out / INDEX).write_bytes(flipped(INDEX, 100))
    with pytest.raises(UserError, match=remedy):
        open_images(f"pack:{out}")


def cut_while_mapped(records: Path, images: Images, mapped_before: bool) -> None:
    """Runs in a separate process, which exits with 0 if reading a truncated file raises UserError."""
    if mapped_before:
        assert images.rows(torch.arange(4)) is not None
    os.truncate(records, 0)
    with pytest.raises(UserError, match=r"records\.bin has 0 bytes, but the index expects .*; remove .*raw and run"):
        images.rows(torch.arange(4))


@pytest.mark.parametrize("mapped_before", [False, True])
def test_a_mapped_file_that_shrinks_is_a_sentence(tmp_path: Path, mapped_before: bool) -> None:
    """In a separate process, since a failure would be SIGBUS, which kills it."""
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 64, 64), np.uint8))
    packed(f"npz:{tmp_path}/x.npz", tmp_path / "raw", RAW)
    images = open_images(f"pack:{tmp_path}/raw")
    arguments = (tmp_path / "raw" / RECORDS, images, mapped_before)
    process = multiprocessing.get_context("fork").Process(target=cut_while_mapped, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_part_keeps_the_name_of_its_split(tmp_path: Path, draw: Draw) -> None:
    """Otherwise #test of the copy would be a fifth of the training images."""
    names = [f"{split}/{c}/{i}.png" for split in ("train", "val") for c in "xy" for i in range(5)]
    draw(tmp_path / "set", names)
    draw(tmp_path / "flat", [f"{i}.png" for i in range(10)])
    draw(tmp_path / "more", [f"train/x/{i}.png" for i in range(3)])
    whole, flat, more = (f"folder:{tmp_path}/{name}" for name in ("set", "flat", "more"))
    for k, (uri, name) in enumerate(
        {
            f"{whole}#train": "train",
            f"{whole}#val": "val",
            f"{whole}#train[:50%]": "train",
            f"{whole}#all#test": "test",
            f"{flat}#train": "train",
            more: "train",
        }.items()
    ):
        out = tmp_path / str(k)
        packed(uri, out)
        images = open_images(uri)
        for again in (f"pack:{out}#{name}", f"pack:{out}", f"pack:{out}#all"):
            assert open_images(again).keys().equal(images.keys()), again
        other = "train" if name == "test" else "test"
        with pytest.raises(UserError, match=rf"it has no split {other} \(it has: {name}, all\)"):
            open_images(f"pack:{out}#{other}")
        packed(f"pack:{out}#{name}", tmp_path / f"{k}again")
        assert open_images(f"pack:{tmp_path}/{k}again#{name}").keys().equal(images.keys())
    packed([f"{whole}#train", f"{more}#train"], tmp_path / "both")
    assert len(open_images(f"pack:{tmp_path}/both#train")) == 13
    for mixed in ([f"{whole}#train", f"{whole}#val"], f"{flat}#[:80%]"):
        assert open_with_splits(mixed)[1] == {}


def test_the_plan_knows_all_that_a_pack_depends_on(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thing changes at a time: splits, domains, labels, and the versions of Pillow and torch."""
    images, other = open_images(f"folder:{folder}"), r"is a pack that was made from other pictures or labels"
    pack(images, {"train": torch.arange(6)}, tmp_path / "splits", ORIGINAL)
    pack(images, {"train": torch.arange(6)}, tmp_path / "splits", ORIGINAL)
    for splits in ({}, {"train": torch.arange(5)}, {"train": torch.arange(1, 7)}, {"test": torch.arange(6)}):
        with pytest.raises(UserError, match=other):
            pack(images, splits, tmp_path / "splits", ORIGINAL)
    table = folder / "table.csv"
    for changing, constant in (("domain", "label"), ("label", "domain")):
        first, second = (
            f"path,{changing},{constant}\n" + "".join(f"a/{i}.png,{'uv'[(i + k) % 2]},x\n" for i in range(4))
            for k in range(2)
        )
        table.write_text(first)
        packed(f"csv:{table}", tmp_path / changing)
        table.write_text(second)
        with pytest.raises(UserError, match=other):
            packed(f"csv:{table}", tmp_path / changing)
    for packing, name in ((RAW, "raw"), (Packing("raw", short=8), "short"), (ORIGINAL, "original")):
        packed(f"folder:{folder}", tmp_path / name, packing)
        for module, library in ((PIL, "Pillow"), (torch, "torch")):
            used = packing != ORIGINAL and (library == "Pillow" or packing.short is not None)
            with monkeypatch.context() as patched:
                patched.setattr(module, "__version__", "99")
                with pytest.raises(UserError, match=f"made with {library} ") if used else contextlib.nullcontext():
                    packed(f"folder:{folder}", tmp_path / name, packing)


def test_of_two_that_pack_at_once_the_later_leaves_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process finishes between the first check and the creation of the part's folder."""
    uri, out, part, real = f"folder:{folder}", tmp_path / "out", tmp_path / "out.part", pack_writer.locked
    packed(uri, tmp_path / "others")

    def after_the_other(path: Path) -> contextlib.AbstractContextManager[int]:
        shutil.copytree(tmp_path / "others", out)
        return real(path)

    monkeypatch.setattr(pack_writer, "locked", after_the_other)
    assert packed(uri, out).resumed == N
    assert not part.exists() and contents(out) == contents(tmp_path / "others")
    shutil.rmtree(out)
    part.mkdir()
    (part / JOURNAL).write_bytes(b"begun by somebody")
    assert packed(uri, out).resumed == N
    assert contents(part) == {JOURNAL: b"begun by somebody"}


def test_pictures_too_wide_for_a_jpeg_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", x=np.zeros((1, 2, JPEG_SIDE + 1, 3), np.uint8))
    np.savez(tmp_path / "fits.npz", x=np.zeros((1, JPEG_SIDE, 2, 3), np.uint8))
    with pytest.raises(
        UserError,
        match=r"wide.*\[0\]: a JPEG holds at most 65500 pixels a side, not 65501 x 2; use --format raw, or scale down by "
        r"--short; .*no\.part is kept; remove it before packing in another way",
    ):
        packed(f"npz:{tmp_path}/wide.npz?layout=NHWC", tmp_path / "no", Packing("jpeg"))
    assert (tmp_path / "no.part").is_dir()
    packed(f"npz:{tmp_path}/fits.npz?layout=NHWC", tmp_path / "yes", Packing("jpeg"))
    assert open_images(f"pack:{tmp_path}/yes").read(0).shape == (3, JPEG_SIDE, 2)


def test_when_nothing_can_be_read_the_part_is_named(tmp_path: Path, draw: Draw) -> None:
    folder = draw(tmp_path / "set", ["a.png"])
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"none of its pictures can be read, .*remove .*out\.part, which is kept$"):
        packed(f"folder:{folder}", tmp_path / "out", skip=True)
