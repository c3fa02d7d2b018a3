"""What the kind of source costs: the same JPEG files in a .tar, in a folder, in Parquet, as `datasets` saves them, and in object storage.

    python benchmarks/sources.py [--markdown benchmarks/sources.md] [--toy]

Batches of one SimCLR view in the order of training, which is random over the whole set; interleaved trials of one thread. What is made once
(hashes, indices, the copy of Parquet's pages, the cached blocks of objects) is made before. Only what follows is compared: reading,
decoding and cropping. The first pass is all of it together, in an empty cache: opening, hashing and one epoch by the wall clock, once; the
S3 server (moto's) runs on the same machine and shares its cores, so it is slower, and nearer, than a real one; the first of its
rows imports s3fs, too.
"""

from __future__ import annotations

import argparse
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from object_server import served
from page import machine, publish, table
from pictures import jpeg_files
from timing import Contender, Costs, interleaved, on_one_core

from rootstock.core.images.open import Images, open_images
from rootstock.core.stream.batches import stream
from rootstock.core.stream.order import Order
from rootstock.core.views.augmentation import Augmentation
from rootstock.core.views.multiview import multiview

BATCH, AGAINST = 32, "tar"
SETS = {"1,600 files of 96 px": ((96, 96), 1600, 96), "320 files of 500 x 375 px": ((500, 375), 320, 224)}
TOY = {"toy": ((40, 30), 64, 16)}


def written(files: list[Path], place: Path) -> dict[str, str]:
    """The same files as each kind of source: name to URI."""
    with tarfile.open(place / "set.tar", "w") as archive:
        for file in files:
            archive.add(file, file.name)
    rows = pa.table({"image": [{"bytes": file.read_bytes(), "path": file.name} for file in files]})
    pq.write_table(rows, place / "set.parquet", row_group_size=100)  # as `datasets` groups images
    (place / "saved").mkdir()
    with pa.OSFile(f"{place}/saved/data.arrow", "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=100)
    (place / "saved/state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    return {
        "tar": f"tar:{place}/set.tar",
        "folder": f"folder:{files[0].parent}",
        "parquet": f"parquet:{place}/set.parquet",
        "hf": f"hf:{place}/saved",
    }


def of_objects(bucket: str) -> dict[str, str]:
    """The archive and the rows as objects: name to URI."""
    return {
        "tar, S3 cached": f"tar:{bucket}/set.tar",
        "parquet, S3 cached": f"parquet:{bucket}/set.parquet",
    }


def first_pass(uri: str, size: int, folder: str) -> tuple[float, int]:
    """(seconds, images) of all that is done once and an epoch, in an empty cache."""
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(dir=folder)
    start = time.perf_counter()
    images = open_images(uri)
    images.keys()
    count = sum(read(images, size, len(images) // BATCH))
    return time.perf_counter() - start, count


def first_passes(uris: dict[str, str], size: int, folder: str) -> list[str]:
    """The section about first passes."""
    lines = ["", "| first pass | s | images/s |", "|---|---|---|"]
    for name, uri in uris.items():
        seconds, count = first_pass(uri, size, folder)
        lines.append(f"| {name.removesuffix(' cached')} | {seconds:.2f} | {count / seconds:,.0f} |")
    return lines


def read(images: Images, size: int, batches: int) -> Iterator[int]:
    """Batches of crops, in the order of training."""
    crop = multiview(Augmentation(), size, (0.5,) * 3, (0.25,) * 3, 1)
    steps = stream(
        images, Order(len(images), BATCH, 0), crop, steps=batches, device=torch.device("cpu"), resident="off"
    )
    for step in steps(0):
        yield len(step[0].positions)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--toy", action="store_true")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = [
        "# What the kind of source costs",
        "",
        f"Command: `python benchmarks/sources.py {' '.join(arguments)}`.",
        "",
    ]
    lines += [(__doc__ or "").strip().split("\n\n")[-1].replace("\n", " "), "", machine()]
    for number, (title, (sides, count, size)) in enumerate((TOY if asked.toy else SETS).items()):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            uris = written(jpeg_files(None, place / f"files{number}", sides, count), place)
            with served({name: place / name for name in ("set.tar", "set.parquet")}) as bucket:
                uris |= of_objects(bucket)
                passes = first_passes(uris, size, folder)
                os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
                opened = {name: open_images(uri) for name, uri in uris.items()}
                for images in opened.values():
                    images.keys()
                    sum(read(images, size, len(images) // BATCH))
            load = f"{os.getloadavg()[0]:.1f} before the first round"
            contenders = [Contender(name, partial(read, images, size)) for name, images in opened.items()]
            costs: Costs = interleaved(
                contenders, on_one_core, 1 if asked.toy else asked.trials, 0.0 if asked.toy else 0.5
            )
        lines += [*table(title, load, costs, AGAINST, loaders=False), *passes]
    publish(lines, asked.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
