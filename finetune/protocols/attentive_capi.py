"""CAPI's classification probes: attentive pooling of the patches, and linear heads on the class token and on the patches' mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...core.draws import Draws
from ...core.errors import UserError
from ...core.evaluate.head_updates import CAPI_BETAS
from ...core.evaluate.sgd_heads import Head, HeadTraining, train_heads
from ...core.stream.order import straddling
from .attentive_probe import attended
from .candidates import (
    Augment,
    Candidate,
    Length,
    StepFeatures,
    check_candidates,
    fit_candidates,
    how_trained,
    trainer,
)
from .contract import Counts, Fitted, Known
from .room import check_room

CAPI_SECTION = "evaluate.attentive_capi"
ProbeSource = Literal["cls", "avg_patch", "patch"]
TAPS: Mapping[str, str] = {"cls": "cls", "avg_patch": "mean", "patch": "patches"}
# Numbers of one attention head.
HEAD_WIDTH = 64
# Of all weights at the start. CAPI truncates them at +-2, which is 100 deviations away and changes nothing.
INIT_STD = 0.02
# Test images are scored in blocks of this many numbers of tokens (64 MB in float32).
PATCH_NUMBERS = 1 << 24


@dataclass(frozen=True, kw_only=True)
class AttentiveCAPI:
    """CAPI's probes (Darcet et al. 2025, arXiv:2502.08769, eval_classification.py), each source scored on its own: attentive_capi-patch.

    patch: one learned query attends to the patches, with D / 64 heads, linear keys and values with bias, no norm and no projection, then a
    linear layer. cls and avg_patch: a linear layer. All weights from N(0, 0.02), biases 0; AdamW with betas (0.9, 0.95), linear warm-up,
    cosine to 0; the last step counts. Each lr and weight_decay is a candidate; all are trained at once on the same batches. The best on a
    held-out 20 % of the training images is trained anew on all; CAPI tests the one that was trained without its slice of 10 %.
    It expects pictures resized to 256 and cropped to 224 px, bicubic.

    sources: What is read: cls (the class token), avg_patch (the mean of the patches), patch (all patches).
    lr: Learning rates for a batch of 256 images, each above 0; multiplied by batch_size / 256.
    weight_decay: Weight decays, each 0 or more. Biases have none.
    epochs: Passes over the training set, 1 or more; instead of steps. null takes steps.
    steps: Number of steps, 1 or more; not used where epochs are given.
    batch_size: Images in a step, 1 or more; all of them if there are fewer. CAPI has 128 on each GPU; 1024 is that on eight.
    warmup: Part of the steps in which the rate rises linearly from 0, from 0 to below 1.
    augment: crops trains on random crops (0.08 to 1 of the area) and flips of the images, as published; none on the stored features.
    cached_epochs: Epochs of crops whose features are extracted, and kept in the cache on the disk; the training cycles through them. null
        extracts new ones for each epoch, and keeps none.
    """

    sources: tuple[ProbeSource, ...] = ("cls", "avg_patch", "patch")
    lr: tuple[float, ...] = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
    weight_decay: tuple[float, ...] = (5e-4, 1e-3, 5e-2)
    epochs: int | None = None
    steps: int = 12_500
    batch_size: int = 1024
    warmup: float = 0.1
    augment: Augment = "crops"
    cached_epochs: int | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """The taps of the sources."""
        return tuple(TAPS[source] for source in self.sources)

    @property
    def candidates(self) -> list[Candidate]:
        """Every rate with every decay, of each source; ascending."""
        grid = product(self.reads, sorted(set(self.lr)), sorted(set(self.weight_decay)))
        return [Candidate(*one) for one in grid]

    @property
    def length(self) -> Length:
        """How long the training is."""
        return Length(self.epochs, None if self.epochs is not None else self.steps, self.batch_size, self.warmup)

    def each(self) -> Mapping[str, AttentiveCAPI]:
        """One for each source. Raises UserError if there is none."""
        if not self.sources:
            raise UserError(f"{CAPI_SECTION}.sources: an empty list is given; expected some of {', '.join(TAPS)}")
        return {source: replace(self, sources=(source,)) for source in dict.fromkeys(self.sources)}

    @property
    def expects(self) -> str:
        """How CAPI shows images, as `Evaluation.in_words` says it."""
        return "pictures resized to 256 and cropped to 224 px, bicubic"

    def requires(self, name: str, counts: Counts) -> None:
        """Raises UserError for numbers out of range, tokens that 64 doesn't divide, and want of images to choose on or of memory."""
        self.length.check(CAPI_SECTION)
        n = check_candidates(CAPI_SECTION, self.candidates, self.augment, self.cached_epochs, counts)
        for tap in (TAPS[source] for source in self.sources if source != "patch" and TAPS[source] in counts.shapes):
            need = 4 * 4 * (counts.shapes[tap][-1] + 1) * len(counts.classes) * len(self.candidates)
            check_room(CAPI_SECTION, len(self.candidates), need, "give fewer values of lr and weight_decay")
        if "patch" in self.sources and "patches" in counts.shapes:
            length, width = counts.shapes["patches"]
            if width % HEAD_WIDTH:
                raise UserError(
                    f"{CAPI_SECTION}.sources: patches of {width} numbers don't fit heads of {HEAD_WIDTH}; take a network whose width is "
                    f"a multiple of {HEAD_WIDTH}, or leave patch out; evaluate.attentive has heads of other widths"
                )
            need = self.bytes(length, width, len(counts.classes), n)
            remedy = "give fewer values of lr and weight_decay, or a smaller batch_size"
            check_room(CAPI_SECTION, len(self.candidates), need, remedy)

    def bytes(self, length: int, width: int, classes: int, n: int) -> int:
        """Memory of all candidates on patches: parameters, gradients and two moments; then a batch with what its gradients need."""
        numbers = 2 * width**2 + (2 + classes) * width + classes
        seen = width // HEAD_WIDTH * (2 * length + width) + 2 * width
        batch = min(self.batch_size, n)
        return 4 * len(self.candidates) * (4 * numbers + 2 * batch * seen) + 4 * batch * length * width

    def fit(self, train: Known) -> Fitted:
        """Train all candidates of the source, choose, and train the best on all images. Scores are logits, float32 [M, K]."""
        (source,) = self.sources
        fit, options = (
            train_pools if source == "patch" else train_heads,
            {"optimizer": "adamw-0.95", "init_std": INIT_STD},
        )
        make = trainer(train, self.length, self.augment, self.cached_epochs, fit, **options)
        fitted = fit_candidates(CAPI_SECTION, train, self.candidates, make)
        said = {
            **asdict(self),
            "steps": self.length.steps,
            "trained": self.length.described(len(train.labels)),
            "optimizer": f"adamw, betas {list(CAPI_BETAS)}",
            "init_std": INIT_STD,
            **how_trained(fitted, self.expects),
        }
        return fitted._replace(facts={"settings": said})


class Pools(NamedTuple):
    """Attentive poolings with their linear layers, M at once. The bias of the keys is left out: it moves no attention."""

    query: Tensor  # [M, H, 1, E]
    key: Tensor  # [M, H, E, D]
    value: Tensor  # [M, H, E, D]
    weight: Tensor  # [M, K, D]
    value_bias: Tensor  # [M, D]
    bias: Tensor  # [M, K]

    def __call__(self, x: Tensor) -> Tensor:
        """Patches [N, L, D] -> logits [M, N, K]."""
        gathered = attended(self.query, self.key, self.value, x) + self.value_bias[:, None]
        return torch.baddbmm(self.bias[:, None], gathered, self.weight.mT)


class FittedPools(NamedTuple):
    """Trained candidates, as `FittedHeads`. One that diverged has all parameters 0."""

    pools: Pools
    tap: str
    diverged: tuple[bool, ...]

    @torch.no_grad()
    def logits(self, features: Mapping[str, Tensor], numbers: Sequence[int] | None = None) -> Tensor:
        """{tap: [N, L, D]} -> float32 [M, N, K] of all candidates or of some, on the CPU; block by block."""
        x, device = features[self.tap], self.pools.bias.device
        some = Pools(*(part if numbers is None else part[list(numbers)] for part in self.pools))
        blocks = x.split(max(1, PATCH_NUMBERS // max(1, math.prod(x.shape[1:]))))
        return torch.cat([some(block.to(device, torch.float32)).cpu() for block in blocks], 1)

    def scores(self, features: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """How many of N images each candidate has right, int64 [M], and its mean loss; -1 and infinity where it diverged."""
        logits, out = self.logits(features), torch.tensor(self.diverged)
        right = (logits.argmax(2) == labels).sum(1)
        loss = torch.stack([cross_entropy(one, labels) for one in logits]).double()
        return right.masked_fill(out, -1), loss.masked_fill(out, math.inf)


@torch.enable_grad()
def train_pools(
    batch: StepFeatures,
    labels: Tensor,
    num_classes: int,
    heads: Sequence[Head],
    training: HeadTraining,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> FittedPools:
    """Train attentive poolings with the same batches from the same start, each as if alone. See `train_heads`; all read one tap.

    The losses are summed, so each gets its own gradient. A candidate whose loss is not finite is stopped and reported.
    """
    tap = heads[0].tap
    assert training.batch_size is not None
    order = straddling(seed, "heads", len(labels), training.batch_size, training.steps)
    pools, groups, out = None, list[dict[str, Any]](), torch.zeros(len(heads), dtype=torch.bool, device=device)
    optimizer: torch.optim.AdamW | None = None
    for step, places in enumerate(order):
        x = batch(step, places)[tap].to(device, torch.float32)
        if pools is None or optimizer is None:
            parts = [_start(x.shape[2], num_classes, seed, device) for _ in heads]
            for own, head in zip(parts, heads, strict=True):
                groups.append({"params": own[:4], "peak": head.lr, "weight_decay": head.weight_decay})
                groups.append({"params": own[4:], "peak": head.lr, "weight_decay": 0.0})
            optimizer = torch.optim.AdamW(groups, lr=0.0, betas=CAPI_BETAS)
            pools = parts
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * training.rate(step)
        target = labels[places].to(device)
        found = Pools(*map(torch.stack, zip(*pools, strict=True)))(x)
        losses = torch.stack([cross_entropy(one, target) for one in found])
        out |= ~losses.detach().isfinite()
        optimizer.zero_grad(set_to_none=True)
        losses[~out].sum().backward()
        optimizer.step()
    assert pools is not None
    stacked = Pools(*(torch.stack([part.detach() for part in kind]) for kind in zip(*pools, strict=True)))
    for part in stacked:
        out |= ~part.isfinite().flatten(1).all(1)
    for part in stacked:
        part[out] = 0.0
    return FittedPools(stacked, tap, tuple(out.tolist()))


def _start(width: int, num_classes: int, seed: int, device: torch.device | str) -> list[torch.nn.Parameter]:
    """The parameters of one candidate, in the order of Pools; the biases, which have no weight decay, are the last two."""
    draws, heads = Draws(seed, torch.zeros(1, dtype=torch.int64), "capi/"), width // HEAD_WIDTH
    shapes = {
        "query": (heads, 1, HEAD_WIDTH),
        "key": (heads, HEAD_WIDTH, width),
        "value": (heads, HEAD_WIDTH, width),
        "weight": (num_classes, width),
    }
    parts = [INIT_STD * draws.normal(name, *shape)[0] for name, shape in shapes.items()]
    return [torch.nn.Parameter(part.to(device)) for part in [*parts, torch.zeros(width), torch.zeros(num_classes)]]
