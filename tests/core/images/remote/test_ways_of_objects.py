"""Objects give what a folder of the same pictures gives, in every way of reading, also where the service fails now and then."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from rootstock.core.errors import MachineError
from rootstock.core.images.images import Images
from rootstock.core.images.open import open_images, open_with_splits
from rootstock.core.images.pack.record import Packing
from rootstock.core.images.pack.writer import pack
from rootstock.core.images.remote import blocks, reading
from rootstock.core.images.remote.blocks import PAGE
from rootstock.tests.core.images.sources.test_ways import (
    COUNT,
    PICTURES,
    check,
    make_parquet,
    pixels,
    samples,
)
from rootstock.tests.objectstore import BUCKET, ObjectStore, archive


def folder_of(place: Path) -> str:
    (place / "plain").mkdir()
    for i, content in enumerate(PICTURES):
        (place / "plain" / f"{i:02}.png").write_bytes(content)
    return f"folder:{place}/plain"


def put_shards(store: ObjectStore, under: str) -> str:
    """Two archives with labels beside the pictures."""
    for k in range(2):
        numbers = range(10 * k, 10 * k + 10)
        members = {
            f"{i:02}.{ending}": held
            for i in numbers
            for ending, held in (("png", PICTURES[i]), ("cls", b"%d" % (i % 2)))
        }
        store.put(f"{under}/part-{k:03}.tar", archive(members))
    return f"tar:s3://{BUCKET}/{under}/part-{{000..001}}.tar"


def put_pack(store: ObjectStore, under: str, place: Path) -> str:
    images, splits = open_with_splits(folder_of(place))
    pack(images, splits, place / "packed", Packing("original"))
    for file in (place / "packed").iterdir():
        store.put(f"{under}/photos.pack/{file.name}", file.read_bytes())
    return f"pack:s3://{BUCKET}/{under}/photos.pack"


def put_parquet(store: ObjectStore, under: str, place: Path) -> str:
    make_parquet(place / "rows")
    for file in (place / "rows").iterdir():
        store.put(f"{under}/{file.name}", file.read_bytes())
    return f"parquet:s3://{BUCKET}/{under}"


@pytest.mark.parametrize("kind", ["shards", "pattern", "pack", "parquet"])
def test_objects_give_what_a_folder_gives(kind: str, store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    uri = {
        "shards": lambda: put_shards(store, kind),
        "pattern": lambda: put_shards(store, kind).replace("{000..001}", "*"),
        "pack": lambda: put_pack(store, kind, tmp_path / "own"),
        "parquet": lambda: put_parquet(store, kind, tmp_path / "own"),
    }[kind]()
    images = open_images(uri)
    assert len(images) == COUNT and images.classes == (("0", "1") if kind != "pack" else None)
    check(images, open_images(folder_of(tmp_path)))


def check_some(images: Images, folder: Images) -> None:
    """`check` in fewer ways, for sets whose every picture is fetched each time."""
    place = {pixels(folder, i): i for i in range(len(folder))}
    folder = folder.select(torch.tensor([place[pixels(images, i)] for i in range(len(images))]))
    images.labels = folder.labels = torch.arange(len(images))
    expected = samples(folder, 0, 1, 0)
    assert torch.equal(samples(images, 0, 2, 2), expected)
    assert torch.equal(samples(images, 4, 1, 0), expected[4:])


def test_a_pack_without_the_cache(store: ObjectStore, tmp_path: Path) -> None:
    uri = put_pack(store, "direct", tmp_path)
    check_some(open_images(f"{uri}?cache=0"), open_images(f"folder:{tmp_path}/plain"))
    assert not list((tmp_path / "own cache").rglob("objects"))


def test_loader_processes_fetch_each_block_once(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = put_pack(store, "shared", tmp_path)
    for module in (blocks, reading):
        monkeypatch.setattr(module, "BLOCK", PAGE)
    images, folder = open_images(uri), open_images(f"folder:{tmp_path}/plain")
    images.labels = folder.labels = torch.arange(COUNT)
    assert torch.equal(samples(images, 0, 2, 2), samples(folder, 0, 1, 0))
    assert len(store.gets) == len(set(store.gets)) > 3


@pytest.mark.parametrize("cache", ["1GB", "0"])
def test_a_pack_of_pixels_is_the_same_rows(cache: str, store: ObjectStore, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3, 5, 4), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=pixels)
    pack(*open_with_splits(f"npz:{tmp_path}/x.npz?layout=NCHW"), tmp_path / "packed", Packing("raw"))
    for file in (tmp_path / "packed").iterdir():
        store.put(f"pixels/{file.name}", file.read_bytes())
    images = open_images(f"pack:s3://{BUCKET}/pixels?cache={cache}")
    assert images.uniform() is not None
    rows = images.rows(torch.tensor([3, 0, 11]))
    assert rows is not None and torch.equal(rows, torch.from_numpy(pixels[[3, 0, 11]]))
    assert torch.equal(images.read(5), torch.from_numpy(pixels[5]))


def test_loader_processes_say_that_it_is_a_fault_of_the_machine(store: ObjectStore) -> None:
    images = open_images(f"{put_shards(store, 'lost')}?cache=0")
    images.keys()
    store.fault = lambda method, path: "slow"
    with pytest.raises(MachineError, match=r"cannot be read now \(the service says SlowDown"):
        samples(images, 0, 1, 2)


def test_a_service_that_fails_now_and_then_changes_nothing(store: ObjectStore, tmp_path: Path) -> None:
    uri, number, faults = put_shards(store, "faulty"), itertools.count(), itertools.cycle(["slow", "busy", "short"])
    store.fault = lambda method, path: next(faults) if next(number) % 3 == 1 else None
    images = open_images(f"{uri}?cache=0")
    assert images.classes == ("0", "1")
    check_some(images, open_images(folder_of(tmp_path)))
    assert next(number) > 100
