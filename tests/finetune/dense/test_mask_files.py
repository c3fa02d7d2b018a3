"""Files of masks: every exact format gives its numbers, every other one is refused in a sentence; images find their masks, each its own."""

import io
import re
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images.images import Images
from rootstock.finetune.dense.mask_files import MaskFiles, read_mask

NUMBERS = np.array([[0, 1, 2], [3, 1, 0]], dtype=np.uint8)


def palette(values: np.ndarray) -> Image.Image:
    picture = Image.fromarray(values, "L").convert("L")
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette([7, 9, 200, 1, 2, 3, 100, 100, 100, 40, 50, 60])
    return picture


def gray_png(bits: int, rows: list[list[int]]) -> bytes:
    """A gray PNG of 1, 2 or 4 bits, which Pillow doesn't write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    lines = b""
    for row in rows:
        text = "".join(format(value, f"0{bits}b") for value in row)
        lines += b"\0" + bytes(int(text[k : k + 8].ljust(8, "0"), 2) for k in range(0, len(text), 8))
    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


GRAY = Image.fromarray(NUMBERS)
DEEP = Image.fromarray(NUMBERS.astype(np.uint16) * 300)
EXACT = {
    "gray.png": (saved(GRAY, "PNG"), NUMBERS),
    "palette.png": (saved(palette(NUMBERS), "PNG"), NUMBERS),
    "palette2.png": (saved(palette(NUMBERS), "PNG", bits=2), NUMBERS),
    "deep.png": (saved(DEEP, "PNG"), NUMBERS.astype(np.uint16) * 300),
    "1.png": (gray_png(1, [[0, 1, 1], [1, 0, 0]]), np.array([[0, 1, 1], [1, 0, 0]])),
    "2.png": (gray_png(2, NUMBERS.tolist()), NUMBERS),
    "4.png": (gray_png(4, [[0, 15, 7], [3, 1, 0]]), np.array([[0, 15, 7], [3, 1, 0]])),
    "gray.tif": (saved(GRAY, "TIFF", compression="tiff_lzw"), NUMBERS),
    "deep.tif": (saved(DEEP, "TIFF"), NUMBERS.astype(np.uint16) * 300),
    "gray.bmp": (saved(GRAY, "BMP"), NUMBERS),
    "palette.bmp": (saved(palette(NUMBERS), "BMP"), NUMBERS),
    "palette.gif": (saved(palette(NUMBERS), "GIF"), NUMBERS),
}


@pytest.mark.parametrize("name", EXACT)
def test_numbers_are_read_as_they_were_written(tmp_path: Path, name: str) -> None:
    content, expected = EXACT[name]
    (tmp_path / name).write_bytes(content)
    assert np.array_equal(read_mask(str(tmp_path / name)), expected)


REFUSED = {
    "colour.png": (
        saved(GRAY.convert("RGB"), "PNG"),
        r"several numbers a pixel \(RGB\), and a class is one number; save it as a PNG",
    ),
    "alpha.png": (saved(GRAY.convert("LA"), "PNG"), r"several numbers a pixel \(LA\)"),
    "gray.jpg": (saved(GRAY, "JPEG"), "is a JPEG, which doesn't keep class numbers; save it as a PNG"),
    "gray.webp": (saved(GRAY, "WEBP"), "is a WEBP, which doesn't keep"),
    "gray.pgm": (saved(GRAY, "PPM"), "is a PPM, which doesn't keep"),
    "jpeg.tif": (saved(GRAY, "TIFF", compression="jpeg"), "compressed as JPEG"),
    "float.tif": (saved(Image.fromarray(NUMBERS.astype(np.float32)), "TIFF"), "floating-point numbers"),
    "large.tif": (saved(Image.fromarray(NUMBERS.astype(np.int32) - 1), "TIFF"), r"numbers beyond 0\.\.65535"),
    "white.tif": (saved(GRAY, "TIFF", tiffinfo={262: 0}), "stores its numbers as L;I, scaled or inverted"),
    "pages.tif": (saved(GRAY, "TIFF", save_all=True, append_images=[GRAY]), "has 2 pages or frames"),
    "cut.png": (saved(GRAY, "PNG")[:-30], "cannot be decoded"),
    "text.png": (b"no picture", r"cannot be decoded \(not a picture of a format that is read\); replace it"),
    "empty.png": (b"", "cannot be decoded"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_exact_numbers_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, sentence = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        UserError, match=f"{re.escape(name)}: the mask.* {sentence}|{re.escape(name)}: the mask('s file)? .*{sentence}"
    ):
        read_mask(str(tmp_path / name))


def pictures(*names: str, keys: list[int] | None = None, folder: str = "set") -> Images:
    """A set of pictures by their names."""
    store = SimpleNamespace(
        name=lambda k: names[k], full_name=lambda k: f"{folder}/{names[k]}", repeats=lambda: True,
        keys=lambda: torch.tensor(keys or [hash((folder, name)) for name in names]),
    )  # fmt: skip
    number = len(names)
    return Images(
        "pictures", [cast(Any, store)], torch.zeros(number).long(), torch.arange(number),
        labels=None, classes=None, domains=torch.zeros(number).long(), domain_names=("one",),
    )  # fmt: skip


def masks_at(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        GRAY.save(folder / name) if name.lower().endswith((".png", ".tif")) else (folder / name).write_bytes(b"")
    return str(folder)


def test_masks_are_found_by_folder_pattern_and_set(tmp_path: Path) -> None:
    root = masks_at(tmp_path, "a/1.png", "a/2.0.PNG", "a/1.jpg", "a/1.txt", "b/x_mask.tif", "c/x-c.png", "c/x-c.tif")
    sets = {"train": pictures("a/1.jpg", "a/2.0.jpg")}
    assert MaskFiles(root).of_sets(sets) == {"train": [f"{root}/a/1.png", f"{root}/a/2.0.PNG"]}
    assert MaskFiles(f"{root}/{{stem}}_mask").of_sets({"train": pictures("b/x.png")}) == {
        "train": [f"{root}/b/x_mask.tif"]
    }
    several = {"train": f"{root}/c/{{stem}}-c.png", "test": f"{root}/a"}
    found = MaskFiles(several).of_sets({"train": pictures("x.jpg"), "test": pictures("1.jpeg")})
    assert found == {"train": [f"{root}/c/x-c.png"], "test": [f"{root}/a/1.png"]}


@pytest.mark.parametrize(
    ("masks", "names", "sentence"),
    [
        ("{root}", ("a/9.jpg",), r"set/a/9\.jpg has no mask .*a/9\.png; add it, or leave the picture out"),
        ("{root}/a/{stem}_m.png", ("1.jpg",), r"set/1\.jpg has no mask .*/1_m\.png; add it"),
        ("{root}/none", ("1.jpg",), "has no mask, because there is no folder .*/none; check the path"),
        ("{root}", ("two.jpg",), r"set/two\.jpg has 2 masks \(two\.png, two\.tif in .*\); keep one"),
        ("{root}", ("../1.jpg",), "lies outside its set's folder"),
        ("{root}", ("/etc/1.jpg",), "lies outside its set's folder"),
        ("{root}", ("a/1.jpg", "a/1.webp"), r"a/1\.png would be the mask of two pictures \(train: set/a/1\.jpg, and .*/1\.webp\)"),
        ({"train": "{root}", "val": "{root}"}, ("a/1.jpg",), "val is no set of this probe; give one folder, or one for each of: train"),
        ({}, ("a/1.jpg",), "train has no masks"),
    ],
)  # fmt: skip
def test_what_is_missing_or_shared_is_said(tmp_path: Path, masks: Any, names: tuple[str, ...], sentence: str) -> None:
    root = masks_at(tmp_path, "a/1.png", "two.png", "two.tif")
    given = (
        masks.replace("{root}", root)
        if isinstance(masks, str)
        else {k: v.replace("{root}", root) for k, v in masks.items()}
    )
    with pytest.raises(UserError, match=sentence):
        MaskFiles(given).of_sets({"train": pictures(*names)})


def test_a_mask_of_two_sets_is_refused_unless_they_hold_the_same_picture(tmp_path: Path) -> None:
    root = masks_at(tmp_path, "1.png")
    sets = {"train": pictures("1.jpg", folder="train"), "test": pictures("1.jpg", folder="test")}
    with pytest.raises(UserError, match=r"mask of two pictures .*; give evaluate\.dense\.masks a folder for each set"):
        MaskFiles(root).of_sets(sets)
    same = {"train": pictures("1.jpg", keys=[5]), "test": pictures("1.jpg", keys=[5], folder="test")}
    assert MaskFiles(root).of_sets(same)["test"] == [f"{root}/1.png"]
