"""The losses of fine-tuning by name: cross-entropy, and those for classes of unequal size.

Each is a mean over images, never over a batch's sum of weights as torch's `weight=` is: a part of the batch then gives its part of the
loss, on any number of processes and micro-batches. Counts are those of the whole training set. A class without images changes nothing of
the others: it has weight 1 and the largest margin, and a prior as if it had one image, so that no logarithm is infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.checks import check_fraction, check_not_negative, check_positive, check_share
from ...core.model.heads import Structure


class ClassLoss(nn.Module):
    """The contract: logits float [N, K], labels int64 [N] or float [N, K] (mixed ones, rows summing to 1) -> the mean loss, a scalar.

    counts: int64 [K], training images of each class. corrects: whether it corrects for class sizes, so that nothing else may.
    head: the head that it is made for, None for any.
    """

    corrects = True
    head: Structure | None = None

    def __init__(self, counts: Tensor, label_smoothing: float) -> None:
        super().__init__()
        self.classes, self.label_smoothing = len(counts), label_smoothing

    def forward(self, logits: Tensor, labels: Tensor, progress: float | Tensor) -> Tensor:
        """progress: completed part of the training, 0 to 1."""
        raise NotImplementedError(f"{type(self).__name__} needs a forward(logits, labels, progress)")

    def constant(self, name: str, values: Tensor) -> None:
        """A buffer that follows from the counts, so that checkpoints need not hold it."""
        self.register_buffer(name, values.float(), persistent=False)

    def weighted(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """-sum_k w_k t_k log p_k, mean over images; t are the smoothed labels. weights: [K]."""
        each = F.cross_entropy(logits, labels, weights, label_smoothing=self.label_smoothing, reduction="none")
        return each.mean()

    def targets(self, labels: Tensor) -> Tensor:
        """Labels as float [N, K], not smoothed."""
        return labels if labels.ndim == 2 else F.one_hot(labels, self.classes).float()


class CrossEntropy(ClassLoss):
    """Cross-entropy, whatever the class sizes."""

    corrects = False

    def forward(self, logits: Tensor, labels: Tensor, progress: float | Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


class InverseFrequency(ClassLoss):
    """Cross-entropy weighted by w_c = n / (K n_c), K classes with images: 1 on average over images (scikit-learn's `balanced`)."""

    weights: Tensor

    def __init__(self, counts: Tensor, label_smoothing: float) -> None:
        super().__init__(counts, label_smoothing)
        self.constant("weights", inverse_weights(counts))

    def forward(self, logits: Tensor, labels: Tensor, progress: float | Tensor) -> Tensor:
        return self.weighted(logits, labels, self.weights)


class Focal(ClassLoss):
    """Focal loss: -(1 - p_y)^gamma log p_y (Lin et al. 2017, arXiv:1708.02002, eq. 4), for a softmax.

    Mixed or smoothed labels t: -sum_k t_k (1 - p_k)^gamma log p_k. The paper's alpha is for two classes and left out.

    gamma: Focus on hard images, 0 or more; 0 is cross-entropy. The paper's is 2.
    """

    corrects = False

    def __init__(self, counts: Tensor, label_smoothing: float, *, gamma: float = 2.0) -> None:
        super().__init__(counts, label_smoothing)
        check_not_negative("loss.gamma", gamma, "2 is usual")
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor, progress: float | Tensor) -> Tensor:
        return self.focal(logits, labels, None)

    def focal(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """The loss with each class's term weighted. weights: [K]."""
        logs = logits.log_softmax(1)
        # 1 - p without its rounding; above 0, where the derivative of a power below 1 is infinite.
        missing = (-torch.expm1(logs)).clamp(min=torch.finfo(logs.dtype).tiny)
        smoothed = self.targets(labels) * (1.0 - self.label_smoothing) + self.label_smoothing / self.classes
        terms = smoothed * missing.pow(self.gamma) * logs
        return -(terms if weights is None else terms * weights).sum(1).mean()


class ClassBalanced(Focal):
    """Weights by effective numbers: w_c proportional to (1 - beta) / (1 - beta^n_c), 1 on average over classes (arXiv:1901.05555, eq. 6).

    beta: How far images of a class repeat each other, from 0 (all weights are 1) to below 1 (towards 1 / n_c). The paper's are 0.9 to
        0.9999.
    gamma: Focus on hard images as focal loss has it, 0 or more; 0 is cross-entropy.
    """

    corrects = True
    weights: Tensor

    def __init__(self, counts: Tensor, label_smoothing: float, *, beta: float = 0.999, gamma: float = 0.0) -> None:
        super().__init__(counts, label_smoothing, gamma=gamma)
        check_share("loss.beta", beta)
        self.constant("weights", effective_weights(counts, beta))

    def forward(self, logits: Tensor, labels: Tensor, progress: float | Tensor) -> Tensor:
        if self.gamma == 0.0:
            return self.weighted(logits, labels, self.weights)
        return self.focal(logits, labels, self.weights)


class LogitAdjusted(ClassLoss):
    """Cross-entropy of f + tau log pi, pi_c = n_c / n (Menon et al. 2021, arXiv:2007.07314, eq. 10). Predictions are of f, unadjusted.

    tau: Strength of the adjustment, 0 or more; 1 gives the least balanced error for calibrated scores.
    """

    shift: Tensor

    def __init__(self, counts: Tensor, label_smoothing: float, *, tau: float = 1.0) -> None:
        super().__init__(counts, label_smoothing)
        check_not_negative("loss.tau", tau, "1 is usual")
        self.constant("shift", tau * log_priors(counts))

    def forward(self, logits: Tensor, labels: Tensor, progress: float | Tensor) -> Tensor:
        return F.cross_entropy(logits + self.shift, labels, label_smoothing=self.label_smoothing)


class BalancedSoftmax(LogitAdjusted):
    """Balanced softmax: p_k proportional to n_k exp(f_k) (Ren et al. 2020, arXiv:2007.10740, eq. 3); logit_adjusted with tau = 1."""

    def __init__(self, counts: Tensor, label_smoothing: float) -> None:
        super().__init__(counts, label_smoothing, tau=1.0)


class LDAM(ClassLoss):
    """Label-distribution-aware margins with deferred re-weighting (Cao et al. 2019, arXiv:1906.07413, eq. 13 and algorithm 1).

    Cross-entropy of s (cos - m_y) with m_c = C / n_c^(1/4), from a cosine head; predictions are of s cos. From `start` on, images are
    weighted by effective numbers, 1 on average over training images: the authors' mean over a batch's weights, in expectation. Of mixed
    labels, each class has its part of its margin.

    margin: The margin of the smallest class with images, 0 or more.
    scale: The factor s of the cosines, above 0.
    start: Part of the training after which images are weighted, 0 to 1; 1 for never. The authors' is 160 of 200 epochs.
    beta: As in class_balanced, for the weights.
    """

    shift: Tensor
    weights: Tensor

    def __init__(
        self,
        counts: Tensor,
        label_smoothing: float,
        *,
        margin: float = 0.5,
        scale: float = 30.0,
        start: float = 0.8,
        beta: float = 0.9999,
    ) -> None:
        super().__init__(counts, label_smoothing)
        check_not_negative("loss.margin", margin, "0.5 is usual")
        check_positive("loss.scale", scale, "30 is usual")
        check_fraction("loss.start", start, "0.8 is usual")
        check_share("loss.beta", beta)
        self.start, self.head = start, Structure(head="cosine", temperature=1.0 / scale)
        self.constant("shift", scale * margins(counts, margin))
        effective, shares = effective_weights(counts, beta), counts.double() / counts.sum()
        self.constant("weights", torch.where(counts > 0, effective / (shares * effective).sum(), 1.0))

    def forward(self, logits: Tensor, labels: Tensor, progress: float | Tensor) -> Tensor:
        # Not an if: where the step is compiled, progress is a tensor.
        late = torch.as_tensor(progress, device=logits.device) >= self.start
        weights = torch.where(late & (self.start < 1.0), self.weights, torch.ones_like(self.weights))
        return self.weighted(logits - self.shift * self.targets(labels), labels, weights)


def _counted(counts: Tensor) -> Tensor:
    """float64 [K]: a class without images counts as one of a single image."""
    return counts.double().clamp(min=1.0)


def inverse_weights(counts: Tensor) -> Tensor:
    """n / (K n_c) of the K classes with images, float64 [K]; 1 of the others."""
    there = counts > 0
    return torch.where(there, counts.sum() / (there.sum() * _counted(counts)), 1.0)


def effective_weights(counts: Tensor, beta: float) -> Tensor:
    """(1 - beta) / (1 - beta^n_c), divided by their mean over classes with images, float64 [K]; 1 of the others."""
    raw, there = (1.0 - beta) / (1.0 - beta ** _counted(counts)), counts > 0
    return torch.where(there, raw / raw[there].mean(), 1.0)


def log_priors(counts: Tensor) -> Tensor:
    """log pi_c, float64 [K]."""
    n = _counted(counts)
    return (n / n.sum()).log()


def margins(counts: Tensor, largest: float) -> Tensor:
    """C / n_c^(1/4) with the C that gives the smallest class with images the largest margin, float64 [K]; the others have it, too."""
    raw, there = _counted(counts) ** -0.25, counts > 0
    return torch.where(there, raw * (largest / raw[there].max()), largest)


LOSSES: Mapping[str, Callable[..., Any]] = {
    "cross_entropy": CrossEntropy,
    "inverse_frequency": InverseFrequency,
    "class_balanced": ClassBalanced,
    "focal": Focal,
    "logit_adjusted": LogitAdjusted,
    "balanced_softmax": BalancedSoftmax,
    "ldam": LDAM,
}
