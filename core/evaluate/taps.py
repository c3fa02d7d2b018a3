"""Taps: named features of a frozen network, all from one forward pass.

A network is asked once, with one made-up image, what it has; nothing is told from its class or its name. So what timm adds later is
read rightly or not offered.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..model.backbone import Backbone
from ..numerics import wide
from .features import evaluating

POOLED, CLS, MEAN, CLS_MEAN = "pooled", "cls", "mean", "cls+mean"
LAST, LAST_MEAN = "last4", "last4+mean"
TOKENS, PATCHES = "tokens", "patches"
SEQUENCES = frozenset({TOKENS, PATCHES})
"""The taps of two axes for each image; the others have one."""

LAST_BLOCKS = 4
LEVEL = re.compile(r"(block|stage)(\d+)")

_MEANING: Mapping[str, str] = {
    POOLED: "the network's own features",
    CLS: "the class token after the last norm",
    MEAN: "the mean of the patch tokens after the last norm",
    LAST: f"the class tokens of the last {LAST_BLOCKS} blocks, each after the last norm",
    TOKENS: "all tokens before pooling",
    PATCHES: "the tokens that stand for a place",
}


@dataclass(frozen=True)
class TapLayout:
    """What a network gives for one image of its own size.

    final: whether forward_features gives one tensor. head: whether forward_head makes the very features of it. level: "block" or "stage".
    levels: number of blocks or stages. prefixed: whether blocks come with their prefix tokens. prefix: tokens before the patches in the
    final tokens; None where that is not known, or where these are not one token for each place of the last map. cls: whether the first of
    them is a class token. last: whether the class tokens of earlier blocks can be had. grid: rows and columns of `patches`.
    """

    final: bool = False
    head: bool = False
    level: str = "stage"
    levels: int = 0
    prefixed: bool = False
    prefix: int | None = None
    cls: bool = False
    last: bool = False
    grid: tuple[int, int] | None = None

    def names(self) -> tuple[str, ...]:
        """The taps that this network offers."""
        found = [POOLED]
        found += [CLS] if self.cls else []
        found += [MEAN] if self.prefix is not None else []
        found += [CLS_MEAN] if self.cls and self.prefix is not None else []
        found += [LAST, LAST_MEAN] if self.last else []
        found += [TOKENS] if self.final else []
        found += [PATCHES] if self.grid is not None else []
        return (*found, *(f"{self.level}{number}" for number in range(self.levels)))


class Taps(nn.Module):
    """Named features of a backbone from one forward pass, in eval mode and without gradient, whatever mode the backbone is in.

    pooled: [N, D], what `backbone(images)` gives in eval mode, bit for bit (of a frozen ViT, which skips some tokens, up to rounding).
    cls: the class token after the last norm, [N, D]. mean: the mean of the patch tokens after the last norm, without class token and
    registers, [N, D]. cls+mean: both, [N, 2 D]. last4: the class tokens of the last 4 blocks, each after the last norm, the earliest block
    first, [N, 4 D] (Oquab et al. 2023, arXiv:2304.07193); last4+mean: with `mean` behind, [N, 5 D].
    tokens: as of `Backbone.tokens`, bit for bit, [N, L, D]. patches: those of the tokens that stand for a place, row by row, [N, P, D];
    `grid` has rows and columns. block0, block1, ... of networks with equal blocks, stage0, ... of others (of a ResNet, stage0 is the stem):
    the mean over all places, without prefix tokens and *before* any norm that follows the block, [N, D].
    Means are taken in float32 at least. In networks whose only norm follows their pooling (timm's fc_norm: BEiT, EVA, networks that were
    fine-tuned on the mean), cls, mean and last4 are normed by that, after the mean; tokens, patches and blocks are not normed.
    Which of them there are depends on the network: `available_taps`.

    names: the taps to give. key: the config's key that names them, for errors. Raises UserError for a tap that the network doesn't offer.
    """

    def __init__(self, backbone: Backbone, names: Sequence[str] = (POOLED,), *, key: str = "evaluate.taps") -> None:
        super().__init__()
        self.backbone, self.names = backbone, tuple(dict.fromkeys(names))
        self.layout = layout_of(backbone)
        offered = self.layout.names()
        for name in self.names:
            if name not in offered:
                raise UserError(
                    f"{key}: {backbone.spec['name']} has no features called {name!r}; choose from {', '.join(offered)}"
                )

    def only(self, names: Sequence[str]) -> Taps:
        """Some of these taps, without asking the network again."""
        fewer = copy.copy(self)
        fewer.names = tuple(name for name in self.names if name in names)
        return fewer

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of `patches` for images of the backbone's size; None if it has none."""
        return self.layout.grid

    def axes(self, name: str) -> int:
        """Axes of one image's features: 1, or 2 for tokens."""
        return 2 if name in SEQUENCES else 1

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """float [N, C, H, W] -> the features by name; H = W = backbone.size, or what else the network takes."""
        with evaluating(self.backbone), torch.no_grad():
            return self._features(as_weights(self.backbone, images))

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        model: Any = self.backbone.model
        if set(self.names) == {POOLED} or not hasattr(model, "forward_features"):
            pooled = model(images)
            return {name: pooled if name == POOLED else pooled[:, None] for name in self.names}
        numbers = self._numbers()
        if numbers:
            final, found = _intermediates(model, images, numbers, self.layout.prefixed)
        else:
            final, found = model.forward_features(images), []
        parts = _Parts(self.backbone, self.layout, final, dict(zip(numbers, found, strict=True)))
        made: dict[str, Tensor] = {}
        for name in self.names:
            if name == POOLED:
                made[name] = model.forward_head(final) if self.layout.head else model(images)
            else:
                made[name] = parts.tap(name)
        return made

    def _numbers(self) -> list[int]:
        """The blocks or stages whose output is needed, ascending."""
        numbers = {int(found[2]) for name in self.names if (found := LEVEL.fullmatch(name))}
        if {LAST, LAST_MEAN} & set(self.names):
            numbers |= set(range(self.layout.levels - LAST_BLOCKS, self.layout.levels))
        return sorted(numbers)


class _Parts:
    """One forward pass, from which taps are made. final: what forward_features gives. found: outputs of blocks or stages by number."""

    def __init__(self, backbone: Backbone, layout: TapLayout, final: Any, found: Mapping[int, Any]) -> None:
        self.backbone, self.layout, self.final, self.found = backbone, layout, final, found

    def tap(self, name: str) -> Tensor:
        if level := LEVEL.fullmatch(name):
            found = self.found[int(level[2])]
            return wide(found if isinstance(found, Tensor) else found[0]).flatten(2).mean(2)
        if name in SEQUENCES:
            tokens = self.backbone.as_tokens(self.final)
            return tokens if name == TOKENS or self.final.ndim == 4 else tokens[:, self.layout.prefix :]
        vectors = {CLS: self.cls, MEAN: self.mean, LAST: self.last}
        return torch.cat([vectors[part]() for part in name.split("+")], 1)

    def cls(self) -> Tensor:
        return wide(self._normed(self.final[:, 0]))

    def mean(self) -> Tensor:
        mean = wide(self.final[:, self.layout.prefix :]).mean(1)
        return mean if _late_norm(self.backbone.model) is None else wide(self._normed(mean.to(self.final.dtype)))

    def last(self) -> Tensor:
        norm: Any = self.backbone.model.norm
        numbers = range(self.layout.levels - LAST_BLOCKS, self.layout.levels)
        return torch.cat([wide(self._normed(norm(self.found[number][1][:, 0]))) for number in numbers], 1)

    def _normed(self, vectors: Tensor) -> Tensor:
        late = _late_norm(self.backbone.model)
        return vectors if late is None else late(vectors)


def tap_in_words(name: str) -> str:
    """What a tap is, in a few words for the settings of a result; `Taps` has the whole."""
    if level := LEVEL.fullmatch(name):
        return f"the mean over all places of {level[1]} {level[2]}, before any norm that follows it"
    return " and ".join(_MEANING[part] for part in name.split("+"))


def available_taps(backbone: Backbone) -> tuple[str, ...]:
    """The names of the taps that a network offers: see `Taps`."""
    return layout_of(backbone).names()


def layout_of(backbone: Backbone) -> TapLayout:
    """What the network gives, from forward passes of one image of noise. Raises UserError if it cannot take images of its size."""
    try:
        return _layout_of(backbone)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError) as error:
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"data.size: {backbone.spec['name']} cannot take {backbone.size} px ({told}); take another size, most often a larger one"
        ) from error


def _layout_of(backbone: Backbone) -> TapLayout:
    model: Any = backbone.model
    noise = torch.rand(1, backbone.channels, backbone.size, backbone.size, generator=torch.Generator().manual_seed(0))
    first = next(backbone.parameters(), noise)
    with evaluating(backbone), torch.no_grad():
        image = as_weights(backbone, noise.to(first.device))
        pooled = model(image)
        if not hasattr(model, "forward_features"):
            return TapLayout(final=pooled.ndim == 2)
        final = model.forward_features(image)
        if not isinstance(final, Tensor) or final.ndim not in (2, 3, 4):
            return TapLayout()
        head = hasattr(model, "forward_head") and torch.equal(model.forward_head(final), pooled)
        found, prefixed = _all_intermediates(model, image, final)
        maps = [one if isinstance(one, Tensor) else one[0] for one in found]
        blocks = len(getattr(model, "blocks", ())) == len(maps) and len({one.shape for one in maps}) == 1
        plain = TapLayout(True, head, "block" if maps and blocks else "stage", len(maps), prefixed)
        if final.ndim == 4:
            rows, columns = final.shape[1:3] if backbone.channels_are_last(final) else final.shape[2:]
            return replace(plain, grid=(rows, columns))
        return _of_sequence(model, plain, final, found) if final.ndim == 3 and maps else plain


def _of_sequence(model: Any, plain: TapLayout, final: Tensor, found: Sequence[Any]) -> TapLayout:
    """The layout of a network whose final features are tokens. found: the output of each block for the same image."""
    last = found[-1] if isinstance(found[-1], Tensor) else found[-1][0]
    prefix = final.shape[1] - last.shape[2] * last.shape[3]
    if prefix < 0 or getattr(model, "num_prefix_tokens", prefix) != prefix:
        return plain
    cls = prefix > 0 and getattr(model, "cls_token", None) is not None
    norm = getattr(model, "norm", None)
    norm = norm if isinstance(norm, nn.Module) else nn.Identity()
    # Places are in order if the last block's map, normed or not, gives the very tokens; some networks keep them in another order.
    places = last.flatten(2).mT
    ordered = last.shape[1] == final.shape[2] and any(_close(x, final[:, prefix:]) for x in (places, norm(places)))
    tokens = [one[1] for one in found if not isinstance(one, Tensor)]
    whole = cls and plain.level == "block" and len(tokens) == plain.levels >= LAST_BLOCKS
    reached = whole and tokens[-1].shape[2] == final.shape[2] and _close(norm(tokens[-1][:, 0]), final[:, 0])
    grid = tuple(last.shape[2:]) if ordered else None
    return replace(plain, prefix=prefix, cls=cls, last=reached, grid=grid)


def _all_intermediates(model: Any, image: Tensor, final: Tensor) -> tuple[list[Any], bool]:
    """The outputs of all blocks or stages, and whether they have prefix tokens; none if the network cannot tell them rightly."""
    if not hasattr(model, "forward_intermediates"):
        return [], False
    asked = "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
    try:
        again, found = _intermediates(model, image, None, asked)
    except Exception:  # whatever a network raises that was not made for this: it has no intermediates then
        return [], False
    maps = [one if isinstance(one, Tensor) else one[0] for one in found]
    right = isinstance(again, Tensor) and torch.equal(again, final) and all(one.ndim == 4 for one in maps)
    return (list(found), asked) if right else ([], False)


def _intermediates(model: Any, images: Tensor, numbers: list[int] | None, prefixed: bool) -> tuple[Any, list[Any]]:
    """timm's forward_intermediates: the final features, and of each block or stage its map [N, D, h, w] or (map, prefix tokens)."""
    return model.forward_intermediates(images, indices=numbers, **({"return_prefix_tokens": True} if prefixed else {}))


def _late_norm(model: nn.Module) -> nn.Module | None:
    """The norm that follows pooling, in networks that have no other after their last block."""
    late, norm = getattr(model, "fc_norm", None), getattr(model, "norm", None)
    without = norm is None or isinstance(norm, nn.Identity)
    return late if isinstance(late, nn.Module) and not isinstance(late, nn.Identity) and without else None


def as_weights(backbone: Backbone, images: Tensor) -> Tensor:
    """The images in the precision of the weights; autocast does that by itself."""
    first = next((p for p in backbone.parameters() if p.is_floating_point()), images)
    return images if torch.is_autocast_enabled(images.device.type) else images.to(first.dtype)


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(wide(a), wide(b), rtol=1e-2, atol=1e-3)
