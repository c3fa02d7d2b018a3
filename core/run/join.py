"""How the processes of a run come together: those that are started by hand or by srun may wait for one that never comes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import DistError

from ..errors import UserError

# That processes wait for each other at the start; as long as nodes do in launch/cluster/launcher.py. Later, see core/heartbeat.py.
JOINED_WITHIN = timedelta(seconds=600)
WAITING_SAID_EVERY = 30.0  # seconds


@contextmanager
def joining() -> Iterator[None]:
    """Within it, the processes come together; one that waits says so. Raises UserError if not all came."""
    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    all_of_them, seconds = os.environ.get("WORLD_SIZE", "?"), JOINED_WITHIN.seconds
    together = threading.Event()

    def say() -> None:
        waited = 0.0
        while not together.wait(WAITING_SAID_EVERY):
            waited += WAITING_SAID_EVERY
            print(
                f"rank {os.environ.get('RANK', '?')} waits at {where} until all {all_of_them} processes are there ({waited:.0f} of "
                f"{seconds} s); another may have ended with an error",
                file=sys.stderr,
                flush=True,
            )

    if "RANK" in os.environ:
        threading.Thread(target=say, daemon=True).start()
    try:
        yield
    except DistError as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise UserError(
            f"not all {all_of_them} processes came together at {where} within {seconds} s ({reason}); start every RANK from 0 to "
            "WORLD_SIZE - 1 once, with the same MASTER_ADDR and a free MASTER_PORT"
        ) from error
    finally:
        together.set()
