"""Times in words, and the keys that shorten a training: each suggested value keeps what it promises under the stated rule."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from rootstock.core.train import progress
from rootstock.core.train.progress import Progress
from rootstock.core.train.remaining import LONG, shorter_ways, time_left


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5900, "98 min"),
        (6000, "1.7 h"),
        (35_000, "9.7 h"),
        (36_000, "10 h"),
    ],
)
def test_times_have_two_digits(seconds: float, words: str) -> None:
    assert time_left(seconds) == words


@pytest.mark.parametrize("hours", [1.01, 2, 9, 80, 1000])
@pytest.mark.parametrize("steps", [60, 977, 100_000])
def test_fewer_steps_take_an_hour_at_most(hours: float, steps: int) -> None:
    words = shorter_ways(3600 * hours, steps, {"data": {"size": 32}})
    assert "data.size" not in words  # nothing is smaller than 32
    found = re.search(r"optim\.duration=(\d+)", words)
    assert found is not None
    fewer = int(found[1])
    assert 0 < fewer < steps and 3600 * hours * fewer / steps <= max(LONG, 3600 * hours / steps)
    assert len(found[1].strip("0")) == 1


def test_smaller_pictures_take_time_by_their_area() -> None:
    assert shorter_ways(LONG, 1000, {"data": {"size": 224}}) == ""
    words = shorter_ways(9 * 3600, 90_000, {"data": {"size": 224}})
    assert (
        words
        == "WARNING: about 9.0 h in all on this CPU; data.size=96 takes about 1.7 h, optim.duration=10000 about 60 min".replace(
            "size=96 takes about 1.7 h", "size=96 takes about 99 min"
        )
    )


class Spoken:
    def __init__(self, device: str) -> None:
        self.lines: list[str] = []
        self.device, self.main, self.quiet, self.silent, self.verb = (
            SimpleNamespace(type=device),
            True,
            False,
            False,
            "pretrain",
        )
        self.console = SimpleNamespace(is_terminal=False)
        self.config: dict[str, Any] = {"data": {"size": 224}}

    def log(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(("device", "warnings"), [("cpu", 1), ("cuda", 0)])
def test_it_is_said_once_and_on_a_cpu(device: str, warnings: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock.now)
    run: Any = Spoken(device)
    shown = Progress(run, steps=10_000, start=0)
    for done in range(1, 21):
        clock.now += 4.0
        shown.show(done, {"loss": 1.0}, {"images_per_s": 9.0, "data_wait": 0.0})
    assert (
        sum(line.startswith("WARNING: about 11 h in all on this CPU; data.size=96") for line in run.lines) == warnings
    )
    assert run.lines[-1].endswith("11 h left")
