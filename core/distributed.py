"""The only place with collectives: gather and reduce with gradient, and small agreements between processes.

Everything here is the identity on one process, so that methods read the same for one process and for many. Losses never call
these: a method gathers its projections and hands a loss plain tensors. Gradient convention: each process averages over its own
rows and DistributedDataParallel averages over processes, so backward passes here *sum* over processes (no factor of W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_planned = 0  # processes of a run that is only planned


def world() -> int:
    """How many processes share this run."""
    return _planned or (dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1)


def rank() -> int:
    """This process's number, 0..world()-1."""
    return dist.get_rank() if world() > 1 and not _planned else 0


@contextmanager
def planned_processes(processes: int) -> Iterator[None]:
    """Within it, everything is set up as by the first of so many processes, and nothing may be sent: for `launch --dry-run`."""
    global _planned
    before, _planned = _planned, processes
    try:
        yield
    finally:
        _planned = before


def alone() -> AbstractContextManager[None]:
    """Within it, this process works as if it were the only one: what all compute together is compared with that."""
    return planned_processes(1)


def own_rows(n: int) -> slice:
    """The rows of a gathered batch that this process contributed; n: rows on each process."""
    return slice(rank() * n, (rank() + 1) * n)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = len(local)
        local = local.contiguous()
        parts = [torch.empty_like(local) for _ in range(world())]
        dist.all_gather(parts, local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        own = torch.empty_like(grad[: ctx.rows])
        # Reduce-scatter moves 1/W of what an all-reduce of the whole stack would.
        dist.reduce_scatter(own, list(grad.chunk(world())))
        return own


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        return all_reduce_sum(local)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return all_reduce_sum(grads[0])


def gather(local: Tensor) -> Tensor:
    """[N, ...] on each process -> [W * N, ...] in the order of ranks, with gradient (backward: reduce-scatter, sum)."""
    return _Gather.apply(local) if world() > 1 else local  # pyright: ignore[reportReturnType]


def sum_with_gradient(local: Tensor) -> Tensor:
    """The elementwise sum over processes, with gradient (backward: the sum of the processes' gradients)."""
    return _Sum.apply(local) if world() > 1 else local  # pyright: ignore[reportReturnType]


def all_reduce_sum(local: Tensor) -> Tensor:
    """The elementwise sum over processes, without gradient; the argument is left alone."""
    if world() == 1:
        return local
    total = local.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def all_reduce_min(local: Tensor) -> Tensor:
    """The elementwise minimum over processes, without gradient; the argument is left alone."""
    if world() == 1:
        return local
    least = local.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return least


# Of tensors in slices, torch's DTensor (core/train/fsdp.py). The class is not asked for by name: importing it takes a second, which only
# sharded runs should spend.


def unsharded(tensor: Tensor) -> Tensor:
    """A tensor in slices put together on every process; others as they are."""
    return getattr(tensor, "full_tensor", lambda: tensor)()


def own_slice(tensor: Tensor) -> Tensor:
    """This process's slice of a tensor, sharing its memory; a whole one as it is."""
    return getattr(tensor, "to_local", lambda: tensor)()


def in_slices(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, in slices as `like` is; as it is where `like` is whole."""
    if not hasattr(like, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    place: Any = like
    return distribute_tensor(value.to(like.device), place.device_mesh, place.placements, src_data_rank=None)


def any_process(flags: Tensor) -> Tensor:
    """Elementwise: is the flag set on any process? flags: bool or number, small; all processes get the same answer."""
    return all_reduce_sum(flags.to(torch.float32)) > 0


def broadcast_text(text: str) -> str:
    """Rank 0's text, on all processes."""
    if world() == 1:
        return text
    box = [text]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def transfers(buffer: Tensor) -> Mapping[str, Callable[[], Any]]:
    """The collectives of training by name, to be called and timed. buffer: [W * n], what each of them moves; its values are lost."""
    own = buffer[: len(buffer) // world()].clone()
    return {
        "all_reduce": lambda: dist.all_reduce(buffer),
        "all_gather": lambda: dist.all_gather_into_tensor(buffer, own),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(own, buffer),
    }


def barrier() -> None:
    """Wait for all processes."""
    if world() > 1:
        dist.barrier()
