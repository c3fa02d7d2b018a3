"""Whether the copies of the weights on all processes are equal bit for bit. Nothing else would notice that they have come apart.

Sharded weights (FSDP2) have no copies: each number is on one process alone, so there only the parameters that are not sharded are compared.
Buffers are left out: in some modes of BatchNorm they differ rightly.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ..agree import ranks_in_words
from ..distributed import all_reduce_max, all_reduce_min, gather_equal, world
from ..errors import ProcessesFailed
from .checkpoint import steps

CHUNK_OF_NUMBERS = 1 << 16  # numbers that are weighted at once
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers by size in bytes
TENSORS_NAMED = 3  # tensors that a message names


def check_replicas(module: nn.Module, step: int, folder: Path) -> None:
    """Raise ProcessesFailed on every process if a parameter of one differs from that of another.

    step: completed steps. folder: of the checkpoints; both for the message.
    """
    if world() == 1:
        return
    copies = {name: p for name, p in module.named_parameters() if not hasattr(p, "device_mesh")}
    if not copies:
        return
    own = digests(copies)
    if not bool((all_reduce_min(own) != all_reduce_max(own)).any()):
        return
    raise ProcessesFailed(describe(list(copies), gather_equal(own), step, max(steps(folder), default=0)))


def digests(tensors: Mapping[str, Tensor]) -> Tensor:
    """int64 [T]: one number for each tensor, made of its bits. A change of one element always changes it."""
    with torch.no_grad():
        return torch.stack([_digest(tensor.detach()) for tensor in tensors.values()])


def describe(names: list[str], found: Tensor, step: int, last: int) -> str:
    """The sentence: which ranks differ from the most common weights, and in which tensors. found: int64 [W, T]."""
    rows = [tuple(row) for row in found.tolist()]
    common = max(rows, key=lambda row: (rows.count(row), -rows.index(row)))
    odd = [rank for rank, row in enumerate(rows) if row != common]
    others = [rank for rank, row in enumerate(rows) if row == common]
    tensors = [name for i, name in enumerate(names) if any(rows[rank][i] != common[i] for rank in odd)]
    more = f" and {len(tensors) - TENSORS_NAMED} more" if len(tensors) > TENSORS_NAMED else ""
    kept = f"the checkpoint of step {last} is the last one" if last else "no checkpoint has been saved before"
    return (
        f"after step {step} the weights of {ranks_in_words(odd)} differ from those of {ranks_in_words(others)} in "
        f"{', '.join(tensors[:TENSORS_NAMED])}{more}; they are not saved, and {kept}; look for damaged memory or a different machine, "
        "then run the same command again"
    )


def _digest(tensor: Tensor) -> Tensor:
    """int64 scalar: the sum of the tensor's bits as integers, each times an odd number of its position, modulo 2^64."""
    numbers = tensor.contiguous().reshape(-1)
    if numbers.dtype.is_complex:
        numbers = torch.view_as_real(numbers).reshape(-1)
    numbers = numbers.view(INTEGERS[numbers.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    weights = _weights(str(tensor.device))
    for i, part in enumerate(numbers.split(CHUNK_OF_NUMBERS)):
        total += (part.to(torch.int64) * weights[: len(part)]).sum() * (2 * i + 1)
    return total


@cache
def _weights(device: str) -> Tensor:
    """int64 [CHUNK_OF_NUMBERS] odd numbers, the same on every process."""
    position = torch.arange(1, CHUNK_OF_NUMBERS + 1, dtype=torch.int64, device=device)
    mixed = position * -7046029254386353131  # 2^64 divided by the golden ratio, as a signed number
    return (mixed ^ (mixed >> 29)) * 2 + 1
