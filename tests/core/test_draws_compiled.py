"""Draws under torch.compile and on a GPU: the same bits as on the host."""

import os
import shutil
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from rootstock.core.draws import Draws

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="torch.compile needs a C++ compiler on the CPU, and here is none",
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="compares with a CUDA device, and here is none")


class Exact(NamedTuple):
    """Draws that must be bit-equal everywhere."""

    bits: Tensor
    bounded: Tensor
    integers: Tensor
    permutation: Tensor


def exact(seed: int, positions: Tensor) -> Exact:
    draws = Draws(seed, positions).stream("source").stream("view0")
    return Exact(
        draws.bits("bits", 2, 3),
        draws.uniform("bounded", 5, low=-0.7, high=0.3),
        draws.integers("integers", 1000, 4),
        draws.permutation("order", 5),
    )


def rounded(draws: Draws) -> tuple[Tensor, ...]:
    """Draws that use logarithms, and the others."""
    return draws.normal("n", 3), draws.gamma("g", 0.3, 2), draws.beta("b", 0.8, 0.8), draws.bernoulli("p", 0.3, 7)


def equal(first: Exact, second: Exact) -> bool:
    return all(torch.equal(a, b.cpu()) for a, b in zip(first, second, strict=True))


STARTS = (0, 10**12, 2**63 - 64)


@pytest.fixture(autouse=True)
def forget_what_was_compiled() -> None:
    torch.compiler.reset()


def test_draws_trace_whole() -> None:
    """Without a graph break, for Draws made inside the compiled function and for Draws passed to it."""
    inside = torch.compile(exact, backend="eager", fullgraph=True, dynamic=False)
    given = torch.compile(rounded, backend="eager", fullgraph=True, dynamic=False)
    for seed, start in ((3, 0), (3, 10**12), (4, 10**12)):
        positions = torch.arange(start, start + 32)
        assert equal(exact(seed, positions), inside(seed, positions))
        for host, traced in zip(rounded(Draws(seed, positions)), given(Draws(seed, positions)), strict=True):
            torch.testing.assert_close(host, traced)


def test_new_positions_compile_nothing_anew() -> None:
    given = torch.compile(rounded, backend="eager", fullgraph=True, dynamic=False)
    given(Draws(3, torch.arange(32)))
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(1, 5):
            given(Draws(3, torch.arange(32) + 32 * step))


@needs_compiler
def test_a_compiled_graph_draws_the_same_bits() -> None:
    """Of two draws: a C++ compiler takes ten seconds for each graph. They hold the bits, the product and sum that could be fused,
    and one number out of a table, whose place is a constant."""

    def drawn(positions: Tensor) -> tuple[Tensor, Tensor]:
        draws = Draws(3, positions).stream("view0")
        return draws.uniform("x", 5, low=-0.7, high=0.3), draws.uniform("places", 2, 4)[:, 1, 3]

    compiled = torch.compile(drawn, fullgraph=True, dynamic=False)
    for start in STARTS:
        positions = torch.arange(64) + start
        assert all(torch.equal(a, b) for a, b in zip(drawn(positions), compiled(positions), strict=True))


@needs_cuda
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_draws_the_same_bits(compiled: bool) -> None:
    on_device = torch.compile(exact, fullgraph=True, dynamic=False) if compiled else exact
    for start in STARTS:
        positions = torch.arange(64) + start
        assert equal(exact(3, positions), on_device(3, positions.cuda()))
        for host, device in zip(rounded(Draws(3, positions)), rounded(Draws(3, positions.cuda())), strict=True):
            torch.testing.assert_close(host, device.cpu(), rtol=1e-5, atol=1e-6)


@needs_cuda
def test_drawing_on_a_gpu_waits_for_nothing() -> None:
    positions = torch.arange(64).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        exact(3, positions)
        rounded(Draws(3, positions))
    finally:
        torch.cuda.set_sync_debug_mode("default")
