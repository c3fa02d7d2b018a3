"""Any URI, table and list is read or refused with a sentence; so are packs, also if who changed them made their digests anew."""

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import strategies as st
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images.open import DamagedImage, open_images
from rootstock.core.images.pack.files import ABOUT, INDEX, RECORDS
from rootstock.core.images.pack.journal import ENTRY, JOURNAL
from rootstock.core.images.pack.reader import checksum, save_index
from rootstock.core.images.pack.record import Packing
from rootstock.core.images.pack.unfinished import PLAN
from rootstock.core.images.pack.writer import pack
from rootstock.tests.fuzz import DEPTHS, changed, fuzz, read_all

NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 7, 255, 256, 2**31, 2**32, 2**63 - 1, -(2**63)])
SPLITS = {"train": torch.tensor([0, 2]), "test": torch.tensor([1])}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "set").mkdir()
    for k in range(3):
        Image.new("RGB", (5, 4 + k), (50 * k, 9, 200)).save(folder / "set" / f"{k}.png")
    return folder


SCHEMES = (
    "folder",
    "tar",
    "pack",
    "idx",
    "npz",
    "torchvision",
    "list",
    "csv",
    "parquet",
    "hf",
    "dicom",
    "nifti",
    "sklearn",
)
OPTIONS = ("under", "labels", "label", "key", "image", "path", "root", "domain", "separator", "encoding", "layout", "images",
           "max_size", "max_ratio", "download", "group", "window", "frames", "axis", "x")  # fmt: skip
PIECES = ("", "/", ".", "..", "~", "~x", "*", "[", "{", "}", "{0..9}", "{a,b}", "%23", "%", "#", "?", "&", "=", ":", "\0", "\n", "\ud800",
          "\udcff", "é", "x" * 300, "set", "0.png", "/proc/self/mem", "/dev/null", "digits", "MNIST", "train")  # fmt: skip
PATHS = st.just("set") | st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=4).map("".join)
VALUES = (
    st.sampled_from(
        ("none", "folders", "1", "0", "-1", "9" * 5000, "true", "10GB", "json:x", "last-dot", "tab", "utf-16")
    )
    | PATHS
)
QUERY = st.lists(st.tuples(st.sampled_from(OPTIONS) | st.text(max_size=3), VALUES), max_size=3)
SLICES = st.sampled_from(
    ("train", "all", "[:80%]", "[80%:,seed=1]", "x[:1]", "[:" + "9" * 5000 + "]", "[::]", "[:101%]", "[:1,stratify]")
)
URIS = st.builds(
    lambda scheme, path, query, parts: (
        f"{scheme}:{path}"
        + ("?" + "&".join(map("=".join, query)) if query else "")
        + "".join("#" + part for part in parts)
    ),
    st.sampled_from(SCHEMES) | st.text(max_size=3),
    PATHS,
    QUERY,
    st.lists(SLICES | st.text(max_size=8), max_size=2),
)


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_uri_is_opened_or_refused(depth: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of little, so that what a text happens to name is small."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place))
    # These sets are made or downloaded, and none of their options is a file.
    slow = ("sklearn:digits", "torchvision:")
    fuzz(
        "URIs",
        (URIS | st.text(max_size=30)).filter(lambda uri: not uri.strip().startswith(slow) or "download" not in uri),
        lambda uri: open_images(uri) if not uri.strip().startswith("sklearn:digits") else None,
        depth,
        examples=500,
    )


CELLS = st.sampled_from(("0.png", "1.png", "2.png", "9.png", "", "a", "7", "../set/0.png", ".", "/dev/zero", '"', '"0.png"', "\0",
         "x" * 400,                         "\r", " ", "0.png ", "\ufeff", "é")) | st.text(max_size=4)  # fmt: skip
HEADERS = st.sampled_from(
    ("path,label", "path", "path,label,domain", "path;label", "path\tlabel", "label,path", "path,label,label")
)
LINES = st.lists(st.lists(CELLS, max_size=3).map(",".join), max_size=5)
WHOLE_TABLES = st.lists(
    st.sampled_from(("0.png,a", "1.png,b", "2.png,a", "", "0.png,", '"1.png","a b"', "9.png,a")), max_size=4
).map(lambda lines: "\n".join(["path,label", *lines]))
WHOLE_LISTS = st.lists(st.sampled_from(("0.png a", "1.png\tb", "2.png b", "", " 0.png  a")), max_size=4).map("\n".join)
TABLES = st.builds(
    lambda header, lines, end: end.join([header, *lines]), HEADERS | st.text(max_size=8), LINES, st.sampled_from("\n\r")
)
ENCODED = st.builds(
    lambda text, encoding: text.encode(encoding, "replace"),
    TABLES,
    st.sampled_from(("utf-8", "utf-16", "latin-1", "utf-8-sig")),
)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("scheme", ["csv", "list"])
def test_any_table_and_list_is_read_or_refused(scheme: str, depth: str, place: Path) -> None:
    def attempt(drawn: tuple[bytes, str]) -> None:
        content, options = drawn
        (place / f"listed.{scheme}").write_bytes(content)
        read_all(open_images(f"{scheme}:{place}/listed.{scheme}?root={place}/set{options}"))

    options = st.sampled_from(
        ("", "&encoding=latin-1", "&encoding=utf-16") + (("&separator=semicolon",) if scheme == "csv" else ())
    )
    whole = WHOLE_TABLES if scheme == "csv" else WHOLE_LISTS
    fuzz(
        scheme,
        st.tuples(whole.map(str.encode) | ENCODED | st.binary(max_size=60), options),
        attempt,
        depth,
        examples=500,
        share=0.5,
    )


@pytest.fixture(scope="module", params=["original", "raw"])
def packed(request: pytest.FixtureRequest, place: Path) -> Path:
    """A pack of three pictures in a copy that may be changed: in the form of their files, or of one size as pixels."""
    folder = place / request.param
    source = place / f"set-{request.param}"
    for k in range(3):
        side = 5 if request.param == "raw" else 4 + k
        (source / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), (50 * k, 9, 200)).save(source / "ab"[k % 2] / f"{k}.png")
    pack(open_images(f"folder:{source}"), SPLITS, folder, Packing(request.param))
    return folder


def written(folder: Path, index: bytes | None = None, records: bytes | None = None, about: Any = None) -> None:
    """Change files of a pack, and make its digest anew."""
    if records is not None:
        (folder / RECORDS).write_bytes(records)
    if index is not None:
        (folder / INDEX).write_bytes(index)
    listed = json.loads((folder / ABOUT).read_bytes()) if about is None else about
    if isinstance(listed, dict) and index is not None:
        listed["index_sha256"] = hashlib.sha256(index).hexdigest()
    (folder / ABOUT).write_text(json.dumps(listed))


DTYPES = (torch.int64, torch.uint8, torch.float32, torch.bool, torch.int32, torch.bfloat16, torch.uint16)


def changed_tensor(tensor: torch.Tensor, kind: str, at: int, number: int, dtype: torch.dtype) -> torch.Tensor:
    flat = tensor.flatten().clone()
    if kind == "value" and len(flat):
        # an earlier change may have made it one of floats or truth values
        whole = torch.uint8 if flat.dtype == torch.bool else flat.dtype
        limits = torch.finfo(whole) if flat.is_floating_point() else torch.iinfo(whole)
        flat[at % len(flat)] = max(limits.min, min(limits.max, number))
        return flat.view(tensor.shape)
    if kind == "shorter":
        return flat[: at % (len(flat) + 1)]
    if kind == "longer":
        return torch.cat([flat, flat])
    if kind == "dtype":
        return tensor.to(dtype)
    return tensor[None] if kind == "deeper" else torch.zeros(0, dtype=tensor.dtype)


EDITS = st.tuples(
    st.sampled_from(("offsets", "checksums", "kinds", "shapes", "keys", "names", "names.ends", "stamps", "stamps.ends", "labels", "split.0",
                     "split.1")),
    st.sampled_from(("value", "value", "value", "shorter", "longer", "dtype", "deeper", "empty", "gone")),
    st.integers(0, 20),
    NUMBERS,
    st.sampled_from(DTYPES),
)  # fmt: skip
NAMED = st.lists(st.text(max_size=3), max_size=4)
TEXTS = st.dictionaries(st.sampled_from(("classes", "domain_names", "splits")), JSON | NAMED, max_size=2)


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_pack_with_new_digests_is_read_or_refused(depth: str, packed: Path) -> None:
    good = (packed / INDEX).read_bytes()
    records, about = (packed / RECORDS).read_bytes(), (packed / ABOUT).read_bytes()
    tensors = safetensors.torch.load(good)
    header = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])
    texts = json.loads(header["__metadata__"]["about"])

    def edited(edits: list[Any], changes: dict[str, Any]) -> bytes:
        made = dict(tensors)
        for name, kind, at, number, dtype in edits:
            if kind == "gone":
                made.pop(name, None)
            elif name in made:
                made[name] = changed_tensor(made[name], kind, at, number, dtype)
        return save_index({name: tensor.contiguous() for name, tensor in made.items()}, {**texts, **changes})

    def raw_header(new: bytes) -> bytes:
        return struct.pack("<Q", len(new)) + new + good[8 + int.from_bytes(good[:8], "little") :]

    indices = st.builds(edited, st.lists(EDITS, max_size=2), TEXTS) | changed(good)
    indices |= changed(good[8 : 8 + int.from_bytes(good[:8], "little")]).map(raw_header)

    def attempt(drawn: tuple[bytes, bytes, Any]) -> None:
        index, content, listed = drawn
        written(packed, index, content, listed)
        read_all(open_images(f"pack:{packed}#all"))
        open_images(f"pack:{packed}#train")

    described = st.just(json.loads(about)) | st.builds(lambda new: {**json.loads(about), **new}, st.dictionaries(
        st.sampled_from(("format", "index_sha256", "plan")), JSON, max_size=1)) | JSON  # fmt: skip
    try:
        inputs = st.tuples(indices, st.just(records) | changed(records), st.just(json.loads(about)) | described)
        fuzz(f"packs ({packed.name})", inputs, attempt, depth, examples=120, share=0.25)
    finally:
        written(packed, good, records, json.loads(about))


def journal_of(edits: Sequence[tuple[int, str, int]], good: bytes) -> bytes:
    """A journal with changed entries whose checksums are right."""
    entries = np.frombuffer(bytearray(good), ENTRY).copy()
    for at, field, number in edits:
        entry = entries[at % len(entries)]
        limits = np.iinfo(ENTRY[field].base)
        entry[field] = max(limits.min, min(limits.max, number))
    for k in range(len(entries)):
        entries[k]["entry"] = checksum(entries[k].tobytes()[:-4])
    return entries.tobytes()


@pytest.mark.parametrize("depth", DEPTHS)
def test_an_unfinished_pack_is_continued_or_refused(depth: str, place: Path, packed: Path, tmp_path: Path) -> None:
    """The pack that comes of it is one that can be read, and its pictures are the set's unless an attacker made new checksums."""
    images = open_images(f"folder:{place}/set-{packed.name}")
    part = tmp_path / "out.part"
    kinds = 0 if packed.name == "original" else 1
    records = (packed / RECORDS).read_bytes()
    ends = safetensors.torch.load((packed / INDEX).read_bytes())["offsets"].tolist()
    shapes = safetensors.torch.load((packed / INDEX).read_bytes())["shapes"].tolist()
    entries = np.zeros(len(images), ENTRY)
    for k in range(len(images)):
        entries[k] = (ends[k + 1], checksum(records[ends[k] : ends[k + 1]]), kinds, shapes[k], 0)
    good = journal_of([], entries.tobytes())
    packing = Packing(packed.name)  # pyright: ignore[reportArgumentType]
    plan = json.loads((packed / ABOUT).read_bytes())["plan"]

    def attempt(drawn: tuple[bytes, bytes, Any]) -> None:
        journal, content, described = drawn
        for folder in (part, tmp_path / "out"):
            if folder.exists():
                for file in folder.iterdir():
                    file.unlink()
                folder.rmdir()
        part.mkdir()
        (part / JOURNAL).write_bytes(journal)
        (part / RECORDS).write_bytes(content)
        (part / PLAN).write_text(json.dumps(described))
        try:
            pack(
                images,
                {"train": torch.tensor([0, 2]), "test": torch.tensor([1])},
                tmp_path / "out",
                packing,
                skip_damaged=True,
            )
        except DamagedImage:
            raise AssertionError("a picture of the source is whole") from None
        read_all(open_images(f"pack:{tmp_path}/out#all"))

    edits = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(("end", "record", "kind")), NUMBERS), max_size=2)
    journals = edits.map(lambda edits: journal_of(edits, good)) | changed(good) | st.just(good + good)
    plans = (
        st.just(plan)
        | st.just({**plan, "unreadable": [0]})
        | st.builds(lambda new: {**plan, "unreadable": new}, JSON)
        | JSON
    )
    inputs = st.tuples(journals, st.just(records) | changed(records), plans)
    fuzz(f"unfinished packs ({packed.name})", inputs, attempt, depth, examples=30, share=0.25)


def test_every_field_of_an_index_is_checked(packed: Path) -> None:
    """One wrong value each, with a digest that fits."""
    good = (packed / INDEX).read_bytes()
    about = json.loads((packed / ABOUT).read_bytes())
    tensors = safetensors.torch.load(good)
    header = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])
    texts = json.loads(header["__metadata__"]["about"])
    count = 3

    def value(name: str, at: int, number: int) -> Callable[[dict[str, Any], dict[str, Any]], None]:
        def change(made: dict[str, Any], told: dict[str, Any]) -> None:
            made[name] = made[name].clone()
            made[name].view(-1)[at] = number

        return change

    def text(name: str, new: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
        return lambda made, told: told.update({name: new})

    wrong = [
        (value("offsets", 0, 1), "offsets"),
        (value("offsets", 1, -5), "offsets"),
        (value("offsets", count, 1 << 40), "the index expects|another size than its pixels"),
        (value("checksums", 0, -1), "checksums"),
        (value("kinds", 0, 9), "kinds hold 9"),
        (value("shapes", 0, 0), "shapes hold a side"),
        (value("shapes", 0, 1 << 62), "shapes hold a side"),
        (value("labels", 0, 2), "labels hold a number that is no class"),
        (value("labels", 0, -1), "labels hold"),
        (value("split.0", 0, count), "split.0 holds a number that is no picture"),
        (value("split.1", 0, -1), "split.1 holds"),
        (value("names.ends", 1, -1), "names.ends"),
        (value("stamps.ends", count, 1 << 40), "stamps.ends"),
        (text("classes", ["a"]), "labels hold"),
        (text("classes", ["a", "a"]), "one name twice"),
        (text("classes", "ab"), "classes is no list of texts"),
        (text("domain_names", []), "domain_names are empty"),
        (text("domain_names", ["a", "b"]), "domains are missing"),
        (text("splits", ["train", 5]), "splits is no list"),
        (text("splits", ["train", "test", "val"]), "split.2 is missing"),
        (lambda made, told: made.pop("keys"), "keys is missing"),
        (lambda made, told: told.pop("classes"), "classes is missing"),
        (lambda made, told: told.pop("domain_names"), "domain_names is missing"),
        (lambda made, told: told.pop("splits"), "splits is missing"),
        (lambda made, told: made.update(keys=made["keys"].float()), r"keys is float32 \[3\], not int64"),
    ]
    try:
        for change, sentence in wrong:
            made, told = dict(tensors), dict(texts)
            change(made, told)
            written(packed, save_index(made, told), about=dict(about))
            with pytest.raises(UserError, match=sentence):
                open_images(f"pack:{packed}#all")
    finally:
        written(packed, good, about=about)
