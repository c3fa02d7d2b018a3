"""Pictures in arrays: IDX and NumPy files in every layout, and torchvision's sets."""

import gzip
import struct
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
