"""Adaptation end to end on one core: from JPEG files on the disk to the update, ours and a loop as tllib's scripts build it.

Both sides get the same files, crops and flips, network, batch, optimizer and number of loader processes for each domain. CPU time counts
the process and its loaders.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from adaptation_peers import Made
from fitted import Enough, Figures, Plan, Watch, opened
from peers import loader, pil_picture
from pictures import jpeg_files
from timing import children_seconds
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms as T

from rootstock.core.images.open import open_images
from rootstock.core.method import AdaptMethod, Domains, Labelled, RawPair, Unlabelled
from rootstock.core.stream.batches import source_draws, stream, zip_pairs
from rootstock.core.stream.order import Order
from rootstock.core.train.fit import Every, fit
from rootstock.core.train.optim import Optim
from rootstock.core.views.multiview import multiview
from rootstock.core.views.presets import VIEWS

SPARE = 8  # batches beyond those that are measured, so that no loader ends before the last window does
CPU = torch.device("cpu")
STEP = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}
RATE = 0.01
QUALITY = 88  # of the JPEG files, as on the web


class Files(NamedTuple):
    """Class folders of JPEG files of both domains. paths: by domain. workers: loader processes of each domain."""

    folder: Path
    paths: dict[str, list[Path]]
    classes: int
    workers: int

    @classmethod
    def written(cls, folder: Path, sides: tuple[int, int], count: int, classes: int, workers: int) -> Files:
        """`count` pictures of width x height `sides` for each domain, in turns in the folders of the classes."""
        paths = {}
        for domain in ("source", "target"):
            drawn = jpeg_files(None, folder / f"{domain}-drawn", sides, count, QUALITY)
            paths[domain] = []
            for number, path in enumerate(drawn):
                to = folder / domain / f"{number % classes:03}" / path.name
                to.parent.mkdir(parents=True, exist_ok=True)
                paths[domain].append(path.rename(to))
        return cls(folder, paths, classes, workers)

    @property
    def kilobytes(self) -> float:
        """The mean size of a file."""
        sizes = [path.stat().st_size for paths in self.paths.values() for path in paths]
        return sum(sizes) / len(sizes) / 1000.0


def clock() -> float:
    """CPU seconds of this process and of its loaders."""
    return time.process_time() + children_seconds()


def of_ours(made: Callable[[], AdaptMethod], plan: Plan, size: int, batch: int, files: Files) -> Figures:
    """A method through `fit`, fed as the recipe of `rootstock adapt` feeds it."""
    method, length = made(), plan.begun + SPARE
    network = method.backbone
    views = multiview(VIEWS["supervised"](), size, network.mean, network.std, 1)
    with opened(device="cpu", compile="off") as run:

        def images(domain: str) -> Any:
            found = open_images(f"folder:{files.folder / domain}", role="train")
            order = Order(len(found), batch, 0, domain)
            return stream(found, order, views, steps=length, device=CPU, workers=files.workers)

        batches, watch = zip_pairs(images("source"), images("target")), Watch(plan, CPU, clock)

        def prepare(raw: RawPair) -> Domains:
            source, target = (
                source_draws(0, part.positions, name) for name, part in zip(("source", "target"), raw, strict=True)
            )
            return Domains.of(
                Labelled(views(raw.source, source).images[0], raw.source.labels, source),
                Unlabelled(views(raw.target, target).images[0], target, raw.target.index),
            )

        def watched(step: int) -> Iterator[Any]:
            for pair in watch.over(batches(step)):
                if len(watch.ends) > plan.windows:
                    raise Enough
                yield pair

        rate: Any = {"duration": 1, "schedule": "inverse_steps", "decay_all": True, **STEP}
        optim = Optim(name="sgd", lr=RATE, batch_size=batch, **rate)
        every = Every(log=run.options["log_every"])
        with suppress(Enough):
            fit(
                method, watched, prepare, steps=length, steps_per_epoch=length, optim=optim, seed=0, run=run, every=every
            )  # fmt: skip
    return watch.figures()._replace(prepared=None)


def peer_loss(network: Any, made: Made, source: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """The step of tllib's scripts: one joint forward, and the source's accuracy, which ours logs too. source, target: [N, 3, h, w]."""
    features = network.backbone(torch.cat([source, target])).unflatten(0, (2, -1))
    logits = network.head(features)
    (logits[0].argmax(1) == labels).float().mean()
    return F.cross_entropy(logits[0], labels) + made.loss(features, logits)


class Pictures(Dataset[tuple[Tensor, int]]):
    """A data set as tllib's ImageList: a picture is opened by Pillow and transformed, beside its label."""

    def __init__(self, paths: list[Path], transform: Callable[[Any], Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(pil_picture(self.paths[i])), int(self.paths[i].parent.name)


def of_theirs(network: Any, made: Made, plan: Plan, size: int, batch: int, files: Files) -> Figures:
    """The loop of tllib's scripts: a DataLoader a domain, torchvision's transforms on Pillow's pictures, SGD with its schedule by the step.

    No epoch of its loaders ends here, so its ForeverDataIterator would have nothing to restart.
    """
    mean, std = network.backbone.mean, network.backbone.std
    transform = T.Compose(
        [T.RandomResizedCrop(size), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(mean=mean, std=std)]
    )
    source, target = (
        iter(loader(Pictures(files.paths[domain], transform), batch, plan.begun + SPARE, files.workers))
        for domain in ("source", "target")
    )
    modules = torch.nn.ModuleList([network, made.modules]).train()
    optimizer = torch.optim.SGD(modules.parameters(), RATE, **STEP)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1.0 + 0.001 * step) ** -0.75)
    watch = Watch(plan, CPU, clock)
    for (images, labels), (others, _) in watch.over(zip(source, target, strict=True)):
        if len(watch.ends) > plan.windows:
            break
        loss = peer_loss(network, made, images, others, labels)
        loss.item()  # the scripts average it
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return watch.figures()
