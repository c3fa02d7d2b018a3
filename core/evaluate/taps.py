"""A stand-in until the real one comes."""

from collections.abc import Iterable

import torch

from ..model.backbone import Backbone
from .features import evaluating


def layer_taps(model: Backbone) -> tuple[str, ...]:
    return ()


def shapes_of(model: Backbone, taps: Iterable[str], key: str) -> dict[str, tuple[int, ...]]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with evaluating(model), torch.inference_mode():
        x = torch.zeros(1, model.channels, model.size, model.size, device=device)
        return {t: tuple((model.tokens(x) if t == "tokens" else model(x)).shape[1:]) for t in taps}
