"""Other libraries' pipelines on the same pictures: two SimCLR views, normalised floats, stacked into batches.

Parameters are lightly's defaults everywhere (they are those of SimCLR's paper). Optional peers that are not installed are left
out, and `missing` says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from timing import Contender
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.io import ImageReadMode, decode_image, decode_jpeg, read_file
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, SIGMA = (0.08, 1.0), (0.1, 2.0)
OPTIONAL = {
    "kornia": "not installed (`pip install kornia`, or the extra `bench`)",
    "nvidia.dali": "not installed (`pip install nvidia-dali-cuda130`; it also runs without a GPU)",
}
FFCV = (
    "no row: there are no wheels, ffcv 1.0.2 builds only where OpenCV 4 and libturbojpeg have their headers "
    "(`Could not find required package: opencv4`), and it has neither colour jitter nor blur"
)


class Job(NamedTuple):
    """The pictures and the views to make: uint8 [N, H, W, 3] in memory, or JPEG files of one folder."""

    pictures: np.ndarray | list[Path]
    size: int
    batch: int

    @property
    def uri(self) -> str:
        """The folder of the files."""
        return f"folder:{Path(self.pictures[0]).parent}?labels=none"


def has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def missing() -> dict[str, str]:
    """Peers that cannot be measured here, and why."""
    return {"FFCV": FFCV, **{name: why for name, why in OPTIONAL.items() if not has(name)}}


def counted(views: Sequence[Tensor] | Tensor, size: int) -> int:
    """How many source images a finished batch holds. Raises ValueError unless it is two views of normalised floats."""
    if len(views) != 2 or any(view.shape[1:] != (3, size, size) or view.dtype != torch.float32 for view in views):
        raise ValueError(f"not two float views of {size} px: {[tuple(view.shape) for view in views]}")
    return len(views[0])


def pil_picture(item: Any) -> Image.Image:
    if isinstance(item, Path):
        with Image.open(item) as picture:
            return picture.convert("RGB")
    return Image.fromarray(item)


def tensor_picture(item: Any) -> Tensor:
    """uint8 [3, H, W], by torchvision's own decoder."""
    if isinstance(item, Path):
        return decode_image(read_file(str(item)), mode=ImageReadMode.RGB)
    return torch.from_numpy(item).permute(2, 0, 1)


class Transformed(Dataset[Any]):
    """The usual data set: open a picture, transform it."""

    def __init__(self, items: Any, opened: Callable[[Any], Any], transform: Callable[[Any], Any]) -> None:
        self.items, self.opened, self.transform = items, opened, transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.opened(self.items[i]))


def loader(dataset: Dataset[Any], batch: int, batches: int, workers: int = 0, pinned: bool = False) -> DataLoader[Any]:
    """Shuffled; one thread a worker, and the same pictures and parameters in every trial."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    sampler = RandomSampler(dataset, replacement=True, num_samples=batch * batches)  # pyright: ignore[reportArgumentType]
    one_thread = (lambda _: torch.set_num_threads(1)) if workers else None
    return DataLoader(
        dataset, batch, sampler=sampler, num_workers=workers, worker_init_fn=one_thread, pin_memory=pinned
    )


def in_loader(name: str, job: Job, opened: Callable[[Any], Any], transform: Any, workers: int = 0) -> Contender:
    dataset = Transformed(job.pictures, opened, transform)

    def run(batches: int) -> Iterator[int]:
        for views in loader(dataset, job.batch, batches, workers):
            yield counted(views, job.size)

    return Contender(name, run)


def lightly(job: Job, workers: int = 0) -> Contender:
    name = "lightly SimCLRTransform" + said(workers)
    return in_loader(name, job, pil_picture, SimCLRTransform(input_size=job.size), workers)


def torchvision_pil(job: Job, workers: int = 0) -> Contender:
    name = "torchvision v2, PIL pictures" + said(workers)
    return in_loader(name, job, pil_picture, TwoViews(job.size, [v2.PILToTensor()]), workers)


def torchvision_tensor(job: Job, workers: int = 0) -> Contender:
    name = "torchvision v2, uint8 tensors" + said(workers)
    return in_loader(name, job, tensor_picture, TwoViews(job.size, []), workers)


def said(workers: int) -> str:
    return f", {workers} worker{'s' if workers > 1 else ''}" if workers else ""


class TwoViews:
    """SimCLR's views in torchvision v2; the blur reaches over a tenth of the side, as in the paper."""

    def __init__(self, size: int, to_tensor: list[Any]) -> None:
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, SCALE, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(taps(size), SIGMA)], 0.5),
                *to_tensor,
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __call__(self, picture: Any) -> list[Tensor]:
        return [self.transform(picture) for _ in range(2)]


def taps(size: int) -> int:
    """A tenth of the side, the next odd number, at least three."""
    return max(3, size // 10 // 2 * 2 + 1)


def kornia(job: Job) -> Contender:
    """Photometry on batches. From files, pictures are cropped one by one by torchvision: their sizes differ."""
    K: Any = importlib.import_module("kornia.augmentation")
    crop = K.RandomResizedCrop((job.size, job.size), scale=SCALE)
    finish = torch.nn.Sequential(
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((taps(job.size),) * 2, SIGMA, p=0.5),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )
    one_by_one = v2.RandomResizedCrop(job.size, SCALE, antialias=True)
    twice = Transformed(job.pictures, tensor_picture, lambda picture: [one_by_one(picture) for _ in range(2)])
    whole = Transformed(job.pictures, tensor_picture, lambda picture: picture)

    def run(batches: int) -> Iterator[int]:
        if isinstance(job.pictures, list):
            for crops in loader(twice, job.batch, batches):
                yield counted([finish(crop.float() / 255.0) for crop in crops], job.size)
        else:
            for pictures in loader(whole, job.batch, batches):
                pixels = pictures.float() / 255.0
                yield counted([finish(crop(pixels)) for _ in range(2)], job.size)

    return Contender("kornia, batched", run)


def dali(job: Job) -> Contender:
    """On the CPU with one thread. Its colours are turned in one fixed order, in uint8, where the others draw an order."""
    fn, types, nvidia_dali = (importlib.import_module(f"nvidia.dali{name}") for name in (".fn", ".types", ""))

    def chance(p: float) -> Any:
        return fn.random.coin_flip(probability=p, dtype=types.BOOL)

    def factor(spread: float) -> Any:
        return fn.random.uniform(range=(1.0 - spread, 1.0 + spread))

    def feed() -> Iterator[list[np.ndarray]]:
        drawn = np.random.default_rng(0)
        while True:
            yield list(np.asarray(job.pictures)[drawn.integers(0, len(job.pictures), job.batch)])

    @nvidia_dali.pipeline_def(enable_conditionals=True)
    def views() -> tuple[Any, ...]:
        if isinstance(job.pictures, list):
            encoded, _ = fn.readers.file(files=[str(path) for path in job.pictures], random_shuffle=True)
            picture = fn.decoders.image(encoded, output_type=types.RGB)
        else:
            picture = fn.external_source(feed(), layout="HWC")
        made = []
        for _ in range(2):
            x = fn.random_resized_crop(picture, size=job.size, random_area=SCALE)
            x = fn.flip(x, horizontal=fn.random.coin_flip(probability=0.5))
            if chance(0.8):
                x = fn.color_twist(
                    x, brightness=factor(0.8), contrast=factor(0.8), saturation=factor(0.8),
                    hue=fn.random.uniform(range=(-72.0, 72.0)),
                )  # fmt: skip
            if chance(0.2):
                x = fn.hsv(x, saturation=0.0)
            if chance(0.5):
                x = fn.gaussian_blur(x, sigma=fn.random.uniform(range=SIGMA))
            mean, std = ([255.0 * number for number in numbers] for numbers in (MEAN, STD))
            made.append(fn.crop_mirror_normalize(x, dtype=types.FLOAT, output_layout="CHW", mean=mean, std=std))
        return tuple(made)

    pipeline = views(
        batch_size=job.batch, num_threads=1, device_id=None, seed=0, exec_pipelined=False, exec_async=False
    )
    pipeline.build()

    def run(batches: int) -> Iterator[int]:
        for _ in range(batches):
            made = pipeline.run()
            yield counted([torch.from_dlpack(view.as_tensor()) for view in made], job.size)

    return Contender("NVIDIA DALI, on the CPU", run)


def ceiling(job: Job) -> Contender:
    """No pictures: copies a batch that is ready, which no pipeline can beat."""
    ready = torch.randn(2, job.batch, 3, job.size, job.size)

    def run(batches: int) -> Iterator[int]:
        for _ in range(batches):
            yield counted(ready.clone(), job.size)

    return Contender("a copy of ready tensors (the ceiling)", run)


def whole(job: Job) -> list[Contender]:
    """Every installed peer, on one core."""
    found = [lightly(job), torchvision_pil(job), torchvision_tensor(job)]
    found += [kornia(job)] if has("kornia") else []
    found += [dali(job)] if has("nvidia.dali") else []
    return [*found, ceiling(job)]


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """Bytes of a JPEG -> its pixels, RGB."""

    def by_pillow(content: bytes) -> Any:
        with Image.open(io.BytesIO(content)) as picture:
            return np.asarray(picture.convert("RGB"))

    def by_torchvision(content: bytes) -> Any:
        return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)

    return {"Pillow": by_pillow, "torchvision.io.decode_jpeg": by_torchvision, "simplejpeg": simplejpeg.decode_jpeg}
