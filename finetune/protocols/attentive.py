"""An attentive probe of frozen tokens: learned queries attend to the tokens, and a linear classifier reads the result.

After masked image modeling the useful patches have to be found, so probes of pooled features underrate it (Chen et al. 2022, CAE,
arXiv:2202.03026). Learning rates and weight decays are candidates that are trained at once on the same batches, and a held-out slice of
the *training* set chooses among them. V-JEPA 2 (arXiv:2506.09985) also trains its probes at once, and reports the best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...core.checks import LARGEST_RATE
from ...core.errors import UserError
from ...core.evaluate.held_out import held_out_rows, nothing_to_choose_on
from ...core.stream.order import straddling
from ...core.train.schedules import cosine
from .attentive_probe import Probe, probe_logits
from .candidates import CHOSEN_ON, MOST
from .contract import Counts, Fitted, Known
from .room import check_room

# Number of heads by default, if the width of the tokens is a multiple of it.
MAX_HEADS = 8
# A channel's deviation is taken as at least this fraction of the channels' root mean square, so that dead channels are not amplified.
SCALE_FLOOR = 0.01
# Tokens are processed in blocks of this many numbers (64 MB in float32).
TOKEN_BLOCK = 1 << 24
# A candidate whose training diverged gives no numbers for any image, so a few are enough to see it.
ROWS_LOOKED_AT = 64


@dataclass(frozen=True, kw_only=True)
class Attentive:
    """How the attentive probe is trained: AdamW with a cosine to 0; each pair of lr and weight_decay is a candidate.

    epochs: Passes over the training set, 1 or more.
    lr: Learning rate at the start, above 0, or a list of them to choose from. V-JEPA uses 1e-3 for 20 epochs of ImageNet; sets of some
        thousand images give fewer steps and need higher ones.
    weight_decay: Weight decay, 0 or more, or a list of them to choose from. Queries and biases have none.
    heads: Number of attention heads, which must divide the width of a token; null takes 8, or the largest number that divides both.
    queries: Number of learned queries, 1 or more, whose results are averaged.
    batch_size: Images in a step, 1 or more; all of them if there are fewer.
    """

    epochs: int = 50
    lr: float | tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    weight_decay: float | tuple[float, ...] = 0.1
    heads: int | None = None
    queries: int = 1
    batch_size: int = 128

    @property
    def reads(self) -> tuple[str, ...]:
        """All tokens."""
        return ("tokens",)

    def requires(self, name: str, counts: Counts) -> None:
        """Raises UserError for want of images to choose on, of memory, or of heads that divide a token."""
        if "tokens" in counts.shapes:
            width = counts.shapes["tokens"][-1]
            self.heads_of(width)
            need = self.bytes(width, len(counts.classes))
            remedy = "give fewer values of lr and weight_decay, or fewer queries"
            check_room("evaluate.attentive", len(self.grid), need, remedy)
        check_attentive(self, counts.units, counts.labels)

    def fit(self, train: Known) -> Fitted:
        """Train all candidates on 80 % of the images, choose on the rest, and train the best on all."""
        classes = len(train.classes)
        model = fit_choosing(
            train.features["tokens"], train.labels, train.units, classes, self, train.seed, train.device
        )
        rate, decay = model.grid[0]
        chosen = {"lr": rate, "weight_decay": decay} if model.selected else {}
        width = train.features["tokens"].shape[2]
        settings = {
            **asdict(self),
            "heads": self.heads_of(width),
            "scale": "tokens standardised by the training images; a LayerNorm before the linear layer",
            "optimizer": "adamw, betas [0.9, 0.999]",
            "rate": "lr, cosine to 0 in every step, no warm-up",
            "init": "queries N(0, 0.02), keys and values U(+-1/sqrt(D)), linear layer 0",
            "augment": "none",
            "iterate": "last",
            "chosen": CHOSEN_ON if chosen else "nothing",
        }
        return Fitted(
            lambda features: model.logits(features["tokens"])[0],
            "logits",
            chosen,
            model.tried,
            facts={"settings": settings},
            held_out=model.held_out,
        )

    def __post_init__(self) -> None:
        """Raises UserError for numbers out of range."""
        for key in ("epochs", "heads", "queries", "batch_size"):
            if (value := getattr(self, key)) is not None and not 1 <= value <= MOST:
                raise UserError(f"evaluate.attentive.{key}: expected 1 to {MOST:,}, got {value}")
        for key, low in (("lr", "above 0"), ("weight_decay", "of 0 or more")):
            values = _several(getattr(self, key))
            if not values or not all(0 <= v <= LARGEST_RATE and (v > 0 or key != "lr") for v in values):
                raise UserError(
                    f"evaluate.attentive.{key}: expected one or more finite numbers {low}, at most {LARGEST_RATE:g}, got {values}"
                )

    @property
    def grid(self) -> list[tuple[float, float]]:
        """(learning rate, weight decay) of each candidate, ascending."""
        return sorted(set(product(_several(self.lr), _several(self.weight_decay))))

    def heads_of(self, width: int) -> int:
        """The number of heads for tokens of `width` numbers. Raises UserError if it does not divide them."""
        heads = self.heads or math.gcd(width, MAX_HEADS)
        if width % heads:
            raise UserError(
                f"evaluate.attentive.heads: {heads} do not divide the {width} numbers of a token; leave heads out, "
                f"or take one of {', '.join(str(h) for h in range(1, 33) if width % h == 0)}"
            )
        return heads

    def bytes(self, width: int, num_classes: int) -> int:
        """Memory of all candidates during training: parameters, gradients, AdamW's two moments and a copy, in float32."""
        numbers = 2 * width**2 + (self.queries + num_classes) * width + num_classes
        return len(self.grid) * numbers * 5 * 4


def _several(values: float | Sequence[float]) -> list[float]:
    return [float(value) for value in ([values] if isinstance(values, int | float) else values)]


class FittedProbes(NamedTuple):
    """Trained candidates, with the mean and scale that standardise tokens."""

    probes: list[Probe]
    grid: list[tuple[float, float]]  # (learning rate, weight decay) of each
    mean: Tensor  # [D]
    scale: Tensor  # [D]
    selected: bool  # the one candidate was chosen on a held-out slice
    tried: tuple[dict[str, float], ...] = ()  # every candidate with its score there
    held_out: tuple[Tensor, Tensor] | None = None  # the best one's logits there before the refit, and the labels

    @torch.no_grad()
    def logits(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """Tokens [M, L, D] on the CPU, or their `rows` only -> float32 [C, M, K] on the CPU."""
        rows = torch.arange(len(tokens)) if rows is None else rows
        parts = [probe_logits(self.probes, self.standard(tokens, some)).cpu() for some in _blocks(tokens, rows)]
        return torch.cat(parts, 1)

    def predict(self, tokens: Tensor) -> Tensor:
        """Classes by the first candidate, int64 [M]."""
        return self.logits(tokens)[0].argmax(1)

    def standard(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Standardised tokens of `rows`, int64 [M]: float32 [M, L, D] on the device."""
        # In place: allocating memory in each step would take longer than the arithmetic.
        return tokens[rows].to(self.mean.device, torch.float32).sub_(self.mean).div_(self.scale)


def fit_choosing(
    tokens: Tensor,
    labels: Tensor,
    keys: Tensor,
    num_classes: int,
    training: Attentive,
    seed: int,
    device: torch.device | str = "cpu",
) -> FittedProbes:
    """Train all candidates on 80 % of the training set, choose the best on the rest, and train it anew on the whole set.

    tokens: float16 or float32 [N, L, D] on the CPU; labels: int64 [N] in 0..num_classes-1; keys: int64 [N], identities.
    device: where the training happens.
    Best means most held-out images right, then lowest held-out loss. With one candidate nothing is held out.
    Raises UserError if no class has two identities to choose on, if heads do not divide D, and for labels out of range.
    """
    if tokens.ndim != 3 or labels.shape != (len(tokens),):
        raise ValueError(
            f"expected tokens [N, L, D] and labels [N], got {tuple(tokens.shape)} and {tuple(labels.shape)}"
        )
    labels = labels.detach().cpu().long()
    if len(labels) == 0 or int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise UserError(
            f"evaluate.attentive: needs training images of classes 0..{num_classes - 1}, each labelled with one of them"
        )
    grid, everything = training.grid, torch.arange(len(tokens))
    if len(grid) == 1:
        return _finite(_train(tokens, labels, everything, num_classes, training, grid, seed, device), tokens)
    check_attentive(training, keys, labels)
    held_out = held_out_rows(keys, labels, seed=seed)
    inner, outer = (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
    tried = _train(tokens, labels, inner, num_classes, training, grid, seed, device)
    scores, logits = [], tried.logits(tokens, outer)
    for found in logits:
        loss = float(cross_entropy(found, labels[outer]))
        right = int((found.argmax(1) == labels[outer]).sum()) if math.isfinite(loss) else -1
        scores.append((right, -loss if math.isfinite(loss) else -math.inf))
    best = scores.index(max(scores))
    _refuse_diverged(grid, all(right < 0 for right, _ in scores))
    told = tuple(
        {"lr": rate, "weight_decay": decay, "accuracy": max(right, 0) / len(outer)}
        | ({"diverged": True} if right < 0 else {})
        for (rate, decay), (right, _) in zip(grid, scores, strict=True)
    )
    model = _finite(_train(tokens, labels, everything, num_classes, training, [grid[best]], seed, device), tokens)
    return model._replace(selected=True, tried=told, held_out=(logits[best], labels[outer]))


def _finite(model: FittedProbes, tokens: Tensor) -> FittedProbes:
    """The trained candidate. Raises UserError if it gives no numbers for some of its own training images."""
    _refuse_diverged(
        model.grid, not bool(model.logits(tokens, torch.arange(min(len(tokens), ROWS_LOOKED_AT))).isfinite().all())
    )
    return model


def _refuse_diverged(grid: Sequence[tuple[float, float]], diverged: bool) -> None:
    if diverged:
        rate, decay = grid[0]
        raise UserError(
            f"evaluate.attentive: the training diverged at lr = {rate:g} and weight_decay = {decay:g}; give lower values"
        )


def check_attentive(training: Attentive, keys: Tensor, labels: Tensor) -> None:
    """Raises UserError if there is something to choose and nothing to choose on. keys, labels: int64 [N]."""
    if len(training.grid) > 1 and nothing_to_choose_on(keys, labels):
        raise UserError(
            "evaluate.attentive: no class has two different training images to choose on; give a single lr and weight_decay"
        )


@torch.enable_grad()
def _train(
    tokens: Tensor,
    labels: Tensor,
    rows: Tensor,
    num_classes: int,
    training: Attentive,
    grid: Sequence[tuple[float, float]],
    seed: int,
    device: torch.device | str,
) -> FittedProbes:
    """Train every candidate on `rows` of the training set, with the same batches from the same start: AdamW with a cosine to 0.

    The losses are summed, so each candidate gets its own gradient. Queries and biases have no weight decay, as is usual for vectors.
    """
    width = tokens.shape[2]
    heads = training.heads_of(width)
    probes = [Probe(width, num_classes, heads, training.queries, seed).to(device) for _ in grid]
    fitted = FittedProbes(probes, list(grid), *_moments(tokens, rows, device), selected=False)
    groups = []
    for probe, (lr, decay) in zip(probes, grid, strict=True):
        matrices, vectors = [probe.key, probe.value, probe.weight], [probe.query, probe.bias]
        groups.append({"params": matrices, "lr": lr, "peak": lr, "weight_decay": decay})
        groups.append({"params": vectors, "lr": lr, "peak": lr, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups)
    batch_size = min(training.batch_size, len(rows))
    steps = math.ceil(training.epochs * len(rows) / batch_size)
    for step, places in enumerate(straddling(seed, "attentive", len(rows), batch_size, steps)):
        few = rows[places]
        for group in optimizer.param_groups:
            group["lr"] = cosine(group["peak"], 0.0, step / steps)
        found = probe_logits(probes, fitted.standard(tokens, few))
        target = labels[few].to(device).expand(len(probes), -1)
        optimizer.zero_grad(set_to_none=True)
        (cross_entropy(found.flatten(0, 1), target.flatten()) * len(probes)).backward()
        optimizer.step()
    return fitted


def _moments(tokens: Tensor, rows: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over images and tokens, float32 [D] on the device; summed in float64."""
    count, width = len(rows) * tokens.shape[1], tokens.shape[2]
    total, square = (torch.zeros(width, dtype=torch.float64, device=device) for _ in range(2))
    for some in _blocks(tokens, rows):
        total += tokens[some].to(device, torch.float64).sum((0, 1))
    mean = total / count
    for some in _blocks(tokens, rows):
        square += (tokens[some].to(device, torch.float64) - mean).square().sum((0, 1))
    variance = square / count
    scale = variance.sqrt().clamp(min=SCALE_FLOOR * float(variance.mean().sqrt()))
    return mean.float(), torch.where(scale > 0, scale, 1.0).float()


def _blocks(tokens: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """`rows` in blocks of at most TOKEN_BLOCK numbers of tokens."""
    return rows.split(max(1, TOKEN_BLOCK // max(1, math.prod(tokens.shape[1:]))))
