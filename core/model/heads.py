"""What lies between the features of a backbone and the logits: the bottleneck and the head."""

from __future__ import annotations

import json
import math
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..formats import FORMAT, check_format
from ..numerics import wide

HeadKind = Literal["linear", "weightnorm", "cosine"]
HeadInit = Literal["torch", "truncated_normal", "xavier", "kaiming", "zeros"]


class Structure(NamedTuple):
    """What an exported classifier has above its backbone, as classifier.json says it; the defaults are a linear layer alone."""

    bottleneck: int | None = None  # its width
    head: HeadKind = "linear"
    temperature: float = 0.05  # of a cosine head
    extra: int = 0  # outputs beyond the classes, after them

    def as_text(self) -> str:
        """As classifier.json holds it."""
        return json.dumps({"format": FORMAT, **self._asdict()})

    @staticmethod
    def from_text(text: str, where: str) -> Structure:
        """Raises UserError for a later format, ValueError for what no version wrote. where: the file, as the message names it."""
        content: Any = json.loads(text)
        check_format(content, where)
        try:
            found = Structure(**{key: content[key] for key in Structure._fields})
        except (KeyError, TypeError):
            raise ValueError("it does not describe a head") from None
        width, extra = found.bottleneck, found.extra
        right = (width is None or (type(width) is int and width > 0)) and type(extra) is int and extra >= 0
        if not (right and found.head in get_args(HeadKind) and type(found.temperature) in (int, float)):
            raise ValueError("it does not describe a head")
        return found

    def in_words(self) -> str:
        """For messages."""
        parts = [f"bottleneck {self.bottleneck or 'none'}", f"head {self.head}"]
        parts += [f"head_temperature {self.temperature:g}"] if self.head == "cosine" else []
        return ", ".join([*parts, *([f"{self.extra} further outputs"] if self.extra else [])])

    def layers(self, features: int, classes: int) -> tuple[Bottleneck | None, HeadLayer]:
        """New layers for a backbone of so many features."""
        bottleneck = None if self.bottleneck is None else Bottleneck(features, self.bottleneck)
        width, outputs = self.bottleneck or features, classes + self.extra
        if self.head == "linear":
            return bottleneck, nn.Linear(width, outputs)
        if self.head == "weightnorm":
            return bottleneck, WeightNormHead(width, outputs)
        return bottleneck, CosineHead(width, outputs, self.temperature)

    def check(self) -> None:
        """Raises UserError for a number out of its range, by the keys of `method`."""
        if self.bottleneck is not None and self.bottleneck < 1:
            raise UserError(f"method.bottleneck: expected a width of 1 or more, or none, got {self.bottleneck}")
        if not 0.0 < self.temperature < math.inf:
            raise UserError(f"method.head_temperature: expected more than 0, got {self.temperature}")


class Bottleneck(nn.Sequential):
    """Linear, BatchNorm, ReLU: float [N, D] -> [N, width], as in every ResNet table of the field (Long et al. 2018, arXiv:1705.10667).

    Weights are drawn as torch's own; tllib has the same layers for DANN and CDAN. SHOT's own bottleneck has no ReLU.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__(nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU())


class WeightNormHead(nn.Module):
    """float [N, D] -> [N, K]: z_k = scale_k <d_k, f> / |d_k| + b_k (Salimans & Kingma 2016, arXiv:1602.07868), SHOT's head.

    Direction and bias begin as those of a linear layer, and the scale as the length of its rows, so the first logits are that layer's.
    """

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        linear = nn.Linear(features, outputs)
        self.in_features, self.out_features = features, outputs
        self.direction, self.bias = nn.Parameter(linear.weight.detach().clone()), linear.bias
        self.scale = nn.Parameter(self.direction.detach().norm(dim=1, keepdim=True))

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.scale * F.normalize(self.direction, dim=1), self.bias)


class CosineHead(nn.Module):
    """float [..., D] -> [..., K] in float32: the cosine of features and class weights over the temperature, without a bias.

    MME's code (arXiv:1904.06487) divides by the length of the features alone; here that of the weights is divided out too, so logits lie
    within +-1 / temperature.
    """

    def __init__(self, features: int, outputs: int, temperature: float) -> None:
        super().__init__()
        self.in_features, self.out_features, self.temperature = features, outputs, temperature
        self.weight = nn.Parameter(nn.Linear(features, outputs).weight.detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            unit, weights = F.normalize(wide(features), dim=-1), F.normalize(wide(self.weight), dim=1)
            return unit @ weights.T / self.temperature


HeadLayer = nn.Linear | WeightNormHead | CosineHead


def initialise_head(head: nn.Linear, how: HeadInit, std: float) -> None:
    """Draw the weights of a new linear head anew, from torch's generator; its bias becomes 0. torch: it stays as torch makes it.

    truncated_normal: N(0, std^2), as MAE's head (std 2e-5). xavier: uniform by both widths (Glorot & Bengio 2010, eq. 16). kaiming: normal
    of variance 2 / inputs (He et al. 2015, arXiv:1502.01852, eq. 10). zeros: so the first logits are 0.
    """
    if how == "torch":
        return
    if how == "truncated_normal":
        nn.init.trunc_normal_(head.weight, std=std)
    elif how == "xavier":
        nn.init.xavier_uniform_(head.weight)
    elif how == "kaiming":
        nn.init.kaiming_normal_(head.weight)
    else:
        nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
