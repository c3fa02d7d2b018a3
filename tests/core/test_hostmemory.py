"""`empty` has the shape, dtype and layout of torch.empty; `available` is the smallest of all limits."""

from pathlib import Path

import pytest
import torch

from rootstock.core import hostmemory
from rootstock.core.hostmemory import available, empty


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0, 3), (3, 2, 7, 5), (2_000_000,)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64, torch.float32, torch.float64, torch.bool])
def test_it_is_like_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found, expected = empty(*shape, dtype=dtype), torch.empty(shape, dtype=dtype)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype) and found.is_contiguous()
    filled = torch.ones_like(expected)
    assert torch.equal(found.copy_(filled), filled)


def test_each_is_its_own() -> None:
    first, second = empty(4), empty(4)
    first.zero_()
    second.fill_(1.0)
    assert first.sum() == 0 and second.sum() == 4


def test_gradients_flow_through_what_it_holds() -> None:
    """A batch is an ordinary tensor: made under no_grad, used as an input."""
    x = empty(2, 3).fill_(2.0)
    weight = torch.ones(3, requires_grad=True)
    (x @ weight).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.full((3,), 4.0))


def test_available_is_the_least_that_the_system_and_the_container_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostmemory, "SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(hostmemory, "GROUPS", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert available() is None
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:    8 kB\n")
    assert available() == 8192
    (tmp_path / "memory.current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 3000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available() == 8192
    (tmp_path / "memory.max").write_text("6000\n")
    assert available() == 4000  # files that are only cached count as free
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available() == 1000
