"""The cost of a step of `fit` above that of a hand-written PyTorch loop: one linear layer, eight tiny pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fitted import opened
from timing import Interval
from torch import Tensor, nn

from rootstock.core.images.open import open_images
from rootstock.core.method import Method, Step
from rootstock.core.stream.batches import stream
from rootstock.core.stream.order import Order
from rootstock.core.train.fit import Every, fit
from rootstock.core.train.optim import Optim
from rootstock.core.views.multiview import multiview
from rootstock.core.views.presets import VIEWS

COUNT, BATCH, SIDE = 512, 8, 8
RATE = 1e-3
CPU = torch.device("cpu")


class OneLinear(Method):
    """The smallest method."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3 * SIDE * SIDE, 10)

    def forward(self, batch: Tensor, progress: float) -> Step:
        """batch: float [N, 3 * SIDE * SIDE]."""
        return Step(self.layer(batch).square().mean(), {})


def prepare(images: Tensor) -> Tensor:
    """uint8 [N, 3, SIDE, SIDE] -> float [N, 3 * SIDE * SIDE]."""
    return images.flatten(1).float() / 255.0


def pictures() -> np.ndarray:
    """Noise, uint8 [COUNT, SIDE, SIDE, 3]."""
    return np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)


def by_fit(folder: Path, steps: int) -> float:
    """CPU seconds of a whole `fit`, with its optimizer, its last row and its checkpoint."""
    uri = f"npz:{folder / 'noise.npz'}"
    if not (folder / "noise.npz").exists():
        np.savez(folder / "noise.npz", images=pictures())
    with opened(device="cpu", compile="off", checkpoint={"every": 0}) as run:
        images, method = open_images(uri, role="unlabelled"), OneLinear()
        order = Order(len(images), BATCH, 0)
        views = multiview(VIEWS["none"](), SIDE, (0.5,), (0.5,), 1)  # not called: `prepare` needs no view
        batches = stream(images, order, views, steps=steps, device=CPU)
        optim = Optim(name="adamw", lr=RATE, batch_size=BATCH, duration=steps)  # pyright: ignore[reportArgumentType]
        start = time.process_time()
        fit(
            method, batches, lambda raw: prepare(raw.images),
            steps=steps, steps_per_epoch=order.steps_per_epoch, optim=optim, seed=0, run=run, every=Every(log=0),
        )  # fmt: skip
        return time.process_time() - start


def by_hand(steps: int) -> float:
    """CPU seconds of a hand-written loop: gather by a random permutation, forward, backward, fused AdamW."""
    data, method = torch.from_numpy(pictures()).permute(0, 3, 1, 2).contiguous(), OneLinear()
    start = time.process_time()
    optimizer = torch.optim.AdamW(method.parameters(), lr=RATE, fused=True)
    for step in range(steps):
        at = step * BATCH % COUNT
        if at == 0:
            order = torch.randperm(COUNT)
        batch = prepare(data[order[at : at + BATCH]])  # pyright: ignore[reportPossiblyUnboundVariable]
        method(batch, step / steps).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.process_time() - start


class Overhead(NamedTuple):
    """Overhead in microseconds per step, for each pair of runs."""

    fit: list[float]
    bare: list[float]

    @property
    def difference(self) -> Interval:
        """The median of the pairs' differences with its 95 % bootstrap interval."""
        return Interval.of_median([ours - theirs for ours, theirs in zip(self.fit, self.bare, strict=True)])


def pairs(folder: Path, count: int, steps: int) -> Overhead:
    """`count` pairs of runs in alternating order, after one that is not timed."""
    ways: list[Callable[[int], Any]] = [lambda n: by_fit(folder, n), by_hand]
    spent: tuple[list[float], list[float]] = ([], [])
    for way in ways:
        way(steps)
    for k in range(count):
        for which in (0, 1) if k % 2 else (1, 0):
            spent[which].append(ways[which](steps) / steps * 1e6)
    return Overhead(*spent)
