"""Ten thousand steps with loader processes: memory, open files and processes are the same at the end as after the first thousand."""

import multiprocessing
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rootstock.core.config.resolve import Duration, validate
from rootstock.core.draws import Draws
from rootstock.core.images.open import open_images
from rootstock.core.method import Method, RawBatch, Step, Views
from rootstock.core.run.directory import Run
from rootstock.core.run.options import options
from rootstock.core.stream.batches import stream
from rootstock.core.stream.order import Order
from rootstock.core.train.fit import Every, fit
from rootstock.core.train.optim import Optim
from rootstock.core.views.multiview import multiview
from rootstock.core.views.presets import VIEWS

STEPS, WARM, BATCH = 10_000, 2_000, 2
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
MEGABYTE = 1 << 20
VIEW = multiview(VIEWS["none"](), 2, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 1)


def resident_bytes(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE


class Usage:
    """What this process and its workers take: bytes, and open files by process."""

    def __init__(self) -> None:
        self.workers = sorted(child.pid or 0 for child in multiprocessing.active_children())
        everyone = [os.getpid(), *self.workers]
        self.memory = [resident_bytes(process) for process in everyone]
        self.files = [len(os.listdir(f"/proc/{process}/fd")) for process in everyone]


class Mean(Method):
    """One linear layer that fits the mean brightness; notes the usage after the warm-up and near the end."""

    rows_per_position = 1
    couples_samples = False

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 1)
        self.usage: list[Usage] = []
        self.step = 0

    def forward(self, batch: Views, progress: float) -> Step:
        x = batch.images[0].flatten(1)
        return Step((self.linear(x)[:, 0] - x.mean(1)).square().mean(), {})

    def after_step(self, progress: float) -> None:
        self.step += 1
        if self.step in (WARM, STEPS - 100):
            self.usage.append(Usage())


def no_section(run: Run, *, seed: int = 0) -> None:
    """The smallest recipe: all that its config has is a seed and `run`."""


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="what a process takes is read from /proc")
def test_memory_and_open_files_stay_flat(tmp_path: Path, draw: Callable[[Path, Iterable[str]], Path]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Python warns when a process with threads forks
    images = open_images(f"folder:{draw(tmp_path / 'pictures', [f'{i:02}.bmp' for i in range(16)])}")
    given: dict[str, Any] = {"dir": str(tmp_path / "run"), "device": "cpu", "checkpoint": {"every": "50%"}}
    batches = stream(images, Order(len(images), BATCH, 0), VIEW, steps=STEPS, device=torch.device("cpu"), workers=2)

    def prepare(raw: RawBatch) -> Views:
        # Less than a view's finish, which is not what this is about.
        return Views(raw.images.transpose(0, 1).float() / 255.0, Draws(0, raw.positions))

    method = Mean()
    with Run("pretrain", validate({"run": given}, no_section, {"run": options}), quiet=True) as run:
        fit(
            method, batches, prepare,
            steps=STEPS, steps_per_epoch=len(images) // BATCH, optim=Optim(batch_size=BATCH, duration=Duration(STEPS, "steps"), lr=1e-3),
            seed=0, run=run, every=Every(log=500, save=STEPS // 2),
        )  # fmt: skip
    torch.set_num_threads(threads)
    early, late = method.usage
    assert early.workers == late.workers and early.files == late.files
    grown = [b - a for a, b in zip(early.memory, late.memory, strict=True)]
    assert max(grown) <= 4 * MEGABYTE, grown
    assert not multiprocessing.active_children()
