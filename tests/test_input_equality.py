"""1, 2 and 4 processes with 0, 1 and 3 workers and 1 or 4 micro-batches see the same global batches: the same images, the same views.

Against a plain loop that reads and crops one picture after the other. Run as a script, this file is those processes.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from rootstock.core.distributed import gather, rank, world
from rootstock.core.draws import Draws
from rootstock.core.images.open import Images, open_images
from rootstock.core.method import RawBatch
from rootstock.core.stream.batches import Share, stream
from rootstock.core.stream.order import Order
from rootstock.core.views.augmentation import Augmentation
from rootstock.core.views.multiview import multiview
from rootstock.tests.conftest import Forks

BATCH, N, SEED = 16, 40, 3
STEPS = {"all": 50, "quick": 20}  # of 2.5 steps an epoch
WORLDS, WORKERS, MICRO = (1, 2, 4), (0, 1, 3), (1, 4)
QUICK = ((1, 2), (0, 3), (4,))  # a subset, for `make test`
# Crop, mirror and gray, each with its own draws; the other operations are tested in tests/core/views.
DRAWN = Augmentation(scale=(0.2, 1.0), flip=0.5, grayscale=0.3, local=1, local_blur=0.0)
NAMES = ("files", "rows", "table")
VIEW = multiview(DRAWN, 12, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 1)


def numbered(uri: str) -> Images:
    """A set whose labels are the images' numbers, so that each sample identifies its image."""
    images = open_images(uri)
    images.labels = torch.arange(len(images))
    return images


def finished(sample: RawBatch) -> Tensor:
    """The view and the local crop of each row, flattened, float [n, ...]."""
    views = VIEW(sample, Draws(SEED, sample.positions))
    assert views.local is not None
    return torch.cat([part.transpose(0, 1).flatten(1) for part in (views.images, views.local)], 1)


def slow(images: Images, steps: int) -> dict[str, Tensor]:
    """Slow version: one image at a time, finished in whole batches."""
    order, views = Order(len(images), BATCH, SEED), []
    numbers = torch.stack([order.indices(step) for step in range(steps)])
    for step, row in enumerate(numbers):
        at = torch.arange(step * BATCH, (step + 1) * BATCH)
        alone = [VIEW.crop_each([images.read(int(i))], Draws(SEED, at[k : k + 1])) for k, i in enumerate(row)]
        crops = {name: torch.cat([one[name] for one in alone]) for name in alone[0]}
        views.append(finished(RawBatch(crops.pop("images"), at, row, crops)))
    return {"numbers": numbers.flatten(), "views": torch.cat(views)}


def seen(images: Images, workers: int, micro: int, count: int) -> dict[str, Tensor]:
    """The samples of all processes, in the order of positions."""
    order, share = Order(len(images), BATCH, SEED), Share(rank(), world(), micro)
    batches = stream(images, order, VIEW, steps=count, device=torch.device("cpu"), share=share, workers=workers)
    found: dict[str, list[Tensor]] = {"numbers": [], "positions": [], "views": []}
    for step in batches(0):
        assert len(step) == micro
        # Finished as in training in one case, and for several steps at once in the others, which takes less time.
        parts = step if workers == 0 else [merged(step)]
        found["numbers"].append(torch.cat([part.labels for part in parts]))
        found["positions"].append(torch.cat([part.positions for part in parts]))
        found["views"].append(torch.cat([finished(part) for part in parts]))
    # [rows of this process, count, ...]: within a step, processes come one after the other
    whole = {name: gather(torch.stack(steps, 1)).transpose(0, 1).flatten(0, 1) for name, steps in found.items()}
    assert torch.equal(whole.pop("positions"), torch.arange(count * BATCH))
    return whole


def merged(step: list[RawBatch]) -> RawBatch:
    images, positions, labels = (torch.cat(values) for values in zip(*(part[:3] for part in step), strict=True))
    return RawBatch(images, positions, labels, {"local": torch.cat([part.extra["local"] for part in step])})


def process(
    folder: Path, number: int, count: int, workers_tried: Sequence[int], micro_tried: Sequence[int], steps: int
) -> None:
    """One of `count` processes: compares every way of reading with the plain loop."""
    os.sched_getaffinity = lambda _: set(range(16))  # so that three workers start even on few cores
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{count}", rank=number, world_size=count)
    for name in NAMES if (folder / "table").exists() else NAMES[:2]:
        images, expected = numbered((folder / name).read_text()), load_file(folder / f"{name}.safetensors")
        for workers in workers_tried if name == "files" else (0,):
            for micro in micro_tried:
                found, what = (
                    seen(images, workers, micro, steps),
                    f"{name}: {count} processes, {workers} workers, {micro} parts",
                )
                assert torch.equal(found["numbers"], expected["numbers"]), what
                difference = float((found["views"] - expected["views"]).abs().max())
                assert difference <= 1e-6, f"{what}: {difference}"
    dist.destroy_process_group()


def main(folder: Path, which: str) -> int:
    """All process counts in turn, forked from one interpreter, since importing torch takes longer than the test."""
    torch.set_num_threads(1)
    worlds, workers, micro = (WORLDS, WORKERS, MICRO) if which == "all" else QUICK
    for count in worlds:
        children = []
        for number in range(count):
            if (child := os.fork()) == 0:
                try:
                    process(folder, number, count, workers, micro, STEPS[which])
                except BaseException:
                    sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]
                    os._exit(1)
                os._exit(0)
            children.append(child)
        statuses = [os.waitpid(child, 0)[1] for child in children]
        if any(statuses):
            return 1
    return 0


@pytest.fixture
def sets(tmp_path: Path, which: str) -> Path:
    """Files of all sizes, images of one shape that need no decoding, and the files in a table; each with the samples of the plain loop."""
    random = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(N):
        pixels = random.integers(0, 256, (20 + i % 7, 30 - i % 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i:02}.png")
    np.savez(tmp_path / "rows.npz", images=random.integers(0, 256, (N, 18, 17, 3), dtype=np.uint8))
    for name, uri in (("files", f"folder:{tmp_path}/pictures"), ("rows", f"npz:{tmp_path}/rows.npz")):
        (tmp_path / name).write_text(uri)
        save_file(slow(numbered(uri), STEPS[which]), tmp_path / f"{name}.safetensors")
    if importlib.util.find_spec("pyarrow"):
        write_table(tmp_path)
    return tmp_path


def write_table(folder: Path) -> None:
    """The files in two Parquet files, with a group for each three; what is expected of them is what is expected of the files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = [{"bytes": file.read_bytes(), "path": file.name} for file in sorted((folder / "pictures").iterdir())]
    rows = pa.table({"image": pictures, "video": [str(i // 3) for i in range(N)]})
    for k, part in enumerate((rows[: N // 2], rows[N // 2 :])):
        pq.write_table(part, folder / f"{k}.parquet", row_group_size=7)
    (folder / "table").write_text(f"parquet:{folder}/{{0,1}}.parquet?group=video")
    shutil.copy(folder / "files.safetensors", folder / "table.safetensors")


@pytest.mark.parametrize("which", ["quick", pytest.param("all", marks=pytest.mark.slow)])
def test_processes_workers_and_micro_batches_change_nothing(which: str, sets: Path, forks: Forks) -> None:
    (ended,) = forks(__file__, [[sets, which]])
    assert ended.code == 0, ended.said


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
