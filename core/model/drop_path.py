"""Drop path (stochastic depth, Huang et al. 2016, arXiv:1603.09382), for a network whatever its weights come from.

It has no weights, so it is not part of a network's description: an export is the same with and without. Which residual branches an image
goes without is drawn by the image's position, so that any number of processes, micro-batches and resumes drop the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from timm.layers.drop import DropPath
from torch import Tensor, nn

from ..draws import Draws
from ..errors import UserError

STREAM = "drop_path"


class KeyedDropPath(DropPath):
    """timm's drop path: a residual branch x, [N, ...], of an image becomes 0 with probability p, else x / (1 - p).

    kept: bool [N], which images keep the branch in the next forward; None: drawn by torch's generator. It stays after a forward, since
    activation checkpointing computes the branch once more in the backward pass.
    """

    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        kept = self.kept
        if not self.training or not self.drop_prob or kept is None:
            return super().forward(x)
        if len(kept) != len(x):
            raise ValueError(f"draws of {len(kept)} images are given for {len(x)}")
        share = 1.0 - self.drop_prob if self.scale_by_keep and self.drop_prob < 1.0 else 1.0
        return x * (kept.to(x.dtype) / share).view(-1, *[1] * (x.ndim - 1))


def key_drop_path(model: nn.Module, name: str, rate: float) -> None:
    """Let every drop path inside a model be drawn by position, in place, once `draw_paths` says the positions.

    name, rate: the model's, for the error. Raises UserError for a model that drops nothing at a rate above 0.
    """
    found = [child for child in model.modules() if type(child) is DropPath]
    if rate and not found:
        raise _refusal(name)
    for child in found:
        child.__class__ = KeyedDropPath


def keyed_drop_paths(module: nn.Module) -> list[KeyedDropPath]:
    """The drop paths that `draw_paths` takes, in order."""
    return [child for child in module.modules() if isinstance(child, KeyedDropPath)]


def draw_paths(paths: list[KeyedDropPath], draws: Draws) -> None:
    """Draw which of the images at `draws.positions` keep which branch in the next forward."""
    if paths:
        unit = draws.uniform(STREAM, len(paths))
        for i, path in enumerate(paths):
            path.kept = unit[:, i] >= path.drop_prob


def with_drop_path(args: Mapping[str, Any], rate: float | None) -> dict[str, Any]:
    """The arguments of a model with that rate of drop path. Raises UserError for a rate out of its range, and for two rates."""
    if rate is None:
        return dict(args)
    if not 0.0 <= rate < 1.0:
        raise UserError(f"backbone.drop_path: expected 0 or more and less than 1, got {rate}")
    return {**args, "drop_path_rate": rate}


@contextmanager
def takes_drop_path(name: str, rate: float | None) -> Iterator[None]:
    """Within it, a model that does not take a rate of drop path is refused by the key. name: the model's."""
    try:
        yield
    except UserError as error:
        if rate is not None and "drop_path_rate" in str(error):
            raise _refusal(name) from error
        raise


def _refusal(name: str) -> UserError:
    return UserError(f"backbone.drop_path: {name} has no residual branches that timm drops; leave drop_path out")
