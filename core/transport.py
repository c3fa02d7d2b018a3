"""Exact optimal transport between two batches, by POT (Flamary et al. 2021, JMLR 22:78).

POT is optional, and its import takes seconds, so it is imported when a method asks for the solver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .distributed import of_first
from .errors import UserError

PIVOTS = 10_000_000  # of the network simplex; a batch of 1,024 takes some ten thousand


def transport_solver(who: str) -> Callable[[Tensor], Tensor]:
    """A function from costs [N, M] to an optimal plan [N, M] with uniform marginals, of the costs' type, without gradient.

    Rank 0 solves in float64 and hands its plan to the others, so several processes never follow different plans of equal cost. Costs that
    are not finite get the uniform plan. who: the method, for the message. Raises UserError if POT is missing.
    """
    try:
        import ot
    except ImportError:
        raise UserError(
            f"{who} needs POT; `pip install 'rootstock[adapt]'` or `pip install POT`, or choose another method, such as dan"
        ) from None
    emd: Any = ot.emd  # pyright: ignore[reportAttributeAccessIssue]

    def solved(costs: Tensor) -> Tensor:
        found = costs.detach().double().cpu()
        scale = found.abs().max()
        if not scale.isfinite():
            return torch.full_like(found, 1.0 / found.numel())
        # The simplex compares with absolute tolerances, and published costs are of size 1e-4.
        plan = emd([], [], (found / scale.clamp(min=torch.finfo(found.dtype).tiny)).numpy(), numItermax=PIVOTS)
        return torch.from_numpy(plan)

    def plan(costs: Tensor) -> Tensor:
        return of_first(lambda: solved(costs), costs.detach())

    return torch.compiler.disable(plan)  # pyright: ignore[reportReturnType]
