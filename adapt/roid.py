"""ROID: universal test-time adaptation by weighted likelihood ratios and averaged weights (Marsden et al. 2024, arXiv:2306.00650)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import check_fraction, check_positive
from ..core.distributed import all_reduce_sum, gather_equal, world
from ..core.draws import Draws
from ..core.method import Unlabelled
from ..core.numerics import approach
from ..core.views.view import affine
from .parts.online import Online, entropy_of

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier

CLIP, EPSILON = 0.99, 1e-5  # of the likelihood ratio, as the authors have them


class ROID(Online):
    """The soft likelihood ratio of images that are certain and new, and the consistency of predictions with those of a changed view.

    With d = 1 - cos(p, m), m the running mean prediction, and c = -H, both scaled to 0..1 over the batch, an image weighs
    exp(d c / temperature), and 0 where d is below its mean. After each step weights move back to the source's. Predictions are multiplied
    by the batch's smoothed mean prediction. Scales, means and priors are those of all processes.

    Differences from the authors' code: the changed views are of all images, so their BatchNorm statistics are too, while there they are of
    those with a weight; each image has its own change, in a fixed order and without hue and saturation, where the authors draw one for the
    batch; edges are repeated, not reflected; predictions are corrected as probabilities, as in the paper's formula, and not as logits.

    temperature: Above 0; 1/3 in the paper.
    momentum_source: What weights keep when they are averaged with the source's after a step, from 0 to 1; 0.99 in the paper.
    momentum_mean: What the running mean prediction keeps at each batch, from 0 to 1; 0.9 in the paper.
    consistency: Whether the symmetric cross-entropy with a changed view is added.
    flip: Chance that the changed view is mirrored, from 0 to 1; 0.5 by the authors, 0 where mirroring changes the class.
    prior_correction: Whether predictions are multiplied by the smoothed prior of their batch.

    Raises UserError for values outside of these ranges.
    """

    mean: Tensor

    def __init__(
        self,
        classifier: Classifier,
        chunk: int | None = None,
        *,
        temperature: float = 1 / 3,
        momentum_source: float = 0.99,
        momentum_mean: float = 0.9,
        consistency: bool = True,
        flip: float = 0.5,
        prior_correction: bool = True,
    ) -> None:
        super().__init__(classifier, chunk)
        check_positive("temperature", temperature, "1/3 is the published one")
        check_fraction("momentum_source", momentum_source, "0.99 is the published one")
        check_fraction("momentum_mean", momentum_mean, "0.9 is the published one")
        check_fraction("flip", flip, "0.5 is the published one")
        self.temperature, self.momentum_source, self.momentum_mean = temperature, momentum_source, momentum_mean
        self.consistency, self.flip, self.prior_correction = consistency, flip, prior_correction
        outputs = len(classifier.outputs)
        self.register_buffer("mean", torch.full((outputs,), 1 / outputs))

    def adapt(self, logits: Tensor, target: Unlabelled) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum over this process's images, divided by their number."""
        p = logits.detach().softmax(1)
        weights = image_weights(logits.detach(), self.mean.to(p), self.temperature)
        if self.training:
            moved = self.momentum_mean * self.mean + (1 - self.momentum_mean) * all_reduce_sum(p.mean(0)) / world()
            self.keep_after_step(mean=moved)
        errors = likelihood_ratio(logits)
        if self.consistency:
            errors = errors + symmetric_error(self.logits_of(self.changed(target)), logits)
        return (weights * errors).mean(), {"chosen": (weights > 0).to(p).mean(), "largest_weight": weights.max()}

    def changed(self, target: Unlabelled) -> Tensor:
        """A changed view of each image: brightness, contrast, gamma, rotation, shift, zoom, mirroring; [n, C, h, w], keyed."""
        model, images, draws = self.backbone, target.images, target.draws.stream("roid")
        mean, std = (_by_channel(numbers, images) for numbers in (model.mean, model.std))
        x = (images * std + mean).clamp(0, 1)
        x = (x * _each(draws, "brightness", 0.6, 1.4, x)).clamp(0, 1)
        middle = x.mean((1, 2, 3), keepdim=True)
        x = (middle + (x - middle) * _each(draws, "contrast", 0.7, 1.3, x)).clamp(0, 1)
        x = x.clamp(min=1e-6) ** _each(draws, "gamma", 0.7, 1.3, x)
        x = affine(x.float(), draws, 15.0, 1 / 16, (0.9, 1.1)).to(x)
        x = torch.where(draws.bernoulli("flip", self.flip).view(-1, 1, 1, 1), x.flip(3), x)
        return (x.clamp(0, 1) - mean) / std

    def predicted(self, logits: Tensor) -> Tensor:
        """log of p times the smoothed prior of the batch, up to a constant of each row."""
        if not self.prior_correction:
            return logits
        p = logits.softmax(1)
        return logits.log_softmax(1) + smoothed_prior(all_reduce_sum(p.mean(0)) / world(), len(p) * world()).log()

    def after_step(self, progress: float) -> None:
        """Average what learns with the source's, and keep the mean prediction."""
        super().after_step(progress)
        with torch.no_grad():
            parts = self.anchor.split([parameter.numel() for parameter in self.learned])
            for parameter, before in zip(self.learned, parts, strict=True):
                source = before.view_as(parameter).to(parameter)
                approach(parameter, source, 1 - self.momentum_source, self.skipped)


def image_weights(logits: Tensor, mean: Tensor, temperature: float) -> Tensor:
    """exp(d c / temperature) of this process's images, [n, K] -> [n]; 0 where d is below the mean of d. mean: [K], of predictions."""
    d = 1 - F.cosine_similarity(logits.softmax(1), mean[None])
    everyone = gather_equal(torch.stack([d, -entropy_of(logits)])).transpose(0, 1).flatten(1)  # [2, B]
    low, high = everyone.amin(1), everyone.amax(1)
    span = (high - low).clamp(min=torch.finfo(d.dtype).tiny)
    new = (d - low[0]) / span[0]
    certain = (-entropy_of(logits) - low[1]) / span[1]
    kept = new >= ((everyone[0] - low[0]) / span[0]).mean()
    return torch.where(kept, (new * certain / temperature).exp(), 0.0)


def likelihood_ratio(logits: Tensor) -> Tensor:
    """The soft likelihood ratio -sum_k p_k log(p_k / (1 - p_k)) of each row, p clipped at 0.99: [n, K] -> [n]."""
    p = logits.softmax(1).clamp(max=CLIP)
    return -(p * (p / (1 - p) + EPSILON).log()).sum(1)


def symmetric_error(first: Tensor, second: Tensor) -> Tensor:
    """Half of each cross-entropy between the softmaxes of [n, K] and [n, K]: [n]."""
    logs = first.log_softmax(1), second.log_softmax(1)
    return -((logs[1].exp() * logs[0]).sum(1) + (logs[0].exp() * logs[1]).sum(1)) / 2


def smoothed_prior(prior: Tensor, images: int) -> Tensor:
    """(prior + s) / (1 + s K), s = max(1 / images, 1 / K) / max prior. prior: [K], the mean prediction of `images`."""
    outputs = len(prior)
    smooth = max(1 / images, 1 / outputs) / prior.max()
    return (prior + smooth) / (1 + smooth * outputs)


def _each(draws: Draws, name: str, low: float, high: float, like: Tensor) -> Tensor:
    return draws.uniform(name, low=low, high=high).to(like).view(-1, 1, 1, 1)


def _by_channel(numbers: tuple[float, ...], images: Tensor) -> Tensor:
    """A number for each channel, cycled, [C, 1, 1]."""
    return images.new_tensor([numbers[i % len(numbers)] for i in range(images.shape[1])]).view(-1, 1, 1)
