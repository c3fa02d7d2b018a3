"""What the tokens of a ViT attend to: attention rollout, and attention weighted by the gradient of a logit.

timm's blocks compute attention in one fused kernel, which keeps no matrix. `fused_attn`, the switch that timm's own forward asks, is off
while matrices are read, and is then what it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.evaluate.taps import layout_of
from ...core.model.classifier import Classifier

# How timm pools tokens: the class token alone, or the mean of the patches.
CLASS_TOKEN, MEAN_OF_PATCHES = "token", "avg"


class AttentionOfTokens(NamedTuple):
    """Where a ViT's attention is read. layers: of each block; prefix: tokens before the patches; grid: rows and columns of the patches.

    by_class_token: whether features are the class token; else they are the mean of the patches.
    """

    layers: list[Any]
    prefix: int
    grid: tuple[int, int]
    by_class_token: bool

    @property
    def tokens(self) -> int:
        return self.prefix + self.grid[0] * self.grid[1]

    def read_out(self, whole: Tensor) -> Tensor:
        """From relevance of tokens for tokens [N, T, T], that of the patches for what is pooled, [N, h, w]."""
        rows = whole[:, 0] if self.by_class_token else whole[:, self.prefix :].mean(1)
        return rows[:, self.prefix :].unflatten(1, self.grid)


def attention_rollout(classifier: Classifier, images: Tensor, own: AttentionOfTokens) -> Tensor:
    """The product over blocks of (mean over heads + identity) / 2, from the pooled token to the patches, [N, h, w].

    Abnar & Zuidema 2020, arXiv:2005.00928, eq. 1. The same for every class.
    """
    with torch.no_grad():
        matrices, _ = attention_matrices(classifier, images, own)
        identity = torch.eye(own.tokens).to(matrices[0])
        whole = identity.expand(len(images), -1, -1)
        for matrix in matrices:
            whole = (matrix.mean(1) + identity) / 2 @ whole
    return own.read_out(whole)


def gradient_attention(classifier: Classifier, images: Tensor, target: Tensor, own: AttentionOfTokens) -> Tensor:
    """Relevance of the patches for a class, [N, h, w]: R <- R + mean over heads of (gradient x attention)^+ R, from the identity.

    Chefer, Gur & Wolf 2021, arXiv:2103.15679, eq. 5 and 6 (self-attention alone). target: int64 [N], numbers of outputs.
    """
    with torch.enable_grad():
        matrices, logits = attention_matrices(classifier, images.detach().clone().requires_grad_(), own)
        slopes = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), matrices)
    whole = torch.eye(own.tokens).to(logits.detach()).expand(len(images), -1, -1)
    for matrix, slope in zip(matrices, slopes, strict=True):
        whole = whole + (matrix.detach() * slope).clamp(min=0).mean(1) @ whole
    return own.read_out(whole)


def attention_matrices(classifier: Classifier, images: Tensor, own: AttentionOfTokens) -> tuple[list[Tensor], Tensor]:
    """The attention of each block after its softmax, [N, heads, T, T] each, and the logits [N, K].

    Raises UserError for a network whose blocks have no attention of all tokens to all tokens.
    """
    kept = list[Tensor]()

    def keep(module: Any, given: Any, output: Tensor) -> None:
        kept.append(output)

    hooks = [layer.attn_drop.register_forward_hook(keep) for layer in own.layers]
    try:
        with unfused(own.layers):
            logits = classifier(images)
    finally:
        for hook in hooks:
            hook.remove()
    square = (own.tokens, own.tokens)
    if len(kept) != len(own.layers) or any(one.ndim != 4 or one.shape[2:] != square for one in kept):
        raise UserError(_refusal(classifier))
    return kept, logits


def attention_of(classifier: Classifier) -> AttentionOfTokens:
    """Where the attention of a ViT is read. Raises UserError for other networks."""
    layout, model = layout_of(classifier.backbone), classifier.backbone.model
    blocks: Any = getattr(model, "blocks", ()) if layout.level == "block" else ()
    layers: list[Any] = [getattr(block, "attn", None) for block in blocks]
    right = layers and all(hasattr(one, "fused_attn") and isinstance(one.attn_drop, nn.Module) for one in layers)
    if not right or layout.prefix is None or layout.grid is None:
        raise UserError(_refusal(classifier))
    pooling = getattr(model, "global_pool", None)
    if pooling not in (CLASS_TOKEN, MEAN_OF_PATCHES):
        raise UserError(
            f"{classifier.backbone.spec['name']} pools its tokens neither by a class token nor by their mean, so no token's attention is "
            "that of its features; take other methods, such as --method grad-cam"
        )
    return AttentionOfTokens(layers, layout.prefix, layout.grid, pooling == CLASS_TOKEN)


def _refusal(classifier: Classifier) -> str:
    return (
        f"{classifier.backbone.spec['name']} has no attention of all its tokens to each other in every block, which attention maps need; "
        "take other methods, such as --method grad-cam"
    )


@contextmanager
def unfused(layers: list[Any]) -> Iterator[None]:
    """Within it, the layers compute attention step by step, as timm does where its fused kernel is off."""
    before = [layer.fused_attn for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False
        yield
    finally:
        for layer, fused in zip(layers, before, strict=True):
            layer.fused_attn = fused
