"""MIC: the student predicts a target image of which most is masked, as a teacher predicts the whole one (Hoyer et al. 2023,
arXiv:2212.01322). A term beside the loss of any method, which knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.checks import check_count, check_fraction, check_not_negative
from ...core.draws import Draws
from ...core.errors import UserError
from ...core.method import AdaptMethod, Domains, Overview, Step, Unlabelled
from ...core.model.domains import TARGET
from ...core.model.ema import follow, teacher_of
from ...core.numerics import wide
from ...core.views.colour import constant, draw_jitter, recolour
from ...core.views.view import normalise
from .resampling import target_weights, weighted

if TYPE_CHECKING:
    from ...core.model.classifier import Classifier

MOST_CELLS = 256  # a side
JITTER_P, BLUR_P, SIGMA = 0.8, 0.5, (0.15, 1.15)  # of the authors' code; sigma in pixels
CARRIED = (
    "rows_per_position", "couples_samples", "takes_chunk", "turns", "constant_rate", "keeps_head", "extra_outputs", "resamples",
    "source_views", "target_views", "refresh_every",
)  # fmt: skip


def mic_options(
    *,
    weight: float = 1.0,
    ratio: float = 0.7,
    grid: int = 4,
    momentum: float = 0.9,
    quality: Literal["probability", "none"] = "probability",
    jitter: float = 0.2,
    blur: bool = True,
) -> None:
    """The term of masked image consistency (MIC), for every method: method.mic={} has the paper's constants.

    weight: Weight of the term beside the method's loss, 0 or more; 1 in the paper. 0 is the control: all forwards stay.
    ratio: Share of the cells that are masked, 0 to 1; each cell is drawn by itself.
    grid: Cells along each side of an image, 1 to 256; 4 is what the authors' blocks of 64 px make of 224 px.
    momentum: Momentum of the teacher's moving average, 0 to 1; after step i at most 1 - 1 / (i + 1). 0.9 for VisDA and Office-Home.
    quality: How much an image counts: the teacher's probability of its class, or none, all alike (the authors' choice for ResNets).
    jitter: Strength of colour jitter of the masked image, 0 to 0.5, with probability 0.8; 0 is off.
    blur: Whether the masked image is blurred, with probability 1/2.
    """


class MaskedConsistency(AdaptMethod):
    """A method, and MIC's term beside its loss: the mean of q CE(student of the masked image, the teacher's class of the whole one).

    The teacher is a moving average of the parameters of backbone, bottleneck and head, and of no buffer, as in the authors' code: in
    training mode throughout, its BatchNorm normalises by its own batch, so no running statistic of it is ever read, and none is exported.
    The student's BatchNorm does so on masked images, too. Unlike there, the teacher follows after the step instead of before it. Their
    code compares one number, drawn once a run, with `mask_color_jitter_p` and changes colours where it is larger: at their 0.2 eight runs
    in ten change all images, by new factors in each step, and blur is decided the same way; here each image is drawn by itself with these
    chances, 0.8 and 1/2. Of a method's turns the first has the term.
    """

    rows_per_position = 1
    couples_samples = False
    sees_target = True
    uses_pixels = True
    updates: Tensor

    def __init__(
        self,
        method: AdaptMethod,
        chunk: int | None = None,
        *,
        weight: float = 1.0,
        ratio: float = 0.7,
        grid: int = 4,
        momentum: float = 0.9,
        quality: Literal["probability", "none"] = "probability",
        jitter: float = 0.2,
        blur: bool = True,
    ) -> None:
        """method: with its weights and `resampling`. chunk: images encoded at once. Raises UserError for values out of their range."""
        super().__init__()
        check_not_negative("mic.weight", weight, "1 in the paper, and 0 is the control")
        check_fraction("mic.ratio", ratio, "0.7 in the paper")
        check_count("mic.grid", grid, 1, MOST_CELLS, "4 is usual")
        check_fraction("mic.momentum", momentum, "0.9 is usual")
        if not 0.0 <= jitter <= 0.5:
            raise UserError(f"method.mic.jitter: expected 0 to 0.5, got {jitter}; 0.2 is usual")
        for name in CARRIED:
            setattr(self, name, getattr(method, name))
        self.method = method
        vars(self)["resampling"] = method.resampling  # whose module the method holds
        self.chunk = chunk
        self.weight, self.ratio, self.grid, self.momentum = weight, ratio, grid, momentum
        self.quality, self.jitter, self.blur = quality, jitter, blur
        self.teacher = teacher_of(method.classifier)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def classifier(self) -> Classifier:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The method's classifier: the student."""
        return self.method.classifier

    def forward(self, batch: Domains, progress: float, turn: int = 0) -> Step:
        """The method's step, and the term where its turn is the first."""
        several: Any = (turn,) if self.turns > 1 else ()
        step: Step = self.method(batch, progress, *several)
        if turn > 0:
            return step
        loss, watched = self.consistency(batch.target)
        return step._replace(loss=step.loss + self.weight * loss, metrics={**step.metrics, **watched})

    def consistency(self, target: Unlabelled) -> tuple[Tensor, dict[str, Tensor]]:
        """The term, and what is worth watching of it. target.images: [N, C, h, w]."""
        draws = target.draws.stream("mic")
        with torch.no_grad():
            seen = wide(self.logits(self.teacher, target.images)).softmax(1)
            probability, labels = seen.max(1)
            masked = self.recoloured(target.images, draws) * kept(draws, self.ratio, self.grid, target.images)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.weight > 0):
            logits = wide(self.logits(self.classifier, masked))
        quality = probability if self.quality == "probability" else None
        # The method has counted the classes of this batch.
        loss = masked_error(logits, labels, quality, target_weights(self.method, labels, count=False))
        with torch.no_grad():
            metrics = {
                "mic_loss": loss.detach(),
                "mic_quality": probability.mean(),
                "mic_agreement": (logits.argmax(1) == labels).float().mean(),
            }
        return loss, metrics

    def logits(self, classifier: Classifier, images: Tensor) -> Tensor:
        """[N, K] of target images [N, C, h, w] in a forward of their own."""
        return classifier.head(classifier.encode(images[None], self.chunk, (TARGET,))[0])

    def recoloured(self, images: Tensor, draws: Draws) -> Tensor:
        """Colour jitter and blur of normalised images [N, C, h, w]; those of other than three channels stay."""
        if images.shape[1] != 3 or not (self.jitter or self.blur):
            return images
        mean, std = (constant(tuple(v), images.device, 1) for v in (self.backbone.mean, self.backbone.std))
        pixels = (images.float() * std + mean).clamp(0.0, 1.0)
        s = self.jitter
        colours = draw_jitter(draws.stream("jitter"), (s, s, s, s), JITTER_P if self.jitter else 0.0)
        if self.blur:
            low, high = SIGMA
            blurred = draws.bernoulli("blur", BLUR_P)
            colours = colours._replace(blur=blurred, sigma=draws.uniform("sigma", low=low, high=high))
        pixels = recolour(pixels, colours, SIGMA[1])
        return normalise(pixels, self.backbone.mean, self.backbone.std).to(images)

    def frozen(self, progress: float, turn: int = 0) -> Iterable[nn.Parameter]:
        """Those of the method."""
        several: Any = (turn,) if self.turns > 1 else ()
        return self.method.frozen(progress, *several)

    def watch(self, batch: Domains, progress: float, turn: int = 0) -> Mapping[str, Tensor]:
        """What the method watches."""
        return self.method.watch(batch, progress, turn)

    def after_step(self, progress: float) -> None:
        """The method's, then the teacher follows: alpha = min(1 - 1 / (i + 1), momentum) after step i, counted from 1."""
        self.method.skipped = self.skipped
        self.method.after_step(progress)
        self.method.skipped = None
        self.updates += 1 if self.skipped is None else ~self.skipped
        follow(self.teacher, self.classifier, (1.0 - 1.0 / (self.updates + 1)).clamp(max=self.momentum), self.skipped)

    def refresh(self, seen: Overview, progress: float) -> None:
        """The method's."""
        self.method.refresh(seen, progress)

    def conclude_source(self, source: Iterable[tuple[Tensor, Tensor]]) -> None:
        """The method's."""
        self.method.conclude_source(source)

    def conclude(self, target: Iterable[Tensor]) -> None:
        """The method's."""
        self.method.conclude(target)


def kept(draws: Draws, ratio: float, grid: int, images: Tensor) -> Tensor:
    """1 where a pixel is kept and 0 where it is masked, [N, 1, h, w]: each cell of a grid x grid mask by itself (eq. 3).

    images: [N, C, h, w], of which the mask has the size and type.
    """
    cells = 1.0 - draws.bernoulli("mask", ratio, 1, grid, grid).to(images.dtype)
    return F.interpolate(cells, images.shape[-2:], mode="nearest")


def masked_error(
    logits: Tensor, labels: Tensor, quality: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """1 / N sum_n w_n q_n CE(logits_n, label_n).

    logits: [N, K]; labels: int64 [N]; quality: q, [N]; weights: w, [N], of `label_shift.resample`; None where all are 1.
    """
    errors = F.cross_entropy(logits, labels, reduction="none")
    return weighted(weighted(errors, quality), weights).mean()
