"""Continued pretraining of few parameters: low-rank adapters in a frozen ViT, and a block or two that are trained in full.

LoRA (Hu et al. 2022, arXiv:2106.09685) by peft, placed as ExPLoRA does for new domains (Khanna et al. 2024, arXiv:2406.10973, section 4).
Adapters are folded into the weights on export, so an exported backbone is a plain one.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .domains import without_source_layers

ADAPTER = "default"
BLOCK_NUMBER = re.compile(r"(?:^|\.)(?:blocks|stages|layers|layer)\.?(\d+)")


def lora_options(*, rank: int = 8, alpha: int = 16, targets: list[str] = ["qkv"], unfreeze: int = 1) -> None:
    """Low-rank adapters in a frozen backbone (Hu et al. 2022, arXiv:2106.09685).

    rank: Rank of the adapters' matrices B and A, 1 or more.
    alpha: Scale of the adapters, 1 or more: the weights become W + (alpha / rank) B A.
    targets: Linear layers that get an adapter, by the last part of their names. timm's `qkv` holds queries, keys and values; the
        paper adapts queries and values.
    unfreeze: How many of the last blocks are trained in full, 0 or more (ExPLoRA: 1 or 2).
    """


def add_lora(
    model: nn.Module, name: str, *, trained: bool = True, rank: int, alpha: int, targets: list[str], unfreeze: int
) -> None:
    """Freeze `model` in place, except for new adapters in `targets`, normalisation layers and the last `unfreeze` blocks.

    name: the model's, for errors. trained: whether it has trained weights, without which adapters make no sense.
    Raises UserError if peft is missing, no layer is a target, or a number is out of range.
    """
    if not trained:
        raise UserError("backbone.lora: adapters need trained weights; set backbone.weights, or leave lora out")
    if rank < 1 or alpha < 1 or unfreeze < 0 or not targets:
        raise UserError(
            f"backbone.lora: expected rank of 1 or more, alpha of 1 or more, targets and unfreeze of 0 or more, got rank {rank}, "
            f"alpha {alpha}, targets {targets}, unfreeze {unfreeze}"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(
            "backbone.lora needs peft; `pip install peft`, or leave lora out to train all weights"
        ) from error
    blocks = sorted({number for key, _ in model.named_parameters() if (number := _block(key)) is not None})
    if unfreeze > len(blocks):
        raise UserError(f"backbone.lora.unfreeze: {name} has {len(blocks)} blocks, got {unfreeze}")
    whole = set(blocks[len(blocks) - unfreeze :])
    layers = [
        key
        for key, module in model.named_modules()
        if isinstance(module, nn.Linear) and key.rpartition(".")[2] in targets and _block(key) not in whole
    ]
    if not layers and not unfreeze:
        linear = sorted({key.rpartition(".")[2] for key, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise UserError(
            f"backbone.lora.targets: {name} has no linear layers called {', '.join(targets)} (known: {', '.join(linear) or 'none'})"
        )
    norms = tuple(f"{key}." for key, module in model.named_modules() if "norm" in type(module).__name__.lower())
    for key, parameter in model.named_parameters():
        learns = _block(key) in whole or key.startswith(norms)
        parameter.requires_grad = parameter.requires_grad and learns
    if layers:
        # peft freezes every parameter that is not an adapter's, so what is trained in full is unfrozen afterwards.
        learning = [p for p in model.parameters() if p.requires_grad]
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers), model, ADAPTER)
        for parameter in learning:
            parameter.requires_grad = True


def _block(key: str) -> int | None:
    """The number of the block that a layer is in; None outside blocks."""
    found = BLOCK_NUMBER.search(key)
    return None if found is None else int(found[1])


@torch.no_grad()
def folded(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as it is exported: without adapters, each adapted weight being W + (alpha / rank) B A, which computes the same, and
    without the layers that BatchNorms have for an adaptation's source."""
    state = without_source_layers({key: value for key, value in model.state_dict().items() if ".lora_" not in key})
    for key, module in model.named_modules():
        weight = f"{key}.base_layer.weight"
        if weight in state and hasattr(module, "get_delta_weight"):
            adapted: Any = module
            state[weight] = state[weight] + adapted.get_delta_weight(ADAPTER).to(state[weight].dtype)
    return {key.replace(".base_layer.", "."): value for key, value in state.items()}
