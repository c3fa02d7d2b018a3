"""Label shift in the recipe of `rootstock adapt`: what a result says about class priors, and the correction of predictions by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.evaluate.calibration import fit_bias_corrected
from ..core.evaluate.counts import Ints
from ..core.evaluate.label_shift import (
    Priors,
    balancing,
    bbse,
    bootstrap,
    class_priors,
    corrected,
    distances,
    mlls,
    one_hot_of,
)
from ..core.evaluate.scores import Scored
from ..core.images.images import Images
from ..core.method import AdaptMethod
from .parts.resampling import Resampling

# Images of each set on which class priors are estimated: their spread is then below 0.005 for a class.
ESTIMATED_ON = 10_000


def label_shift_options(
    *,
    resample: Literal["none", "pseudo-labels"] = "none",
    correct: Literal["none", "bbse", "mlls"] = "none",
    resamples: int = 100,
) -> None:
    """The `label_shift` section of `rootstock adapt`. No key reads a label of the target.

    resample: pseudo-labels weighs the loss as if all classes were equally frequent: source images by their label and, where the method's
        loss takes it, target images by their predicted class (RLSbench, arXiv:2302.03020); none weighs all images alike.
    correct: Estimate of the target's class priors by which predictions are corrected, p(y | x) w(y): bbse or mlls. The corrected ones are
        tested beside the others, as TEST/corrected; none corrects nothing.
    resamples: Bootstrap draws of the interval of each estimated distance of class priors, 0 or more; 0 gives no interval.
    """


def check_label_shift(section: Mapping[str, Any]) -> None:
    """Raises UserError for a number out of its range."""
    if not 0 <= section["resamples"] <= ESTIMATED_ON:
        raise UserError(
            f"label_shift.resamples: expected 0 to {ESTIMATED_ON:,}, got {section['resamples']}; 100 is usual"
        )


def resample(method: AdaptMethod, source: Images) -> None:
    """Give the method the weights of its images. Raises UserError for a method whose loss does not take any."""
    if not method.resamples:
        raise UserError(
            f"label_shift.resample: {type(method).__name__} takes no weights of images; use none, or another method"
        )
    assert source.labels is not None and source.classes is not None
    weights = balancing(class_priors(source.labels.numpy(), len(source.classes)))
    method.resampling = Resampling(torch.from_numpy(weights))
    # The frequencies of predicted classes are counted once a step, over the whole batch.
    method.couples_samples = method.couples_samples or "target" in method.resamples


class Reference(NamedTuple):
    """The labelled source images on which the classifier's confusion is measured. held_out: whether none of them was trained on."""

    images: Images
    held_out: bool


def few(images: Images) -> Images:
    """At most `ESTIMATED_ON` of the images, in the order of their content: the same ones wherever they lie and whatever their labels."""
    return images.select(images.keys().argsort(stable=True)[:ESTIMATED_ON])


@torch.no_grad()
def logits_of(classifier: nn.Module, batches: Iterable[Tensor]) -> NDArray[np.float64]:
    """[N, K] in eval mode."""
    training = classifier.training
    classifier.eval()
    rows = torch.cat([classifier(images).float().cpu() for images in batches]).numpy().astype(np.float64)
    classifier.train(training)
    if not np.isfinite(rows).all():
        raise UserError("the logits are not numbers (NaN): the training has diverged; take a lower learning rate")
    return rows


class Shift:
    """Estimates of the target's class priors, from logits of source images with labels and of target images without."""

    def __init__(self, source: NDArray[np.float64], labels: Ints, target: NDArray[np.float64]) -> None:
        """source: [N, K]; labels: int64 [N]; target: [M, K]."""
        self.labels, self.prior = labels, class_priors(labels, source.shape[1])
        self.calibration = fit_bias_corrected(source, labels)
        soft = [np.exp(self.calibration.log_probabilities(rows)) for rows in (source, target)]
        hard = [one_hot_of(rows) for rows in (source, target)]
        plain = [softmax(rows, axis=1) for rows in (source, target)]
        self.rows = {"bbse": hard, "bbse_soft": plain, "mlls": soft}
        self.found: dict[str, Priors] = {
            "bbse": bbse(hard[0], labels, hard[1]),
            "bbse_soft": bbse(plain[0], labels, plain[1]),
            "mlls": mlls(soft[1], self.prior),
        }

    def correct(self, logits: NDArray[np.floating], estimate: str) -> NDArray[np.float64]:
        """log p of the target, [N, K]: calibrated on the source, times the weights of the estimate."""
        return corrected(self.calibration.log_probabilities(logits), self.found[estimate].weights)

    def as_result(self, classes: list[str], seed: int, resamples: int) -> dict[str, Any]:
        """The priors by class, the distances of them, and the 95 % interval of their total variation."""
        told: dict[str, Any] = {"source": by_class(self.prior, classes)}
        for name, priors in self.found.items():
            rows = self.rows[name]
            told[name] = {"target": by_class(priors.target, classes), **distances(self.prior, priors.target)}
            if resamples:
                kind = name.partition("_")[0]
                interval = bootstrap(rows[0], self.labels, rows[1], method=kind, seed=seed, resamples=resamples)
                told[name]["interval"] = list(interval)
        return told


def by_class(priors: NDArray[np.float64], classes: list[str]) -> dict[str, float]:
    """Numbers [K] by the names of the classes."""
    return dict(zip(classes, priors.tolist(), strict=True))


def add_corrected(scored: Scored, tests: Mapping[str, Images], shift: Shift, estimate: str, source: str) -> None:
    """Score the corrected predictions of every test set but the source's, from the scores that are kept, as TEST/corrected."""
    for test, images in tests.items():
        if test != source:
            logits = scored.kept.scores[f"{test}/classifier"].scores
            scored.add(f"{test}/corrected", images, torch.from_numpy(shift.correct(logits, estimate)))


def true_distances(prior: NDArray[np.float64], tests: Mapping[str, Images]) -> dict[str, dict[str, float]]:
    """The distances of each test set's own class priors from the source's: they read labels, so only the final test may call it."""
    return {
        name: distances(prior, class_priors(images.labels.numpy(), len(prior)))
        for name, images in tests.items()
        if images.labels is not None
    }
