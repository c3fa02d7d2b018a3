"""Workers that were stopped (SIGSTOP) on a node where no other process could end them: the launcher does."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

STOPPED_CHECKS = 4  # that a stopped worker must have failed


@contextmanager
def stopped_workers_end(seconds: float | None, workers: Callable[[], Sequence[int]]) -> Iterator[None]:
    """Within it, workers that are stopped for longer than `seconds` are ended. None: never. workers: their process numbers now."""
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(seconds, workers, done), daemon=True) if seconds else None
    if thread is not None:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread is not None:
            thread.join()


def _watch(seconds: float, workers: Callable[[], Sequence[int]], done: threading.Event) -> None:
    import psutil

    from ...core.peers import end_processes, numbered

    # Counted in checks, not in seconds: if the launcher was stopped too, both go on together. One more than the other workers need, which
    # say more about the run.
    seen: Counter[int] = Counter()
    while not done.wait(min(5.0, seconds / STOPPED_CHECKS)):
        for pid in workers():
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                seen[pid] = seen[pid] + 1 if process.status() == psutil.STATUS_STOPPED else 0
                if seen[pid] * min(5.0, seconds / STOPPED_CHECKS) > seconds + min(5.0, seconds / STOPPED_CHECKS):
                    print(f"error: process {pid} was stopped for more than {seconds:g} s; it is ended", file=sys.stderr)
                    end_processes([numbered(pid)])
