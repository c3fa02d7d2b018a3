"""When a step does not fit into memory: find what would fit, and say it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import MachineError
from ..method import Method, needs_whole_batch
from .turns import in_turn

if TYPE_CHECKING:
    from .loop import Loop

MOST_PIECES = 256


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short. On the CPU torch says it in the message only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def step_in_memory(
    loop: Loop,
    forward: Callable[..., Any],
    micro: list[Any],
    prepare: Callable[[Any], Any],
    step: int,
    asked: list[int],
) -> dict[str, Any]:
    """`loop.step`. Raises MachineError, with the division of the batch that fits, if memory is too short."""
    try:
        return loop.step(forward, micro, prepare, step, asked)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        said = (str(error).splitlines() or ["out of memory"])[0].removesuffix(".")
    # Outside of the except clause, whose error keeps the tensors of the failed step alive.
    images = len(_first_positions(micro[0]))
    remedy = "" if loop.world > 1 else _what_fits(loop, forward, prepare, micro[0], images, step)
    raise MachineError(
        f"out of memory in step {step + 1}, with {images} images at once in each process ({said}); "
        f"{remedy or _usual_remedy(loop.method)}, then run the command again to resume"
    )


def _usual_remedy(method: Method) -> str:
    if needs_whole_batch(method):
        return (
            "use run.chunk"
            if method.takes_chunk
            else "use more processes, or a smaller optim.batch_size in another run.dir"
        )
    return "use a larger run.accumulate, run.activation_checkpointing=true, or more processes"


def _what_fits(
    loop: Loop, forward: Callable[..., Any], prepare: Callable[[Any], Any], raw: Any, images: int, step: int
) -> str:
    """Try halves, quarters ... of the micro-batch, forward and backward; the override that fits, or "" if none does.

    The weights are not touched. In several processes the others would have to take part, so it is tried in one process alone.
    """
    method, progress = loop.method, step / loop.steps
    whole = needs_whole_batch(method)
    if whole and not method.takes_chunk:
        return ""
    for pieces in _halvings(images):
        part = images // pieces
        if whole:
            for each in method.modules():  # a method inside another encodes in chunks too
                if isinstance(each, Method):
                    vars(each)["chunk"] = part
        tried = raw if whole else _first_rows(raw, part)
        if _fits(loop, forward, prepare, tried, progress):
            if whole:
                return f"run.chunk={part} fits, with the same result"
            return f"run.accumulate={pieces * loop.run.options['accumulate']} fits ({part} images at once), with the same result"
    return ""


def _halvings(images: int) -> Iterator[int]:
    pieces = 2
    while pieces <= min(images, MOST_PIECES) and images % pieces == 0:
        yield pieces
        pieces *= 2


def _fits(loop: Loop, forward: Callable[..., Any], prepare: Callable[[Any], Any], raw: Any, progress: float) -> bool:
    for parameter in loop.parameters:
        parameter.grad = None
    gc.collect()
    if loop.run.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        for turn in range(loop.turns):
            loop.backward(forward, [raw], lambda part, turn: in_turn(prepare(part), turn), progress, turn)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _first_positions(raw: Any) -> Tensor:
    return raw.positions if hasattr(raw, "positions") else raw[0].positions


def _first_rows(raw: Any, count: int) -> Any:
    """The first `count` images of a raw batch, or of each part of a pair."""
    if not hasattr(raw, "positions"):
        return type(raw)(*(_first_rows(part, count) for part in raw))
    return raw._replace(
        images=raw.images[:count],
        positions=raw.positions[:count],
        labels=raw.labels[:count],
        index=raw.index[:count],
        extra={name: value[:count] for name, value in raw.extra.items()},
    )
