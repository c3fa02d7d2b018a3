"""Parquet and sets of Hugging Face: the same pictures, names, classes and splits as in folders, and sentences for what cannot be read."""

import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images import cache
from rootstock.core.images.images import Images
from rootstock.core.images.open import open_images
from rootstock.core.images.store import DamagedImage

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra `parquet`)")
pq = pytest.importorskip("pyarrow.parquet")

COUNT, CLASSES = 30, ("bird", "cat", "dog")
NAMED = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}})}
Rows = dict[str, Any]


def encoded(i: int) -> bytes:
    pixels = np.random.default_rng(i).integers(0, 256, (8 + i % 3, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG" if i % 2 else "BMP")
    return file.getvalue()


PICTURES = [encoded(i) for i in range(COUNT)]


def rows(numbers: range, form: str = "struct") -> Rows:
    """Columns as Hugging Face writes them, or with plain bytes."""
    pictures = [{"bytes": PICTURES[i], "path": f"{i:02}.png"} for i in numbers]
    return {
        "image": pictures if form == "struct" else [PICTURES[i] for i in numbers],
        "label": [i % 3 for i in numbers],
        "patient": [f"p{i // 4}" for i in numbers],
    }


def table(columns: Rows, named: bool = True) -> Any:
    found = pa.table(columns)
    return found.replace_schema_metadata(NAMED) if named else found


def stream(file: Path, found: Any, **options: Any) -> None:
    """As `datasets` writes its files: a stream of batches."""
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, found.schema, **options) as writer:
        writer.write_table(found, max_chunksize=7)


def saved(folder: Path, found: Any, name: str = "data-00000-of-00001.arrow", **options: Any) -> Path:
    """As `save_to_disk` does."""
    folder.mkdir(parents=True)
    stream(folder / name, found, **options)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}], "_split": None}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures in class folders."""
    place = tmp_path_factory.mktemp("folders")
    for i, content in enumerate(PICTURES):
        (place / CLASSES[i % 3]).mkdir(exist_ok=True)
        (place / CLASSES[i % 3] / f"{i:02}.png").write_bytes(content)
    return place


def make_parquet(place: Path) -> str:
    for k in range(3):
        pq.write_table(table(rows(range(10 * k, 10 * k + 10))), place / f"set-0000{k}.parquet", row_group_size=4)
    return f"parquet:{place}/set-*.parquet"


def make_plain(place: Path) -> str:
    pq.write_table(table(rows(range(COUNT), "bytes")), place / "set.parquet", compression="none", use_dictionary=False)
    return f"parquet:{place}/set.parquet?image=image&label=label"


def make_saved(place: Path) -> str:
    return f"hf:{saved(place / 'set', table(rows(range(COUNT))))}"


def make_compressed(place: Path) -> str:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    return f"hf:{saved(place / 'set', table(rows(range(COUNT))), options=options)}"


def make_cached(place: Path) -> str:
    """As in the cache of `load_dataset`, with a file of another cached computation beside it."""
    for k in range(2):
        stream(place / f"pets-train-0000{k}-of-00002.arrow", table(rows(range(15 * k, 15 * k + 15))))
    stream(place / "cache-1234.arrow", table(rows(range(3))))
    return f"hf:{place}"


def make_hub(place: Path) -> str:
    data = place / "datasets--x--pets/snapshots/abc/data"
    data.mkdir(parents=True)
    pq.write_table(table(rows(range(COUNT))), data / "train-00000-of-00001.parquet")
    return f"hf:{place}/datasets--x--pets"


MAKERS = (make_parquet, make_plain, make_saved, make_compressed, make_cached, make_hub)


@pytest.mark.parametrize("make", MAKERS)
def test_rows_are_the_pictures_of_a_folder(make: Callable[[Path], str], tmp_path: Path, folder: Path) -> None:
    images, expected = open_images(make(tmp_path)), open_images(f"folder:{folder}")
    assert images.classes == expected.classes == CLASSES and len(images) == len(expected) == COUNT
    assert images.split_hash() == expected.split_hash()
    place = {key: i for i, key in enumerate(expected.keys().tolist())}
    for i, key in enumerate(images.keys().tolist()):
        assert images.encoded(i) == PICTURES[i]
        assert torch.equal(images.read(i), expected.read(place[key]))
        assert images.labels is not None and int(images.labels[i]) == i % 3
    assert images.name(7) == ("07.png" if make is not make_plain else "set.parquet/7")
    assert len({images.full_name(i) for i in range(COUNT)}) == COUNT
    again = pickle.loads(pickle.dumps(images.stores[0]))  # noqa: S301 - our own
    assert torch.equal(again.read(11), images.read(11))
    assert images.fingerprint() == open_images(images.uri).fingerprint()


def test_what_was_copied_is_made_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "SETTLED_SECONDS", -1.0)
    images = open_images(make_parquet(tmp_path))
    copies = sorted((tmp_path / "cache/rootstock/archives").glob("*.rows"))
    assert len(copies) == 3 and sum(copy.stat().st_size for copy in copies) == sum(map(len, PICTURES))
    times = [copy.stat().st_mtime_ns for copy in copies]
    again = open_images(images.uri)
    assert [copy.stat().st_mtime_ns for copy in copies] == times
    for copy in copies:
        content = bytearray(copy.read_bytes())
        content[30] ^= 1
        copy.write_bytes(content)
    with pytest.raises(DamagedImage, match=r"its copy .* has changed; delete that file"):
        again.read(0)


def test_a_saved_set_is_read_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = open_images(make_saved(tmp_path))
    assert images.encoded(29) == PICTURES[29]
    assert not (tmp_path / "cache/rootstock/archives").exists()


def test_splits_are_those_of_names_and_of_saved_dictionaries(tmp_path: Path) -> None:
    for name, numbers in ("train", range(20)), ("test", range(20, 30)):
        found = table(rows(numbers))
        pq.write_table(found, tmp_path / f"{name}-00000-of-00001.parquet")
        (tmp_path / "by_folder" / name).mkdir(parents=True)
        pq.write_table(found, tmp_path / "by_folder" / name / "0000.parquet")
        saved(tmp_path / "dict" / name, found)
    (tmp_path / "dict/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for uri in f"parquet:{tmp_path}/*.parquet", f"parquet:{tmp_path}/by_folder", f"hf:{tmp_path}/dict":
        parts = [open_images(f"{uri}#{name}") for name in ("train", "test", "all")]
        assert [len(part) for part in parts] == [20, 10, 30]
        assert parts[1].encoded(0) == PICTURES[20]
        with pytest.raises(UserError, match=r"comes in splits .*: say which"):
            open_images(uri)
        with pytest.raises(UserError, match="it has no split val"):
            open_images(f"{uri}#val")
    assert len(open_images(f"hf:{tmp_path}/dict?group=patient#train")) == 20
    pq.write_table(table(rows(range(18, 30))), tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(UserError, match="2 pictures of its split test are of groups that train has too"):
        open_images(f"parquet:{tmp_path}/*.parquet?group=patient#train")
    assert len(open_images(f"parquet:{tmp_path}/*.parquet?group=patient#all[:50%]")) in range(11, 22)


def test_columns_by_name(tmp_path: Path, folder: Path) -> None:
    columns = rows(range(COUNT))
    columns |= {
        "img": columns.pop("image"),
        "site": [f"s{i % 2}" for i in range(COUNT)],
        "tags": [["x", "y"][: i % 3] for i in range(COUNT)],
        "weight": [0.5] * COUNT,
        "some": [None if i == 4 else "k" for i in range(COUNT)],
    }
    pq.write_table(table(columns), tmp_path / "t.parquet")
    uri = f"parquet:{tmp_path}/t.parquet"
    images = open_images(f"{uri}?domain=site&group=patient")
    assert (
        images.classes == CLASSES and images.domain_names == ("s0", "s1") and images.domains.tolist()[:3] == [0, 1, 0]
    )
    assert images.groups is not None and len(images.groups.unique()) == 8
    train, test = open_images(f"{uri}?group=patient#train"), open_images(f"{uri}?group=patient#test")
    assert train.groups is not None and test.groups is not None
    assert not set(train.groups.tolist()) & set(test.groups.tolist()) and len(train) + len(test) == COUNT
    several = open_images(f"{uri}?label=tags")
    assert (
        several.classes == ("x", "y")
        and several.labels is not None
        and several.labels[:3].tolist() == [[0, 0], [1, 0], [1, 1]]
    )
    assert open_images(f"{uri}?labels=none").labels is None
    for query, sentence in (
        ("label=kind", r"there is no column kind .*; correct \?label="),
        ("image=label", "the column label holds no bytes of pictures"),
        ("label=weight", "row 0 has 0.5 in the column weight, which is no text"),
        ("label=some", r"row 4 has no label, others have one; .*add \?labels=none"),
        ("group=some", "row 4 has no group"),
        ("group=label", "group=label is the column of the labels"),
        ("labels=all", "labels=all is unknown"),
        ("labels=none&label=tags", "contradict each other"),
        ("max_size=100B", "unpacked it has more than 100B, which is its limit"),
    ):
        with pytest.raises(UserError, match=sentence):
            open_images(f"{uri}?{query}")


def test_labels_of_hugging_face(tmp_path: Path) -> None:
    def labels(values: list[Any], named: bool) -> Images:
        pq.write_table(table({**rows(range(3)), "label": values}, named), tmp_path / "t.parquet")
        os.utime(tmp_path / "t.parquet", ns=(len(str(values)), len(str(values))))
        return open_images(f"parquet:{tmp_path}/t.parquet")

    assert labels([2, 0, 2], True).classes == ("bird", "dog")
    assert labels([10, 9, 10], False).classes == ("9", "10")
    assert labels([-1, -1, -1], True).labels is None  # a test set that is published without its labels
    assert labels([None, None, None], True).labels is None
    with pytest.raises(UserError, match="row 1 has no label, others have one"):
        labels([0, -1, 2], True)
    with pytest.raises(
        UserError, match="row 2 has 3 in the column label, which is no text, no whole number and no class"
    ):
        labels([0, 1, 3], True)


def test_a_row_without_bytes_is_a_damaged_picture(tmp_path: Path) -> None:
    columns = rows(range(6))
    columns["image"][2] = None
    columns["image"][3] = {"bytes": None, "path": "elsewhere.png"}
    pq.write_table(table(columns), tmp_path / "t.parquet")
    for uri in f"parquet:{tmp_path}/t.parquet", f"hf:{saved(tmp_path / 'set', table(columns))}":
        images = open_images(uri)
        for i in 2, 3:
            with pytest.raises(DamagedImage, match="the file is empty"):
                images.read(i)
        assert images.encoded(4) == PICTURES[4]


@pytest.mark.parametrize("kind", ["parquet", "saved", "cached", "compressed"])
def test_rows_of_paths_are_refused_and_what_to_open_is_said(kind: str, folder: Path, tmp_path: Path) -> None:
    """As `load_dataset("imagefolder")` caches a folder here: no bytes, and whole paths."""
    place = tmp_path / "100%?"
    shutil.copytree(folder, place)
    paths = sorted(str(file) for file in place.glob("*/*"))
    uri = uri_of_paths(tmp_path / "rows", kind, paths)
    with pytest.raises(UserError) as caught:
        open_images(uri)
    title, _, said = str(caught.value).partition(": ")
    assert title.startswith(uri) and said == (
        f"its rows hold paths of pictures ({paths[0]}) and no pictures; open folder:{tmp_path}/100%25%3F, or save the set by "
        "save_to_disk of `datasets`, which copies the pictures into it, and open that"
    )
    opened = said.partition("open ")[2].partition(", or")[0]
    assert open_images(opened).split_hash() == open_images(f"folder:{folder}").split_hash()


@pytest.mark.parametrize(
    "paths", [["a.png", "b.png"], ["/nowhere/a.png", "/nowhere/b.png"], ["/nowhere/a.png", "/b.png"]]
)
def test_rows_of_paths_without_a_folder_here_are_refused(paths: list[str], tmp_path: Path) -> None:
    for kind in "parquet", "saved":
        with pytest.raises(UserError, match="and no pictures; open their folder as folder:PATH, or save the set"):
            open_images(uri_of_paths(tmp_path / kind, kind, paths))
    with pytest.raises(UserError, match=r"no row holds a picture in the column image; name another by \?image=COLUMN"):
        open_images(uri_of_paths(tmp_path / "none", "parquet", [None, ""]))


def uri_of_paths(place: Path, kind: str, paths: Sequence[str | None]) -> str:
    """A set whose rows have paths in the place of pictures."""
    pictures = pa.array(
        [{"bytes": None, "path": path} for path in paths], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    found = table({"image": pictures, "label": [i % 3 for i in range(len(paths))]})
    if kind in ("saved", "compressed"):
        return f"hf:{saved(place, found, options=pa.ipc.IpcWriteOptions(compression='lz4' if kind == 'compressed' else None))}"
    place.mkdir()
    if kind == "cached":
        stream(place / "imagefolder-train.arrow", found)
        return f"hf:{place}"
    pq.write_table(found, place / "set.parquet")
    return f"parquet:{place}"


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    def said(uri: str) -> list[str]:
        return [note.sentence() for note in open_images(uri).notes if note.level != "list"]

    columns = rows(range(4))
    columns |= {"fine_label": columns.pop("label"), "x": [0] * 4}
    for name in "cat", "dog":
        (tmp_path / f"label={name}").mkdir()
        pq.write_table(table(columns), tmp_path / f"label={name}/0.parquet")
    unread = "3 columns that are not read; ?label=COLUMN would read the classes from one (patient, fine_label, x)"
    folders = "2 folders that give all rows in them a value, which is not read; write it into a column (label=cat)"
    for uri in f"parquet:{tmp_path}", f"parquet:{tmp_path}/*/0.parquet", f"hf:{tmp_path}":
        assert said(uri) == [unread, folders]
        assert said(f"{uri}?labels=none") == said(f"{uri}?label=fine_label") == []
        assert len(open_images(f"{uri}?label=fine_label&group=patient").notes) == 2
    assert said(f"hf:{saved(tmp_path / 'saved', table(columns))}") == [unread]
    columns["image"][1]["bytes"] = None
    pq.write_table(table(columns), tmp_path / "some.parquet")
    mixed = "1 rows that name a file and do not hold it, which count as damaged pictures (01.png)"
    assert said(f"parquet:{tmp_path}/some.parquet?label=fine_label") == [mixed]


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    pq.write_table(table(rows(range(COUNT))), whole)
    content = whole.read_bytes()
    (tmp_path / "short.parquet").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.parquet").write_text("no parquet")
    (tmp_path / "nothing").mkdir()
    pq.write_table(table(rows(range(1))).slice(0, 0), tmp_path / "none.parquet")
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "numbers.parquet")
    two = saved(tmp_path / "two", table(rows(range(4))))
    (two / "state.json").write_text('{"_data_files": [{"filename": "../whole.parquet"}]}')
    chosen = saved(tmp_path / "chosen", table(rows(range(4))))
    (chosen / "state.json").write_text('{"_data_files": [], "_indices_data_files": [{"filename": "indices.arrow"}]}')
    broken = saved(tmp_path / "broken", table(rows(range(COUNT))))
    arrow_file = broken / "data-00000-of-00001.arrow"
    arrow_file.write_bytes(arrow_file.read_bytes()[:700])
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    pq.write_table(table(rows(range(3))), mixed / "a.parquet")
    pq.write_table(table(rows(range(3), "bytes")), mixed / "b.parquet")
    for uri, sentence in (
        (f"parquet:{tmp_path}/short.parquet", "cannot be read .*; check how it was made, or fetch it again"),
        (f"parquet:{tmp_path}/text.parquet", "cannot be read"),
        (f"parquet:{tmp_path}/missing.parquet", "there is no such archive|there is no such file"),
        (f"parquet:{tmp_path}/nothing", r"no file below .* ends in \.parquet"),
        (f"parquet:{tmp_path}/none.parquet", "it has no rows"),
        (
            f"parquet:{tmp_path}/numbers.parquet",
            r"which column holds pictures\? \(there is none\); files .* are read by csv:FILE",
        ),
        (f"parquet:{mixed}", "its columns differ from those of the files before it"),
        (f"hf:{two}", r"its file \.\./whole\.parquet is not in"),
        (f"hf:{chosen}", r"call flatten_indices\(\) and save it again"),
        (f"hf:{broken}", "cannot be read"),
        (f"hf:{tmp_path}/missing", "there is no folder"),
        (f"hf:{whole}", "parquet: opens a file"),
    ):
        with pytest.raises(UserError, match=sentence):
            open_images(uri)


def test_without_pyarrow_a_sentence_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = make_plain(tmp_path), make_saved(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for uri in uris:
        with pytest.raises(UserError, match=r"pip install 'rootstock\[parquet\]'"):
            open_images(uri)
