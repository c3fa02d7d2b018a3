"""Projection and prediction heads: the MLPs of the papers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.model import norm

Last = Literal["linear", "plain-linear", "norm", "plain-norm"]


def mlp(widths: Sequence[int], *, last: Last, key: str) -> ProjectionHead:
    """Linear, BatchNorm and ReLU for each hidden width, then the last layer. [N, widths[0]] -> [N, widths[-1]].

    last: "linear"; "plain-linear", without bias; "norm", linear and BatchNorm; "plain-norm", linear and BatchNorm without scale and
    shift. No layer before a BatchNorm has a bias.
    key: the config's key that gives widths[1:]. Raises UserError for widths that make no head.
    """
    first, *given = widths
    if not given or min(given) < 1:
        raise UserError(f"{key}: expected widths such as [2048, 128], got {given}")
    # lightly's heads of the papers have a fixed number of layers each; their base class takes any.
    *hidden, (before, out) = pairwise([first, *given])
    layers = [(a, b, nn.BatchNorm1d(b), nn.ReLU()) for a, b in hidden]
    closing = nn.BatchNorm1d(out, affine=last == "norm") if last.endswith("norm") else None
    return ProjectionHead([*layers, (before, out, closing, None, last == "linear")])


def predictor(projection: Sequence[int], prediction: Sequence[int], *, last: Last) -> ProjectionHead:
    """The `mlp` of a prediction head: it maps projections to vectors that are compared with projections.

    projection, prediction: the widths of the config's keys. Raises UserError if their last widths differ.
    """
    head = mlp([projection[-1], *prediction], last=last, key="method.prediction")
    if prediction[-1] != projection[-1]:
        raise UserError(
            f"method.prediction: its last width {prediction[-1]} must equal method.projection's, {projection[-1]}"
        )
    return head


def project(head: nn.Module, features: Tensor) -> Tensor:
    """[V, N, D] -> [V, N, D']: all views in one forward, ordered by position (see core/model/norm.py)."""
    return norm.encode_together(head, features)
