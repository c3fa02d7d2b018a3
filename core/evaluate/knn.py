"""The k-nearest-neighbour classifier on frozen features (Wu et al. 2018, arXiv:1805.01978, section 3.4), exact, by
faiss.

Cosine similarity, each neighbour's vote weighted by exp(similarity / T). Exact search, because an approximate index
would put its own error into a number that is compared with published ones.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..distributed import rank
from ..errors import UserError
from .cosines import check_finite, cosine_table, near_one, unit_rows
from .counts import Floats, Ints
from .predictions import to_half

logger = logging.getLogger(__name__)

# Votes are counted for this many test rows at a time: 4096 x 1000 classes in float64 are 32 MB.
VOTE_ROWS = 4096
# Where the k-th neighbour and the next are equally near, cosines are computed for this many pairs at a time.
TIED_AT_ONCE = 1 << 23


def knn_predict(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    num_classes: int,
    *,
    k: int = 20,
    temperature: float | None = 0.07,
) -> Tensor:
    """Predicted classes, int64 [M].

    train_x: [N, D], train_y: int64 [N] in 0..num_classes-1, test_x: [M, D]; any scale, normalised here.
    k: neighbours; at most N, with one warning. temperature: T of the weights; None: every neighbour has the same weight. The
    lower class number wins a tie. Raises UserError for k < 1, T <= 0, an empty training set, labels out of range or features
    that are not finite.
    """
    return knn_scores(train_x, train_y, test_x, num_classes, k=k, temperature=temperature).argmax(1)


def knn_scores(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    num_classes: int,
    *,
    k: int = 20,
    temperature: float | None = 0.07,
) -> Tensor:
    """Each class's share of the votes, float16 [M, K]; arguments and errors as of `knn_predict`."""
    similarity, rows = neighbours(train_x, test_x, k)
    return vote(similarity, _labels(train_y, len(train_x), num_classes)[rows], num_classes, temperature)


def neighbours(train_x: Tensor, test_x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest training rows of each test row, nearest first: cosine float32 [M, k], row int64 [M, k].

    Of equally near rows the lower comes first, so the neighbours for a smaller k are the first of those for a larger one. Where the k-th
    and the next are equally near, all cosines of the test row are computed again, `TIED_AT_ONCE` pairs at a time (64 MB), beside a copy
    of the features.
    """
    if len(train_x) == 0:
        raise UserError("kNN needs at least one training image, got none")
    if k < 1:
        raise UserError(f"kNN needs k of at least 1, got {k}")
    if k > len(train_x):
        say_clipped(k, len(train_x))
        k = len(train_x)
    train, test = _unit_rows(train_x, "training"), _unit_rows(test_x, "test")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"training features have {train.shape[1]} numbers an image, test features {test.shape[1]}")
    # Any: faiss's Python signatures are swig's, which type checkers misread.
    index: Any = faiss.IndexFlatIP(train.shape[1])
    index.add(train)
    similarity, rows = index.search(test, min(k + 1, len(train)))
    order = np.lexsort((rows, -similarity), axis=1)  # faiss leaves equal ones in any order
    similarity, rows = (np.take_along_axis(part, order, axis=1) for part in (similarity, rows))
    tied = np.flatnonzero(similarity[:, k - 1] == similarity[:, -1]) if k < len(train) else np.empty(0, np.int64)
    similarity, rows = similarity[:, :k], rows[:, :k]
    if len(tied):
        similarity[tied], rows[tied] = _nearest_of_ties(train_x, test_x[torch.from_numpy(tied)], k)
    return torch.from_numpy(similarity), torch.from_numpy(rows)


def _nearest_of_ties(train_x: Tensor, test_x: Tensor, k: int) -> tuple[Floats, Ints]:
    """As `neighbours`, in cosines that are equal to the last bit for equal rows; k below the number of training rows."""
    train, test = unit_rows(train_x, "training"), unit_rows(test_x, "test")
    similarity, rows = np.empty((len(test), k)), np.empty((len(test), k), np.int64)
    step = max(1, TIED_AT_ONCE // len(train))
    for start in range(0, len(test), step):
        for i, near in enumerate(cosine_table(test[start : start + step], train), start):
            last = np.partition(near, len(near) - k)[len(near) - k]
            above, equal = np.flatnonzero(near > last), np.flatnonzero(near == last)
            rows[i] = np.r_[above[np.lexsort((above, -near[above]))], equal[: k - len(above)]]
            similarity[i] = near[rows[i]]
    return similarity, rows


def vote(similarity: Tensor, labels: Tensor, num_classes: int, temperature: float | None) -> Tensor:
    """Each class's share of the votes, float16 [M, K]; similarity, labels: [M, k], of each test row's neighbours.

    The class with most votes, of equals the lowest, has the largest share also after rounding.
    """
    if temperature is not None and temperature <= 0:
        raise UserError(f"kNN needs a temperature above 0 (or none, for equal votes), got {temperature}")
    shares = []
    for near, label in zip(similarity.split(VOTE_ROWS), labels.split(VOTE_ROWS), strict=True):
        near = near.double()
        if temperature is None:
            weights = torch.ones_like(near)
        else:
            # Relative to the nearest, since exp(1 / T) overflows for a small T; a row's winner stays the same.
            weights = torch.exp((near - near.max(dim=1, keepdim=True).values) / temperature)
        votes = torch.zeros(len(near), num_classes, dtype=torch.float64).scatter_add_(1, label, weights)
        shares.append(torch.from_numpy(to_half(votes.numpy(), "votes", "kNN").scores))
    return torch.cat(shares)


def _labels(train_y: Tensor, n: int, num_classes: int) -> Tensor:
    train_y = train_y.detach().cpu().long()
    if train_y.shape != (n,):
        raise ValueError(f"{n} training features need as many labels, got {tuple(train_y.shape)}")
    if int(train_y.min()) < 0 or int(train_y.max()) >= num_classes:
        low, high = int(train_y.min()), int(train_y.max())
        raise UserError(
            f"training labels lie in {low}..{high}, expected 0..{num_classes - 1}; is a part of the set unlabelled?"
        )
    return train_y


def _unit_rows(x: Tensor, name: str) -> np.ndarray:
    """Rows of length 1 (all-zero rows stay), float32, contiguous, for faiss."""
    x = x.detach().cpu()
    if x.ndim != 2:
        raise ValueError(f"{name} features must be [N, D], got {tuple(x.shape)}")
    check_finite(x, name)  # faiss returns row -1 for others, which would silently index the last label
    return np.ascontiguousarray(normalize(near_one(x).float(), dim=1).numpy())


@lru_cache
def say_clipped(k: int, n: int) -> None:
    """Warn, once for each pair, that there are only n training images for k neighbours."""
    if rank() == 0:
        logger.warning("kNN: k = %d is more than the %d training images; all of them vote", k, n)
