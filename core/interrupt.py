"""Stopping on request. In a training the first Ctrl-C, SIGTERM or SIGUSR1 lets it finish its step, save a checkpoint and end; elsewhere
a request ends the command at once, with a word and exit code 130."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StoppedBySignal(KeyboardInterrupt):
    """A request to stop that came as a signal. The message is the signal's name."""


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


@contextmanager
def signals_as_errors() -> Iterator[None]:
    """Within it, signals that would kill this process raise StoppedBySignal, the first time. A second one kills it.

    Not among several processes: one that waits for the others inside a collective would never get to raise it.
    """
    owner, before = os.getpid(), dict[int, Any]()

    def stop(number: int, _: Any) -> None:
        for other in before:
            signal.signal(other, signal.SIG_DFL)
        if os.getpid() != owner:  # a forked child, which inherits the handler
            os.kill(os.getpid(), number)
            return
        raise StoppedBySignal(signal.Signals(number).name)

    try:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            for number in (signal.SIGTERM, signal.SIGUSR1):
                if signal.getsignal(number) == signal.SIG_DFL:
                    before[number] = signal.SIG_DFL
                    signal.signal(number, stop)
    except ValueError:  # only the main thread can set signal handlers
        before.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
