"""Few-shot classification on frozen features: the nearest class mean of a handful of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...core.draws import Draws
from ...core.errors import UserError
from ...core.images.split import keys_by_class
from .contract import Counts, Features, Fitted, Known

# More would take hours and much memory, and narrow the interval by nothing that is seen.
MOST_DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Nearest class mean of `shots` images a class (SimpleShot, Wang et al. 2019, arXiv:1911.04623, CL2N).

    Features are centred by the mean of all training features, without labels, and normalised. Nothing is tuned, which a handful of
    labels would not allow. The interval is over the draws; details pool them, so supports are `draws` times the test set's.
    The images of a draw are different ones: at most one copy or blend of a picture is among them.

    shots: Different training images a class, 1 or more; each class needs as many.
    draws: Number of random choices of these images over which the score is averaged, 1 to 10,000.
    taps: Features that are read, by name (`pooled`, `cls`, `mean`, `last4`, `block3`, ...; `layers` for each block or stage); each is
        scored on its own.
    """

    shots: int = 5
    draws: int = 10
    taps: tuple[str, ...] = ("pooled",)

    @property
    def reads(self) -> tuple[str, ...]:
        """The tap."""
        return self.taps

    def requires(self, name: str, counts: Counts) -> None:
        """Raises UserError for numbers below 1 and for a class with fewer different images."""
        check_shots(name, self.shots, self.draws, counts)

    def fit(self, train: Known) -> Fitted:
        """The class means of each draw. Scores are similarities (cosines), float32 [draws, M, K]."""
        x = train.features[self.reads[0]].float().cpu()
        centre = x.mean(dim=0)
        rows = drawn_rows(train.keys, train.labels, train.seed, self.shots, self.draws)
        means = normalize(normalize(x - centre, dim=1)[rows].mean(dim=2), dim=2)

        def scores(features: Features) -> Tensor:
            test = normalize(features[self.reads[0]].float().cpu() - centre, dim=1)
            return torch.einsum("md,scd->smc", test, means)

        return Fitted(scores, "similarities")


def check_shots(name: str, shots: int, draws: int, counts: Counts) -> None:
    """Raises UserError for numbers below 1 and for a class with fewer different images than `shots`."""
    if shots < 1 or draws < 1:
        raise UserError(f"{name} needs shots and draws of at least 1, got {shots} and {draws}")
    if draws > MOST_DRAWS:
        raise UserError(
            f"{name}: draws is {draws}, expected at most {MOST_DRAWS:,}; a hundred are enough for a narrow interval"
        )
    found = keys_by_class(counts.keys.cpu(), counts.labels.cpu())
    several = [len(found[label]) if label in found else 0 for label in range(len(counts.classes))]
    for title, count in zip(counts.classes, several, strict=True):
        if count < shots:
            least = min(several)
            key = f"evaluate.{name.split('@')[0]}.shots"
            remedy = f"give {key} of at most {least}" if least else "leave the class out"
            raise UserError(
                f"{name}: class {title} has {count} different training images, fewer than shots = {shots}; {remedy}, or add images"
            )


def drawn_rows(keys: Tensor, y: Tensor, seed: int, shots: int, draws: int) -> Tensor:
    """For each draw and class the rows of `shots` identities, int64 [draws, K, shots]; of an identity one random image of its class.

    A draw depends on the seed and the identities, not on the order of images. keys, y: int64 [N].
    """
    picked = []
    for label, own in keys_by_class(keys, y).items():
        order = Draws(seed, own).bits("fewshot", draws)
        which = Draws(seed, own).uniform("fewshot/image", draws)
        chosen = order.argsort(dim=0, stable=True)[:shots].T  # [draws, shots]
        rows = ((y == label) & torch.isin(keys, own)).nonzero()[:, 0]
        rows = rows[torch.searchsorted(own, keys[rows]).argsort(stable=True)]
        counts = torch.searchsorted(own, keys[rows]).bincount(minlength=len(own))
        at = counts.cumsum(0) - counts + (which.T * counts).long()  # [draws, identities]
        picked.append(rows[at.gather(1, chosen)])
    return torch.stack(picked, dim=1)
