"""Penalties of fine-tuning beside weight decay: towards the weights that it began with (L2-SP), and towards exact zeros (L1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.checks import check_not_negative
from ...core.distributed import own_shard
from ...core.errors import UserError
from ...core.method import Method
from ...core.model.backbone import Backbone
from ...core.model.classifier import Classifier
from ...core.numerics import approach


def l2_sp_options(*, alpha: float = 0.1, beta: float = 0.01) -> None:
    """L2-SP: the loss gets alpha / 2 |w - w0|^2 of the backbone and beta / 2 |w|^2 of the head (Li et al. 2018, arXiv:1802.01483, eq. 3).

    alpha: Weight of the way from the weights that training began with, 0 or more; over all trained parameters of the backbone.
    beta: Weight of the head's own size, 0 or more.
    """


def l1_options(*, weight: float, on: Literal["head", "backbone", "all"] = "head") -> None:
    """L1 by its proximal step: after each update, w becomes sign(w) max(|w| - lr weight, 0), so that weights become exactly 0.

    weight: Weight of sum |w| in the loss, 0 or more; lr is the rate of the step and of the weight's layer.
    on: Whose matrices and kernels are shrunk: the head's, the backbone's or all. Biases, normalisation layers,
        position embeddings and class tokens never are.
    """


def check_penalties(l2_sp: Mapping[str, Any] | None, l1: Mapping[str, Any] | None, weights: str, sharding: str) -> None:
    """Raises UserError for numbers out of range, and for L2-SP where there is nothing to stay near to or where weights are sharded."""
    for section, keys in (("l2_sp", l2_sp), ("l1", l1)):
        for key, value in (keys or {}).items():
            if key != "on":
                check_not_negative(f"{section}.{key}", value, "0.1 to 0.0001 are usual")
    if l2_sp is not None and weights == "none":
        raise UserError(
            "method.l2_sp: it holds the network near the weights that it began with, which are random here; set backbone.weights, or "
            "leave l2_sp out"
        )
    if l2_sp is not None and sharding != "none":
        raise UserError(f"method.l2_sp: it does not work with run.sharding: {sharding}; use run.sharding=none")


class StartingPoint(nn.Module):
    """The penalty of L2-SP. The starting point is what the backbone holds now: a resumed run builds it again, so no checkpoint has it."""

    def __init__(self, classifier: Classifier, alpha: float, beta: float) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta
        self.trained: list[str] = []
        for name, parameter in classifier.backbone.named_parameters():
            if parameter.requires_grad:
                self.register_buffer(f"start{len(self.trained)}", parameter.detach().clone(), persistent=False)
                self.trained.append(name)

    def forward(self, classifier: Classifier) -> Tensor:
        """The scalar penalty, the same on all processes."""
        now = dict(classifier.backbone.named_parameters())
        away = [
            (now[name] - self.get_buffer(f"start{i}")).float().square().sum() for i, name in enumerate(self.trained)
        ]
        size = [p.float().square().sum() for p in classifier.head.parameters()]
        return 0.5 * (self.alpha * torch.stack(away).sum() if away else 0.0) + 0.5 * self.beta * torch.stack(size).sum()


class SoftThreshold:
    """The proximal step of L1 on some matrices of a method, after each update."""

    def __init__(
        self,
        method: nn.Module,
        groups: Sequence[Mapping[str, Any]],
        rate: Callable[[float], float],
        *,
        weight: float,
        on: str,
    ) -> None:
        """method: FineTune. groups: the optimizer's, as `parameter_groups` makes them. rate: progress -> the learning rate of that step."""
        self.weight, self.rate = weight, rate
        names = {parameter: name for name, parameter in method.named_parameters()}
        # As weight decay, so that position embeddings and class tokens stay, which have several dimensions, too.
        exempt = {p for part in method.modules() if isinstance(part, Backbone) for p in part.undecayed()}
        shrunk = {name for parameter, name in names.items() if parameter.ndim > 1 and parameter not in exempt}
        chosen = {"head": ("classifier.head.",), "backbone": ("classifier.backbone.",), "all": ("classifier.",)}[on]
        self.groups = [
            (
                [name for p in group["params"] if (name := names[p]).startswith(chosen) and name in shrunk],
                group["lr_scale"],
            )
            for group in groups
        ]

    @torch.no_grad()
    def __call__(self, method: Method, progress: float) -> None:
        # By name, since a sharded training has other parameters than the method that was built.
        now = dict(method.named_parameters())
        for names, scale in self.groups:
            for name in names:
                weights = own_shard(now[name])
                shrunk = F.softshrink(weights, self.rate(progress) * scale * self.weight)
                approach(weights, shrunk, skipped=method.skipped)
