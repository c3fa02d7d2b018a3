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
from ..core.evaluate.features import evaluating
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
from ..core.images.images import Images
from ..core.method import AdaptMethod
from .by_class import errors_by_class
from .parts.resampling import Resampling
from .sets import SOURCE, TARGET, Reader, Sets, in_content_order

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
        tested beside the others, as TEST/corrected; none corrects nothing. It needs source images that no training saw: evaluate.held_out,
        or the source's part that is held out without data.test.
    resamples: Bootstrap draws of the interval of each estimated distance of class priors, 0 or more; 0 gives no interval.
    """


def check_label_shift(section: Mapping[str, Any], method: AdaptMethod) -> None:
    """Raises UserError for a number out of its range, and for what the output for unknown images of a classifier doesn't allow."""
    if method.classifier.structure.extra:
        whose = f"the classifier of {type(method).__name__} has an output for unknown images, whose prior no"
        if section["correct"] != "none":
            raise UserError(f"label_shift.correct: {whose} estimate has; use none")
        if section["resample"] != "none" and "target" in method.resamples:
            raise UserError(f"label_shift.resample: {whose} weights make equal; use none, or keep another head")
    if not 0 <= section["resamples"] <= ESTIMATED_ON:
        raise UserError(
            f"label_shift.resamples: expected 0 to {ESTIMATED_ON:,}, got {section['resamples']}; 100 is usual"
        )


def unseen_source(sets: Sets) -> Images | None:
    """Labelled source images that no training saw; None if there are none. A sealed test that is named source has no labels here."""
    held_out = sets.held_out if sets.held_out is not None else sets.tests.get(SOURCE)
    return None if held_out is None or held_out.labels is None else held_out


def check_unseen_source(section: Mapping[str, Any], sets: Sets, evaluated: bool) -> None:
    """Raises UserError where predictions are to be corrected and no source image is held out. evaluated: whether there is `evaluate`.

    On training images a network is surer than on others, and confuses less: priors that are estimated so are pulled to equal ones.
    """
    if section["correct"] != "none" and unseen_source(sets) is None:
        remedy = "evaluate.held_out=0.1" if evaluated else "evaluate={held_out: 0.1}"
        raise UserError(
            f"label_shift.correct: {section['correct']} measures confusion and calibration on labelled source images that no training saw, "
            f"and none are held out; add {remedy}"
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


def few(images: Images) -> Images:
    """At most `ESTIMATED_ON` of the images, in the order of their content: the same ones wherever they lie and whatever their labels."""
    return in_content_order(images).select(torch.arange(min(ESTIMATED_ON, len(images))))


@torch.no_grad()
def logits_of(classifier: nn.Module, batches: Iterable[Tensor]) -> NDArray[np.float64]:
    """[N, K] in eval mode."""
    with evaluating(classifier):
        rows = torch.cat([classifier(images).float().cpu() for images in batches]).numpy().astype(np.float64)
    if not np.isfinite(rows).all():
        raise UserError("the logits are not numbers (NaN): the training has diverged; take a lower learning rate")
    return rows


class Shift:
    """Estimates of the target's class priors, from logits of source images with labels and of target images without."""

    def __init__(
        self,
        source: NDArray[np.float64],
        labels: Ints,
        target: NDArray[np.float64],
        units: tuple[Ints, Ints] | None = None,
    ) -> None:
        """source: [N, K]; labels: int64 [N]; target: [M, K]. units: what intervals draw whole (`bootstrap`)."""
        self.units = units
        self.labels, self.prior = labels, class_priors(labels, source.shape[1])
        self.source, self.target = source, target
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
                drawn: Any = {
                    "method": kind,
                    "seed": seed,
                    "resamples": resamples,
                    "calibrated": self._calibrated,
                    "units": self.units,
                }
                told[name]["interval"] = list(bootstrap(rows[0], self.labels, rows[1], **drawn))
        return told

    def _calibrated(self, rows: Ints) -> NDArray[np.float64]:
        """The target's probabilities, calibrated on these rows of the source, int64 [N]."""
        return np.exp(fit_bias_corrected(self.source[rows], self.labels[rows]).log_probabilities(self.target))


def by_class(priors: NDArray[np.float64], classes: list[str]) -> dict[str, float]:
    """Numbers [K] by the names of the classes."""
    return dict(zip(classes, priors.tolist(), strict=True))


class EstimatedShift(NamedTuple):
    """What is known of class priors before a label of the target is read."""

    prior: NDArray[np.float64]  # of the labelled source images on which confusion is measured, [K]
    told: dict[str, Any]  # the entry `label_shift` of a result, without the true distances
    shift: Shift
    corrects: str  # the estimate that corrects predictions; "" for none
    by_class: dict[str, Any]  # errors on these source images, `errors_by_class`

    def correct(self, logits: Tensor) -> Tensor:
        """log p of the target, float64 [M, K], from logits."""
        return torch.from_numpy(self.shift.correct(logits.double().cpu().numpy(), self.corrects))


def estimate_shift(
    method: AdaptMethod, sets: Sets, read: Reader, section: Mapping[str, Any], seed: int
) -> EstimatedShift:
    """Estimate the class priors of the target's training images by the trained classifier.

    Confusion is measured on source images that no training saw where there are any, else on training images, on which it is smaller.
    """
    unseen = unseen_source(sets)
    known, unknown = few(sets.source if unseen is None else unseen), few(sets.target)
    assert known.labels is not None
    classes = method.classifier.classes
    source, target = (logits_of(method.classifier, read(part)) for part in (known, unknown))
    kept = called_known(target, len(classes))
    units = known.units().numpy(), unknown.units().numpy()[kept]
    shift = Shift(source[:, : len(classes)], known.labels.numpy(), target[kept, : len(classes)], units)
    told = {
        "measured_on": "training source" if unseen is None else "held-out source",
        "images": {SOURCE: len(known), TARGET: len(kept)},
        **shift.as_result(classes, seed, section["resamples"]),
        "resampled": [] if method.resampling is None else list(method.resamples),
        "corrected_by": section["correct"],
    }
    # A test named source has errors of its own, of all its images.
    errors = {} if SOURCE in sets.tests else errors_by_class(SOURCE, known, source.argmax(1), method.classifier.outputs)
    errors = {name: {"measured_on": told["measured_on"], **one} for name, one in errors.items()}
    return EstimatedShift(shift.prior, told, shift, "" if section["correct"] == "none" else section["correct"], errors)


def called_known(logits: NDArray[np.float64], classes: int) -> Ints:
    """The rows of logits [N, K + extra] whose highest output is one of the K classes: class priors are about these; all rows if none is."""
    rows = np.flatnonzero(logits.argmax(axis=1) < classes)
    return rows if len(rows) else np.arange(len(logits))


def true_distances(prior: NDArray[np.float64], tests: Mapping[str, Images]) -> dict[str, dict[str, float]]:
    """The distances of each test set's own class priors from the source's: they read labels, so only the final test may call it.

    Images of classes that the source lacks don't count; a test of these alone has no distance.
    """
    labels = {name: images.labels.numpy() for name, images in tests.items() if images.labels is not None}
    known = {name: found[found < len(prior)] for name, found in labels.items()}
    return {name: distances(prior, class_priors(kept, len(prior))) for name, kept in known.items() if len(kept)}
