"""Parts of methods that compare images with prototypes: the head, the centre, Sinkhorn-Knopp, and the loss over pairs of crops.

DINO, iBOT and DINOv2 use all of it, SwAV all except the head. Functions that need sums over processes take them as an argument.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.checks import MOST_LAYERS, check_count
from ...core.errors import UserError
from ...core.numerics import wide
from .heads import project

Reduce = Callable[[Tensor], Tensor]


def no_reduction(local: Tensor) -> Tensor:
    """The sum over processes if there is only one: the input itself."""
    return local


class PrototypeHead(nn.Module):
    """DINO's projection head (Caron et al. 2021, arXiv:2104.14294, section 3.1 and appendix C): [..., D] -> [..., K] cosines.

    An MLP with GELU maps to a bottleneck, which is scaled to length 1 and multiplied with `prototypes` directions of length 1. These are
    the rows of a weight, normalised in each forward: the official norm_last_layer=True, where lengths are not learned.

    layers: linear layers of the MLP, the one to the bottleneck included. norm: BatchNorm after its hidden layers; x must then be
    [V, N, D]. Raises UserError for sizes that make no head.
    """

    def __init__(
        self,
        width_in: int,
        *,
        prototypes: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        norm: bool = False,
    ) -> None:
        super().__init__()
        sizes = {
            "prototypes": (prototypes, 2),
            "hidden": (hidden, 1),
            "bottleneck": (bottleneck, 2),
        }
        check_count("layers", layers, 1, MOST_LAYERS)
        for key, (given, least) in sizes.items():
            if given < least:
                raise UserError(f"method.{key}: expected {least} or more, got {given}")
        steps: list[nn.Module] = []
        width = width_in
        for _ in range(layers - 1):
            steps += [nn.Linear(width, hidden), *([nn.BatchNorm1d(hidden)] if norm else []), nn.GELU()]
            width = hidden
        self.mlp = nn.Sequential(*steps, nn.Linear(width, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        # Initialised like the official linear layer. The forward ignores the rows' lengths, but they set how far a step turns them.
        self.weight = nn.Parameter(nn.Linear(bottleneck, prototypes, bias=False).weight.detach())
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> logits [..., K] in -1..1."""
        return self.compare(self.embed(x))

    def embed(self, x: Tensor) -> Tensor:
        """[..., D] -> the bottleneck, [..., bottleneck], of length 1."""
        z = project(self.mlp, x) if self.norm else self.mlp(x)
        return F.normalize(wide(z), dim=-1)

    def compare(self, z: Tensor) -> Tensor:
        """Cosines of the bottleneck [..., bottleneck] with every prototype, [..., K], in the run's precision."""
        return F.linear(z, F.normalize(self.weight, dim=-1))


@torch.no_grad()
def center_update(center: Tensor, teacher_logits: Tensor, momentum: float, reduce: Reduce = no_reduction) -> Tensor:
    """The centre's next value, m c + (1 - m) times the mean logits (Caron et al. 2021, arXiv:2104.14294, eq. 4).

    center: [K]. teacher_logits: [..., K] of this process. reduce: sums tensors over processes, so that the mean is over all of them.
    """
    rows = teacher_logits.flatten(0, -2).to(torch.promote_types(teacher_logits.dtype, center.dtype))
    total = reduce(torch.cat([rows.sum(0), rows.new_full((1,), len(rows))]))
    mean = total[:-1] / total[-1]
    return center * momentum + mean.to(center.dtype) * (1.0 - momentum)


@torch.no_grad()
def sinkhorn(
    logits: Tensor,
    temperature: float | Tensor,
    iterations: int = 3,
    reduce: Reduce = no_reduction,
    counted: Tensor | None = None,
) -> Tensor:
    """Assignments that use every prototype equally (Cuturi 2013, arXiv:1306.0895; Caron et al. 2020, arXiv:2006.09882, eq. 3-5).

    Each of `iterations` scales Q = exp(logits / temperature) twice: first so that each prototype gets the same share of all samples, then
    so that each sample's row sums to 1.

    logits: [..., N, K] of this process's N samples; each leading index is a problem of its own. reduce: sums tensors over processes (K
    numbers an iteration, K + 1 once), so that shares are over all processes' samples; N may differ between processes. counted: bool
    [..., N], the samples that count for the shares (all by default); the others are assigned only. Returns probabilities [..., N, K].
    Raises ValueError for less than one iteration.
    """
    if iterations < 1:
        raise ValueError(f"sinkhorn needs at least one iteration, got {iterations}")
    with torch.autocast(logits.device.type, enabled=False):
        x = wide(logits) / temperature
        # Subtracting one number per prototype changes nothing, as the first scaling cancels it, but keeps exponentials in range.
        # We subtract the mean over processes of the largest logit, since that needs only a sum. At least one term is then 1 or more,
        # and none exceeds exp(88) unless processes differ by 88 temperatures (cosines cannot from a temperature of 0.023 on).
        largest = x.amax(-2)
        shift = reduce(torch.cat([largest, torch.ones_like(largest[..., :1])], -1))
        x = x - (shift[..., :-1] / shift[..., -1:]).unsqueeze(-2)
        for _ in range(iterations):
            mass = x.exp() if counted is None else x.exp() * counted[..., None]
            x = (x - reduce(mass.sum(-2)).log().unsqueeze(-2)).log_softmax(-1)
        return x.exp()


def cross_entropy(targets: Tensor, logits: Tensor, temperature: float | Tensor) -> Tensor:
    """-sum_k q_k log softmax(logits / temperature)_k. targets: probabilities [..., K]; logits: [..., K]. Returns [...]."""
    with torch.autocast(logits.device.type, enabled=False):
        return -(wide(targets) * F.log_softmax(wide(logits) / temperature, dim=-1)).sum(-1)


def crops_loss(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """The mean of H(q_t, p_s) over all pairs of a target t and another crop s, and over images (DINO, eq. 3; SwAV, section 3.3).

    targets: probabilities [V, N, K] of the whole views. logits: [V + L, N, K] of all crops, the same whole views first.
    Returns a scalar. Raises ValueError if there is no pair.
    """
    v, s = len(targets), len(logits)
    if s < 2 or s < v:
        raise ValueError(f"crops_loss needs two crops or more, the targets' among them; got {s} for {v} targets")
    with torch.autocast(logits.device.type, enabled=False):
        q, x = wide(targets), wide(logits) / temperature
        # H(q, p) = logsumexp(x) - q.x, and the sum over s of q_t.x_s is one product with the sum: no [V, V + L, N, K] is made.
        lse = x.logsumexp(-1)  # [V + L, N]
        others = lse.sum(0) - lse[:v] - (q * (x.sum(0) - x[:v])).sum(-1)  # [V, N]
        return others.sum(0).mean() / (v * (s - 1))


@torch.no_grad()
def assignment_metrics(targets: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """Scalars for `Step.metrics` that show whether targets collapse to one prototype or to all evenly (DINO, section 5.3 and figure 7).

    targets: probabilities [..., K] of this process. loss: the mean cross-entropy with them. Returned:
    target_entropy: mean entropy of a target in nats; at ln K it carries no information about its image.
    target_kl: mean divergence of predictions from targets.
    prototypes_used: exp of the entropy of the mean target, in 1..K; near 1 every image gets the same prototype.
    """
    q = targets.flatten(0, -2).float()
    entropy = torch.special.entr(q).sum(-1).mean()
    used = torch.special.entr(q.mean(0)).sum().exp()
    return {"target_entropy": entropy, "target_kl": loss.detach() - entropy, "prototypes_used": used}
