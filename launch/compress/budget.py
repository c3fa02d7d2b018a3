"""How small and fast a network is to be: `--latency 5ms`, `--size 2MB`."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from ...core.errors import UserError

_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
_TIMES = {"us": 0.001, "ms": 1.0, "s": 1000.0}
_BYTES = {"B": 1, "KB": 1000, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class EdgeCost(NamedTuple):
    """What a form of a network costs. ms, p95: a picture, median and 95th percentile; bytes: of its file."""

    ms: float
    p95: float
    bytes: int

    def in_words(self) -> str:
        """For messages."""
        return f"{self.ms:.3g} ms (95 % within {self.p95:.3g}), {self.bytes / 1000**2:.3g} MB"


class Budget(NamedTuple):
    """At most so many milliseconds a picture, by the median, and so many bytes; None: as many as there are."""

    latency: float | None
    size: int | None

    def holds(self, cost: EdgeCost, share: float = 1.0) -> bool:
        """Whether a form costs at most this. share: of the latency, to leave room for what a clock says next time."""
        in_time = self.latency is None or cost.ms <= share * self.latency
        return in_time and (self.size is None or cost.bytes <= self.size)

    def used_by(self, cost: EdgeCost) -> float:
        """The largest share of what is allowed that a form takes; above 1 it does not fit."""
        parts = [] if self.latency is None else [cost.ms / self.latency]
        return max([*parts, *([] if self.size is None else [cost.bytes / self.size])])

    def in_words(self) -> str:
        """For messages."""
        parts = [] if self.latency is None else [f"{self.latency:g} ms a picture"]
        return " and ".join([*parts, *([] if self.size is None else [f"{self.size / 1000**2:g} MB"])])


def read_budget(latency: str, size: str) -> Budget:
    """Of the two options; an empty one is left out. Raises UserError."""
    if not latency and not size:
        raise UserError(
            "--latency: give it, or --size: what is the network to fit, for example --latency 5ms or --size 2MB"
        )
    ms = _read(latency, _TIMES, "--latency", "5ms") if latency else None
    count = _read(size, _BYTES, "--size", "2MB") if size else None
    return Budget(ms, None if count is None else int(count))


def _read(text: str, units: dict[str, float] | dict[str, int], option: str, example: str) -> float:
    found = re.fullmatch(rf"{_NUMBER}\s*([A-Za-z]+)", text.strip())
    if found is None or found[2] not in units:
        raise UserError(f"{option}: expected a number with {', '.join(units)}, for example {example}, got {text!r}")
    value = float(found[1]) * units[found[2]]
    if not 0.0 < value < math.inf:
        raise UserError(f"{option}: expected more than 0, got {text!r}")
    return value
