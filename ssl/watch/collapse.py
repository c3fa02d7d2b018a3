"""Metrics of every step that show, without labels and without waiting for the device, whether the representation has collapsed.

A collapsed method maps all images to one vector (standard deviation 0) or to one direction (rank 1): Chen & He 2021
(arXiv:2011.10566, section 4.1), Jing et al. 2022 (arXiv:2110.09348).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Below this std of features or embeddings there is an alarm. A fresh mean-pooled ViT has 0.06 on small pictures, trained ones 0.1 to 1.
MIN_STD = 0.005
# Alarm where views agree (positive_cosine above the first) and no better than chance (positive_auc below the second). SimSiam without
# stop-gradient passes a cosine of 0.7 within tens of steps at an AUC of 0.5 to 0.56.
HIGH_COSINE, LOW_AUC = 0.7, 0.65
# Nats of information that targets carry about their image, below which there is an alarm. DINO in training has 0.1 to 2; a SwAV whose
# codes had become uniform had 0.003 to 0.02.
MIN_INFORMATION = 0.02


@torch.no_grad()
def collapse_metrics(features: Tensor, embeddings: Tensor | None = None) -> dict[str, Tensor]:
    """Scalars for `Step.metrics`.

    features: [V, N, D] or [N, D] of the backbone. embeddings: [V, N, E], the vectors that the loss compares, of all processes or of this
    one. Returned:
    feature_std, embedding_std: sqrt(D) times the standard deviation over images, averaged over dimensions, of vectors scaled to length 1:
        1 where they point evenly in all directions, 0 where all are the same.
    feature_rank, embedding_rank: the participation ratio (sum l)^2 / sum l^2 of their covariance's eigenvalues l: the number of dimensions
        that they use.
    positive_cosine: mean cosine of the embeddings of an image's first two views.
    positive_auc: how often that cosine is above the one with another image; 0.5 is chance.
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
        own = cosines.flatten()[:: len(cosines) + 1, None]  # torch.diagonal makes torch.compile (2.15) warn
        others = max(1, len(cosines) - 1)
        # Ties count half, so identical embeddings have an AUC of 0.5.
        auc = ((cosines < own).sum() + 0.5 * ((cosines == own).sum() - len(cosines))) / (len(cosines) * others)
        return {"positive_cosine": own.mean(), "positive_auc": auc}


def _spread(name: str, x: Tensor) -> dict[str, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        rows = F.normalize(x.flatten(0, -2).float(), dim=1)
        if len(rows) < 3:  # one or two rows have no spread, or a single direction, by construction
            return {}
        rows = rows - rows.mean(0)
        power = rows.square().sum()
        small = (
            rows.T @ rows if rows.shape[1] < len(rows) else rows @ rows.T
        )  # both have the same eigenvalues; take the smaller matrix
        # The tiny number avoids 0/0 where all rows are equal.
        rank = power.square() / small.square().sum().clamp(min=1e-20)
        return {f"{name}_std": rows.std(0).mean() * rows.shape[1] ** 0.5, f"{name}_rank": rank}


class CollapseAlarm:
    """Reads the logged rows of a run and gives one warning when the representation has collapsed.

    Two rows in a row must show it, because a single batch may be odd. history: gives the rows that an interrupted run has logged already;
    they are read before the first new one, so that a resumed run warns as an uninterrupted one does.
    """

    def __init__(self, history: Callable[[], Iterable[Mapping[str, Any]]] = tuple) -> None:
        self.history: Callable[[], Iterable[Mapping[str, Any]]] | None = history
        self.before: str | None = None
        self.raised = False

    def __call__(self, step: int, row: Mapping[str, float]) -> str | None:
        """The warning, or None if nothing has collapsed or the warning was given before."""
        if self.history is not None:
            earlier, self.history = self.history(), None
            for known in earlier:
                if "loss" in known and known["step"] < step:
                    self(known["step"], known)
        found = describe_collapse(row)
        certain = found is not None and self.before is not None
        self.before = found
        if not certain or self.raised:
            return None
        self.raised = True
        return (
            f"the representation has collapsed by step {step}: {found}; further training rarely repairs it. Lower optim.lr, lengthen "
            "optim.warmup, and check the method's own keys against collapse (temperatures, momentum, stop-gradient, BatchNorm in the heads)"
        )


def describe_collapse(row: Mapping[str, float]) -> str | None:
    """What has collapsed by the metrics of one row, in words; None if nothing has, or if the row has no such metrics."""
    if "prototypes_used" in row:
        # Information of a target about its image in nats: 0 if all images get one prototype, and 0 if each gets all of them evenly.
        information = math.log(max(1.0, row["prototypes_used"])) - row["target_entropy"]
        if information < MIN_INFORMATION:
            return f"all images get the same prototypes (targets carry {max(0.0, information):.2g} nats of information about their image)"
    elif "positive_auc" in row:
        # Views may agree because they show one image, or because all embeddings are the same; the AUC distinguishes both.
        cosine, auc = row["positive_cosine"], row["positive_auc"]
        if cosine > HIGH_COSINE and auc < LOW_AUC:
            return f"views of an image agree (cosine {cosine:.2f}), but so do views of different images (AUC {auc:.0%}, chance is 50%)"
    for name in ("embedding", "feature"):
        if (spread := row.get(f"{name}_std")) is not None and spread < MIN_STD:
            return f"all images get nearly the same {name} ({name}_std {spread:.2g})"
    return None
