"""The order of training, its parts on several processes and what follows after a resume are the same whatever kind of source is read."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rootstock.core.images.images import Images
from rootstock.core.images.open import open_images
from rootstock.core.method import RawBatch
from rootstock.core.stream.batches import Share, stream
from rootstock.core.stream.order import Order
from rootstock.core.views.augmentation import Augmentation
from rootstock.core.views.multiview import multiview

COUNT, BATCH, STEPS, SEED = 20, 8, 6, 3
CROP = multiview(Augmentation(scale=(0.3, 1.0), flip=0.5), 8, (0.5,) * 3, (0.25,) * 3, 1)


def picture(i: int) -> bytes:
    pixels = np.random.default_rng(i).integers(0, 256, (10 + i % 3, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PICTURES = [picture(i) for i in range(COUNT)]


def make_csv(place: Path) -> str:
    place.mkdir(exist_ok=True)
    lines = ["path,label,patient"]
    for i, content in enumerate(PICTURES):
        (place / f"{i:02}.png").write_bytes(content)
        lines.append(f"{i:02}.png,{i % 2},{i // 3}")
    (place / "t.csv").write_text("\n".join(lines))
    return f"csv:{place}/t.csv?group=patient"


def make_grouped(place: Path) -> str:
    for i, content in enumerate(PICTURES):
        file = place / "set" / str(i % 2) / f"p{i // 4}" / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return f"folder:{place}/set?group=folder"


def make_sidecars(place: Path) -> str:
    """As WebDataset writes them."""
    with tarfile.open(place / "t.tar", "w") as archive:
        for i, content in enumerate(PICTURES):
            sidecar = json.dumps({"label": i % 2}).encode()
            for ending, held in (("png", content), ("json", sidecar), ("txt", b"a caption")):
                member = tarfile.TarInfo(f"{i:02}.{ending}")
                member.size = len(held)
                archive.addfile(member, io.BytesIO(held))
    return f"tar:{place}/t.tar?label=json:label"


def make_parquet(place: Path) -> str:
    pa, pq = _arrow()
    place.mkdir(exist_ok=True)
    rows = {"image": [{"bytes": one, "path": None} for one in PICTURES], "label": [i % 2 for i in range(COUNT)]}
    for k in range(2):
        pq.write_table(pa.table(rows)[10 * k : 10 * k + 10], place / f"{k}.parquet", row_group_size=3)
    return f"parquet:{place}"


def make_hf(place: Path) -> str:
    pa, _ = _arrow()
    place.mkdir(exist_ok=True)
    rows = pa.table({"image": PICTURES, "label": [i % 2 for i in range(COUNT)]})
    with pa.OSFile(f"{place}/data.arrow", "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=6)
    (place / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    return f"hf:{place}"


def _arrow() -> tuple[Any, Any]:
    reason = "pyarrow is not installed (the extra `parquet`)"
    return pytest.importorskip("pyarrow", reason=reason), pytest.importorskip("pyarrow.parquet", reason=reason)


def samples(images: Images, first: int, world: int, workers: int) -> Tensor:
    """What training sees from a step on: float [steps, BATCH, ...], of all processes; with the numbers of the pictures in front."""
    order, found = Order(len(images), BATCH, SEED), list[Tensor]()
    for rank in range(world):
        share = Share(rank, world, 1)
        batches = stream(
            images, order, CROP, steps=STEPS, device=torch.device("cpu"), share=share, workers=workers, resident="off"
        )
        found.append(torch.stack([row(step[0]) for step in batches(first)]))
    return torch.cat(found, 1)


def row(batch: RawBatch) -> Tensor:
    assert len(batch.labels) == len(batch.positions)
    return torch.cat([batch.labels[:, None].double(), batch.images.flatten(1).double()], 1)


@pytest.mark.parametrize("make", [make_csv, make_grouped, make_sidecars, make_parquet, make_hf])
def test_a_source_gives_what_a_folder_gives(make: Callable[[Path], str], tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    for i, content in enumerate(PICTURES):
        (tmp_path / "plain" / f"{i:02}.png").write_bytes(content)
    (tmp_path / "made").mkdir()
    images = open_images(make(tmp_path / "made"))
    assert images.classes == ("0", "1")
    check(images, open_images(f"folder:{tmp_path}/plain"))


def check(images: Images, folder: Images) -> None:
    """Both are the same pictures; trained on in one order of them, they give the same samples in every way."""
    place = {pixels(folder, i): i for i in range(len(folder))}
    assert len(place) == len(images) == len(folder)
    folder = folder.select(torch.tensor([place[pixels(images, i)] for i in range(len(images))]))
    images.labels = folder.labels = torch.arange(len(images))
    expected = samples(folder, 0, 1, 0)
    assert len(expected) == STEPS
    for world, workers in (1, 0), (2, 0), (4, 0), (2, 2):
        assert torch.equal(samples(images, 0, world, workers), expected), (world, workers)
    for first in 1, 4:  # in the middle of an epoch, which has two steps, and at its beginning
        assert torch.equal(samples(images, first, 2, 0), expected[first:])


def pixels(images: Images, i: int) -> bytes:
    picture = images.read(i)
    return f"{picture.shape} {picture.dtype}".encode() + picture.numpy().tobytes()


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, np.uint16), (2, np.uint8), (5, np.uint16), (16, np.uint8), (16, np.uint16)]
)
def test_any_number_of_channels_of_8_and_16_bits(channels: int, dtype: type, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (COUNT, channels, 11, 10), dtype=dtype)
    np.savez(tmp_path / "x.npz", images=values, labels=np.arange(COUNT) % 2)
    images = open_images(f"npz:{tmp_path}/x.npz?layout=NCHW")
    expected = samples(images, 0, 1, 0)
    # rows of one shape come whole from here: what the stream adds must be nothing
    order = Order(COUNT, BATCH, SEED)
    for step in range(STEPS):
        rows = torch.from_numpy(values[order.indices(step).numpy()].astype(np.float64))
        rows = rows.expand(-1, 3, -1, -1) if channels == 1 else rows
        assert torch.equal(expected[step][:, 1:], rows.flatten(1))
    for world in 2, 4:
        assert torch.equal(samples(images, 0, world, 0), expected)
    assert torch.equal(samples(images, 3, 2, 0), expected[3:])
