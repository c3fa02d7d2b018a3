"""Sets of several archives: patterns, labels beside the images, and the order on disk."""

import io
import os
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images.images import Images
from rootstock.core.images.open import DamagedImage, open_images
from rootstock.core.images.sources import tar
from rootstock.core.images.sources.shards import braces, pattern_name


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (5 + number % 3, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def archive(path: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as packed:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return path


def told(images: Images) -> list[str]:
    assert images.labels is not None and images.classes is not None
    return [images.classes[label] for label in images.labels.tolist()]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three archives of two classes, not in the order of the names; and the same images as a folder."""
    for k in range(3):
        members = {f"{c}/{10 * k + i}.png": picture(100 * ord(c) + 10 * k + i) for c in "ba" for i in (3, 1, 2)}
        archive(tmp_path / "shards" / f"set-{k:03d}.tar", members)
        for name, content in members.items():
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_bytes(content)
    return tmp_path / "shards"


def test_shards_are_one_set(shards: Path) -> None:
    folder = open_images(f"folder:{shards.parent}/set")
    for pattern in (
        "set-{000..002}.tar",
        "*.tar",
        "set-00[012].tar",
        "{set-000,set-001,set-002}.tar",
        "s*-{000..002}.tar",
    ):
        images = open_images(f"tar:{shards}/{pattern}")
        assert [images.name(i) for i in range(18)] == [folder.name(i) for i in range(18)]
        assert all(images.read(i).equal(folder.read(i)) for i in range(18))
        assert images.keys().equal(folder.keys())
        assert told(images) == told(folder)
        assert images.fingerprint() == folder.fingerprint()
        assert images.domain_names == (pattern_name(f"{shards}/{pattern}"),)
        assert images.domains.unique().tolist() == [0]
    one = open_images(f"tar:{shards}/set-{{001..001}}.tar?under=a")
    assert [one.name(i) for i in range(3)] == ["11.png", "12.png", "13.png"]
    assert pickle.loads(pickle.dumps(one)).read(1).equal(one.read(1))  # noqa: S301


def test_pictures_of_one_name_in_two_shards_are_two_pictures(tmp_path: Path) -> None:
    for k in range(2):
        archive(tmp_path / f"{k}.tar", {f"x/{i}.png": picture(10 * k + i) for i in range(3)})
    images = open_images(f"tar:{tmp_path}/{{0..1}}.tar")
    assert [images.name(i) for i in range(6)] == [f"{i}.png" for i in range(3) for _ in range(2)]
    expected = [open_images(f"tar:{tmp_path}/{i % 2}.tar").read(i // 2) for i in range(6)]
    assert all(images.read(i).equal(one) for i, one in enumerate(expected))


def test_the_storage_order_reads_shards_from_start_to_end(shards: Path) -> None:
    images = open_images([f"tar:{shards}/*.tar#[:70%]", f"folder:{shards.parent}/set#[70%:]"])
    ordered = images.in_storage_order()
    assert sorted(ordered.keys().tolist()) == sorted(images.keys().tolist())
    assert ordered.fingerprint() == images.fingerprint()
    numbers = [int(ordered.name(i).removesuffix(".png")[2:]) // 10 for i in range(len(ordered))]
    count = int((ordered.domains == 0).sum())
    assert ordered.domains.tolist() == sorted(ordered.domains.tolist())
    assert numbers[:count] == sorted(numbers[:count])
    within = [ordered.name(i) for i in range(count) if numbers[i] == 1]
    written = [f"{c}/{10 + i}.png" for c in "ba" for i in (3, 1, 2)]
    assert within == [name for name in written if name in within]
    place = {images.name(i): images.read(i) for i in range(len(images))}
    assert all(ordered.read(i).equal(place[ordered.name(i)]) for i in range(len(ordered)))
    assert ordered.labels is not None
    assert told(ordered) == [ordered.name(i)[0] for i in range(len(ordered))]


def test_labels_beside_the_pictures_are_read(tmp_path: Path) -> None:
    labels = {"000": "7", "001": "12\n", "002": "7"}
    members = {
        f"{key}.{end}": content
        for key in labels
        for end, content in (("png", picture(int(key))), ("cls", labels[key].encode()), ("json", b"{}"))
    }
    archive(tmp_path / "a-0.tar", members)
    archive(tmp_path / "a-1.tar.gz", {"000.cls": b"3", "000.seg.png": picture(9), "000.png": picture(8)}, "w:gz")
    images = open_images(f"tar:{tmp_path}/a-0.tar")
    assert (told(images), images.classes) == (["7", "12", "7"], ("7", "12"))
    both = open_images(f"tar:{tmp_path}/{{a-0.tar,a-1.tar.gz}}")
    assert [both.name(i) for i in range(5)] == ["000.png", "000.png", "000.seg.png", "001.png", "002.png"]
    assert told(both) == ["7", "3", "3", "12", "7"]
    again = open_images(f"tar:{tmp_path}/{{a-0.tar,a-1.tar.gz}}")
    assert told(again) == told(both)
    assert open_images(f"tar:{tmp_path}/a-0.tar?labels=none").labels is None


def test_labels_beside_the_pictures_go_with_folders_of_splits(tmp_path: Path) -> None:
    names = [f"{split}/{i}" for split in ("train", "val") for i in range(2)]
    members = {
        f"{name}.{end}": c for name in names for end, c in (("png", picture(len(name))), ("cls", name[-1:].encode()))
    }
    uri = f"tar:{archive(tmp_path / 'x.tar', members)}"
    assert told(open_images(f"{uri}#val")) == ["0", "1"]
    with pytest.raises(UserError, match="comes in splits"):
        open_images(uri)


def test_labels_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    uri = f"tar:{archive(tmp_path / 'x.tar', {'0.png': picture(0), '0.cls': b'1', '1.png': picture(1)})}"
    with pytest.raises(UserError, match=r"1 pictures have no \.cls beside them \(1\.png\).*\?labels=none"):
        open_images(uri)
    assert open_images(f"{uri}?labels=none").labels is None
    uri = f"tar:{archive(tmp_path / 'y.tar', {'0.png': picture(0), '0.cls': b'cat'})}"
    with pytest.raises(UserError, match=r"the \.cls beside 0\.png says 'cat', which is not a whole number"):
        open_images(uri)


@pytest.mark.parametrize("lost", [1, 512])
def test_an_archive_that_ends_within_a_picture_names_it(tmp_path: Path, lost: int) -> None:
    path = archive(tmp_path / "x.tar", {"0.png": picture(0), "1.png": bytes(2000)})
    with tarfile.open(path) as whole:
        last = whole.getmember("1.png")
    os.truncate(path, last.offset_data + last.size - lost)
    with pytest.raises(UserError, match=r"x\.tar: the archive is cut short in 1\.png; fetch it again"):
        open_images(f"tar:{path}")


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("set-{000..003}.tar", r"1 of its 4 archives are not there \(.*set-003\.tar\)"),
        ("other-*.tar", r"no archive is called .*other-\*\.tar"),
        ("{set-000,set-00*}.tar", "names an archive twice"),
        ("set-9.tar", "there is no such archive; check the path"),
    ],
)
def test_patterns_that_match_too_little_or_too_much_are_refused(shards: Path, pattern: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_images(f"tar:{shards}/{pattern}")


def test_braces_and_names() -> None:
    assert braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert braces("{9..11}") == ["9", "10", "11"]
    assert braces("{000..001}/{x,y}") == ["000/x", "000/y", "001/x", "001/y"]
    assert braces("plain.tar") == ["plain.tar"]
    assert pattern_name("/data/imagenet-train-{0000..0146}.tar") == "imagenet-train"
    assert pattern_name("/data/shards/*.tar") == "shards"


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    archive(tmp_path / "a[1].tar", {"0.png": picture(0)})
    images = open_images(f"tar:{tmp_path}/a[1].tar")
    assert (len(images), images.domain_names) == (1, ("a[1]",))


def test_open_shards_are_bounded_and_an_end_too_early_names_shard_and_picture(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(f"tar:{shards}/*.tar")
    store = images._stores[0]
    assert isinstance(store, tar.TarStore)
    store._files.limit = 1
    for i in torch.randperm(18, generator=torch.Generator().manual_seed(0)).tolist():
        images.read(i)
        assert len(store._files._open) == 1
    os.truncate(shards / "set-001.tar", 2000)
    with pytest.raises(DamagedImage, match=r"set-001\.tar!a/1\d\.png: cannot be read \(.*bytes too early\)"):
        images.read(3)
