"""Cosines of features that come out the same to the last bit, whatever the chunks, threads, processes and order of rows.

Rows of length 1 are rounded to multiples of 2^-24. Products are then multiples of 2^-48, and every partial sum of a product of two rows is
below 2 (Cauchy-Schwarz): float64 holds each of them exactly, so no order of summation rounds. Equal features have equal cosines, which a
plain product of matrices doesn't promise, and ties are real. The rounding moves a cosine by some 2e-8, less than float32 would.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from .counts import Floats, Ints

GRID = 2.0**24
UnitRows = NDArray[np.float32]
# Rows are converted this many numbers at a time: 64 MB in float64.
_NUMBERS = 1 << 23


def unit_rows(x: Tensor, name: str) -> UnitRows:
    """Rows of length 1, multiples of 2^-24, float32 [N, D]; all-zero rows stay. x: [N, D] of any scale and float type.

    name: what the features are of, for errors. Takes the result and 3 x 64 MB. Raises UserError for features that are not finite.
    """
    if x.ndim != 2:
        raise ValueError(f"{name} features must be [N, D], got {tuple(x.shape)}")
    check_finite(x, name)
    out = np.empty(tuple(x.shape), np.float32)
    step = max(1, _NUMBERS // max(1, x.shape[1]))
    for start in range(0, len(x), step):
        rows = x[start : start + step].detach().cpu().double().numpy()
        # By the largest number first: the squares of very large or small ones leave the range of float64.
        rows = _divide(rows, np.abs(rows).max(axis=1, initial=0.0))
        rows = _divide(rows, np.sqrt(np.einsum("nd,nd->n", rows, rows)))
        out[start : start + step] = np.rint(rows * GRID) / GRID
    return out


def near_one(x: Tensor) -> Tensor:
    """Rows [N, D] times a power of 2 each, so that their largest number is from 0.5 to below 1; float64, or float32 from coarser types.

    Their cosines stay the same to the last bit, and their squares stay within the range of the type. All-zero rows stay.
    """
    x = x if x.dtype == torch.float64 else x.float()
    exponent = torch.frexp(x.abs().amax(1, keepdim=True)).exponent if x.shape[1] else x.new_zeros(len(x), 1).int()
    half = torch.div(
        exponent, 2, rounding_mode="floor"
    )  # in two steps, since 2^-exponent itself may be no number of the type
    return torch.ldexp(torch.ldexp(x, -half), half - exponent)


def check_finite(x: Tensor, name: str) -> None:
    """Raises UserError if features [N, D] are not finite. name: what they are of."""
    finite = x.isfinite().all(dim=1)
    if not bool(finite.all()):
        raise UserError(f"{int((~finite).sum())} of {len(x)} {name} features are not finite; the model has diverged")


def cosine_table(first: UnitRows, second: UnitRows) -> Floats:
    """The cosine of each row of `first` [Q, D] with each of `second` [G, D], float64 [Q, G]; both of `unit_rows`.

    Besides the result it takes `first` and 64 MB in float64.
    """
    out = np.empty((len(first), len(second)))
    own, step = first.astype(np.float64), max(1, _NUMBERS // max(1, second.shape[1]))
    for start in range(0, len(second), step):
        np.matmul(own, second[start : start + step].astype(np.float64).T, out=out[:, start : start + step])
    return out


def pair_cosines(a: UnitRows, b: UnitRows, first: Ints, second: Ints) -> Floats:
    """The cosine of a[first[p]] and b[second[p]], float64 [P]; both of `unit_rows`. Besides the result it takes 3 x 64 MB."""
    out, step = np.empty(len(first)), max(1, _NUMBERS // max(1, a.shape[1]))
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        out[part] = np.einsum("pd,pd->p", a[first[part]].astype(np.float64), b[second[part]].astype(np.float64))
    return out


def to_numpy(x: Tensor) -> Ints:
    """Labels or keys, int64 [N]."""
    return x.detach().cpu().to(torch.int64).numpy()


def _divide(rows: Floats, by: Floats) -> Floats:
    return np.divide(rows, by[:, None], out=np.zeros_like(rows), where=by[:, None] > 0)
