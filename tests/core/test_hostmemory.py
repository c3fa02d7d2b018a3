"""Fresh memory has the shape, type and layout of torch's own."""

import pytest
import torch

from rootstock.core.hostmemory import empty


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
