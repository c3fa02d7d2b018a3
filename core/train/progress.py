"""Progress of a training: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from ..distributed import world
from ..loudness import Loudness, in_stages, loudness
from ..run.directory import Run
from .remaining import SURE_SECONDS, SURE_STEPS, shorter_ways, time_left

PLAIN_SECONDS = 5.0
STAGE_SECONDS = 60.0  # between two lines of a stage of a pipeline
WORTH_NAMING = 0.05  # data_wait from which the slowest process is named


class Progress:
    """Counts images and waiting between log steps, and shows loss, images/s, data wait and time left."""

    def __init__(self, run: Run, steps: int, start: int) -> None:
        self.run, self.steps, self.start = run, steps, start
        self.images, self.waited = 0, 0.0
        self.since = self.began = time.perf_counter()
        self.brief = run.silent and in_stages() and loudness() is Loudness.NORMAL
        self.printed = self.began if self.brief else float("-inf")
        self.judged = run.device.type != "cpu"  # whether it has been said how long it takes in all
        self.bar: RichProgress | None = None

    def __enter__(self) -> Progress:
        if self.run.console.is_terminal and self.run.main and not self.run.quiet:
            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn()]
            self.bar = RichProgress(
                *columns, TimeRemainingColumn(), TextColumn("{task.fields[facts]}"), console=self.run.console
            )
            self.task = self.bar.add_task(self.run.verb, total=self.steps, completed=self.start, facts="")
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, done: int, images: int, waited: float) -> None:
        self.images += images
        self.waited += waited
        if self.bar is not None:
            self.bar.update(self.task, completed=done)

    def leave_out(self, seconds: float) -> None:
        """Exclude time of evaluation and checkpoints from the training's speed."""
        self.since += seconds

    def rates(self) -> dict[str, float]:
        """Images per second over all processes, and the fraction of time this one spent waiting for data, since the last call."""
        now = time.perf_counter()
        seconds = max(now - self.since, 1e-9)
        rates = {"images_per_s": self.images / seconds, "data_wait": min(1.0, self.waited / seconds)}
        self.images, self.waited, self.since = 0, 0.0, now
        return rates

    def show(self, done: int, values: Mapping[str, float], rates: Mapping[str, float], slowest: int = 0) -> None:
        """Update the bar, or print a line. slowest: the rank that waited longest for data."""
        facts = f"loss {values['loss']:.4f}  {rates['images_per_s']:.0f} images/s  data wait {rates['data_wait']:.0%}"
        if world() > 1 and rates["data_wait"] >= WORTH_NAMING:
            facts += f" (rank {slowest})"
        now = time.perf_counter()
        spent, own = now - self.began, done - self.start
        if not self.judged and own >= SURE_STEPS and spent >= SURE_SECONDS:
            self.judged = True
            if words := shorter_ways(spent / own * (self.steps - self.start), self.steps, self.run.config):
                self.run.log(words)
        if self.bar is not None:
            self.bar.update(self.task, facts=facts)
        aloud, ends = loudness() is Loudness.VERBOSE, done == self.steps
        due = now - self.printed >= STAGE_SECONDS if self.brief else ends or now - self.printed >= PLAIN_SECONDS
        if aloud or (self.bar is None and due):
            self.printed = now
            left = time_left(spent / max(1, own) * (self.steps - done))
            say = self.run.mention if self.brief else self.run.log
            say(f"step {done}/{self.steps}  {facts}  {left} left")
