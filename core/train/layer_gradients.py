"""Lengths of the gradients by layer at log steps (`run.log_gradients`): how much of the loss reaches the first layers of a deep network."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed import all_reduce_sum, own_shard
from ..method import Method
from ..model.layer_numbers import layer_numbers

ROW = "layer_grad_norm/"
"""What precedes the layer's number, or `head`, in a row of metrics.jsonl."""


class LayerGradients:
    """Norms by layer of the backbone, counted from the embedding up as BEiT counts them (core/model/layer_numbers.py).

    What follows the backbone's last block, and all that a method has beside the backbone, is `head`. Raises UserError where a network does
    not name its layers.
    """

    def __init__(self, method: Method) -> None:
        backbone = method.backbone
        numbers, head = layer_numbers(backbone.model, str(backbone.spec["name"]), key="run.log_gradients")
        layer_of = {parameter: numbers[name] for name, parameter in backbone.model.named_parameters()}
        names = [*(f"{ROW}{number:03d}" for number in range(head)), f"{ROW}head"]
        self.groups: dict[str, list[torch.nn.Parameter]] = {name: [] for name in names}
        for parameter in method.parameters():
            self.groups[names[layer_of.get(parameter, head)]].append(parameter)

    def norms(self) -> dict[str, Tensor]:
        """The Euclidean length of each layer's gradient as it is now, of the global batch; layers without one are left out."""
        found = {name: [p.grad for p in group if p.grad is not None] for name, group in self.groups.items()}
        found = {name: gradients for name, gradients in found.items() if gradients}
        if not found:
            return {}
        squares = [
            torch.stack(torch._foreach_norm([own_shard(g) for g in gradients])).square().sum()  # pyright: ignore[reportPrivateImportUsage]
            for gradients in found.values()
        ]
        total = torch.stack(squares)
        first = next(iter(found.values()))[0]
        if own_shard(first) is not first:
            total = all_reduce_sum(total)
        return dict(zip(found, total.sqrt().unbind(), strict=True))
