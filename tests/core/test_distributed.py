"""Collectives with gradient: N processes equal one on the whole batch, and a gather's backward moves only what it must."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from rootstock.core import distributed
from rootstock.core.distributed import (
    all_reduce_sum,
    any_process,
    broadcast_text,
    gather,
    of_first,
    own_rows,
    sum_with_gradient,
)

ROWS, WIDTH = 6, 4


def rows() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def coupled(z: Tensor, own: slice) -> Tensor:
    """The mean over `own` rows of something that looks at all rows."""
    similarity = z @ z.T / z.norm(dim=1)
    return similarity.logsumexp(1)[own].mean()


def summed(z: Tensor, total: Tensor) -> Tensor:
    return ((z - total).square() * torch.arange(1.0, WIDTH + 1)).sum(1).mean()


def gradient(loss: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    leaf = z.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf), leaf)
    return found


@pytest.fixture(scope="module")
def shared(two_processes: Callable[[str], list[dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
    return two_processes(__file__)


def test_one_process_is_the_identity() -> None:
    z = rows()
    assert gather(z) is z and sum_with_gradient(z) is z and all_reduce_sum(z) is z
    assert distributed.world() == 1 and distributed.rank() == 0 and own_rows(ROWS) == slice(0, ROWS)
    assert torch.equal(
        of_first(lambda: torch.ones(2), torch.zeros(2, dtype=torch.float64)), torch.ones(2, dtype=torch.float64)
    )
    assert broadcast_text("word") == "word" and any_process(torch.tensor([True, False])).tolist() == [True, False]


@pytest.mark.parametrize("kind", ["plain", "transposed"])
def test_gather_keeps_rows_and_gives_the_gradient_of_the_whole_batch(
    shared: list[dict[str, Tensor]], kind: str
) -> None:
    whole = gradient(lambda z: coupled(z, slice(0, ROWS)), rows())
    for part in shared:
        assert torch.equal(part[f"{kind}/gathered"], rows())
    # DistributedDataParallel averages over processes: so must this test.
    found = torch.cat([part[f"{kind}/gradient"] for part in shared]) / 2
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


def test_sum_gives_the_gradient_of_the_whole_batch(shared: list[dict[str, Tensor]]) -> None:
    whole = gradient(lambda z: summed(z, z.sum(0)), rows())
    found = torch.cat([part["sum/gradient"] for part in shared]) / 2
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


def test_the_backward_of_gather_is_a_reduce_scatter(shared: list[dict[str, Tensor]]) -> None:
    # One reduce-scatter that leaves a process its own rows, and no all-reduce of the stack.
    for part in shared:
        assert part["calls"].tolist() == [1, 0, ROWS // 2 * WIDTH]


def test_processes_agree(shared: list[dict[str, Tensor]]) -> None:
    for part in shared:
        assert part["any"].tolist() == [1, 1, 0]
        assert bytes(part["text"].tolist()).decode() == "rank 0"
        assert torch.equal(part["left alone"], rows())
        assert torch.equal(part["of rank 0"], torch.full((2, 3), 1.0, dtype=torch.float64))


def work(rank: int, folder: Path) -> None:
    """One of two processes with its half of the rows."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    half = rows()[own_rows(ROWS // 2)]
    found: dict[str, Tensor] = {}
    transposed = half.T.contiguous().T  # dense, but not row by row
    for kind, local in (("plain", half), ("transposed", transposed)):
        leaf = local.clone().requires_grad_()
        everyone = gather(leaf)
        coupled(everyone, own_rows(ROWS // 2)).backward()
        assert leaf.grad is not None
        found |= {f"{kind}/gathered": everyone.detach(), f"{kind}/gradient": leaf.grad.contiguous()}
    found["sum/gradient"] = gradient(lambda z: summed(z, sum_with_gradient(z.sum(0))), half)

    calls = {"reduce_scatter": 0, "all_reduce": 0, "received": 0}
    reduce_scatter, all_reduce = dist.reduce_scatter, dist.all_reduce

    def counted(output: Tensor, parts: list[Tensor]) -> None:
        calls["reduce_scatter"] += 1
        calls["received"] += output.numel()
        reduce_scatter(output, parts)

    def stacked(tensor: Tensor) -> None:
        calls["all_reduce"] += 1
        all_reduce(tensor)

    dist.reduce_scatter, dist.all_reduce = counted, stacked  # pyright: ignore[reportAttributeAccessIssue]
    leaf = half.clone().requires_grad_()
    gather(leaf).square().sum().backward()
    dist.reduce_scatter, dist.all_reduce = reduce_scatter, all_reduce

    before = rows()
    all_reduce_sum(before)
    found["left alone"] = before
    found["calls"] = torch.tensor(list(calls.values()))
    found["any"] = any_process(torch.tensor([rank == 0, rank == 1, False])).long()
    found["text"] = torch.tensor(list(broadcast_text(f"rank {rank}").encode()))
    found["of rank 0"] = of_first(lambda: torch.full((2, 3), 1.0 + rank), torch.zeros(3, 2, dtype=torch.float64).T)
    save_file(found, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
