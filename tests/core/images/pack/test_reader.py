"""Packs equal their source after any interruption, and damage is detected."""

import contextlib
import errno
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rootstock.core.errors import UserError
from rootstock.core.images.images import Images
from rootstock.core.images.open import DamagedImage, open_images, open_with_splits
from rootstock.core.images.open_files import OpenFiles
from rootstock.core.images.pack import journal
from rootstock.core.images.pack.files import ABOUT, INDEX, RECORDS
from rootstock.core.images.pack.journal import JOURNAL
from rootstock.core.images.pack.record import Packing
from rootstock.core.images.pack.writer import PLAN, Packed, locked, pack
from rootstock.core.images.split import cut
from rootstock.core.images.store import Uniform

ORIGINAL, RAW = Packing(), Packing("raw")


def drawn(folder: Path, names: list[str], *, side: int | None = None) -> Path:
    """Images whose contents depend on their names, of one size or of different sizes."""
    for k, name in enumerate(names):
        generator = np.random.default_rng(list(name.encode()))
        shape = (side, side, 3) if side else (9 + k % 5, 8 + k % 7, 3)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    return folder


def packed(uri: str | list[str], folder: Path, packing: Packing = ORIGINAL, *, skip: bool = False) -> Packed:
    images, splits = open_with_splits(uri)
    return pack(images, splits, folder, packing, skip_damaged=skip)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def the_same(first: Images, second: Images) -> None:
    """Everything but the URI and the pixels."""
    assert [first.name(i) for i in range(len(first))] == [second.name(i) for i in range(len(second))]
    assert first.keys().equal(second.keys())
    assert (first.classes, first.domain_names) == (second.classes, second.domain_names)
    assert first.domains.equal(second.domains)
    assert (first.labels is None) == (second.labels is None)
    if first.labels is not None and second.labels is not None:
        assert first.labels.equal(second.labels)
    assert first.fingerprint() == second.fingerprint()
    assert first.split_hash() == second.split_hash()


def equal_pixels(first: Images, second: Images) -> bool:
    return all(first.read(i).equal(second.read(i)) for i in range(len(second)))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | list[str]]:
    """Sets of every kind, by name."""
    place = tmp_path_factory.mktemp("sets")
    endings = ("png", "jpg", "bmp")
    names = [f"{split}/{c}/{i}.{e}" for split in ("train", "val") for c in "xy" for i, e in enumerate(endings)]
    folder = drawn(place / "set", names)
    with tarfile.open(place / "set.tar", "w") as tar:
        tar.add(folder, arcname=".")
    rows = [f"set/{name},{name.split('/')[1]},{name[-3:]}\n" for name in names]
    (place / "table.csv").write_text("path,label,domain\n" + "".join(rows))
    deep = np.random.default_rng(0).integers(0, 65536, (6, 4, 5, 3), dtype=np.uint16)
    np.savez(place / "deep.npz", x_train=deep[:4], x_test=deep[4:])
    return {
        "folder": f"folder:{folder}",
        "selection": f"folder:{folder}#train[40%:,seed=3]#[:80%]",
        "tar": f"tar:{place}/set.tar",
        "table": f"csv:{place}/table.csv",
        "array": f"npz:{place}/deep.npz?layout=NHWC",
        "digits": "sklearn:digits?size=8#[:20]",
        "blends": "sklearn:digits-m?size=8&blends=2#[:9]",
        "union": [f"folder:{folder}#train", f"tar:{place}/set.tar#val", f"csv:{place}/table.csv#[:3]"],
        "mixture": ["sklearn:digits?size=8#[:4]", f"csv:{place}/table.csv"],
    }


@pytest.mark.parametrize("packing", [ORIGINAL, RAW], ids=lambda packing: packing.format)
@pytest.mark.parametrize(
    "kind", ["folder", "selection", "tar", "table", "array", "digits", "blends", "union", "mixture"]
)
def test_a_pack_is_the_set_that_it_was_made_from(
    tmp_path: Path, sets: dict[str, str | list[str]], kind: str, packing: Packing
) -> None:
    uri, out = sets[kind], tmp_path / "pack"
    images, splits = open_with_splits(uri)
    assert pack(images, splits, out, packing) == (len(images), (out / RECORDS).stat().st_size, [], 0)
    assert sorted(contents(out)) == [INDEX, ABOUT, RECORDS]
    copy = open_images(f"pack:{out}#all")
    the_same(copy, images)
    assert equal_pixels(copy, images)
    the_same(open_images(f"pack:{out}#all#[20%:70%,seed=5]"), images.select(cut(images.keys(), "20%", "70%", 5)))
    several = {"folder": {"train", "val"}, "tar": {"train", "val"}, "array": {"train", "test"}}
    assert set(splits) == (several | {"selection": {"train"}}).get(kind, set())
    for split in splits if kind in several else ():
        the_same(open_images(f"pack:{out}#{split}"), open_images(f"{uri}#{split}"))
    if kind in several:
        with pytest.raises(UserError, match="comes in splits"):
            open_images(f"pack:{out}")
    if packing == ORIGINAL and kind == "folder":
        assert (out / RECORDS).read_bytes() == b"".join(images.encoded(i) or b"" for i in range(len(images)))
    assert packed(f"pack:{out}#all", tmp_path / "again").pictures == len(images)
    the_same(open_images(f"pack:{tmp_path}/again#all"), images)


def test_rows_of_one_shape_come_without_decoding(tmp_path: Path, sets: dict[str, str | list[str]]) -> None:
    folder = drawn(tmp_path / "set", [f"{c}/{i}.jpg" for c in "ab" for i in range(6)], side=8)
    packed(f"folder:{folder}", tmp_path / "raw", RAW)
    packed(f"folder:{folder}", tmp_path / "original")
    packed(sets["array"], tmp_path / "deep")
    images, source = open_images(f"pack:{tmp_path}/raw"), open_images(f"folder:{folder}")
    assert images.uniform() == Uniform((3, 8, 8), torch.uint8)
    order = torch.tensor([7, 0, 7, 11])
    rows = images.rows(order)
    assert rows is not None
    assert rows.equal(torch.stack([source.read(i) for i in order.tolist()]))
    part = images.select(torch.tensor([9, 2, 4])).resident()
    assert part is not None
    assert part.equal(torch.stack([source.read(i) for i in (9, 2, 4)]))
    assert open_images(f"pack:{tmp_path}/original").rows(order) is None
    assert source.uniform() is None
    deep = open_images(f"pack:{tmp_path}/deep#all")
    assert deep.uniform() == Uniform((3, 4, 5), torch.uint16)
    taken = deep.rows(torch.tensor([5, 1]))
    assert taken is not None
    assert torch.stack([deep.read(5), deep.read(1)]).equal(taken)
    union = open_images([f"pack:{tmp_path}/raw#[:50%]", f"pack:{tmp_path}/original"], role="unlabelled")
    assert union.uniform() is None and union.resident() is None
    both = open_images([f"pack:{tmp_path}/raw#[:50%]", "sklearn:digits?size=8#[:3]"], role="unlabelled")
    mixed = both.rows(torch.tensor([8, 0, 6, 3]))
    assert mixed is not None
    assert mixed.equal(torch.stack([both.read(i) for i in (8, 0, 6, 3)]))


def test_new_pictures_are_another_set_with_the_same_identities(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for k, size in enumerate([(40, 30), (16, 20), (64, 64)]):  # (width, height)
        ramp = np.linspace(0, 255, size[0])[None, :, None] * np.linspace(0.3, 1, 3)
        Image.fromarray(np.broadcast_to(ramp, (size[1], size[0], 3)).astype(np.uint8)).save(folder / f"{k}.png")
    source = open_images(f"folder:{folder}")
    packed(f"folder:{folder}", tmp_path / "jpeg", Packing("jpeg", short=16))
    packed(f"folder:{folder}", tmp_path / "raw", Packing("raw", short=16))
    for name in ("jpeg", "raw"):
        images = open_images(f"pack:{tmp_path}/{name}")
        assert [tuple(images.read(i).shape) for i in range(3)] == [(3, 16, 21), (3, 20, 16), (3, 16, 16)]
        assert images.keys().equal(source.keys())
        assert images.split_hash() == source.split_hash()
        assert images.fingerprint() != source.fingerprint()
        assert "not those of the source" in json.loads((tmp_path / name / ABOUT).read_bytes())["pixels"]
    raw, jpeg = (open_images(f"pack:{tmp_path}/{name}") for name in ("raw", "jpeg"))
    assert raw.read(1).equal(source.read(1))  # small enough: left as it is
    for i in range(3):
        with Image.open(folder / f"{i}.png") as picture:
            height, width = raw.read(i).shape[1:]
            slow = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(raw.read(i).permute(1, 2, 0).numpy() - slow).max() <= 1
        assert (jpeg.read(i).int() - raw.read(i).int()).abs().max() <= 8
    np.savez(tmp_path / "deep.npz", x=np.full((2, 8, 8, 3), 40000, np.uint16))
    packed(f"npz:{tmp_path}/deep.npz?layout=NHWC", tmp_path / "small", Packing("raw", short=4))
    assert open_images(f"pack:{tmp_path}/small").read(1).unique().tolist() == [40000]
    with pytest.raises(UserError, match="not 3 of 16; use --format raw"):
        packed(f"npz:{tmp_path}/deep.npz?layout=NHWC", tmp_path / "no", Packing("jpeg"))


@pytest.mark.parametrize(
    ("packing", "sentence"),
    [
        ({"format": "png"}, "known: original, raw, jpeg"),
        ({"short": 64}, "--format original does not"),
        ({"format": "raw", "short": 0}, "expected 1 or more"),
        ({"format": "raw", "quality": 80}, "add --format jpeg"),
        ({"format": "jpeg", "quality": 101}, "expected 1 to 100"),
    ],
)
def test_options_that_make_no_sense_are_refused(packing: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Packing(**packing)  # pyright: ignore[reportArgumentType]


class Killed(BaseException):
    """Plays the role of SIGKILL: nothing catches it."""


def allowing(amount: int, error: BaseException) -> Callable[[int, bytes], int]:
    """An os.write that accepts so many bytes in total (perhaps a part of one call's) and then raises."""
    left, real = [amount], os.write

    def write(descriptor: int, content: bytes) -> int:
        if not left[0]:
            raise error
        count = real(descriptor, content[: left[0]])
        left[0] -= count
        return count

    return write


def test_packing_killed_at_any_byte_ends_in_the_same_bytes(
    tmp_path: Path, sets: dict[str, str | list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "AT_ONCE", 3)
    for kind, packing in (("folder", ORIGINAL), ("array", RAW)):
        images, splits = open_with_splits(sets[kind])
        pack(images, splits, tmp_path / kind, packing)
        expected = contents(tmp_path / kind)
        total = len(expected[RECORDS]) + len(images) * journal.ENTRY.itemsize
        chance, out = random.Random(0), tmp_path / "killed"
        for _ in range(15):
            resumed = []
            while not out.exists():
                with monkeypatch.context() as patched:
                    patched.setattr(os, "write", allowing(chance.randrange(1, total), Killed()))
                    try:
                        resumed.append(pack(images, splits, out, packing).resumed)
                    except Killed:
                        assert not out.exists()
            assert contents(out) == expected
            shutil.rmtree(out)


def test_what_an_interruption_left_is_checked_before_it_is_believed(
    tmp_path: Path, sets: dict[str, str | list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure can leave holes anywhere: both files are truncated and bits are flipped at random."""
    images, splits = open_with_splits(sets["folder"])
    pack(images, splits, tmp_path / "straight", ORIGINAL)
    expected = contents(tmp_path / "straight")
    out, part = tmp_path / "out", tmp_path / "out.part"
    size = len(expected[RECORDS]) + len(images) * journal.ENTRY.itemsize
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", allowing(size - 1, Killed()))
        with pytest.raises(Killed):
            pack(images, splits, out, ORIGINAL)
    shutil.copytree(part, tmp_path / "left")
    chance, seen = random.Random(1), set()
    for _ in range(30):
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(tmp_path / "left", part)
        for name in (RECORDS, JOURNAL):
            content = bytearray((part / name).read_bytes())
            if chance.random() < 0.5:
                content = content[: chance.randrange(len(content) + 1)]
            if content and chance.random() < 0.5:
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            (part / name).write_bytes(content)
        seen.add(pack(images, splits, out, ORIGINAL).resumed)
        assert contents(out) == expected
        shutil.rmtree(out)
    assert len(seen) > 3


def pack_until_killed(uri: str, out: Path) -> None:
    """Runs in a separate process, which kills itself at the sixth write."""
    real, calls, journal.AT_ONCE = os.write, [], 2

    def write(descriptor: int, content: bytes) -> int:
        calls.append(descriptor)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(descriptor, content)

    os.write = write
    packed(uri, out)


def test_packing_goes_on_after_sigkill(tmp_path: Path, sets: dict[str, str | list[str]]) -> None:
    uri, out = sets["folder"], tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=pack_until_killed, args=(uri, out))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()
    with pytest.raises(UserError, match="not finished; run the command that packed it again"):
        open_images(f"pack:{out}")
    assert packed(uri, out).resumed == 4
    packed(uri, tmp_path / "straight")
    assert contents(out) == contents(tmp_path / "straight")


@pytest.mark.parametrize("step", ["save_index", "sync", "tidy"])
def test_a_kill_at_the_end_is_mended(
    tmp_path: Path, sets: dict[str, str | list[str]], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def stopped(*given: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(f"rootstock.core.images.pack.writer.{step}", stopped)
        with pytest.raises(Killed):
            packed(sets["folder"], tmp_path / "out")
    left = tmp_path / ("out" if step == "tidy" else "out.part")
    assert PLAN in contents(left)
    (left / ".torn.part").write_bytes(b"as a temporary file is left behind")
    assert packed(sets["folder"], tmp_path / "out").resumed == 12
    assert sorted(contents(tmp_path / "out")) == [INDEX, ABOUT, RECORDS]


@pytest.mark.parametrize("room", [0, 100, 2000])
def test_a_full_disk_is_an_error_from_which_packing_goes_on(
    tmp_path: Path, sets: dict[str, str | list[str]], monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", allowing(room, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        with pytest.raises(OSError) as raised:
            packed(sets["folder"], out)
    assert raised.value.errno == errno.ENOSPC
    packed(sets["folder"], out)
    packed(sets["folder"], tmp_path / "straight")
    assert contents(out) == contents(tmp_path / "straight")


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "set", [f"{i}.jpg" for i in range(4)], side=6)
    packed(f"folder:{folder}", tmp_path / "original")
    packed(f"folder:{folder}", tmp_path / "raw", RAW)
    chance = random.Random(0)
    for name in ("original", "raw"):
        good = contents(tmp_path / name)
        source = open_images(f"pack:{tmp_path}/{name}")
        ends = source.in_storage_order()._stores[0].layout(torch.arange(4)).tolist()[1:]
        for _ in range(40):
            content = bytearray(good[RECORDS])
            at = chance.randrange(len(content))
            content[at] ^= 1 << chance.randrange(8)
            (tmp_path / name / RECORDS).write_bytes(content)
            images, hurt = open_images(f"pack:{tmp_path}/{name}"), sum(at >= end for end in ends)
            for i in range(4):
                if i != hurt:
                    assert images.read(i).equal(open_images(f"folder:{folder}").read(i))
                    continue
                with pytest.raises(DamagedImage, match=rf"{name}!{i}\.jpg: its bytes have changed since packing"):
                    images.read(i)
            if name == "raw":
                with pytest.raises(DamagedImage, match=rf"{name}!{hurt}\.jpg"):
                    images.rows(torch.tensor([3, 2, 1, 0]))
        (tmp_path / name / RECORDS).write_bytes(good[RECORDS])
        for _ in range(40):
            content = bytearray(good[INDEX])
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            (tmp_path / name / INDEX).write_bytes(content)
            with pytest.raises(UserError, match=r"index\.safetensors has changed since packing"):
                open_images(f"pack:{tmp_path}/{name}")
        (tmp_path / name / INDEX).write_bytes(good[INDEX])
        for at in range(0, len(good[ABOUT]), 7):
            content = bytearray(good[ABOUT])
            content[at] ^= 1 << chance.randrange(8)
            (tmp_path / name / ABOUT).write_bytes(content)
            # texts in pack.json that only people read may change; everything else is in the index
            with contextlib.suppress(UserError):
                the_same(open_images(f"pack:{tmp_path}/{name}"), source)


def test_missing_and_shortened_files_are_one_sentence(tmp_path: Path, sets: dict[str, str | list[str]]) -> None:
    with pytest.raises(UserError, match="there is no pack; expected a folder made by"):
        open_images(f"pack:{tmp_path}")
    with pytest.raises(UserError, match="pack:/: there is no pack"):
        open_images("pack:/")
    packed(sets["digits"], tmp_path / "out")
    good = contents(tmp_path / "out")
    opened = open_images(f"pack:{tmp_path}/out")
    (tmp_path / "out" / RECORDS).write_bytes(good[RECORDS][:-1])
    with pytest.raises(UserError, match=r"records\.bin has 3839 bytes, but the index expects 3840"):
        open_images(f"pack:{tmp_path}/out")
    with pytest.raises(DamagedImage, match=r"digits\[.*cannot be read .*ends 1 bytes too early"):
        opened.read(19)
    for name in (RECORDS, INDEX):
        (tmp_path / "out" / name).unlink()
        with pytest.raises(UserError, match=f"{name} cannot be read .*No such file"):
            open_images(f"pack:{tmp_path}/out")
    about = json.loads(good[ABOUT])
    (tmp_path / "out" / ABOUT).write_text(json.dumps({**about, "format": "rootstock pack 9"}))
    with pytest.raises(UserError, match=r"its format is 'rootstock pack 9', but this program reads 'rootstock pack 1'"):
        open_images(f"pack:{tmp_path}/out")


def test_other_sets_and_options_are_refused(
    tmp_path: Path, sets: dict[str, str | list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out, part = drawn(tmp_path / "set", ["1.png", "2.png"]), tmp_path / "out", tmp_path / "out.part"
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", allowing(300, Killed()))
        with pytest.raises(Killed):
            packed(f"folder:{folder}", out, RAW)
    with pytest.raises(
        UserError, match=r"unfinished packing that was begun with --format raw; remove it to begin anew"
    ):
        packed(f"folder:{folder}", out)
    before = (folder / "2.png").read_bytes()
    Image.new("RGB", (9, 9)).save(folder / "2.png")
    with pytest.raises(UserError, match="begun from other pictures or labels than there are now"):
        packed(f"folder:{folder}", out, RAW)
    (folder / "2.png").write_bytes(before)
    with locked(part / JOURNAL), pytest.raises(UserError, match="being written by another process"):
        packed(f"folder:{folder}", out, RAW)
    packed(f"folder:{folder}", out, RAW)
    with pytest.raises(UserError, match="is a pack that was made with --format raw; name another folder"):
        packed(f"folder:{folder}", out)
    with pytest.raises(UserError, match="is a pack that was made from other pictures"):
        packed(sets["folder"], out, RAW)
    with pytest.raises(UserError, match="exists, but is not a finished pack"):
        packed(f"folder:{folder}", folder)
    assert packed(f"folder:{folder}", out, RAW).resumed == 2
    assert not part.exists()


def test_damaged_pictures_are_refused_or_left_out_and_counted(tmp_path: Path) -> None:
    names = [f"{split}/{c}/{i}.png" for split in ("train", "test") for c in "ab" for i in range(2)]
    folder, out = drawn(tmp_path / "set", names), tmp_path / "out"
    for name in ("train/a/1.png", "test/b/0.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:50])
    for _ in range(2):  # the second time they are in the journal
        with pytest.raises(
            UserError, match=r"2 damaged: .*test/b/0\.png.* and 1 more; repair .* or add --skip-damaged"
        ):
            packed(f"folder:{folder}", out)
    result = packed(f"folder:{folder}", out, skip=True)
    assert (result.pictures, [i for i, _ in result.damaged], result.resumed) == (6, [2, 5], 8)
    assert packed(f"folder:{folder}", out, skip=True)._replace(resumed=8) == result
    about = json.loads((out / ABOUT).read_bytes())
    assert [i for i, _ in about["skipped"]] == [2, 5]
    for split, kept in (("train", [0, 2, 3]), ("test", [0, 1, 3])):
        copy, source = open_images(f"pack:{out}#{split}"), open_images(f"folder:{folder}#{split}")
        the_same(copy, source.select(torch.tensor(kept)))
        assert equal_pixels(copy, source.select(torch.tensor(kept)))
    for name in names:
        (folder / name).write_bytes(b"")
    with pytest.raises(UserError, match="none of its pictures can be read"):
        packed(f"folder:{folder}", tmp_path / "none", skip=True)


class Reader(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        rows = self.images.rows(torch.tensor([i]))
        return self.images.read(i), torch.empty(0) if rows is None else rows[0]


@pytest.mark.parametrize("packing", [ORIGINAL, RAW], ids=lambda packing: packing.format)
def test_processes_threads_and_copies_read_what_one_reads(tmp_path: Path, packing: Packing) -> None:
    folder = drawn(tmp_path / "set", [f"{i}.png" for i in range(24)], side=7)
    packed(f"folder:{folder}", tmp_path / "out", packing)
    images, again = open_images(f"pack:{tmp_path}/out"), open_images(f"pack:{tmp_path}/out")
    expected = [images.read(i) for i in range(24)]  # the file is open by now, in this process
    assert images.rows(torch.arange(24)) is None or packing == RAW
    for whose in (images, again, pickle.loads(pickle.dumps(images))):  # noqa: S301
        loader = DataLoader(Reader(whose), batch_size=None, num_workers=2, multiprocessing_context="fork")
        for (picture, row), one in zip(loader, expected, strict=True):
            assert picture.equal(one)
            assert packing == ORIGINAL or row.equal(one)
    wrong: list[int] = []

    def read_all(start: int) -> None:
        wrong.extend(i for i in range(24) if not images.read((i + start) % 24).equal(expected[(i + start) % 24]))

    threads = [threading.Thread(target=read_all, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_open_files_are_bounded_and_reread_when_needed(tmp_path: Path) -> None:
    for k in range(9):
        (tmp_path / str(k)).write_bytes(bytes([k]) * 10)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    files = OpenFiles(limit=3)
    for k in [*range(9), 0, 8, 4]:
        assert files.read(str(tmp_path / str(k)), 4, 6) == bytes([k]) * 4
        if before:
            assert len(os.listdir("/proc/self/fd")) <= before + 3
    assert files.read(str(tmp_path / "1"), 0, 0) == b""
    with pytest.raises(OSError, match="ends 2 bytes too early"):
        files.read(str(tmp_path / "1"), 4, 8)
    with pytest.raises(FileNotFoundError):
        files.read(str(tmp_path / "none"), 1, 0)
    assert pickle.loads(pickle.dumps(files)).read(str(tmp_path / "2"), 1, 0) == b"\2"  # noqa: S301
    del files
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_domain_names_follow_the_source_and_unions_keep_them_apart(tmp_path: Path) -> None:
    for place in ("one", "two"):
        drawn(tmp_path / place / "train", ["a.png"], side=5)
        packed(f"folder:{tmp_path}/{place}/train", tmp_path / f"{place}.pack")
    uris = [f"pack:{tmp_path}/{place}.pack" for place in ("one", "two")]
    assert open_images(uris[0]).domain_names == ("train",)
    union = open_images(uris)
    assert (union.domain_names, union.domains.tolist()) == (tuple(uris), [0, 1])
