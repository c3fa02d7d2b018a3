"""Whether a method's batch can be divided, to save memory: by run.accumulate (micro-batches) or run.chunk (images encoded at once); and
what BatchNorm says of one that is too small.
"""

from __future__ import annotations

from ..distributed import world
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


def too_few(group: int | None) -> str:
    """The sentence where a BatchNorm has one number a channel, and so no variance. group: of `backbone.norm`, None without groups."""
    if group is not None:
        return f"backbone.norm: BatchNorm needs at least 2 rows at once, and group:{group} gives it 1; choose larger groups"
    shared = ", or backbone.norm=batch" if world() > 1 else ""
    return (
        "optim.batch_size: BatchNorm needs at least 2 images at once in training, and here it gets 1; "
        f"give at least 2 for each process and micro-batch{shared}"
    )
