"""Measures training through `fit`: how long a step takes, and how much of it is waiting and augmentation."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rootstock.core.config import resolve as config
from rootstock.core.draws import Draws
from rootstock.core.images.open import open_images
from rootstock.core.method import PretrainMethod, RawBatch, Views
from rootstock.core.model import norm
from rootstock.core.model.backbone import create
from rootstock.core.model.description import HALF
from rootstock.core.run.directory import Run
from rootstock.core.run.options import options as run_options
from rootstock.core.stream.batches import NO_LABELS, MicroBatches, Resident, stream
from rootstock.core.stream.order import Order
from rootstock.core.train.fit import Every, fit
from rootstock.core.train.optim import Optim
from rootstock.core.views.multiview import Multiview, multiview
from rootstock.core.views.presets import VIEWS
from rootstock.ssl.registry import PRETRAIN_METHODS

Clock = Callable[[], float]
Prepare = Callable[[Any], Any]


class Plan(NamedTuple):
    """What to measure: `windows` of `length` steps each, after `warm` steps (the first ones compile graphs)."""

    warm: int = 10
    windows: int = 4
    length: int = 15

    @property
    def measured(self) -> int:
        return self.windows * self.length

    @property
    def begun(self) -> int:
        """Steps up to the end of the last window."""
        return self.warm + self.measured

    @property
    def steps(self) -> int:
        """One more than is measured, and never taken: `fit` ends its last step with a checkpoint."""
        return self.begun + 1


class Enough(Exception):
    """All windows are over."""


class Figures(NamedTuple):
    """The measurements of one way to train."""

    seconds: list[float]  # a step, by window
    waited: float  # share of the time in which the loop waited for data
    prepared: float | None = None  # share of the time spent in `prepare`
    memory: int | None = None  # most bytes of the device in use; None on the CPU

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @classmethod
    def joined(cls, rounds: Sequence[Figures]) -> Figures:
        """Merge the figures of several rounds: all windows, the mean of the parts, the largest memory."""
        prepared = [one.prepared for one in rounds if one.prepared is not None]
        return cls(
            [seconds for one in rounds for seconds in one.seconds],
            float(np.mean([one.waited for one in rounds])),
            float(np.mean(prepared)) if prepared else None,
            max((one.memory for one in rounds if one.memory is not None), default=None),
        )


class Watch:
    """Sits between a stream and a training loop, and reads the clock when the loop asks for a batch.

    On a GPU it waits for the device at the windows' ends only. `prepare` is timed by events there, which cost nothing; they
    count the time in which the device waits for the host's launches, too.
    """

    def __init__(self, plan: Plan, device: torch.device, clock: Clock = time.perf_counter) -> None:
        self.plan, self.device, self.clock = plan, device, clock
        self.ends: list[float] = []
        self.marks: list[Any] = []
        self.waited, self.memory = 0.0, None
        self.spent: list[float] = []  # seconds within `prepare`

    def over(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches of the stream, unchanged."""
        asked = 0
        while True:
            since = asked - self.plan.warm
            if 0 <= since <= self.plan.measured and since % self.plan.length == 0:
                self._end_window()
            before = self.clock()
            batch = next(batches, None)
            if 1 <= len(self.ends) <= self.plan.windows:
                self.waited += self.clock() - before
            if batch is None:
                return
            asked += 1
            yield batch

    def _end_window(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            if not self.ends:
                torch.cuda.reset_peak_memory_stats(self.device)
            self.memory = torch.cuda.max_memory_allocated(self.device)
        self.ends.append(self.clock())
        if len(self.ends) > 1:
            self.spent += [self._between(*pair) for pair in zip(self.marks[::2], self.marks[1::2], strict=True)]
        self.marks = []

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000.0 if self.device.type == "cuda" else end - start

    def _mark(self) -> None:
        """Record the time at the start or the end of `prepare`."""
        if self.device.type != "cuda":
            self.marks.append(self.clock())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def preparing(self, prepare: Prepare) -> Prepare:
        """`prepare`, timed."""
        outside: Any = torch.compiler.disable  # `prepare` may be compiled: its two ends stay outside of the graph
        mark = outside(self._mark)

        def timed(raw: Any) -> Any:
            mark()
            batch = prepare(raw)
            mark()
            return batch

        return timed

    def figures(self) -> Figures:
        whole = self.ends[-1] - self.ends[0]
        windows = (np.diff(self.ends) / self.plan.length).tolist()
        return Figures(windows, self.waited / whole, sum(self.spent) / whole if self.spent else None, self.memory)


def _no_recipe(run: Any, *, seed: int = 0) -> None:
    """A recipe whose config has the `run` section alone."""


@contextmanager
def opened(**options: Any) -> Iterator[Run]:
    """A run in a temporary folder. options: keys of the `run` section."""
    with tempfile.TemporaryDirectory() as folder:
        given = {"run": {"dir": f"{folder}/run", **options}}
        with Run("pretrain", config.validate(given, _no_recipe, {"run": run_options}), quiet=True) as run:
            yield run


class Setting(NamedTuple):
    """A method on a backbone, as a config would name them. batch: source images. drawn: what the `views` section would say
    beside the preset of the method's name (SimCLR's where there is none), or another `name`."""

    size: int
    batch: int
    backbone: dict[str, Any]
    method: dict[str, Any]
    optim: dict[str, Any]
    drawn: Mapping[str, Any] = {}

    @property
    def title(self) -> str:
        return f"{self.method['name']}, {self.backbone['name']}, {self.size} px"

    @property
    def views(self) -> int:
        return PRETRAIN_METHODS[self.method["name"]].views

    def network(self) -> Any:
        torch.manual_seed(0)
        return create(self.size, **self.backbone)

    def objective(self) -> PretrainMethod:
        given = {key: value for key, value in self.method.items() if key != "name"}
        method = PRETRAIN_METHODS[self.method["name"]](self.network(), None, **given)
        norm.configure(method, "auto", accumulate=1, chunk=None, log=lambda _: None)
        return method

    def optimizer(self) -> Optim:
        return Optim(**self.optim, batch_size=self.batch, duration=1)  # pyright: ignore[reportArgumentType]

    def augmentation(self, mean: tuple[float, ...] = HALF, std: tuple[float, ...] = HALF) -> Multiview:
        """How its views and local crops are drawn."""
        own = self.method["name"]
        given = {"name": own if own in VIEWS else "simclr", **self.drawn}
        return multiview(VIEWS[given.pop("name")](**given), self.size, mean, std, self.views)

    def ready(self, device: torch.device) -> Tensor:
        """Random views in place of augmented ones, float [V, N, 3, size, size]."""
        return torch.randn(self.views, self.batch, 3, self.size, self.size, device=device)

    def ready_local(self, device: torch.device) -> Tensor | None:
        """Random local crops, float [L, N, 3, s, s]; None if the method takes none."""
        local = self.augmentation().local
        return torch.randn(len(local), self.batch, 3, *[local[0].size] * 2, device=device) if local else None


def of_ready_views(setting: Setting, plan: Plan, clock: Clock = time.perf_counter, **options: Any) -> Figures:
    """The ceiling: the method through `fit` on views that are on the device already, the same pixels at every step."""
    with opened(**options) as run:
        first, local = torch.arange(setting.batch, device=run.device), setting.ready_local(run.device)
        sample = RawBatch(setting.ready(run.device), first, NO_LABELS)

        def batches(
            step: int,
        ) -> Iterator[list[RawBatch]]:  # masks are drawn by position, so each step has its own
            return ([sample._replace(positions=first + at * setting.batch)] for at in range(step, plan.steps))

        def prepare(raw: RawBatch) -> Views:
            return Views(raw.images, Draws(0, raw.positions), local)

        watch = Watch(plan, run.device, clock)
        _fit(setting, run, watch, batches, prepare)
        return watch.figures()._replace(prepared=None)


def of_pictures(
    setting: Setting,
    plan: Plan,
    uri: str,
    *,
    clock: Clock = time.perf_counter,
    workers: int = 0,
    resident: Resident = "off",
    **options: Any,
) -> Figures:
    """The method through `fit` on pictures, as the recipe of `rootstock pretrain` feeds it."""
    with opened(**options) as run:
        images = open_images(uri, role="unlabelled")
        order = Order(len(images), setting.batch, 0)
        network = setting.network()
        views = setting.augmentation(network.mean, network.std)
        batches = stream(
            images, order, views, steps=plan.steps, device=run.device, workers=workers, resident=resident
        )  # fmt: skip

        def prepare(raw: RawBatch) -> Views:
            return views(raw, Draws(0, raw.positions))

        watch = Watch(plan, run.device, clock)
        _fit(setting, run, watch, batches, watch.preparing(prepare))
        return watch.figures()


def _fit(setting: Setting, run: Run, watch: Watch, batches: MicroBatches, prepare: Prepare) -> None:
    def watched(step: int) -> Iterator[Any]:
        for batch in watch.over(batches(step)):
            if len(watch.ends) > watch.plan.windows:
                raise Enough
            yield batch

    with suppress(Enough):
        fit(
            setting.objective(), watched, prepare,
            steps=watch.plan.steps, steps_per_epoch=watch.plan.steps, optim=setting.optimizer(), seed=0, run=run,
            every=Every(log=run.options["log_every"]),
        )  # fmt: skip
