"""Stopping on request: the first Ctrl-C, SIGTERM or SIGUSR1 asks, and training ends after the step and a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """The list fills when someone asks. A second Ctrl-C leaves at once (checkpoints are atomic, so nothing is lost)."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def ask(number: int, _: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        for number in REQUESTS:
            before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: whoever runs us there keeps the signals
        pass
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
