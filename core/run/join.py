"""How the processes of a run come together: those that are started by hand or by srun may wait for one that never comes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import DistError

from ..errors import UserError

# That processes wait for each other at the start; as long as nodes do in launch/cluster/launcher.py. Later, see core/heartbeat.py.
JOINED_WITHIN = timedelta(seconds=600)


@contextmanager
def joining() -> Iterator[None]:
    """Within it, the processes come together. Raises UserError if not all did."""
    try:
        yield
    except DistError as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        all_of_them, seconds = os.environ.get("WORLD_SIZE", "?"), JOINED_WITHIN.seconds
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise UserError(
            f"not all {all_of_them} processes came together at {where} within {seconds} s ({reason}); start every RANK from 0 to "
            "WORLD_SIZE - 1 once, with the same MASTER_ADDR and a free MASTER_PORT"
        ) from error
