"""The repeated blocks of a network (ViT, ResNet), which are recomputed to save memory or sharded one by one."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from .norm import recomputation


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The innermost repeated blocks: the members of sequences of modules of one class that hold no such sequence themselves."""
    found: list[nn.Module] = []
    for child in module.children():
        below = repeated_blocks(child)
        found += below or (list(child.children()) if _repeats(child) else [])
    return found


def _repeats(module: nn.Module) -> bool:
    """Whether it is a sequence of at least two blocks of one class; modules without children are layers, not blocks."""
    if not isinstance(module, nn.Sequential | nn.ModuleList):
        return False
    parts = list(module.children())
    return len(parts) > 1 and len({type(part) for part in parts}) == 1 and any(True for _ in parts[0].children())


def recompute(method: nn.Module) -> int:
    """Activation checkpointing (Chen et al. 2016, arXiv:1604.06174) of every block, in place; returns how many there are.

    A block keeps only its input and is computed again in the backward pass, to the same bits. Raises UserError if the network has no
    repeated blocks.
    """
    blocks = repeated_blocks(method)
    if not blocks:
        raise UserError(
            "run.activation_checkpointing: this network repeats no blocks that could be recomputed; set it to false"
        )
    for block in blocks:
        normed = any(isinstance(m, _BatchNorm) for m in block.modules())
        contexts = {"context_fn": recomputation} if normed else {}
        # Set on the instance, not by a wrapper module: names, and with them the keys of checkpoints, stay the same.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, **contexts)
    return len(blocks)
