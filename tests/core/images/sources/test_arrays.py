"""Pictures in arrays: IDX and NumPy files in every layout, and torchvision's sets."""

import gzip
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images.images import Images
from rootstock.core.images.open import open_images


def told(images: Images) -> list[str]:
    """The class name of each picture."""
    assert images.labels is not None
    assert images.classes is not None
    return [images.classes[label] for label in images.labels.tolist()]


def write_idx(path: Path, array: np.ndarray) -> None:
    content = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def test_idx_and_npz_in_every_layout_are_the_same(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 6, 7), dtype=np.uint8)
    labels = (np.arange(11) % 3).astype(np.uint8)
    folder = tmp_path / "idx"
    folder.mkdir()
    write_idx(folder / "train-images-idx3-ubyte.gz", pixels[:8])
    write_idx(folder / "train-labels-idx1-ubyte", labels[:8])
    write_idx(folder / "t10k-images.idx3-ubyte", pixels[8:])
    write_idx(folder / "t10k-labels.idx1-ubyte.gz", labels[8:])
    np.savez(
        tmp_path / "nhw.npz", train_images=pixels[:8], train_labels=labels[:8], x_test=pixels[8:], y_test=labels[8:]
    )
    np.savez_compressed(tmp_path / "nhwc.npz", x=pixels[..., None], y=labels[:, None].astype(np.int64))
    np.savez(tmp_path / "nchw.npz", a=pixels[:, None], b=labels)
    sets = [
        open_images(f"idx:{folder}#all"),
        open_images(f"npz:{tmp_path}/nhw.npz#all"),
        open_images(f"npz:{tmp_path}/nhwc.npz"),
        open_images(f"npz:{tmp_path}/nchw.npz?images=a&labels=b"),
    ]
    for images in sets:
        resident = images.resident()
        assert resident is not None
        assert np.array_equal(resident.numpy(), pixels[:, None].repeat(3, axis=1))
        assert told(images) == [str(label) for label in labels]
        assert images.split_hash() == sets[0].split_hash()
        assert images.fingerprint() == sets[0].fingerprint()
    for uri in (f"idx:{folder}", f"npz:{tmp_path}/nhw.npz"):
        assert (len(open_images(f"{uri}#train")), len(open_images(f"{uri}#test"))) == (8, 3)
    assert told(open_images(f"idx:{folder}/train-images-idx3-ubyte.gz")) == [str(label) for label in labels[:8]]


def test_rows_are_those_of_the_file(tmp_path: Path) -> None:
    """Such as MNIST[10000:], whose digits are not in MNIST-M's first 10,000. Class numbers are those of the whole file."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 6, 7), dtype=np.uint8)
    labels = (np.arange(12) // 4 + 7).astype(np.uint8)  # 7, 8, 9
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", pixels)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", labels)
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=labels, x_test=pixels[:3], y_test=labels[:3])
    file = f"idx:{tmp_path}/train-images-idx3-ubyte.gz"
    for uri, first, last in (
        (f"{file}?rows=4:", 4, 12),
        (f"{file}?rows=:5", 0, 5),
        (f"{file}?rows=8:99", 8, 12),
        (f"npz:{tmp_path}/a.npz?rows=1:3#train", 1, 3),
    ):
        images = open_images(uri)
        resident = images.resident()
        assert resident is not None and np.array_equal(resident[:, 0].numpy(), pixels[first:last])
        assert images.classes == ("7", "8", "9") and told(images) == [str(label) for label in labels[first:last]]
    for rows, message in (
        ("12:", "has 12 pictures, and rows=12: leaves none"),
        ("5:5", "leaves none"),
        ("-3:", "rows=-3: is no range; write START:END"),
        ("7", "is no range"),
    ):
        with pytest.raises(UserError, match=message):
            open_images(f"{file}?rows={rows}")
    with pytest.raises(
        UserError, match="test has 3 pictures, and rows=4: leaves none; name another range, or one file"
    ):
        open_images(f"npz:{tmp_path}/a.npz?rows=4:")


def test_npz_of_colour_many_channels_and_sixteen_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (3, 6, 7, 3), dtype=np.uint8)
    np.savez(tmp_path / "c.npz", images=colour)
    images = open_images(f"npz:{tmp_path}/c.npz")
    assert np.array_equal(images.read(1).permute(1, 2, 0).numpy(), colour[1])
    assert images.labels is None
    bands = rng.integers(0, 65536, (3, 6, 8, 9), dtype=np.uint16)
    np.savez(tmp_path / "b.npz", images=bands)
    with pytest.raises(UserError, match=r"layout=NCHW"):
        open_images(f"npz:{tmp_path}/b.npz")
    assert open_images(f"npz:{tmp_path}/b.npz?layout=NCHW").read(2).shape == (6, 8, 9)
    assert np.array_equal(open_images(f"npz:{tmp_path}/b.npz?layout=NHWC").read(2).permute(1, 2, 0).numpy(), bands[2])


def test_damaged_arrays_are_refused(tmp_path: Path) -> None:
    def npz(**arrays: np.ndarray) -> str:
        np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
        return f"npz:{tmp_path}/x.npz"

    pixels = np.zeros((4, 5, 5), np.uint8)
    for uri, sentence in (
        (lambda: npz(x=pixels / 2), "holds float64; expected uint8"),
        (lambda: npz(x=pixels, y=np.zeros(3, int)), "4 pictures and 3 labels"),
        (lambda: npz(x=pixels, y=np.zeros((4, 2), int)), "one whole number for each picture"),
        (lambda: npz(x=pixels, y=np.array([{}] * 4)), "cannot be read"),
        (lambda: npz(first=pixels), "no array is called like images"),
        (lambda: npz(x=pixels, images=pixels), "both x and images"),
        (lambda: npz(x=pixels) + "?images=z", r"no array z \(it has: x\)"),
    ):
        with pytest.raises(UserError, match=sentence):
            open_images(uri())
    np.save(tmp_path / "one.npy", pixels)
    with pytest.raises(UserError, match="a single array"):
        open_images(f"npz:{tmp_path}/one.npy")
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match="cannot be read"):
        open_images(f"npz:{tmp_path}/x.npz")
    write_idx(tmp_path / "images-idx3-ubyte", pixels)
    (tmp_path / "images-idx3-ubyte").write_bytes((tmp_path / "images-idx3-ubyte").read_bytes()[:-1])
    with pytest.raises(UserError, match="115 bytes where 116 are announced"):
        open_images(f"idx:{tmp_path}")


def npz_of(path: Path, name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)
    return f"npz:{path}"


def npy(header: str, content: bytes, version: int = 1) -> bytes:
    """An .npy file whose header says anything."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + content


ARRAY = "{'descr': '|u1', 'fortran_order': False, 'shape': %s}"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            npy(ARRAY % "(1000000, 1000000, 1000000)", b"x"),
            r"announces \[1000000, 1000000, 1000000\] of uint8, which are 1,000",
        ),
        (npy(ARRAY % "(4, 2, 2)", bytes(15)), "which are 16 bytes, and holds 15"),
        (npy(ARRAY % "(4, 2, 2)", bytes(17)), "which are 16 bytes, and holds 17"),
        (npy(ARRAY % "(-4, -2, 2)", bytes(16)), r"it holds uint8 \[-4, -2, 2\]"),
        (npy(ARRAY % ("(" + "1," * 40 + ")"), b"x"), "it holds uint8"),
        (npy(ARRAY % "(0, 2, 2)", b""), "it holds no pictures"),
        (npy(ARRAY % "(2, 0, 2)", b""), "its pictures have no pixels"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"x"), "holds objects of Python"),
        (npy("{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (1,)}", b"x"), "expected arrays of numbers"),
        (npy("[" * 100, b"x"), "cannot be read"),
        (npy("{'descr': '|u1'", b"x"), "cannot be read"),
        (npy(ARRAY % "(1,)", b"x", 9), "its format is 9.0"),
        (b"no array", "cannot be read"),
    ],
)
def test_an_array_that_announces_anything_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_images(npz_of(tmp_path / "x.npz", "x.npy", content))


def test_an_encrypted_a_misnamed_and_a_doubled_npz_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros((2, 3, 3), np.uint8))
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="x is encrypted; save it again without a password"):
        open_images(f"npz:{path}")
    with pytest.raises(UserError, match=r"no array is called like images \(it has: pictures/x\)"):
        open_images(npz_of(path, "pictures/x.npy", b""))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.npy", b"")
    with pytest.raises(UserError, match="it holds two arrays x"):
        open_images(f"npz:{path}")
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(UserError, match=r"it is no \.npz file"):
        open_images(f"npz:{path}")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            b"\0\0\x08" + bytes([200]) + b"\0\0\0\1" * 200 + b"x",
            r"its values have 200 dimensions; expected \[N, H, W\]",
        ),
        (b"\0\0\x08\3" + struct.pack(">3I", 0, 2**32 - 1, 2**32 - 1), "so it holds no values"),
        (b"\0\0\x08\3" + struct.pack(">3I", *[2**32 - 1] * 3), "more than 32GB, which is its limit"),
        (b"\0\0\x08\3\0\0", "the file ends within its header"),
        (b"\0\0\x0d\3" + bytes(12), "its values are not bytes"),
        (b"", "not an IDX file"),
    ],
)
def test_idx_headers_that_announce_anything_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    for name, packed in (("images-idx3-ubyte", content), ("images-idx3-ubyte.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(packed)
        with pytest.raises(UserError, match=sentence):
            open_images(f"idx:{tmp_path / name}")


def test_idx_labels_have_one_dimension(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((2, 3, 3), np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros((2, 1), np.uint8))
    with pytest.raises(UserError, match=r"labels-idx1-ubyte: its values have 2 dimensions; expected \[N\]"):
        open_images(f"idx:{tmp_path}")


def test_torchvision_reads_what_is_there_and_downloads_nothing(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = (np.arange(20) % 10).astype(np.uint8)
    for name, part in (("train", slice(0, 12)), ("t10k", slice(12, 20))):
        write_idx(raw / f"{name}-images-idx3-ubyte", pixels[part])
        write_idx(raw / f"{name}-labels-idx1-ubyte", labels[part])
    images = open_images(f"torchvision:MNIST?root={tmp_path}#all")
    same = open_images(f"idx:{raw}#all")
    assert all(torch.equal(images.read(i), same.read(i)) for i in range(20))
    assert images.classes == same.classes == tuple("0123456789")
    assert torch.equal(images.keys(), same.keys())
    assert len(open_images(f"torchvision:MNIST?root={tmp_path}#test")) == 8
    folder = tmp_path / "eurosat" / "2750"
    for k, name in enumerate(("lake/1.png", "lake/2.png", "road/3.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[k]).save(folder / name)
    eurosat = open_images(f"torchvision:EuroSAT?root={tmp_path}")
    assert told(eurosat) == ["lake", "lake", "road"]
    assert torch.equal(eurosat.keys(), open_images(f"folder:{folder}").keys())
    for uri, sentence in (
        (f"torchvision:MNIST?root={tmp_path}", "comes in splits: name one of train, test"),
        (f"torchvision:MNITS?root={tmp_path}", "did you mean MNIST?"),
        (f"torchvision:CIFAR10?root={tmp_path}#train", "add &download=true"),
        ("torchvision:MNIST#train", "the option root is needed"),
    ):
        with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
            open_images(uri)


def test_labels_and_arrays_that_are_not_read_are_said(tmp_path: Path) -> None:
    pixels, labels = np.zeros((4, 6, 7), np.uint8), np.array([0, 1, 0, 1], np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte", pixels)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    write_idx(tmp_path / "t10k-images.idx3-ubyte", pixels[:2])
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", labels[:2])
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=labels, x_test=pixels)
    for uri, unread in (
        (f"idx:{tmp_path}#train", ["arrays that are not read"]),
        (f"npz:{tmp_path}/a.npz#train", []),
    ):
        images = open_images(uri)
        notes = [note for note in images.notes if note.level != "list"]
        assert images.labels is None
        assert (notes[0].example, notes[0].what.partition(",")[0]) == ("test", "splits without labels")
        assert [note.what.partition(";")[0] for note in notes[1:]] == unread
    assert told(open_images(f"npz:{tmp_path}/a.npz?images=x_train&labels=y_train")) == ["0", "1", "0", "1"]
    assert told(open_images(f"idx:{tmp_path}/train-images-idx3-ubyte")) == ["0", "1", "0", "1"]


def test_values_of_either_byte_order(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 4, dtype=">u2").reshape(2, 3, 4) * 1000
    np.savez(tmp_path / "a.npz", x=values)
    assert np.array_equal(open_images(f"npz:{tmp_path}/a.npz").read(1)[0].numpy(), values[1].astype(np.uint16))
