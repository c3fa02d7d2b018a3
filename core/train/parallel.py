"""How processes share a method while it trains: each holds all of it (DistributedDataParallel), or a shard (core/train/fsdp.py). `fit`
is the same for both.
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
from ..run.accelerator import unannounced
from ..run.directory import Run
from .compile import compiled_method


class Strategy(Protocol):
    """How a method is distributed: Replicated or Sharded."""

    sharded: bool

    def wrap(self) -> Method:
        """Move the module that is trained to the device, and return it."""
        ...

    def forward(self, fast: bool) -> Callable[..., Any]:
        """The function that a step calls, to be built after the weights are loaded. fast: compile it."""
        ...

    def unsynced(self) -> AbstractContextManager[Any]:
        """Within it, backward passes do not exchange gradients; the next one outside does, for all of them."""
        ...

    def gathered(self) -> AbstractContextManager[nn.Module]:
        """Within it, the complete method is on the device, for evaluation."""
        ...

    def finish(self) -> None:
        """Leave the complete method on the device, at the end of training."""
        ...


def strategy_for(method: Method, run: Run) -> Strategy:
    """The strategy that `run.sharding` names; applies `run.activation_checkpointing`. Raises UserError if the method cannot have it."""
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
    """Each process holds the complete method; DistributedDataParallel keeps the copies equal."""

    sharded = False

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
            # BatchNorm records statistics as a side effect inside the checkpointed function, which torch.compile does not support.
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
