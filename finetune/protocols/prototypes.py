"""A classifier that answers "this looks like that": prototypes of each class are patches of training images, under a sparse last layer.

The idea is ProtoPNet's (Chen et al. 2019, arXiv:1806.10574); there the network is trained with them, here the patches are frozen. So an
answer is a sum of few terms: how alike some patch of the image is to a patch of a training picture that anybody can look at.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.checks import LARGEST_RATE
from ...core.errors import UserError
from ...core.evaluate.held_out import held_out_rows
from ...core.images.images import Images
from ...core.views.view import Evaluation
from .candidates import CHOSEN_ON, MOST
from .contract import Counts, Features, Fitted, Known
from .prototype_choice import ChosenPrototypes, choose_prototypes, content_order
from .prototype_pictures import save_prototypes
from .sparse_layer import SparseLayer, fit_sparse

PATCH_TAP = "patches"


@dataclass(frozen=True, kw_only=True)
class PrototypeClassifier:
    """Prototypes of each class among frozen patches, and a last layer with an L1 penalty on the similarities to them.

    per_class: Prototypes of each class, 1 or more; each is a patch of a training image of its class.
    candidates: Clusters of a class's patches for each of its prototypes, 1 or more: the nearest patch to each cluster's centre is a
        candidate, and those that separate the class best become prototypes.
    patches: Patches of a class that clusters are made of at most, drawn by content.
    C: Inverse strengths of the L1 penalty of the last layer to try, above 0; a single one is used without choosing. Smaller ones leave
        fewer weights.
    """

    per_class: int = 10
    candidates: int = 4
    patches: int = 20_000
    C: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)

    def __post_init__(self) -> None:
        """Raises UserError for numbers out of range."""
        for key in ("per_class", "candidates", "patches"):
            if not 1 <= (value := getattr(self, key)) <= MOST:
                raise UserError(f"evaluate.prototypes.{key}: expected 1 to {MOST:,}, got {value}")
        if not self.C or not all(0 < c <= LARGEST_RATE for c in self.C):
            raise UserError(f"evaluate.prototypes.C: expected one or more numbers above 0, got {list(self.C)}")

    @property
    def reads(self) -> tuple[str, ...]:
        """The tokens that stand for a place."""
        return (PATCH_TAP,)

    def requires(self, name: str, counts: Counts) -> None:
        """Nothing beyond what `__post_init__` checks."""

    def fit(self, train: Known) -> Fitted:
        """Choose C on the slice, with prototypes of the other images; then prototypes and last layer of all of them."""
        order = content_order(train.features[PATCH_TAP], train.labels, train.keys)
        known, classes, grid = train.rows(order), len(train.classes), sorted(set(self.C))
        tried, held, best = list[dict[str, Any]](), None, grid[0]
        outer = held_out_rows(known.units, known.labels, seed=train.seed)
        if len(grid) > 1 and bool(outer.any()):
            tried, held, best = self._tried(known, outer, grid)
        elif len(grid) > 1:
            best = grid[len(grid) // 2]
        chosen = self._chosen(known)
        layer = fit_sparse(chosen.similarities(known.features[PATCH_TAP]), known.labels, best)

        def scores(features: Features) -> Tensor:
            return layer.logits(chosen.similarities(features[PATCH_TAP]), classes)

        settings = {
            **asdict(self),
            "tap": PATCH_TAP,
            "similarity": "the highest cosine of a patch of the image with the prototype, the mean training patch taken away",
            "prototypes": "k-means of a class's patches, each centre pushed to the nearest patch; those that separate best",
            "optimizer": "FISTA on C * sum of cross-entropies + |weight|_1, until optimal to 1 % of the penalty",
            "augment": "none",
            "chosen": CHOSEN_ON if tried else "nothing",
        }
        shown = prototypes_as_json(chosen, layer, train, order)
        return Fitted(
            scores,
            "logits",
            {"C": best} if tried else {},
            tuple(tried),
            {"refit": {"C": best, "iterations": layer.iterations, "converged": layer.converged}},
            {"settings": settings, **shown},
            held,
            draw=_drawing(chosen, layer, train, order),
        )

    def _chosen(self, known: Known) -> ChosenPrototypes:
        return choose_prototypes(
            known.features[PATCH_TAP],
            known.labels,
            known.keys,
            per_class=self.per_class,
            candidates=self.candidates,
            most=self.patches,
            seed=known.seed,
            device=known.device,
        )

    def _tried(
        self, known: Known, outer: Tensor, grid: list[float]
    ) -> tuple[list[dict[str, Any]], tuple[Tensor, Tensor] | None, float]:
        """Every C with its accuracy on the slice, the best one's logits there, and the best: most right, of equals the sparsest."""
        inner, held = known.rows((~outer).nonzero()[:, 0]), known.rows(outer.nonzero()[:, 0])
        chosen = self._chosen(inner)
        similar, beside = (chosen.similarities(part.features[PATCH_TAP]) for part in (inner, held))
        tried, best, layer = list[dict[str, Any]](), (-1, 0), None
        logits = torch.zeros(0)
        for number, C in enumerate(grid):
            layer = fit_sparse(similar, inner.labels, C, layer)
            found = layer.logits(beside, len(known.classes))
            right = int((found.argmax(1) == held.labels).sum())
            tried.append(
                {
                    "C": C,
                    "accuracy": right / len(held.labels),
                    "weights": int((layer.weight != 0).sum()),
                    "converged": layer.converged,
                }
            )
            if right > best[0]:
                best, logits = (right, number), found
        there = torch.isin(held.labels, inner.labels.unique())
        told = (logits[there], held.labels[there]) if bool(there.any()) else None
        return tried, told, grid[best[1]]


def prototypes_as_json(chosen: ChosenPrototypes, layer: SparseLayer, train: Known, order: Tensor) -> dict[str, Any]:
    """What the details of a result say of the prototypes: image, patch, and the weights that are not 0."""
    names = {row: name for name, row in reversed(train.names())}
    rows = order[chosen.row].tolist()
    weights = layer.weight
    listed = [
        {
            "class": train.classes[int(chosen.owner[j])],
            "image": names.get(rows[j], str(rows[j])),
            "key": int(train.keys[rows[j]]),
            "patch": int(chosen.cell[j]),
            "separation": float(chosen.separation[j]),
            "weights": {
                train.classes[int(layer.classes[k])]: float(weights[k, j])
                for k in weights[:, j].nonzero()[:, 0].tolist()
            },
        }
        for j in range(len(rows))
    ]
    return {"prototypes": listed, "weights_not_0": int((weights != 0).sum()), "weights_of": weights.numel()}


def _drawing(chosen: ChosenPrototypes, layer: SparseLayer, train: Known, order: Tensor) -> Any:
    def draw(run: Path, name: str, images: Images, view: Evaluation, grid: tuple[int, int] | None) -> None:
        if grid is not None:
            places = list(zip(order[chosen.row].tolist(), chosen.cell.tolist(), chosen.owner.tolist(), strict=True))
            save_prototypes(run, name, places, train.classes, images, view, grid)

    return draw
