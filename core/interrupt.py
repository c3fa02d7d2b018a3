"""Stopping on request: after the first Ctrl-C, SIGTERM or SIGUSR1, training finishes its step, saves a checkpoint and ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yields a list that receives the signals. A second Ctrl-C ends the process at once; checkpoints are atomic, so none is damaged."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def ask(number: int, _: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        for number in REQUESTS:
            before[number] = signal.signal(number, ask)
    except ValueError:  # only the main thread can set signal handlers
        pass
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
