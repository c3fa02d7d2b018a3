"""Reading parts of objects: what is fetched, what is kept, and what is said when it fails."""

import copy
import gzip
import io
import itertools
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rootstock.core.errors import MachineError, UserError
from rootstock.core.images.limits import sized
from rootstock.core.images.open import open_images
from rootstock.core.images.remote import blocks, client, reading
from rootstock.core.images.remote.blocks import PAGE, BlockCache, Held, is_held
from rootstock.core.images.remote.client import (
    FIRST_WAIT,
    LONGEST,
    LONGEST_WAIT,
    TRIES,
    Clock,
    RemoteObject,
    Retrying,
    client_for,
    found_object,
)
from rootstock.core.images.remote.faults import ObjectError
from rootstock.core.images.remote.reading import ObjectReader
from rootstock.tests.core.images.remote.conftest import Waits
from rootstock.tests.core.images.sources.test_ways import PICTURES
from rootstock.tests.objectstore import BUCKET, ObjectStore, archive, without_s3fs

SMALL = 16 * PAGE


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of few pages, so that a small object has several."""
    monkeypatch.setattr(blocks, "BLOCK", SMALL)
    monkeypatch.setattr(reading, "BLOCK", SMALL)


def fresh(most: int, *objects: RemoteObject) -> ObjectReader:
    return ObjectReader(objects, most)


def noise(size: int) -> bytes:
    return (
        torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
        .numpy()
        .tobytes()
    )


def put_tar(store: ObjectStore, key: str, count: int = 6, **more: bytes) -> str:
    return f"tar:{store.put(key, archive({f'{i}.png': PICTURES[i] for i in range(count)} | more))}"


@pytest.mark.parametrize("most", [1 << 30, 0])
@pytest.mark.usefixtures("small")
def test_any_part_is_that_of_the_object(store: ObjectStore, most: int) -> None:
    content = noise(3 * SMALL + PAGE + 77)
    one = found_object(store.put(f"parts-{most}", content))
    edges = [0, 1, PAGE - 1, PAGE, PAGE + 1, SMALL - 1, SMALL, SMALL + 1, 3 * SMALL, 3 * SMALL + PAGE, len(content)]
    reader = fresh(most, one)
    for start in edges:
        for end in (edge for edge in edges if edge >= start):
            assert reader.read(one.url, end - start, start) == content[start:end], (start, end)
    again = copy.copy(reader)  # by __reduce__, as pickling does
    assert again.read(one.url, len(content), 0) == content
    with again.opened(one.url) as file:
        assert file.read() == content
        assert file.seek(-5, io.SEEK_END) == len(content) - 5
        assert file.read(9) == content[-5:]
    with pytest.raises(OSError, match="ends 1 bytes too early"):
        reader.read(one.url, 2, len(content) - 1)
    if most:
        assert sorted(start for _, start, _ in store.gets) == [0, SMALL, 2 * SMALL, 3 * SMALL]  # each block once


@pytest.mark.usefixtures("small")
def test_an_index_needs_the_blocks_of_headers_alone(store: ObjectStore) -> None:
    large = {f"{i}.png": noise(20 * SMALL) for i in range(3)}
    uri = f"tar:{store.put('large.tar', archive(large))}"
    images = open_images(uri)
    assert len(images) == 3
    assert sum(last + 1 - first for _, first, last in store.gets) < 10 * SMALL
    assert images.encoded(1) == large["1.png"]
    assert images.keys().tolist() == open_images(f"{uri}?cache=0").keys().tolist()


def test_who_reads_forwards_fetches_ahead_and_each_block_once(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (blocks, reading):
        monkeypatch.setattr(module, "BLOCK", PAGE)
    content = noise(40 * PAGE - 5)
    one = found_object(store.put("forwards", content))
    reader, ahead = fresh(1 << 30, one), 0
    with reader.opened(one.url) as file:
        for k in range(12):
            assert file.read(PAGE) == content[k * PAGE : (k + 1) * PAGE]
    ahead = max(start for _, start, _ in store.gets) // PAGE
    assert 12 <= ahead <= 16 + reading.BLOCKS_AHEAD  # the buffer of 64 KiB, and the blocks behind it
    with reader.opened(one.url) as file:
        assert file.read() == content
    starts = sorted(start for _, start, _ in store.gets)
    assert starts == [k * PAGE for k in range(40)]


def test_of_small_pictures_index_identities_and_reading_fetch_each_block_once(store: ObjectStore) -> None:
    uri = put_tar(store, "once.tar")
    images = open_images(uri)
    images.keys()
    assert [images.encoded(i) for i in range(6)] == PICTURES[:6]
    assert len(store.gets) == 1
    store.fault = lambda method, path: "denied" if method == "GET" else None
    assert [open_images(uri).encoded(i) for i in range(6)] == PICTURES[:6]


def test_neighbours_are_hashed_in_one_request(store: ObjectStore) -> None:
    uri = put_tar(store, "hashed.tar", 20)
    images = open_images(f"{uri}?cache=0")
    store.gets.clear()
    direct = images.keys()
    assert len(store.gets) == 1
    assert torch.equal(direct, open_images(uri).keys())


def test_a_damaged_block_is_fetched_anew(store: ObjectStore, tmp_path: Path) -> None:
    one = found_object(store.put("damaged", noise(5 * PAGE)))
    reader = fresh(1 << 30, one)
    whole = reader.read(one.url, one.size, 0)
    (block,) = (tmp_path / "own cache/rootstock/objects").glob("*/0*")
    for at in (3, 2 * PAGE + 50, block.stat().st_size - 1):  # in a page, and in a checksum
        content = bytearray(block.read_bytes())
        content[at] ^= 4
        block.write_bytes(content)
        before = len(store.gets)
        assert reader.read(one.url, one.size, 0) == whole
        assert len(store.gets) == before + 1
    os.truncate(block, PAGE)
    assert reader.read(one.url, one.size, 0) == whole
    block.unlink()
    assert fresh(1 << 30, one).read(one.url, one.size, 0) == whole


@pytest.mark.usefixtures("small")
def test_the_cache_is_bounded_and_the_oldest_goes_first(store: ObjectStore, tmp_path: Path) -> None:
    first, second = (found_object(store.put(f"bounded-{k}", noise(5 * SMALL + k))) for k in range(2))
    most = 7 * SMALL
    for one in (first, second):
        reader = fresh(most, one)
        assert reader.cached
        for start in range(0, one.size, SMALL):
            reader.read(one.url, 1, start)
        for file in (tmp_path / "own cache/rootstock/objects").glob("*/0*"):
            os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns - 10**12))
        del reader  # a set that is still open would keep its place
    kept = list((tmp_path / "own cache/rootstock/objects").glob("*/0*"))
    assert sum(file.stat().st_size for file in kept) <= most + SMALL
    own = Path(BlockCache(most).folder_of(second))
    assert len([file for file in kept if file.parent == own]) == 6  # of the one that was read last, all
    both = fresh(most, first, second)
    assert not both.cached and "more than the cache may hold" in both.notes()[0].what


@pytest.mark.usefixtures("small")
def test_two_open_sets_that_fit_alone_do_not_push_each_other_out(store: ObjectStore) -> None:
    first, second, small = (found_object(store.put(f"beside-{k}", noise(k * SMALL))) for k in (5, 4, 1))
    one = fresh(7 * SMALL, first)
    two, again, three = fresh(7 * SMALL, second), fresh(7 * SMALL, first), fresh(7 * SMALL, small)
    assert [reader.cached for reader in (one, two, again, three)] == [True, False, True, True]
    assert f"may hold beside {sized(first.size)} of other sets (?cache=" in two.notes()[0].what and not three.notes()
    copied = pickle.loads(pickle.dumps(two))  # noqa: S301 - our own
    assert not copied.cached
    for reader, of in ((one, first), (two, second), (one, first)):
        content = b"".join(reader.read(of.url, min(SMALL, of.size - at), at) for at in range(0, of.size, SMALL))
        assert content == noise(of.size)
    blocks_of = [len(list(Path(one.cache.folder_of(of)).glob("0*"))) for of in (first, second)]
    assert blocks_of == [-(-first.size // SMALL), 0]  # nothing of the first was deleted for the second
    del one, again, reader
    assert fresh(7 * SMALL, second).cached


def test_a_held_copy_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = BlockCache(100)
    for name in ("one", "two"):
        (cache.folder / name).mkdir(parents=True)
        (cache.folder / name / "copy.rows").write_bytes(bytes(90))
    held = copy.copy(Held((str(cache.folder / "one/copy.rows"),)))
    cache.make_room(50)
    assert (cache.folder / "one/copy.rows").exists() and not (cache.folder / "two").joinpath("copy.rows").exists()
    assert is_held(str(cache.folder / "one/copy.rows.sums"))
    del held
    cache.make_room(50)
    assert not (cache.folder / "one/copy.rows").exists()


def test_a_copy_that_does_not_fit_is_refused(store: ObjectStore) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    pq.write_table(pa.table({"image": PICTURES}), file)
    uri = f"parquet:{store.put('rows.parquet', file.getvalue())}"
    with pytest.raises(UserError, match=r"needs a copy of .* \?cache= allows 2KB; add \?cache="):
        open_images(f"{uri}?cache=2KB")
    assert len(open_images(uri)) == 20


@pytest.mark.parametrize("kind", ["tar.gz", "parquet"])
def test_a_damaged_copy_is_made_anew_and_no_picture_counts_as_damaged(
    kind: str, store: ObjectStore, tmp_path: Path
) -> None:
    held = gzip.compress(archive({f"{i:02}.png": one for i, one in enumerate(PICTURES)}), mtime=0)
    if kind == "parquet":
        pa, pq, file = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet"), io.BytesIO()
        pq.write_table(pa.table({"image": PICTURES}), file)
        held = file.getvalue()
    uri = f"{kind.partition('.')[0]}:{store.put(f'copied.{kind}', held)}"
    images = open_images(uri)
    images.keys()
    (made,) = (
        one for one in (tmp_path / "own cache/rootstock/objects").glob("*/copy-*") if one.suffix in (".tar", ".rows")
    )
    content = bytearray(made.read_bytes())
    content[content.index(PICTURES[7]) + 30] ^= 8
    made.write_bytes(content)
    with pytest.raises(ObjectError, match="damaged and is deleted now; run the same command again"):
        images.read(7)
    assert not made.exists()
    again = open_images(uri)
    assert [again.encoded(i) for i in range(20)] == PICTURES and made.exists()


def test_an_object_that_is_replaced_is_refused(store: ObjectStore) -> None:
    uri = put_tar(store, "replaced.tar")
    cached, direct = open_images(uri), open_images(f"{uri}?cache=0")
    before, print_before = cached.keys(), cached.fingerprint("mtime")
    store.put("replaced.tar", archive({f"{i}.png": PICTURES[i + 6] for i in range(6)}))
    assert [cached.encoded(i) for i in range(6)] == PICTURES[:6]  # of the version with which it began
    with pytest.raises(ObjectError, match="has changed since it was opened"):
        direct.read(0)
    assert not torch.equal(open_images(uri).keys(), before)
    assert open_images(uri).fingerprint("mtime") != print_before


def test_by_https_too(store: ObjectStore) -> None:
    uri = put_tar(store, "web.tar")
    web = uri.replace("s3://", f"{store.endpoint}/")
    for cache in ("1GB", "0"):
        assert torch.equal(open_images(f"{web}?cache={cache}").keys(), open_images(uri).keys())
    opened = open_images(f"{web}?cache=0")
    store.fault = lambda method, path: "whole" if method == "GET" else None
    with pytest.raises(UserError, match="sends no parts of a file"):
        opened.read(0)
    store.fault = lambda method, path: None
    put_tar(store, "web.tar", 5)
    with pytest.raises(ObjectError, match="has changed"):
        opened.read(0)


def test_waits_grow_and_end(store: ObjectStore, waits: Waits) -> None:
    uri = put_tar(store, "waits.tar")
    images = open_images(f"{uri}?cache=0")
    store.fault = lambda method, path: "slow"
    with pytest.raises(
        ObjectError, match=rf"SlowDown, {TRIES} times in [0-9]+ s\); check the network, then run the same"
    ):
        images.read(0)
    assert len(waits.pauses) == TRIES - 1 and sum(waits.pauses) <= LONGEST
    for number, pause in enumerate(waits.pauses):
        assert 0.75 * min(FIRST_WAIT * 2**number, LONGEST_WAIT) <= pause <= LONGEST_WAIT
    waits.pauses[:] = [0.0]
    store.fault = lambda method, path: "denied"
    with pytest.raises(UserError, match="no permission to read it"):
        images.read(0)
    assert waits.pauses == [0.0]  # not asked again


def test_a_server_that_comes_back_is_waited_for(
    store: ObjectStore, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(f"{put_tar(store, 'back.tar')}?cache=0")
    store.stop()

    def pause(seconds: float) -> None:
        waits.pause(seconds)
        if len(waits.pauses) == 3:
            store.start()

    monkeypatch.setattr(Retrying, "clock", Clock(waits.now, pause))
    assert images.encoded(2) == PICTURES[2] and len(waits.pauses) == 3


@pytest.mark.parametrize("kind", ["tar", "direct.tar", "tar.gz", "parquet"])
def test_wherever_it_stops_nothing_counts_as_damaged(
    kind: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In headers, sidecars, pages; and what was found until then is not kept as all there is."""
    for module in (blocks, reading):
        monkeypatch.setattr(module, "BLOCK", PAGE)
    monkeypatch.setattr(client, "TRIES", 2)
    held = archive({f"{i}.{ending}": one for i in range(20) for ending, one in (("png", PICTURES[i]), ("cls", b"1"))})
    if kind == "direct.tar":  # labels are read after all headers, so once more
        endings = {"png": None, "bin": noise(20_000), "cls": b"1"}
        held = archive({f"{i}.{ending}": one or PICTURES[i] for i in range(20) for ending, one in endings.items()})
    if kind == "tar.gz":
        held = gzip.compress(held, mtime=0)
    if kind == "parquet":
        pa, pq, file = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet"), io.BytesIO()
        pq.write_table(pa.table({"image": PICTURES, "label": ["1"] * 20}), file, row_group_size=3)
        held = file.getvalue()
    store.put(f"stops.{kind}", held)
    uri = f"{'parquet' if kind == 'parquet' else 'tar'}:s3://{BUCKET}/stops.{kind}{'?cache=0' if kind == 'direct.tar' else ''}"
    number, stopped, limit = itertools.count(), 0, 0

    def fault(method: str, path: str) -> str | None:
        return "slow" if next(number) >= limit else None

    store.fault = fault
    while True:  # it comes one request further each time, or more, since others were kept
        number = itertools.count()
        try:
            images = open_images(uri)
            images.keys()
            break
        except ObjectError:
            stopped, limit = stopped + 1, limit + (1 if limit < 8 else 7)
    store.fault = lambda method, path: None
    assert (
        stopped >= 3
        and images.classes == ("1",)
        and [images.encoded(i) for i in range(20)] == sorted(PICTURES, key=order_of(kind))
    )


def order_of(kind: str) -> Callable[[bytes], Any]:
    """Archives sort by name."""
    return (lambda one: PICTURES.index(one)) if kind == "parquet" else (lambda one: str(PICTURES.index(one)))


def test_no_network_is_a_fault_of_the_machine(store: ObjectStore) -> None:
    images = open_images(f"{put_tar(store, 'gone.tar')}?cache=0")
    store.stop()
    try:
        with pytest.raises(MachineError, match=r"no connection to the service, [0-9]+ times") as error:
            images.read(0)
        assert "secret" not in str(error.value)
    finally:
        store.start()


REFUSED: dict[str, tuple[str, str]] = {
    "no such object": (f"tar:s3://{BUCKET}/nothing.tar", "there is no such object"),
    "no such bucket": ("tar:s3://no-such-bucket/x.tar", "there is no such bucket"),
    "nothing below": (f"tar:s3://{BUCKET}/none-*.tar", "no object is called"),
    "no bucket to list": ("tar:s3://no-such-bucket/*.tar", "no such bucket|no object is called"),
    "nothing of rows": (f"parquet:s3://{BUCKET}/nothing", "no object below"),
    "no pack": (f"pack:s3://{BUCKET}/nothing", r"there is no pack .*pack.json"),
    "folder": (f"folder:s3://{BUCKET}/x", "objects are read by tar:, pack: and parquet: alone"),
    "unknown protocol": ("tar:s9://a/b.tar", "no protocol that fsspec knows"),
    "bound": (f"tar:s3://{BUCKET}/x.tar?cache=lots", "cache: lots is no size"),
    "file": ("tar:/nowhere.tar?cache=1GB", "cache= is for objects"),
    "password": ("tar:https://me:hunter2@host/x.tar", "name or password before its host"),
    "signature": ("tar:https://host/x.tar%3FX-Amz-Signature=hunter2", "a signature or key"),
    "signature as an option": ("tar:https://host/x.tar?X-Amz-Signature=hunter2", "a signature or key"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_sentence_for(name: str, store: ObjectStore) -> None:
    uri, said = REFUSED[name]
    with pytest.raises(UserError, match=said) as error:
        open_images(uri)
    assert "hunter2" not in str(error.value) and "\n" not in str(error.value)


def test_one_sentence_without_credentials(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = put_tar(store, "mine.tar")
    for change, said in (
        (lambda: monkeypatch.delenv("AWS_ACCESS_KEY_ID"), "no credentials are found|incomplete"),
        (lambda: monkeypatch.setenv("AWS_PROFILE", "nobody"), "no credentials are found"),
    ):
        change()
        with pytest.raises(UserError, match=said):
            open_images(uri)


def test_one_sentence_without_the_package(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_clients", {})
    without_s3fs(monkeypatch)
    with pytest.raises(UserError, match=r"s3fs reads s3://, which is not installed; `pip install 'rootstock\[s3\]'`"):
        client_for("s3://a/b")


def test_any_protocol_of_fsspec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    memory = fsspec.filesystem("memory")
    put: Callable[[str, bytes], None] = memory.pipe_file
    for k in range(2):
        put(f"/here/{k}.tar", archive({f"{i}.png": PICTURES[i] for i in range(3 * k, 3 * k + 3)}))
    for uri in ("tar:memory://here/*.tar", "tar:memory://here/{0,1}.tar?cache=0"):
        images = open_images(uri)
        assert [images.encoded(i) for i in range(6)] == PICTURES[:6]
    direct = open_images("tar:memory://here/0.tar?cache=0")
    put("/here/0.tar", archive({f"{i}.png": PICTURES[i] for i in range(3)}))
    with pytest.raises(ObjectError, match="has changed"):
        direct.read(0)
    memory.rm("/here", recursive=True)


def test_a_compressed_archive_is_unpacked_into_the_same_bound(store: ObjectStore, tmp_path: Path) -> None:
    uri = f"tar:{store.put('z.tar.gz', gzip.compress(archive({f'{i}.png': PICTURES[i] for i in range(6)}), mtime=0))}"
    with pytest.raises(UserError, match=r"needs a copy"):
        open_images(f"{uri}?cache=1KB")
    images = open_images(uri)
    assert [images.encoded(i) for i in range(6)] == PICTURES[:6]
    (unpacked,) = (tmp_path / "own cache/rootstock/objects").glob("*/*.tar")
    assert is_held(str(unpacked))
