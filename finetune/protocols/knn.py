"""Weighted cosine kNN on frozen features, with the settings of lightly's and DINO's evaluations as presets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...core.errors import UserError
from ...core.evaluate.held_out import held_out_rows, nothing_to_choose_on
from ...core.evaluate.knn import class_shares, knn_scores, neighbours, say_clipped, vote
from ...core.evaluate.ranking import macro_over_classes
from ...core.images.several import has_several
from .contract import Counts, Features, Fitted, Known
from .linear import CHOSEN_THRESHOLDS


@dataclass(frozen=True, kw_only=True)
class KNN:
    """Weighted cosine kNN on frozen features (see `core.evaluate.knn.knn_scores`).

    Where images may have several classes, a class's score is the weighted share of the neighbours that have it, and macro AP chooses.
    A training row is a neighbour, so the recipe leaves copies out: with n copies of all images, k would mean k / n of them.

    k: Number of different training pictures that vote, 1 or more; all of them if there are fewer. Of a list, whose values may not exceed
        their number, the k that is best on a held-out 20 % of the training images is used.
    temperature: Temperature of the weights exp(cosine / temperature) of their votes, above 0, or a list to choose from; null gives equal
        weights.
    taps: Features that are read, by name (`pooled`, `cls`, `mean`, `last4`, `block3`, ...; `layers` for each block or stage); each is
        scored on its own.
    """

    k: int | tuple[int, ...] = 20
    temperature: float | tuple[float, ...] | None = 0.07
    taps: tuple[str, ...] = ("pooled",)

    @property
    def reads(self) -> tuple[str, ...]:
        """The tap."""
        return self.taps

    @property
    def grid(self) -> list[tuple[int, float | None]]:
        """(k, temperature) of each candidate, ascending."""
        values = [self.k] if isinstance(self.k, int) else sorted(set(self.k))
        several = isinstance(self.temperature, tuple | list)
        warmth: Sequence[float | None] = sorted(set(self.temperature)) if several else [self.temperature]  # pyright: ignore[reportArgumentType, reportAssignmentType]
        return [(k, temperature) for k in values for temperature in warmth]

    def requires(self, name: str, counts: Counts) -> None:
        """Raises UserError for settings that kNN cannot have on this training set."""
        grid, n = self.grid, len(counts.labels)
        if not grid:
            raise UserError(f"{name} needs at least one k and one temperature, got an empty list")
        values = [k for k, _ in grid]
        if values[0] < 1:
            raise UserError(f"{name} needs k of at least 1, got {values[0]}")
        # A single k above n is the vote of all training images, as configs that ship need it on a handful of pictures; a preset is its k.
        if values[-1] > n and isinstance(self.k, int) and name.split("@")[0] == "knn":
            say_clipped(values[-1], n)
        elif values[-1] > n:
            raise UserError(
                f"{name} needs {values[-1]} different training images for k = {values[-1]}, and there are {n}; "
                f"give evaluate.knn.k of at most {n}, or more images"
            )
        for _, temperature in grid:
            if temperature is not None and not (temperature > 0 and math.isfinite(temperature)):
                raise UserError(f"{name} needs a temperature above 0 (or null, for equal votes), got {temperature}")
        if len(grid) > 1 and nothing_to_choose_on(counts.units, counts.labels):
            what = f"k of {values}" if len(set(values)) > 1 else "a temperature"
            raise UserError(
                f"{name}: no class has two different training images to choose {what} on; give a single k and temperature"
            )

    def fit(self, train: Known) -> Fitted:
        """Choose on the slice where there are several candidates."""
        x, grid, classes = train.features[self.reads[0]].cpu(), self.grid, len(train.classes)
        tried, held_out = list[dict[str, float | None]](), None
        k, temperature = grid[0]
        if several := has_several(train.labels):
            held_out, tried, (k, temperature) = self._chosen_of_several(x, train)
        elif len(grid) > 1:
            held_out, tried, (k, temperature) = self._chosen(x, train)
        k = min(k, len(x))

        def scores(features: Features) -> Tensor:
            test = features[self.reads[0]]
            return knn_scores(x, train.labels, test, classes, k=k, temperature=temperature)

        warmths = isinstance(self.temperature, tuple | list)
        chosen = {"k": k, **({"temperature": temperature} if warmths else {})} if tried else {}
        how = "the most right on a held-out 20 % of the training images; then all vote" if tried else "nothing"
        if several and held_out is not None:
            how = (
                f"highest macro AP on a held-out 20 %, then all vote; {CHOSEN_THRESHOLDS}"
                if tried
                else CHOSEN_THRESHOLDS
            )
        settings = {
            "tap": self.reads[0],
            "scale": "each divided by its norm",
            "k": self.k,
            "temperature": self.temperature,
            "vote": "equal" if temperature is None else "exp(cosine / temperature)",
            "trained": "nothing",
            **({"scores": "share of the votes of neighbours that have the class"} if several else {}),
            "chosen": how,
        }
        facts = {"k": k, "settings": settings}
        return Fitted(scores, "votes", chosen, tuple(tried), facts=facts, held_out=held_out)

    def _chosen(
        self, x: Tensor, train: Known
    ) -> tuple[tuple[Tensor, Tensor], list[dict[str, float | None]], tuple[int, float | None]]:
        """The winner's scores and labels on the slice, what was tried, and the candidate with most right there; of equals the first.

        One search serves all candidates.
        """
        grid, outer = self.grid, held_out_rows(train.units, train.labels, seed=train.seed)
        similarity, rows = neighbours(x[~outer], x[outer], grid[-1][0])
        near, labels = train.labels[~outer][rows], train.labels[outer]
        found = [vote(similarity[:, :k], near[:, :k], len(train.classes), warmth) for k, warmth in grid]
        right = [int((shares.argmax(1) == labels).sum()) for shares in found]
        tried = [
            {"k": k, "temperature": warmth, "accuracy": hits / len(labels)}
            for (k, warmth), hits in zip(grid, right, strict=True)
        ]
        best = right.index(max(right))
        return (found[best], labels), tried, grid[best]

    def _chosen_of_several(
        self, x: Tensor, train: Known
    ) -> tuple[tuple[Tensor, Tensor] | None, list[dict[str, float | None]], tuple[int, float | None]]:
        """As `_chosen`, for images that may have several classes: by macro AP, of equals the first; thresholds need a single one too."""
        grid, outer = self.grid, held_out_rows(train.units, train.labels, seed=train.seed)
        if not bool(outer.any()):
            return None, [], grid[0]
        inner, labels = train.labels[~outer], train.labels[outer]
        similarity, rows = neighbours(x[~outer], x[outer], min(grid[-1][0], len(inner)))
        found = [class_shares(similarity[:, :k], rows[:, :k], inner, warmth) for k, warmth in grid]
        there = labels.numpy().astype(bool)
        precision = [float(macro_over_classes("average_precision", shares.numpy(), there)[0]) for shares in found]
        precision = [0.0 if math.isnan(value) else value for value in precision]
        best = precision.index(max(precision))
        tried: list[dict[str, float | None]] = [
            {"k": k, "temperature": warmth, "average_precision": value}
            for (k, warmth), value in zip(grid, precision, strict=True)
        ]
        return (found[best], labels), tried if len(grid) > 1 else [], grid[best]
