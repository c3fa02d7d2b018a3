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
from ..images.several import has_several
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
    """Each class's share of the votes, float16 [M, K]; arguments and errors as of `knn_predict`.

    train_y may be uint8 [N, K], where an image may have several classes: then as `class_shares`.
    """
    similarity, rows = neighbours(train_x, test_x, k)
    return votes_of(similarity, rows, _labels(train_y, len(train_x), num_classes), num_classes, temperature)


def votes_of(similarity: Tensor, rows: Tensor, train_y: Tensor, num_classes: int, temperature: float | None) -> Tensor:
    """`vote` of neighbours by their rows int64 [M, k]; for labels uint8 [N, K], `class_shares`."""
    if has_several(train_y):
        return class_shares(similarity, rows, train_y, temperature)
    return vote(similarity, train_y[rows], num_classes, temperature)


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
    shares = []
    for near, label in zip(similarity.split(VOTE_ROWS), labels.split(VOTE_ROWS), strict=True):
        weights = _weights(near, temperature)
        votes = torch.zeros(len(near), num_classes, dtype=torch.float64).scatter_add_(1, label, weights)
        shares.append(torch.from_numpy(to_half(votes.numpy(), "votes", "kNN").scores))
    return torch.cat(shares)


def class_shares(similarity: Tensor, rows: Tensor, train_y: Tensor, temperature: float | None) -> Tensor:
    """The weighted share of each test row's neighbours that have a class, float16 [M, K], each 0 to 1.

    similarity: [M, k]; rows: int64 [M, k], of the neighbours; train_y: uint8 [N, K]. Neighbours are added one after the other, `VOTE_ROWS`
    test rows at a time: 33 kB of float64 for each class, and as much again, whatever k is.
    """
    shares = []
    for near, mine in zip(similarity.split(VOTE_ROWS), rows.split(VOTE_ROWS), strict=True):
        weights = _weights(near, temperature)
        found, whole = torch.zeros(len(near), train_y.shape[1], dtype=torch.float64), weights.new_zeros(len(near), 1)
        for j in range(near.shape[1]):
            found += weights[:, j : j + 1] * train_y[mine[:, j]]
            whole += weights[:, j : j + 1]
        shares.append((found / whole).half())
    return torch.cat(shares)


def _weights(near: Tensor, temperature: float | None) -> Tensor:
    """The weight of each neighbour's vote, float64 [M, k], of their cosines."""
    if temperature is not None and temperature <= 0:
        raise UserError(f"kNN needs a temperature above 0 (or none, for equal votes), got {temperature}")
    near = near.double()
    if temperature is None:
        return torch.ones_like(near)
    # Relative to the nearest, since exp(1 / T) overflows for a small T; a row's winner stays the same.
    return torch.exp((near - near.max(dim=1, keepdim=True).values) / temperature)


def _labels(train_y: Tensor, n: int, num_classes: int) -> Tensor:
    if has_several(train_y):
        if train_y.shape != (n, num_classes):
            raise ValueError(f"expected labels [{n}, {num_classes}], got {tuple(train_y.shape)}")
        return train_y.detach().cpu()
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
