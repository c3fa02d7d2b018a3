"""How a method lies on the devices while it trains: whole on each process, which DistributedDataParallel keeps alike, or in slices
(core/train/fsdp.py). `fit` is the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from ..distributed import world
from ..method import Method
from ..model import norm
from ..model.recompute import recompute
from ..run.directory import Run, unannounced
from .compile import compiled_method


class Strategy(Protocol):
    """One of the two. method: the one that `fit` was called with."""

    sliced: bool

    def wrap(self) -> Method:
        """Put what trains on the device, and return it."""
        ...

    def forward(self, fast: bool) -> Callable[..., Any]:
        """What is called for a step, once the weights are loaded; compiled where `fast`."""
        ...

    def unsynced(self) -> AbstractContextManager[Any]:
        """Within it, gradients stay on each process; the next backward pass outside sums them once."""
        ...

    def gathered(self) -> AbstractContextManager[nn.Module]:
        """Within it, the method is whole and on the device, for evaluation."""
        ...

    def finish(self) -> None:
        """Leave the method whole and on the device."""
        ...


def strategy_for(method: Method, run: Run) -> Strategy:
    """As `run.sharding` and `run.activation_checkpointing` say. Raises UserError for what cannot be."""
    if run.options["activation_checkpointing"]:
        recompute(method)
    if run.options["sharding"] != "none":
        from .fsdp import Sharded, check_shardable

        check_shardable(method, run)
        if world() > 1:
            return Sharded(method, run)
        run.log(f"run.sharding: {run.options['sharding']} has nothing to do on one process")
    return Replicated(method, run)


class Replicated:
    """Whole on each process."""

    sliced = False

    def __init__(self, method: Method, run: Run) -> None:
        self.method, self.run = method, run
        self.wrapped = method

    def wrap(self) -> Method:
        self.method.to(self.run.device)
        if self.run.options["channels_last"]:
            channels_last(self.method)
        return self.method

    def forward(self, fast: bool) -> Callable[..., Any]:
        if world() > 1:
            with unannounced():
                self.wrapped = self.run.accelerator.prepare_model(self.method)
        if not fast:
            return self.wrapped
        if self.run.options["chunk"] and norm.layers(self.method):
            # Statistics leave the checkpointed function by its side effect, which torch.compile does not take.
            self.run.log("run.chunk: an encoder with BatchNorm runs uncompiled in chunks; what follows it is compiled")
        return compiled_method(self.wrapped, self.run)

    def unsynced(self) -> AbstractContextManager[Any]:
        return self.run.accelerator.no_sync(self.wrapped) if world() > 1 else nullcontext()

    @contextmanager
    def gathered(self) -> Iterator[nn.Module]:
        yield self.method

    def finish(self) -> None:
        pass


def channels_last(method: nn.Module) -> None:
    """Convolution weights in channels_last memory format, where the model has convolutions."""
    if any(isinstance(m, nn.Conv2d) and m.kernel_size != m.stride for m in method.modules()):
        method.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
