"""Copies of weights are compared bit for bit, by one number for each tensor. Pairs of processes: tests/launch/test_processes.py."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rootstock.core.train.fit import Every
from rootstock.core.train.replicas import CHUNK_OF_NUMBERS, check_replicas, describe, digests

KINDS = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


def digest(tensor: Tensor) -> int:
    return int(digests({"t": tensor})[0])


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_any_single_bit_counts(dtype: torch.dtype) -> None:
    tensor = (torch.rand(2 * CHUNK_OF_NUMBERS + 3, generator=torch.Generator().manual_seed(0)) * 200).to(dtype)
    before = digest(tensor)
    assert digest(tensor.clone()) == before
    raw = torch.view_as_real(tensor).view(torch.uint8) if dtype.is_complex else tensor.view(torch.uint8)
    bits, found = raw.view(-1), set()
    places = [0, 1, CHUNK_OF_NUMBERS, len(bits) // 2, len(bits) - 1]
    for place in places:
        bits[place] ^= 1
        found.add(digest(tensor))
        bits[place] ^= 1
    assert before not in found and len(found) == len(places) and digest(tensor) == before


def test_order_and_signs_and_nan_count_and_layout_does_not() -> None:
    tensor = torch.tensor([[0.0, 1.0, 2.0], [float("nan"), -0.0, 5.0]])
    changed = [tensor.flip(0), tensor.flip(1), tensor.abs(), tensor.nan_to_num(0.0), tensor * 2]
    assert digest(tensor) not in {digest(other) for other in changed}
    image = torch.rand(2, 3, 4, 5)
    assert digest(image) == digest(image.to(memory_format=torch.channels_last)) == digest(image.clone())
    assert digest(torch.tensor(3.0)) != digest(torch.tensor(4.0))  # no axis


def test_the_rarest_weights_are_named() -> None:
    rows = torch.tensor([[1, 5, 5, 5, 5], [1, 5, 5, 5, 5], [1, 6, 6, 6, 6], [1, 5, 5, 5, 7]])
    said = describe(["a", "b", "c", "d", "e"], rows, 20, 15)
    assert said.startswith(
        "after step 20 the weights of ranks 2, 3 differ from those of ranks 0, 1 in b, c, d and 1 more; "
    )
    assert "the checkpoint of step 15 is the last one" in said
    assert "no checkpoint has been saved before" in describe(["a"], torch.tensor([[1], [2]]), 5, 0)


def test_one_process_has_no_copies(tmp_path: Path) -> None:
    check_replicas(nn.Linear(2, 2), 1, tmp_path)


@pytest.mark.parametrize(
    ("verify", "compared"),
    [(None, [4, 8, 10]), (0, []), (3, [3, 6, 9, 10])],
)
def test_when_copies_are_compared(verify: int | None, compared: list[int]) -> None:
    every = Every(save=4, verify=verify)
    assert [step for step in range(1, 11) if every.verifies(step, 10, every.saves(step, 10))] == compared
