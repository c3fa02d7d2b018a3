"""What is watched in every step, without labels and without waiting for the device: is the representation still one?

A collapsed method answers every image alike (standard deviation 0), or along one direction (rank 1): Chen & He 2021
(arXiv:2011.10566, section 4.1), Jing et al. 2022 (arXiv:2110.09348).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# A fresh ViT on small pictures, mean-pooled, has a feature_std of 0.06; methods that learn have 0.1 to 1.
MIN_STD = 0.005
# Where SimSiam lacks its stop-gradient, cosines pass 0.7 within tens of steps while views stay at chance, 0.5 to 0.56.
HIGH_COSINE, LOW_AUC = 0.7, 0.65
# DINO in training: 0.1 to 2; a SwAV whose codes had become even: 0.003 to 0.02.
MIN_INFORMATION = 0.02


@torch.no_grad()
def collapse_metrics(features: Tensor, embeddings: Tensor | None = None) -> dict[str, Tensor]:
    """Scalars for `Step.metrics`.

    features: [V, N, D] or [N, D] of the backbone. embeddings: [V, N, E], what the loss compares, of all processes or of this one.
    feature_std, embedding_std: sqrt(D) times the mean over dimensions of the standard deviation over images, after scaling each to
    length 1: 1 where they point evenly everywhere, 0 where all are the same. feature_rank, embedding_rank: the participation
    ratio (sum l)^2 / sum l^2 of the eigenvalues l of their covariance: how many dimensions they use. positive_cosine: the mean
    cosine of the embeddings of the first two views. positive_auc: how often it is above that with another image, 0.5 by chance.
    """
    found = _spread("feature", features)
    if embeddings is not None:
        found |= _spread("embedding", embeddings)
        if len(embeddings) > 1:
            found |= _matching(embeddings[0], embeddings[1])
    return found


def _matching(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    with torch.autocast(first.device.type, enabled=False):
        cosines = F.normalize(first.float(), dim=1) @ F.normalize(second.float(), dim=1).T
        own = cosines.flatten()[:: len(cosines) + 1, None]  # not torch.diagonal, of which torch.compile (2.15) warns
        others = max(1, len(cosines) - 1)
        # Ties count half: where all embeddings are one, nothing is told apart.
        told = ((cosines < own).sum() + 0.5 * ((cosines == own).sum() - len(cosines))) / (len(cosines) * others)
        return {"positive_cosine": own.mean(), "positive_auc": told}


def _spread(name: str, x: Tensor) -> dict[str, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        rows = F.normalize(x.flatten(0, -2).float(), dim=1)
        if len(rows) < 3:  # a micro-batch of one or two images has no spread, or one direction, by construction
            return {}
        rows = rows - rows.mean(0)
        power = rows.square().sum()
        small = (
            rows.T @ rows if rows.shape[1] < len(rows) else rows @ rows.T
        )  # the same eigenvalues, the smaller matrix
        # A tiny number instead of 0/0 where all rows are one.
        rank = power.square() / small.square().sum().clamp(min=1e-20)
        return {f"{name}_std": rows.std(0).mean() * rows.shape[1] ** 0.5, f"{name}_rank": rank}


class CollapseAlarm:
    """Reads the logged rows of a run and says, once, in words, when the representation has collapsed.

    It waits for two rows in a row: a single batch may be odd. history: the rows that are there already, read before the first
    one of this process, so that a resumed run says what a straight one does.
    """

    def __init__(self, history: Callable[[], Iterable[Mapping[str, Any]]] = tuple) -> None:
        self.history: Callable[[], Iterable[Mapping[str, Any]]] | None = history
        self.before: str | None = None
        self.told = False

    def __call__(self, step: int, row: Mapping[str, float]) -> str | None:
        """The sentence, or None while all is well or after it was said."""
        if self.history is not None:
            earlier, self.history = self.history(), None
            for known in earlier:
                if "loss" in known and known["step"] < step:
                    self(known["step"], known)
        found = describe_collapse(row)
        certain = found is not None and self.before is not None
        self.before = found
        if not certain or self.told:
            return None
        self.told = True
        return (
            f"the representation has collapsed by step {step}: {found}; training on will hardly mend it. Lower optim.lr, lengthen "
            "optim.warmup, and look at the method's own guards (temperatures, momentum, stop-gradient, BatchNorm in the heads)"
        )


def describe_collapse(row: Mapping[str, float]) -> str | None:
    """What has collapsed, in words, by the metrics of one row; None if nothing has, or nothing is told of it."""
    if "prototypes_used" in row:
        # What a target tells of its image, in nats: nothing if all get one prototype, and nothing if all get all of them evenly.
        information = math.log(max(1.0, row["prototypes_used"])) - row["target_entropy"]
        if information < MIN_INFORMATION:
            return f"all images get the same prototypes (targets tell {max(0.0, information):.2g} nats of their image)"
    elif "positive_auc" in row:
        # Without prototypes, views agree for one of two reasons: they are of one image, or all images are one.
        cosine, auc = row["positive_cosine"], row["positive_auc"]
        if cosine > HIGH_COSINE and auc < LOW_AUC:
            return f"views of an image agree (cosine {cosine:.2f}), but so do all others (told apart {auc:.0%} of the time, chance is 50%)"
    for name in ("embedding", "feature"):
        if (spread := row.get(f"{name}_std")) is not None and spread < MIN_STD:
            return f"all images get nearly the same {name} ({name}_std {spread:.2g})"
    return None
