"""The only place with collectives: gather and reduce with gradient, and small agreements between processes.

On one process every function here returns its argument, so methods have the same code for one process and for many. Losses never
call these: a method gathers its projections and passes plain tensors. Gradient convention: each process averages over its own rows
and DistributedDataParallel averages over processes, so backward passes here *sum* over processes (no factor of W). A method may equally
compute the loss of the whole batch on every process, from gathered tensors or global means: its gradient comes out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Longer than any run: what waits too long is found by core/heartbeat.py, which knows a long evaluation from a process that is lost.
UNLIMITED = timedelta(days=1000)
_planned = 0  # number of processes to pretend, see planned_processes; 0: the real number


def world() -> int:
    """How many processes share this run."""
    return _planned or (dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1)


def rank() -> int:
    """This process's number, 0..world()-1."""
    return dist.get_rank() if world() > 1 and not _planned else 0


def connected() -> bool:
    """Whether there are other processes to talk to; not where they are only planned."""
    return world() > 1 and not _planned


@contextmanager
def planned_processes(processes: int) -> Iterator[None]:
    """Within it, this process acts as rank 0 of `processes`; collectives fail. For `launch --dry-run`."""
    global _planned
    before, _planned = _planned, processes
    try:
        yield
    finally:
        _planned = before


def alone() -> AbstractContextManager[None]:
    """Within it, this process acts as the only one: for results to compare with those of several processes."""
    return planned_processes(1)


def own_rows(n: int) -> slice:
    """This process's rows in a gathered batch. n: rows of each process."""
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


def all_reduce_max(local: Tensor) -> Tensor:
    """The elementwise maximum over processes, without gradient; the argument is left alone."""
    if world() == 1:
        return local
    most = local.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return most


def gather_equal(local: Tensor) -> Tensor:
    """[...] on each process -> [W, ...], without gradient; the shape is the same on all."""
    if world() == 1:
        return local[None]
    parts = [torch.empty_like(local) for _ in range(world())]
    dist.all_gather(parts, local.detach().contiguous())
    return torch.stack(parts)


def of_first(make: Callable[[], Tensor], like: Tensor) -> Tensor:
    """What `make` returns on rank 0, on all processes, without gradient; the others don't call it. like: a tensor of its shape and type."""
    found = make().detach().to(like) if rank() == 0 else torch.empty_like(like)
    if world() > 1:
        dist.broadcast(found := found.contiguous(), src=0)
    return found


# For sharded tensors, torch's DTensor (core/train/fsdp.py). They are recognised by their attributes: importing the class takes a second,
# which only sharded runs should spend.


def unsharded(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered on every process; other tensors unchanged."""
    return getattr(tensor, "full_tensor", lambda: tensor)()


def own_shard(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, sharing its memory; a tensor that is not sharded unchanged."""
    return getattr(tensor, "to_local", lambda: tensor)()


def sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has, sharded as `like` is; unchanged if `like` is not sharded."""
    if not hasattr(like, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    place: Any = like
    return distribute_tensor(value.to(like.device), place.device_mesh, place.placements, src_data_rank=None)


def any_process(flags: Tensor) -> Tensor:
    """Elementwise, whether a flag is set on any process; the same answer on all. flags: bool or small numbers."""
    return all_reduce_sum(flags.to(torch.float32)) > 0


def broadcast_text(text: str) -> str:
    """Rank 0's text, on all processes."""
    if world() == 1:
        return text
    box = [text]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_texts(text: str) -> list[str]:
    """The text of each process, on all processes, in the order of ranks."""
    if world() == 1:
        return [text]
    texts = [""] * world()
    dist.all_gather_object(texts, text)
    return texts


def shared_store() -> Any:
    """A new connection to the store in which the processes found each other, for another thread than the main one.

    It has a socket of its own: the main thread may wait inside the first one, which is locked meanwhile.
    """
    store: Any = dist.distributed_c10d._get_default_store()  # torch has no public name for it
    while hasattr(store, "underlying_store"):  # it only puts a prefix before each key
        store = store.underlying_store
    return dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        store.host, store.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30)
    )


def wait_without_limit(group: dist.ProcessGroup | None = None) -> None:
    """Let the collectives of a group (None: of all processes) wait as long as the others take."""
    # Older versions of torch have it under a private name.
    change: Any = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    change(UNLIMITED, group)


def transfers(buffer: Tensor) -> Mapping[str, Callable[[], Any]]:
    """The collectives of training by name, as functions to be timed. buffer: [W * n], the data of each; its values are lost."""
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
