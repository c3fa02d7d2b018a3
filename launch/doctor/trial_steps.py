"""A few training steps of a method on this process's share of each batch; one process and N must get the same result.

The tests of all methods (tests/ssl/test_exactness.py) use the same steps as the doctor on a user's cluster.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...core.distributed import all_reduce_sum, own_rows, world
from ...core.draws import Draws
from ...core.method import Method, Views
from ...core.model import norm
from ...core.model.backbone import Backbone, create
from ...core.train.turns import in_turn, with_absent

SIZE, LOCAL_SIZE, LOCALS, RATE = 16, 8, 2, 0.05
BACKBONES: dict[str, dict[str, Any]] = {
    "conv": {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}},
    "vit": {
        "name": "vit_tiny_patch16_224",
        "pooling": "mean",
        "args": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
    },
}


def backbone(kind: str) -> Backbone:
    """A network of BACKBONES for images of SIZE pixels."""
    return create(SIZE, **BACKBONES[kind])


def views(method: Any, n: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Views:
    """A random batch for a pretraining method: its number of views of n images, and local crops if it takes them."""

    def picture(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    generator = torch.Generator().manual_seed(seed)
    images = picture(1, n, 3, SIZE, SIZE) + 0.5 * picture(method.views, n, 3, SIZE, SIZE)
    local = picture(LOCALS, n, 3, LOCAL_SIZE, LOCAL_SIZE) if method.takes_local else None
    return Views(images, Draws(seed, torch.arange(n)), local)


def share(batch: Any) -> Any:
    """This process's part of a batch of tensors [N, ...], draws, views [V, N, ...], or tuples of these; N must be divisible."""
    if isinstance(batch, Tensor):
        return batch[own_rows(len(batch) // world())]
    if isinstance(batch, Draws):
        return Draws(batch.seed, share(batch.positions), batch.prefix)
    if isinstance(batch, Views):
        local = None if batch.local is None else share(batch.local.transpose(0, 1)).transpose(0, 1)
        return Views(share(batch.images.transpose(0, 1)).transpose(0, 1), share(batch.draws), local)
    return rebuilt(batch, share)


def rebuilt(batch: Any, of_part: Callable[[Any], Any]) -> Any:
    """The same kind of tuple, plain or named, of `of_part` of each part that is not None."""
    parts = [None if part is None else of_part(part) for part in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)


def run_steps(method: Method, batches: Sequence[Any]) -> dict[str, Tensor]:
    """Train a method by plain gradient descent, one step per batch. batches: this process's shares.

    Returns `loss.STEP` (mean over processes), `grad.STEP.NAME`, and the final weights and buffers as `state.NAME`. Of a method with several
    turns a step is one of these, and `STEP` counts them all.
    """
    parallel = _parallel(method) if world() > 1 else method
    found: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        progress = number / len(batches)
        for turn in range(method.turns):
            found |= _turn(method, parallel, batch, progress, turn, str(number * method.turns + turn))
        method.after_step(progress)
    return found | {f"state.{name}": value.detach().clone() for name, value in method.state_dict().items()}


def _turn(
    method: Method, parallel: nn.Module, batch: Any, progress: float, turn: int, name: str
) -> Mapping[str, Tensor]:
    several: Any = (turn,) if method.turns > 1 else ()
    out = parallel(in_turn(batch, turn), progress, *several)
    if out.kept:
        method.keep(out.kept)
    loss, absent = with_absent(out.loss, method.parameters()) if several else (out.loss, [])
    loss.backward()
    for parameter in (*absent, *method.frozen(progress, *several)):
        parameter.grad = None
    found = {f"loss.{name}": all_reduce_sum(out.loss.detach()) / world()}
    for key, parameter in method.named_parameters():
        if parameter.grad is None:
            continue
        found[f"grad.{name}.{key}"] = parameter.grad.clone()
        with torch.no_grad():
            parameter -= RATE * parameter.grad
        parameter.grad = None
    norm.commit(norm.layers(method))
    return found


def _parallel(method: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        # Deprecated, but its replacement does not exist in all supported versions of torch.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(method, broadcast_buffers=False)


def distance(found: Mapping[str, Tensor], right: Mapping[str, Tensor], part: str) -> float:
    """The relative error of all tensors whose names begin with `part`, as one vector."""
    names = [name for name in right if name.startswith(part)]
    assert names and names == [name for name in found if name.startswith(part)]
    ours, theirs = (torch.cat([tensors[name].double().flatten() for name in names]) for tensors in (found, right))
    return float((ours - theirs).norm() / theirs.norm())
