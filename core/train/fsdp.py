"""Sharded training by FSDP2 (torch's fully_shard; Zhao et al. 2023, arXiv:2304.11277): each process keeps a shard of every weight,
gradient and moment, and gathers a block's weights only while it computes with them.

A copy of the method is sharded. The recipe's own method stays complete, on the CPU while the copy trains, and receives the copy's
weights for every evaluation and at the end. So evaluators, pictures and exports see a plain module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from ..distributed import unsharded, wait_without_limit, world
from ..errors import UserError
from ..method import Method
from ..model.recompute import repeated_blocks
from ..run.directory import Run


def check_shardable(method: Method, run: Run) -> None:
    """Raises UserError if the method cannot be sharded."""
    sharding, backbone = run.options["sharding"], method.backbone
    name, blocks = backbone.spec["name"], repeated_blocks(backbone)
    if not blocks or any(isinstance(m, _BatchNorm) for m in backbone.modules()):
        raise UserError(
            f"run.sharding: {sharding} shards the blocks of ViTs; {name} {'has BatchNorm' if blocks else 'repeats no blocks'} and "
            "can only be replicated (DistributedDataParallel); use run.sharding=none"
        )
    if method.turns > 1:
        raise UserError(
            f"run.sharding: {sharding} does not work with this method, which makes {method.turns} updates on each batch; "
            "use run.sharding=none"
        )
    if method.refresh_every is not None:
        raise UserError(
            f"run.sharding: {sharding} does not work with this method, which looks over the whole target during training; "
            "use run.sharding=none"
        )
    if run.dtype == torch.float16:
        raise UserError(
            f"run.sharding: {sharding} does not work with fp16, whose loss scaler needs complete gradients; use run.precision=bf16"
        )


class Sharded:
    """A method of which a sharded copy trains. fsdp2 shards weights, gradients and moments. zero2 keeps gathered weights from the forward
    to the backward pass (as in ZeRO-2, Rajbhandari et al. 2020, arXiv:1910.02054), so they are sent once a step instead of twice."""

    sharded = True

    def __init__(self, method: Method, run: Run) -> None:
        self.method, self.run = method, run
        self.trained: Any = None

    def wrap(self) -> Method:
        self.trained = copy.deepcopy(self.method)
        mesh = init_device_mesh(self.run.device.type, (world(),))
        wait_without_limit(mesh.get_group())
        options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": self.run.options["sharding"] == "fsdp2"}
        half = MixedPrecisionPolicy(param_dtype=self.run.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in repeated_blocks(self.trained):
            products: list[nn.Module] = [m for m in block.modules() if type(m) is nn.Linear]
            if products and self.run.dtype != torch.float32:
                # Autocast would round these weights anyway; rounding before sending them halves the traffic.
                fully_shard(products, mp_policy=half, **options)
            fully_shard(block, **options)
        fully_shard(self.trained, mesh=mesh)
        return self.trained.to(self.run.device)  # for buffers, which are not sharded

    def forward(self, fast: bool) -> Callable[..., Any]:
        if fast:  # block by block, since weights are gathered and freed between blocks
            for block in repeated_blocks(self.trained):
                block.compile(dynamic=False)
        return self.trained

    @contextmanager
    def unsynced(self) -> Iterator[None]:
        self.trained.set_requires_gradient_sync(False)
        # With zero2, weights stay gathered for all micro-batches of a step.
        self.trained.set_reshard_after_backward(self.run.options["sharding"] != "zero2")
        try:
            yield
        finally:
            self.trained.set_requires_gradient_sync(True)
            self.trained.set_reshard_after_backward(True)

    @contextmanager
    def gathered(self) -> Iterator[nn.Module]:
        self.finish()
        yield self.method
        self.method.to("cpu")

    def finish(self) -> None:
        self.method.to(self.run.device)
        own = self.method.state_dict()
        for name, tensor in self.trained.state_dict().items():
            own[name].copy_(unsharded(tensor))
