"""Accelerate, set up as a run needs it: data-parallel, and by nothing but the config."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

from ..distributed import world
from ..errors import UserError
from .join import JOINED_WITHIN, joining

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@contextlib.contextmanager
def unannounced() -> Iterator[None]:
    """Within it, nothing is said of `broadcast_buffers`, announced for a torch to come; Accelerate has no other way to say it yet."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        yield


def build_accelerator(options: Mapping[str, Any]) -> Accelerator:
    """The processes and devices of a run. options: its `run` section. Raises UserError if Accelerate set up another kind of training."""
    with unannounced():
        parallel = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    with joining():
        accelerator = Accelerator(
            # Without an accelerator, Accelerate would otherwise start the processes and then train each of them alone.
            cpu=options["device"] == "cpu" or not torch.accelerator.is_available(),
            # Named, or environment variables (an `accelerate config` made for something else) would decide.
            mixed_precision="no",
            dynamo_backend="no",
            gradient_accumulation_steps=1,
            # Running statistics are reduced once a step by core/model/norm.py; broadcasting rank 0's would undo that. And gradients
            # lie in what is sent, instead of beside it.
            kwargs_handlers=[parallel, InitProcessGroupKwargs(timeout=JOINED_WITHIN)],
        )
    if accelerator.num_processes != world() or accelerator.distributed_type not in SUPPORTED:
        raise UserError(
            f"Accelerate set up {accelerator.distributed_type} for {accelerator.num_processes} of {world()} processes; "
            "Rootstock trains data-parallel: use torchrun, or an `accelerate config` without FSDP or DeepSpeed, and run.sharding=fsdp2"
        )
    return accelerator
