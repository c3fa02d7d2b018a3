"""Plans of optimal transport in two processes: rank 0's for both. Plans themselves are in tests/adapt/test_deepjdot.py."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rootstock.core.transport import transport_solver

N = 6


def costs(rank: int) -> Tensor:
    return torch.rand(N, N, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def test_every_process_follows_the_plan_of_rank_0(two_processes: Callable[[str], list[dict[str, Tensor]]]) -> None:
    """Rank 1 has other costs, for which another plan is best, as rounding may make it where plans cost nearly the same."""
    first, second = (found["plan"] for found in two_processes(__file__))
    plans = []
    for rank in range(2):
        rows, columns = linear_sum_assignment(costs(rank).numpy())
        plans.append(torch.zeros(N, N, dtype=torch.float64))
        plans[rank][rows, columns] = 1 / N
    assert not torch.allclose(*plans)
    torch.testing.assert_close(first, plans[0])
    assert torch.equal(first, second)


def work(rank: int, folder: Path) -> None:
    """One of two processes with its own costs."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    save_file({"plan": transport_solver("the test")(costs(rank))}, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
