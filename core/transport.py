"""Exact optimal transport between two batches, by POT (Flamary et al. 2021, JMLR 22:78).

POT is optional, and its import takes seconds, so it is imported when a method asks for the solver.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from .distributed import of_first
from .errors import UserError

PIVOTS = 10_000_000  # of the network simplex; a batch of 1,024 takes some ten thousand


class Solver(Protocol):
    """Finds an optimal plan."""

    def __call__(self, costs: Tensor, weights: Tensor | None = None) -> Tensor:
        """[N, M] -> [N, M]. weights: of rows and columns, above 0, [2, N] where N = M; None: all 1."""
        ...


def transport_solver(who: str) -> Solver:
    """A function from costs [N, M] to an optimal plan [N, M], of the costs' type, without gradient.

    The plan's marginals are uniform, or in proportion to given weights. Rank 0 solves in float64 and hands its plan to the others, so
    several processes never follow different plans of equal cost. Costs that are not finite get the plan of independent rows and columns.
    who: the method, for the message. Raises UserError if POT is missing.
    """
    try:
        import ot
    except ImportError:
        raise UserError(
            f"{who} needs POT; `pip install 'rootstock[adapt]'` or `pip install POT`, or choose another method, such as dan"
        ) from None
    emd: Any = ot.emd  # pyright: ignore[reportAttributeAccessIssue]

    def solved(costs: Tensor, weights: Tensor | None) -> Tensor:
        found = costs.detach().double().cpu()
        rows, columns = (torch.ones(n).double() for n in found.shape) if weights is None else weights.double().cpu()
        rows, columns = rows / rows.sum(), columns / columns.sum()
        scale = found.abs().max()
        if not scale.isfinite():
            return torch.outer(rows, columns)
        # The simplex compares with absolute tolerances, and published costs are of size 1e-4.
        scaled = found / scale.clamp(min=torch.finfo(found.dtype).tiny)
        return torch.from_numpy(emd(rows.numpy(), columns.numpy(), scaled.numpy(), numItermax=PIVOTS))

    def plan(costs: Tensor, weights: Tensor | None = None) -> Tensor:
        return of_first(lambda: solved(costs, weights), costs.detach())

    return torch.compiler.disable(plan)  # pyright: ignore[reportReturnType]
