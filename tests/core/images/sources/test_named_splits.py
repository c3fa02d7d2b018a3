"""Splits by the names of files: no picture of a test gets into a training because some name is not known."""

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images.images import Images
from rootstock.core.images.open import open_images, open_with_splits
from rootstock.core.images.pack.record import Packing
from rootstock.core.images.pack.writer import pack
from rootstock.core.images.sources.named_splits import split_of_archive, split_of_cached, split_of_file

Draw = Callable[[Path, Iterable[str]], Path]
COUNTS = {"train": 12, "test": 8, "extra": 5}


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 7, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def rows(place: Path, names: dict[str, str]) -> None:
    """A file of rows for each split. names: of the files, by split."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra `parquet`)")
    parquet = pytest.importorskip("pyarrow.parquet")
    for k, (split, name) in enumerate(names.items()):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        pictures = [{"bytes": png(100 * k + i), "path": f"{split}/{i}.png"} for i in range(COUNTS[split])]
        table = pa.table({"image": pictures, "label": [i % 2 for i in range(COUNTS[split])]})
        if name.endswith(".arrow"):
            with pa.OSFile(str(place / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
        else:
            parquet.write_table(table, place / name)


def splits_in(images: Images) -> set[str]:
    return {images.name(i).partition("/")[0] for i in range(len(images))}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("train-00000-of-00001-b42a775f407cee45.parquet", "train"),
        ("extra-00000-of-00002.parquet", "extra"),
        ("train.clean.100-00000-of-00014.parquet", "train.clean.100"),
        ("tiny-imagenet-valid-00000-of-00001.parquet", "valid"),
        ("Train_3.parquet", "Train"),
        ("test.parquet", "test"),
        ("test/0000.parquet", "test"),
        ("test/data-00000-of-00001.parquet", "test"),
        ("data-00000-of-00001.parquet", "data"),
        ("extra.parquet", ""),
        ("pictures-0001.parquet", ""),
    ],
)
def test_the_split_in_a_name(name: str, split: str) -> None:
    assert split_of_file(PurePosixPath("sets") / name) == split


def test_the_split_in_a_cached_name_and_in_that_of_an_archive() -> None:
    names = ("pets-train-00000-of-00002.arrow", "svhn-extra.arrow", "my-pets-test.arrow", "pets.arrow")
    assert [split_of_cached(PurePosixPath(name)) for name in names] == ["train", "extra", "test", ""]
    shards = ("train-000.tar", "val/000.tar.gz", "imagenet1k-validation-07.tgz", "set-000.tar", "test-0001.tar.gz")
    assert [split_of_archive(PurePosixPath(name)) for name in shards] == ["train", "val", "", "", "test"]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("parquet", {split: f"data/{split}-00000-of-00001.parquet" for split in COUNTS}),
        ("hf", {split: f"data/{split}-00000-of-00001-b42a775f407cee45.parquet" for split in COUNTS}),
        ("hf", {split: f"svhn-{split}.arrow" for split in COUNTS}),
    ],
)
def test_each_name_before_the_number_of_a_shard_is_a_split(kind: str, names: dict[str, str], tmp_path: Path) -> None:
    rows(tmp_path, names)
    with pytest.raises(UserError, match=r"comes in splits \((\w+, ){2}\w+\): say which"):
        open_images(f"{kind}:{tmp_path}")
    for split, count in COUNTS.items():
        images = open_images(f"{kind}:{tmp_path}#{split}")
        assert splits_in(images) == {split} and len(images) == count
    assert len(open_images(f"{kind}:{tmp_path}#all")) == sum(COUNTS.values())


def test_files_of_no_split_beside_those_of_one_are_never_cut_together(tmp_path: Path) -> None:
    rows(tmp_path / "set", {"train": "train-00000-of-00001.parquet", "extra": "more.parquet"})
    uri = f"parquet:{tmp_path}/set"
    assert splits_in(open_images(f"{uri}#train")) == {"train"}
    assert splits_in(open_images(f"{uri}#all")) == {"train", "extra"}
    with pytest.raises(UserError, match=r"comes in splits \(train\), and 5 of its pictures are in none: say which"):
        open_images(uri)
    for asked in ("#test", "#[:80%]"):
        with pytest.raises(UserError, match=r"it has no split test \(it has: train, all\)|say which"):
            open_images(uri + asked)
    pack(*open_with_splits(uri), tmp_path / "copy.pack", Packing("original"))
    packed = f"pack:{tmp_path}/copy.pack"
    assert splits_in(open_images(f"{packed}#train")) == {"train"}
    with pytest.raises(UserError, match="5 of its pictures are in none"):
        open_images(packed)


def test_a_name_that_all_files_share_is_a_split_only_if_it_is_asked_for(tmp_path: Path) -> None:
    rows(tmp_path, {"extra": "data-00000-of-00001.parquet"})
    assert len(open_images(f"parquet:{tmp_path}")) == len(open_images(f"parquet:{tmp_path}#data")) == 5
    assert len(open_images(f"parquet:{tmp_path}#train")) == 4


@pytest.mark.parametrize("options", ["", "?labels=none"])
@pytest.mark.parametrize("top", ["", "deep/"])
def test_folders_of_splits_beside_another_are_not_cut_at_random(
    options: str, top: str, tmp_path: Path, draw: Draw
) -> None:
    folder = draw(tmp_path / "set", [f"{top}{one}/cat/{i}.png" for i, one in enumerate(("train", "test", "extra"))])
    with tarfile.open(tmp_path / "set.tar", "w") as packed:
        packed.add(folder, arcname="")
    for place in (f"folder:{folder}", f"tar:{tmp_path}/set.tar"):
        assert any("named like splits" in note.what for note in open_images(place + options).notes)
        with pytest.raises(UserError, match=rf"random part of .* because extra lies beside .* \?under={top}test;"):
            open_images(f"{place}{options}#train")
        assert len(open_images(f"{place}?under={top}test")) == 1
        assert len(open_images(f"{place}{options}#[:70%]")) == 2


def test_a_pack_of_such_folders_is_not_cut_at_random(tmp_path: Path, draw: Draw) -> None:
    folder = draw(tmp_path / "set", [f"{one}/{i}.png" for i, one in enumerate(("train", "test", "extra"))])
    pack(*open_with_splits(f"folder:{folder}"), tmp_path / "copy.pack", Packing("original"))
    with pytest.raises(UserError, match="random part of all pictures, for its classes test, train are folders"):
        open_images(f"pack:{tmp_path}/copy.pack#train")


def test_a_class_may_be_called_like_a_split(tmp_path: Path, draw: Draw) -> None:
    folder = draw(tmp_path / "set", [f"{one}/{i}.png" for one in ("train", "plane") for i in range(5)])
    assert len(open_images(f"folder:{folder}#train")) == 8


def test_archives_of_several_splits_are_not_cut_at_random(tmp_path: Path) -> None:
    for k, name in enumerate(("train-000", "train-001", "val-000", "extra-000")):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as packed:
            content = png(k)
            member = tarfile.TarInfo(f"{k}.png")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    for pattern in ("*.tar", "{train-000,extra-000}.tar"):
        images = open_images(f"tar:{tmp_path}/{pattern}")
        assert any("named like splits (train" in note.what for note in images.notes)
        with pytest.raises(UserError, match=r"#train would be a random part .* like train-000\.tar|/train-000\.tar"):
            open_images(f"tar:{tmp_path}/{pattern}#train")
    assert not open_images(f"tar:{tmp_path}/train-*.tar").notes
    assert len(open_images(f"tar:{tmp_path}/train-*.tar#train")) == 2
