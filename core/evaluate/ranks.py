"""Ranks and rank correlation by scipy.stats, which is imported where it is used, since every command would wait half a second for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def mean_ranks(values: Sequence[float] | NDArray[Any]) -> NDArray[np.float64]:
    """The rank of each value, 1 for the smallest; equal values share their mean rank."""
    from scipy.stats import rankdata

    return rankdata(values)


def kendall_tau(a: Sequence[float] | NDArray[Any], b: Sequence[float] | NDArray[Any]) -> float:
    """Kendall's tau-b of two rankings; NaN where one side has no order."""
    from scipy.stats import kendalltau

    found: Any = kendalltau(a, b)
    return float(found.statistic)
