"""Logistic regression on frozen features from few labels: a part of them, some images a class, or those of a list file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.evaluate.held_out import nothing_to_choose_on
from ...core.evaluate.logreg import DEFAULT_C, check_C, fit_choosing_C
from .contract import Counts, Features, Fitted, Known
from .few_labels import NAMES_SHOWN, check_draws, check_shots, drawn_parts, drawn_rows, identities_by_class, listed_rows
from .linear import COARSE_GRID, SOLVER, all_logits, candidates_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FewLinear:
    """Logistic regression from few labels, as `linear`; C is chosen for each draw on a held-out 20 % of the draw's own images.

    Each fraction, number of shots and list is scored on its own: few_linear-0.01, few_linear-5shot, few_linear-list. The interval is over
    draws and test images. Images of a draw are different ones; all blends of a drawn picture count as one in `fractions`, and one of them
    is taken in `shots`. The other training images have no part.

    fractions: Parts of the different training images of each class that have a label, each above 0 and up to 1; at least one image a class.
    shots: Different training images a class, each 1 or more; each class needs as many.
    list: A text file with the names of the training images that have a label, one a line, as SimCLR's 1percent.txt; a line is the end of an
        image's name. null for none. It is one draw.
    draws: Number of random choices of these images over which the score is averaged, 1 to 10,000. One where all are taken.
    C: Inverse strengths of the L2 penalty to try, 1e-12 to 1e12, as in scikit-learn; a single one is used without choosing. null tries
        1e-4, 1e-3, ..., 1e3, and takes 1 where no class has two images to choose on.
    taps: Features that are read, by name (`pooled`, `cls`, `mean`, `last4`, `block3`, ...; `layers` for each block or stage); each is
        scored on its own.
    """

    fractions: tuple[float, ...] = (0.01, 0.1)
    shots: tuple[int, ...] = ()
    list: str | None = None
    draws: int = 5
    C: tuple[float, ...] | None = None
    taps: tuple[str, ...] = ("pooled",)

    @property
    def reads(self) -> tuple[str, ...]:
        """The tap."""
        return self.taps

    def each(self) -> Mapping[str, FewLinear]:
        """One for each fraction, number of shots, and list. Raises UserError if there is none."""
        alone = replace(self, fractions=(), shots=(), list=None)
        found = {_spelt(part): replace(alone, fractions=(part,)) for part in sorted(set(self.fractions))}
        found |= {f"{shots}shot": replace(alone, shots=(shots,)) for shots in sorted(set(self.shots))}
        found |= {"list": replace(alone, list=self.list)} if self.list is not None else {}
        if not found:
            raise UserError(
                "evaluate.few_linear: no labels are asked for; give fractions, such as [0.01, 0.1], or shots, or list"
            )
        return found

    def requires(self, name: str, counts: Counts) -> None:
        """Raises UserError for numbers out of range, for a class with too few images, and for a list file of other images."""
        if self.C is not None:
            check_C(self.C, "evaluate.few_linear.C")
        check_draws(name, self.draws)
        for shots in self.shots:
            check_shots(name, shots, self.draws, counts, "few_linear")
        for part in self.fractions:
            if not 0 < part <= 1:
                raise UserError(
                    f"evaluate.few_linear.fractions: {part:g} is given; expected parts above 0 and up to 1, such as 0.01 for 1 %"
                )
            for title, several in zip(counts.classes, identities_by_class(counts), strict=True):
                if several == 0:
                    raise UserError(f"{name}: class {title} has no training images; leave the class out, or add images")
        if self.list is not None:
            found = listed_rows(self.list, counts.names())
            labels = set(counts.labels[found.rows].tolist())
            if absent := [title for label, title in enumerate(counts.classes) if label not in labels]:
                raise UserError(
                    f"evaluate.few_linear.list: {self.list} names no image of {len(absent)} classes ({', '.join(absent[:NAMES_SHOWN])}); "
                    "add at least one a class, or leave these classes out of the sets"
                )
            if found.missing:
                shown = ", ".join(found.missing[:NAMES_SHOWN]) + (", ..." if len(found.missing) > NAMES_SHOWN else "")
                _log.warning(
                    "%s: %d of the %d names in %s are no training images (%s)",
                    name, len(found.missing), found.names, self.list, shown,
                )  # fmt: skip

    def fit(self, train: Known) -> Fitted:
        """A classifier for each draw. Scores are logits, float64 [draws, M, K]."""
        rows, facts = self._labelled(train)
        x, k = train.features[self.reads[0]], len(train.classes)
        models, tried = [], list[Mapping[str, Any]]()
        for draw, some in enumerate(rows):
            keys, labels = train.units[some], train.labels[some]
            grid = COARSE_GRID if self.C is None else self.C
            grid = [DEFAULT_C] if len(set(grid)) > 1 and nothing_to_choose_on(keys, labels) else grid
            given = x[some].to(train.device)
            models.append(fit_choosing_C(given, labels, keys, k, seed=train.seed, values_of_C=grid))
            tried += [{"draw": draw, **row} for row in candidates_of(models[-1])]
        chose = "as linear, for each draw on a held-out 20 % of its own images" if tried else "nothing"
        settings = {
            "tap": self.reads[0],
            "tried_C": list(COARSE_GRID if self.C is None else self.C),
            **SOLVER,
            "chosen": chose,
        }
        settings |= {**facts, "draws": len(rows)}
        facts |= {"images": [len(some) for some in rows], "C": [model.C for model in models], "settings": settings}

        def scores(features: Features) -> Tensor:
            test = features[self.reads[0]].to(train.device)
            found = torch.stack([all_logits(model, test, k) for model in models])
            return found if self.list is None else found[0]

        chosen = {"C": [model.C for model in models]} if tried else {}
        fit = {"refit": [model.fit._asdict() for model in models]}
        held_out = models[0].held_out if self.list is not None else None
        return Fitted(scores, "logits", chosen, tuple(tried), fit, facts, held_out, own_slices=True)

    def _labelled(self, train: Known) -> tuple[list[Tensor], dict[str, Any]]:
        """The rows of each draw that have a label, and what the result says about them."""
        if self.list is not None:
            found = listed_rows(self.list, train.names())
            said = {"file": self.list, "sha256": found.sha256, "names": found.names, "missing": len(found.missing)}
            return [found.rows], {"list": said}
        if self.shots:
            rows = drawn_rows(train.keys, train.labels, train.seed, self.shots[0], self.draws)
            return [*rows.flatten(1)], {"shots": self.shots[0]}
        part = self.fractions[0]
        return drawn_parts(train.keys, train.labels, train.seed, part, self.draws), {"fraction": part}


def _spelt(part: float) -> str:
    """A part in a protocol's name: all its digits, so that two parts have two names; 1 rather than 1.0."""
    short = f"{part:g}"
    return short if float(short) == part else repr(part)
