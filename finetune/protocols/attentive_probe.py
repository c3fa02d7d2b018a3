"""The attentive probe's network: learned queries attend to the tokens, and a linear layer reads the result."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from ...core.draws import Draws


class Probe(nn.Module):
    """One candidate, as in AIM (El-Nouby et al. 2024, arXiv:2401.08541): queries, attention over tokens, mean of queries, linear layer.

    Tokens are standardised, where AIM and CAE have BatchNorm without scale and shift. A LayerNorm, also without (the linear layer would
    absorb them), precedes the linear layer, so the scale of values is free. V-JEPA (Bardes et al. 2024, arXiv:2404.08471) has a whole block
    instead, with an MLP of 8 D^2 parameters; this probe stays small. Initialisation: queries N(0, 0.02^2) as in both, so that the probe
    starts as the mean of the tokens; keys and values U(+-1/sqrt(D)) without bias; linear layer 0.
    """

    def __init__(self, width: int, num_classes: int, heads: int, queries: int, seed: int) -> None:
        super().__init__()
        draws, each = Draws(seed, torch.zeros(1, dtype=torch.int64), "attentive/"), width // heads
        bound = 1 / math.sqrt(width)
        self.query = nn.Parameter(0.02 * draws.normal("query", heads, queries, each)[0])
        self.key = nn.Parameter(draws.uniform("key", heads, each, width, low=-bound, high=bound)[0])
        self.value = nn.Parameter(draws.uniform("value", heads, each, width, low=-bound, high=bound)[0])
        self.weight = nn.Parameter(torch.zeros(num_classes, width))
        self.bias = nn.Parameter(torch.zeros(num_classes))


def probe_logits(probes: Sequence[Probe], x: Tensor) -> Tensor:
    """Logits of C probes, [C, N, K], for standardised tokens [N, L, D].

    Keys and values of tokens are not computed: q . (W x) = (W^T q) . x, and a mean of W x is W times the mean. This is the same function
    for D / (heads * queries) times less work, and all candidates read the tokens in one matrix product.
    """
    query, key, value, weight, bias = (
        torch.stack([getattr(probe, name) for probe in probes]) for name in ("query", "key", "value", "weight", "bias")
    )
    gathered = attended(query, key, value, x)
    return torch.baddbmm(bias[:, None], layer_norm(gathered, [x.shape[2]]), weight.mT)


def attended(query: Tensor, key: Tensor, value: Tensor, x: Tensor) -> Tensor:
    """What the queries of C probes see in tokens [N, L, D]: the mean over queries, all heads side by side, [C, N, D].

    query: [C, H, Q, E]; key, value: [C, H, E, D], with E = D / H.
    """
    n, length, width = x.shape
    c, heads, queries, each = query.shape
    asked = (query @ key / math.sqrt(each)).reshape(-1, width)  # [C * H * Q, D]
    attention = (asked @ x.mT).softmax(2).view(n, c * heads, queries, length).mean(2)
    seen = (attention @ x).view(n, c, heads, width)
    return torch.einsum("nchd,ched->cnhe", seen, value).flatten(2)
