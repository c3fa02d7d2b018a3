"""When a training ends, in words; and what would make it end sooner, where it takes hours on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SMALLER_SIDES = (160, 96, 64, 32)
LONG = 3600.0  # seconds in all from which a shorter training is suggested
SURE_STEPS, SURE_SECONDS = 5, 3.0  # after which a first guess is worth saying


def time_left(seconds: float) -> str:
    """ "12 s", "7 min", "3.5 h", "12 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 9.95 else f"{hours:.0f} h"


def shorter_ways(seconds: float, steps: int, config: Mapping[str, Any]) -> str:
    """Keys that shorten a training of so many seconds on a CPU, with the time that each leaves; "" if it is short enough.

    Time is taken as proportional to the number of steps, and to the area of the pictures.
    """
    if seconds <= LONG:
        return ""
    ways, size = list[str](), config["data"].get("size")
    if isinstance(size, int) and (smaller := next((side for side in SMALLER_SIDES if side <= 0.7 * size), None)):
        ways.append(f"data.size={smaller} takes about {time_left(seconds * (smaller / size) ** 2)}")
    fewer = 10 ** (len(str(int(steps * LONG / seconds))) - 1)
    fewer *= max(1, int(steps * LONG / seconds) // fewer)  # one digit, and zeros
    if fewer < steps:
        ways.append(f"optim.duration={fewer} about {time_left(seconds * fewer / steps)}")
    return f"WARNING: about {time_left(seconds)} in all on this CPU; {', '.join(ways)}" if ways else ""
