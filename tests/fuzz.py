"""Fuzzing: inputs that hypothesis draws must be read, or be refused with a UserError. No other exception may leave a reader.

A test takes its depth as a parameter and calls `fuzz`:

    @pytest.mark.parametrize("depth", DEPTHS)
    def test_any_uri_is_read_or_refused(depth: str) -> None:
        fuzz("URIs", st.text(), parse_uri, depth, examples=2000)

`short` draws the same inputs each time (`make test`). `long` draws new inputs until the seconds of ROOTSTOCK_FUZZ_SECONDS are over, ten
minutes by default (`make soak`).
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from rootstock.core.errors import UserError
from rootstock.core.images.images import Images
from rootstock.core.images.store import DamagedImage

SECONDS = "ROOTSTOCK_FUZZ_SECONDS"
DEPTHS = [pytest.param("short", id="short"), pytest.param("long", id="long", marks=pytest.mark.soak)]
CPU_SECONDS = 60
"""An input that keeps the processor busy for so long counts as one that never ends."""
MEMORY = 4 << 30
"""Bytes of address space that an input may ask for; one that asks for more gets a MemoryError, which fails unless the reader
turns it into a sentence."""

Input = TypeVar("Input")


def fuzz(
    name: str,
    inputs: SearchStrategy[Input],
    attempt: Callable[[Input], object],
    depth: str,
    *,
    examples: int,
    share: float = 1.0,
) -> Counter[str]:
    """Call `attempt` with drawn inputs. Returns how many were `read` and how many were `refused`; prints it, too.

    attempt: reads an input; it returns, or raises UserError. inputs: a strategy of hypothesis. depth: short or long, of DEPTHS.
    examples: number of inputs of the short run, and of each round of the long one. share: of the long run's seconds, for kinds of one
    target that share them.
    Any other exception, an empty message, or an endless loop fails; hypothesis then reports the smallest input that does it.
    """
    tally: Counter[str] = Counter()

    def one(drawn: Input) -> None:
        try:
            with bounded(CPU_SECONDS):
                attempt(drawn)
        except UserError as error:
            message = str(error)
        else:
            tally["read"] += 1
            return
        assert message.strip(), "an error without a message"
        tally["refused"] += 1

    end = time.monotonic() + share * float(os.environ.get(SECONDS, "600"))
    rounds = 0
    while rounds == 0 or (depth == "long" and time.monotonic() < end):
        search = hypothesis.settings(
            max_examples=examples,
            derandomize=depth == "short",
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        )
        round_of = hypothesis.given(inputs)(one)
        if depth == "long":
            round_of = hypothesis.seed(time.time_ns())(round_of)
        search(round_of)()
        rounds += 1
    print(f"fuzzing {name}: {tally.total():,} inputs, {tally['read']:,} read, {tally['refused']:,} refused")
    return tally


def read_all(images: Images) -> None:
    """Everything that a training asks of a set. Images that are damaged may say so."""
    for i in range(len(images)):
        with suppress(DamagedImage):
            images.read(i)
            images.read_scaled(i, lambda height, width: 2)
        images.full_name(i)
    images.keys()
    images.fingerprint()
    images.in_storage_order()
    with suppress(DamagedImage):
        images.resident()


def changed(content: bytes) -> SearchStrategy[bytes]:
    """A file with bytes changed, put in, taken out or cut off, at one to three places."""

    def change(edits: Sequence[tuple[int, int, bytes]]) -> bytes:
        made = bytearray(content)
        for at, length, new in edits:
            start = at % (len(made) + 1)
            made[start : start + length] = new
        return bytes(made)

    edit = st.tuples(st.integers(0, 1 << 20), st.sampled_from((0, 1, 1, 2, 8, 1 << 20)), st.binary(max_size=8))
    return st.lists(edit, min_size=1, max_size=3).map(change)


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block once it has used so many seconds of the processor, and MemoryError beyond MEMORY."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"not ended after {seconds} seconds of the processor")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
