"""How much a command says, by its options -q and -v. No config holds it, and no result depends on it. Imports no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import IntEnum


class Loudness(IntEnum):
    """What is printed."""

    QUIET = 0  # warnings, errors and the verdict
    NORMAL = 1
    VERBOSE = 2  # also each logged step, checkpoint, evaluation and decision about data


OPTIONS = {Loudness.QUIET: "-q", Loudness.VERBOSE: "-v"}
_now = [Loudness.NORMAL]
_stages = [False]


def loudness() -> Loudness:
    """That of this command."""
    return _now[-1]


def in_stages() -> bool:
    """Whether trainings are stages of a pipeline, which print little: how far they are, now and then."""
    return _stages[-1]


@contextlib.contextmanager
def running_stages() -> Iterator[None]:
    """Within it, trainings are stages of a pipeline."""
    _stages.append(True)
    try:
        yield
    finally:
        _stages.pop()


@contextlib.contextmanager
def speaking(loud: Loudness) -> Iterator[None]:
    """Within it, this process says as much as `loud` says."""
    _now.append(loud)
    try:
        yield
    finally:
        _now.pop()
