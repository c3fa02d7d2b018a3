"""Whether a method's batch can be divided, to save memory: by run.accumulate (micro-batches) or run.chunk (images encoded at once)."""

from __future__ import annotations

from ..errors import UserError
from ..method import Method, needs_whole_batch


def refuse_undivided(method: Method, accumulate: int, chunk: int | None) -> None:
    """Raises UserError if the method's batch cannot be divided by run.accumulate or run.chunk."""
    remedy = "run.chunk (images encoded at once)" if method.takes_chunk else "a smaller optim.batch_size"
    if accumulate > 1 and method.turns > 1:
        raise UserError(
            f"run.accumulate: {accumulate} does not work with this method, which makes {method.turns} updates on each batch; use {remedy} "
            "to save memory instead"
        )
    if accumulate > 1 and method.couples_samples:
        raise UserError(
            f"run.accumulate: {accumulate} would change this method, whose loss compares the images of a batch with each other; "
            f"use {remedy} to save memory instead"
        )
    if chunk is None or method.takes_chunk:
        return
    if not needs_whole_batch(method):
        raise UserError(
            "run.chunk: this method's loss does not compare the images of a batch, so it needs no chunks; use run.accumulate to save "
            "memory"
        )
    raise UserError("run.chunk: this method cannot encode its batch in chunks; leave run.chunk out")
