"""Work that is done side by side in threads, where there is more than one, and how many threads torch has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def in_threads(count: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Within it, a `map` in so many threads; in this one, without handing over each item, for one or none."""
    if count > 1:
        with ThreadPoolExecutor(count) as threads:
            yield threads.map
    else:
        yield map


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Within it, torch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
