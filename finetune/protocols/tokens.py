"""Tokens of frozen backbones, kept in memory: extracted once, and refused before extraction if they would not fit.

They take L times the memory of features, so they are stored in float16, which is precise enough for a probe, or in float32 if a
backbone's numbers exceed its range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ...core import hostmemory
from ...core.distributed import all_reduce_min
from ...core.errors import UserError
from ...core.evaluate.features import evaluating, extract
from ...core.images.damage import read_or_neighbour
from ...core.images.open import Images
from ...core.model.backbone import Backbone
from ...core.views.view import Evaluation
from .attentive import Attentive

# Rows that are checked at once for numbers that are not finite.
ROWS_PER_CHECK = 4096


class Tokens(nn.Module):
    """A backbone whose output is its tokens, [N, C, H, W] -> [N, L, D]."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone.tokens(images)


def extract_tokens(
    backbone: Backbone,
    sets: Sequence[Images],
    view: Evaluation,
    training: Attentive,
    *,
    device: torch.device,
    workers: int,
    log: Callable[[str], None],
) -> list[Tensor]:
    """The tokens of each set, float16 or float32 [N, L, D] on the CPU of every process; the first set is the training set.

    Raises UserError on all processes and before extraction if tokens and probe need more than half of any process's free memory, or if
    heads do not divide D; and for tokens that are not finite.
    """
    channels, classes = read_or_neighbour(sets[0], 0)[0].shape[0], sets[0].classes or ()
    with evaluating(backbone), torch.inference_mode():
        one = backbone.tokens(torch.zeros(1, channels, backbone.size, backbone.size, device=device))
    training.heads_of(one.shape[2])
    beside = training.bytes(one.shape[2], len(classes))
    for dtype in (torch.float16, torch.float32):
        _check_room(sum(map(len, sets)), one, dtype, beside, log)
        tokens = [
            extract(Tokens(backbone), images, view, device=device, workers=workers, axes=2, dtype=dtype)
            for images in sets
        ]
        # What a backbone returned is finite, since `extract` refuses the rest; in float16 it may not be.
        if dtype == torch.float32 or all(_finite(found) for found in tokens):
            return tokens
        log("attentive probe: some tokens exceed float16; they are extracted again in float32")
    raise AssertionError("unreachable")


def _finite(tokens: Tensor) -> bool:
    return all(bool(part.isfinite().all()) for part in tokens.split(ROWS_PER_CHECK))


def _check_room(n: int, one: Tensor, dtype: torch.dtype, beside: int, log: Callable[[str], None]) -> None:
    """Log how much memory the tokens take. Raises UserError if they and the probe take more than half of the free memory.

    one: the tokens of one image, [1, L, D]. beside: bytes of the probe.
    """
    _, length, width = one.shape
    name = str(dtype).removeprefix("torch.")
    need = n * length * width * dtype.itemsize
    log(f"attentive probe: {length} tokens of {width} numbers for {n} images, {_size(need)} in {name}")
    free = hostmemory.available()
    # All processes must refuse together; otherwise the others would wait for one that stopped.
    least = int(all_reduce_min(torch.tensor(-1 if free is None else free, device=one.device)))
    if least >= 0 and need + beside > least / 2:
        raise UserError(
            f"evaluate.attentive: {length} x {width} tokens of {n} images take {_size(need)} in {name} and the probe {_size(beside)}, "
            f"more than half of the {_size(least)} of memory that each process has left; probe on a slice of the training set, "
            "for example data.train: URI#[:10%,seed=0], or leave evaluate.attentive out"
        )


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
