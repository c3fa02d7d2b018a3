"""Logistic regression on frozen features as a protocol; the solver is in core/evaluate/logreg.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...core.evaluate.class_regressions import fit_classes_choosing_C
from ...core.evaluate.linear_head import head_of
from ...core.evaluate.logreg import C_GRID, LogisticRegression, all_classes, check_C, fit_choosing_C
from ...core.evaluate.taps import POOLED
from ...core.images.several import has_several
from .candidates import CHOSEN_ON
from .contract import Counts, Features, Fitted, Known

# `linear` tries these C by default: one a decade.
COARSE_GRID: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3)

# What is chosen where an image may have several classes, for the settings of a result.
CHOSEN_THRESHOLDS = "thresholds of F1 on a held-out 20 % of the training images"
CHOSEN_OF_SEVERAL = f"highest macro AP, then lowest BCE, on a held-out 20 %; then all are fitted; {CHOSEN_THRESHOLDS}"

# What `core.evaluate.logreg` does, for the settings of a result.
SOLVER: Mapping[str, str] = {
    "scale": "centred, and divided by one number for all; C is that of scaled features",
    "optimizer": "Newton's method with conjugate gradients, until less than 1e-7 of the objective can be gained",
    "init_std": "0",
    "augment": "none",
}


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Logistic regression on frozen features, with the best C on a held-out 20 % of the training images.

    Features are centred and divided by one number, so C is that of scaled features. Where images may have several classes, each class has a
    binary regression, all with one C, the one with the highest macro AP on the slice.

    C: Inverse strengths of the L2 penalty to try, 1e-12 to 1e12, as in scikit-learn; a single one is used without choosing. null tries
        1e-4, 1e-3, ..., 1e3.
    taps: Features that are read, by name (`pooled`, `cls`, `mean`, `last4`, `block3`, ...; `layers` for each block or stage); each is
        scored on its own.
    """

    C: tuple[float, ...] | None = None
    taps: tuple[str, ...] = ("pooled",)

    @property
    def reads(self) -> tuple[str, ...]:
        """The tap."""
        return self.taps

    def requires(self, name: str, counts: Counts) -> None:
        """Raises UserError for values of C that no classifier can have."""
        if self.C is not None:
            check_C(self.C, "evaluate.linear.C")

    def fit(self, train: Known) -> Fitted:
        """Choose C on the slice where there are several, and fit all images with it."""
        x = train.features[self.reads[0]].to(train.device)
        grid = COARSE_GRID if self.C is None else self.C
        if has_several(train.labels):
            return self._fit_classes(x, train, grid)
        model = fit_choosing_C(x, train.labels, train.units, len(train.classes), seed=train.seed, values_of_C=grid)
        tried = tuple(candidates_of(model))
        fit = {"choice": [fit._asdict() for fit in model.choice], "refit": model.fit._asdict()}

        def scores(features: Features) -> Tensor:
            return all_logits(model, features[self.reads[0]], len(train.classes))

        chosen = {"C": model.C} if model.selected else {}
        settings = {"tap": self.reads[0], "C": list(grid), **SOLVER, "chosen": CHOSEN_ON if chosen else "nothing"}
        linear = head_of(model, train.classes) if self.reads == (POOLED,) else None
        return Fitted(scores, "logits", chosen, tried, fit, {"settings": settings}, model.held_out, linear=linear)

    def _fit_classes(self, x: Tensor, train: Known, grid: Sequence[float]) -> Fitted:
        """One binary regression for each class, with one C for all."""
        model = fit_classes_choosing_C(x, train.labels, train.units, seed=train.seed, values_of_C=grid)
        several = len(model.tried) > 1
        fit = {"refit": {"C": model.C, "iterations": max(model.iterations), "converged": model.converged}}
        settings = {
            "tap": self.reads[0],
            "C": list(grid),
            **SOLVER,
            "classes": "one binary regression each, one C for all",
            "chosen": CHOSEN_OF_SEVERAL if several else CHOSEN_THRESHOLDS if model.held_out else "nothing",
        }

        def scores(features: Features) -> Tensor:
            return model.logits(features[self.reads[0]])

        return Fitted(
            scores,
            "logits",
            {"C": model.C} if several else {},
            tuple(one._asdict() for one in model.tried) if several else (),
            fit,
            {"settings": settings},
            model.held_out,
        )


def candidates_of(model: LogisticRegression) -> list[dict[str, float | bool]]:
    """Every C that was tried, with its accuracy on the slice and how its solver ended there."""
    tried = zip(model.choice, model.right, strict=True)
    return [
        {"C": fit.C, "accuracy": right, "iterations": fit.iterations, "converged": fit.converged}
        for fit, right in tried
    ]


def all_logits(model: LogisticRegression, x: Tensor, num_classes: int) -> Tensor:
    """The logits of all classes, float64 [M, K] on the CPU; minus infinity for those without training images."""
    return all_classes(model.logits(x), model.classes, num_classes)


def dinov2_regression() -> Linear:
    """DINOv2's logistic regression (Oquab et al. 2023, arXiv:2304.07193, and its code): 45 values of C, 1e-6 to 1e5.

    The code takes the class token as it is, of pictures resized and cropped to 224 px (bicubic), minimises by L-BFGS in float64 from
    zeros (tolerance 1e-12, at most 1000 iterations), chooses C on a random 10 % of the training images, and then fits all. Here the
    pooled features are centred and divided by one number, so the same C is not the same penalty, and C is chosen on a held-out 20 %.
    """
    return Linear(C=C_GRID)
