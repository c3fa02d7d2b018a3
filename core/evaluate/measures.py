"""All numbers of one protocol on one test set, from the scores as predictions.safetensors keeps them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UserError
from .calibration import (
    COOLEST,
    HOTTEST,
    calibration_error,
    calibration_floor,
    fit_temperature,
    log_likelihood,
    probabilities,
    reliability,
    squared_error,
)
from .counts import ClassCounts, Floats, Ints, class_counts, confusion_metrics, open_set_metrics, split_counts
from .intervals import mean_interval
from .metrics import classification
from .multilabel import choose_thresholds, multilabel_statistic, per_class_metrics
from .predictions import LARGEST, SavedScores, ScoredImages, to_half
from .ranking import in_top, macro_over_classes, one_hot
from .selective import aurc, group_accuracies
from .statistics import (
    RESAMPLES,
    Interval,
    Values,
    bootstrap_draws,
    bootstrap_intervals,
    cluster_numbers,
    few_errors,
    of_sums,
    seeds_and_images_interval,
    wilson,
)

TOP = 5
SHARES = ("accuracy", "top5", "precision_micro", "recall_micro", "f1_micro")  # shares of images, which Wilson's is for

OPEN_SET = ("hos", "os_star", "unknown_accuracy", "os")  # first in a result, and hos before the others

# The draws for images of several classes rank at most so many scores in all (a quarter of a minute), but there are at least so many draws.
MOST_RANKED, FEWEST_DRAWS = 1 << 32, 200


class Measured(NamedTuple):
    """metrics: by name, as `definitions` has them; undefined ones are left out. intervals: [low, high] of 95 %. details: for people.

    The entry `left_out` of the details, {metric: reason}, names those that these images would usually have.
    """

    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    details: dict[str, Any]


class HeldOut(NamedTuple):
    """Scores on held-out training images, [N, K], of the same kind, and their labels: temperature and thresholds are fitted on them."""

    scores: NDArray[np.floating]
    labels: NDArray[Any]


def measure(images: ScoredImages, saved: SavedScores, *, seed: int, held_out: HeldOut | None = None) -> Measured:
    """Metrics, intervals and details of one protocol on one test set. The seed is that of the bootstrap and of the floor of ECE.

    Where a protocol repeats ([draws, M, K]), its draws are pooled, besides AUROC and AP: they are means over the draws, since scores of
    two draws have no common scale. Calibration is left out for votes and similarities, which are no probabilities, and top5 for five
    classes or fewer. Raises UserError for a set without images.
    """
    if len(images.keys) == 0:
        raise UserError("there are no labelled images to score; give a test set with at least one")
    if images.labels.ndim == 2:
        return _measure_multilabel(images, saved, seed, held_out)
    return _Single(images, saved, seed).measured(held_out)


def _measure_multilabel(images: ScoredImages, saved: SavedScores, seed: int, held_out: HeldOut | None) -> Measured:
    if saved.scores.ndim != 2:
        raise ValueError("images of several classes are scored once")
    labels, scores, thresholds = images.labels.astype(bool), saved.scores, None
    if held_out is not None:  # rounded as the test's are, so that equal scores are on one side of a threshold
        rounded = to_half(held_out.scores, saved.kind, "held-out training images", several=True).scores
        thresholds = choose_thresholds(rounded, held_out.labels.astype(bool))
    logits, (member, clusters) = saved.kind == "logits", cluster_numbers(images.drawn)
    statistic = multilabel_statistic(scores, labels, thresholds, member, clusters, logits=logits)
    resamples = int(np.clip(MOST_RANKED // max(1, scores.size), FEWEST_DRAWS, RESAMPLES))
    found = bootstrap_intervals(statistic, clusters, seed=seed, resamples=resamples)
    per_class = per_class_metrics(scores, labels, thresholds, images.classes)
    details: dict[str, Any] = {
        "classes": list(images.classes),
        "kind": saved.kind,
        "per_class": per_class,
        "support": [one["support"] for one in per_class.values()],
        "classes_without_images": [name for name, one in per_class.items() if not one["support"]],
        "images_without_classes": int((~labels.any(axis=1)).sum()),
        "resamples": resamples,
    }
    if thresholds is not None and held_out is not None:
        details["thresholds"] = [float(t) if np.isfinite(t) else None for t in thresholds]
        details["thresholds_chosen_on"] = f"{len(held_out.labels)} held-out training images"
    metrics = {name: one.estimate for name, one in found.items() if np.isfinite(one.estimate)}
    known = {name: [one.low, one.high] for name, one in found.items() if one.low is not None and one.high is not None}
    return Measured(metrics, known, details)


class _Single:
    """The measures of images that have one class each. Its rows are those of all draws, one draw after the other."""

    def __init__(self, images: ScoredImages, saved: SavedScores, seed: int) -> None:
        self.images, self.kind, self.seed = images, saved.kind, seed
        self.by_draw = saved.scores if saved.scores.ndim == 3 else saved.scores[None]
        draws, n, self.k = self.by_draw.shape
        self.scores = self.by_draw.reshape(draws * n, self.k)
        self.labels: Ints = np.tile(images.labels, draws)
        member, self.clusters = cluster_numbers(images.drawn)
        self.member: Ints = np.tile(member, draws)
        self.predictions: Ints = self.scores.argmax(axis=1)
        self.correct = self.predictions == self.labels
        self.p = probabilities(self.scores, self.kind)
        self.left_out = dict[str, str]()
        if self.kind == "logits" and (unknown := self.impossible()):
            self.left_out["nll"] = f"the classifier gives the true class of {unknown} of the images no probability"

    def impossible(self) -> int:
        """Images whose class the classifier doesn't know in some draw: the logit is minus infinity, which is kept as the least float16.

        Their NLL is infinite, and the kept number would be that of float16, not the classifier's. Brier score and ECE are bounded, so
        such images count there as what they are: wrong.
        """
        own = np.take_along_axis(self.scores, self.labels[:, None], axis=1)[:, 0]
        return int((own == -LARGEST).reshape(len(self.by_draw), -1).any(axis=0).sum())

    def measured(self, held_out: HeldOut | None) -> Measured:
        found = classification(torch.from_numpy(self.labels), torch.from_numpy(self.predictions), self.images.classes)
        counts = class_counts(self.labels, self.predictions, self.member, self.clusters, self.k)
        each = self.image_means()
        totals = np.asarray(counts.sum(axis=0))[None]
        values = {name: float(value[0]) for name, value in self.from_counts(split_counts(totals)).items()}
        metrics = {name: values[name] for name in OPEN_SET if name in values}
        metrics |= {name: found[name] for name in ("accuracy", "precision", "recall", "f1")}
        if "top5" in each:
            metrics["top5"] = float(each["top5"].mean())
        metrics |= {
            name: value for name, value in values.items() if name not in metrics and name not in ("kappa", "mcc")
        }
        metrics |= self.rankings() | {name: values[name] for name in ("kappa", "mcc")}
        metrics |= {name: float(value.mean()) for name, value in each.items()}
        details: dict[str, Any] = {**found, "kind": self.kind}
        self.add_confidence(metrics, details, held_out)
        self.add_groups(metrics, details)
        if self.left_out:
            details["left_out"] = self.left_out
        intervals = self.intervals(counts, each, details)
        metrics = {name: value for name, value in metrics.items() if np.isfinite(value)}
        return Measured(metrics, {name: pair for name, pair in intervals.items() if name in metrics}, details)

    def from_counts(self, counts: ClassCounts) -> dict[str, Floats]:
        """Metrics of the confusion matrix by name, [B] each."""
        return {**(open_set_metrics(counts) if self.images.open_set else {}), **confusion_metrics(counts)}

    def image_means(self) -> dict[str, Floats]:
        """Metrics that are means over images, [rows] by name."""
        found: dict[str, Floats] = {}
        if self.k > TOP:
            found["top5"] = in_top(self.scores, self.labels, TOP).astype(np.float64)
        if self.p is not None:
            if "nll" not in self.left_out:
                found["nll"] = -log_likelihood(self.scores, self.labels, self.kind)
            found["brier"] = squared_error(self.p, self.labels)
        return found

    def rankings(self) -> dict[str, float]:
        """AUROC and AP, macro over classes, mean over the draws."""
        positive = one_hot(self.images.labels, self.k)
        ranked = self.by_draw if self.p is None else self.p.reshape(self.by_draw.shape)
        return {
            name: float(np.mean([macro_over_classes(name, scores, positive)[0] for scores in ranked]))
            for name in ("auroc", "average_precision")
        }

    def add_confidence(self, metrics: dict[str, float], details: dict[str, Any], held_out: HeldOut | None) -> None:
        """Calibration of probabilities, and the risk-coverage curve of what can be called sure."""
        if self.p is not None:
            sure = self.p.max(axis=1)
            metrics["ece"] = calibration_error(sure, self.correct)
            metrics["ece_equal_mass"] = calibration_error(sure, self.correct, equal_mass=True)
            metrics["ece_floor"] = calibration_floor(sure, seed=self.seed)
            details["reliability"] = [list(one) for one in reliability(sure, self.correct)]
            if held_out is not None and self.kind == "logits":
                self.add_scaled(metrics, details, held_out)
            metrics["aurc"] = aurc(sure, self.correct)
        elif self.kind == "votes":
            metrics["aurc"] = aurc(self.scores.max(axis=1).astype(np.float64), self.correct)

    def add_scaled(self, metrics: dict[str, float], details: dict[str, Any], held_out: HeldOut) -> None:
        """NLL and ECE after temperature scaling; no prediction changes.

        At a bound, T is that of the range and not of the images, and so would both numbers be: they are left out, and so is the value.
        """
        fitted = fit_temperature(held_out.scores, held_out.labels)
        on = f"{len(held_out.labels)} held-out training images"
        details["temperature"] = {**fitted._asdict(), "fitted_on": on}
        if fitted.at_bound:
            details["temperature"]["value"] = None
            right = float((held_out.scores.argmax(axis=1) == held_out.labels).mean())
            reason = f"no temperature from {COOLEST:g} to {HOTTEST:g} is the best one on {on}, of which {right:.0%} are right"
            self.left_out |= {"nll_scaled": reason, "ece_scaled": reason}
            return
        scaled = self.scores.astype(np.float64) / fitted.value
        p = probabilities(scaled, "logits")
        assert p is not None
        if "nll" in self.left_out:
            self.left_out["nll_scaled"] = self.left_out["nll"]
        else:
            metrics["nll_scaled"] = float(-log_likelihood(scaled, self.labels, "logits").mean())
        metrics["ece_scaled"] = calibration_error(p.max(axis=1), self.correct)

    def add_groups(self, metrics: dict[str, float], details: dict[str, Any]) -> None:
        """Accuracy by group, where the set has several."""
        if self.images.groups is None or len(np.unique(self.images.groups)) < 2:
            return
        groups = np.tile(self.images.groups, len(self.by_draw))
        found = group_accuracies(self.correct, groups, self.images.group_names)
        metrics |= {"worst_group": found.pop("worst"), "mean_group": found.pop("mean")}
        details["groups"] = found

    def intervals(self, counts: Any, each: dict[str, Floats], details: dict[str, Any]) -> dict[str, list[float]]:
        """95 % intervals over test images of metrics from counts and means; of accuracy over draws, too, where there are several."""
        columns = [np.bincount(self.member, column, minlength=self.clusters) for column in each.values()]
        size = np.bincount(self.member, minlength=self.clusters)
        by_count = of_sums(counts, lambda sums: self.from_counts(split_counts(sums)))
        by_mean = of_sums(np.stack([*columns, size], axis=1), lambda sums: _means(list(each), sums))
        found = bootstrap_intervals(lambda w: {**by_count(w), **by_mean(w)}, self.clusters, seed=self.seed)
        shares = {name: self.correct if name != "top5" else each["top5"] > 0 for name in SHARES if name in found}
        for name, right in shares.items():
            if few_errors(right, self.member, self.clusters):
                share = found[name].estimate
                found[name] = Interval(share, *wilson(share, self.clusters), "wilson")
        known = {name: [i.low, i.high] for name, i in found.items() if i.low is not None and i.high is not None}
        details["interval"] = found["accuracy"].method
        if len(self.by_draw) > 1:
            self.add_draws(known, details)
        return known

    def add_draws(self, intervals: dict[str, list[float]], details: dict[str, Any]) -> None:
        """Accuracy of each draw; its interval is then over draws and images, and the details have those over either alone.

        That over the draws alone says how the mean would vary over other draws with the same test images, so it goes to 0 with many draws.
        """
        accuracies = self.correct.reshape(len(self.by_draw), -1).mean(axis=1).tolist()
        _, low, high = mean_interval(accuracies, span=(0.0, 1.0))
        table = np.stack([np.bincount(self.member, self.correct), np.bincount(self.member)], axis=1)
        drawn = bootstrap_draws(
            of_sums(table, lambda s: {"accuracy": s[:, 0] / s[:, 1]}), self.clusters, seed=self.seed
        )
        found = seeds_and_images_interval(accuracies, drawn["accuracy"], seed=self.seed, span=(0.0, 1.0))
        images, both = intervals.get("accuracy"), None
        if images is not None:  # resampled test sets with hardly an error hardly differ: Wilson's is wider
            known = [images] if found.low is None or found.high is None else [images, [found.low, found.high]]
            both = [min(one[0] for one in known), max(one[1] for one in known)]
            intervals["accuracy"] = both
        details["draws"] = accuracies
        details["intervals"] = {"draws": [low, high], "images": images, "draws and images": both}
        details["interval"] = "draws and images"


def _means(names: list[str], sums: Floats) -> Values:
    """The mean of each column over all images. sums: [B, columns + 1], the last one counts images."""
    return {name: sums[:, i] / sums[:, -1] for i, name in enumerate(names)}
