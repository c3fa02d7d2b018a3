"""Masks: shapes and places against loops, their distribution, and that they depend on seed and position only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from lightly.data import IJEPAMaskCollator
from torch import Tensor

from rootstock.core.draws import Draws
from rootstock.ssl.parts.masks import (
    Grid,
    Range,
    block_sizes,
    enlarge,
    random_blocks,
    random_units,
    remove_targets,
    true_indices,
)

TARGETS: tuple[Range, Range] = (0.15, 0.2), (0.75, 1.5)
CONTEXT: tuple[Range, Range] = (0.85, 1.0), (1.0, 1.0)


def draws(n: int, seed: int = 0) -> Draws:
    return Draws(seed, torch.arange(n))


def sides(mask: Tensor) -> Grid:
    """The height and width of a rectangle, bool [rows, columns]; fails if it is no rectangle."""
    rows, columns = (mask.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    assert rows == list(range(rows[0], rows[-1] + 1)) and columns == list(range(columns[0], columns[-1] + 1))
    assert mask.sum().item() == len(rows) * len(columns)
    return len(rows), len(columns)


def test_units_are_hidden_in_the_number_asked_for_and_equally_often() -> None:
    masks = random_units(draws(4000), (2, 3), 4)
    assert masks.shape == (4000, 2, 3) and masks.dtype == torch.bool
    assert masks.sum((1, 2)).unique().tolist() == [4]
    assert (masks.float().mean(0) - 4 / 6).abs().max() < 0.03
    kinds = Counter(tuple(mask.flatten().tolist()) for mask in masks)
    assert len(kinds) == math.comb(6, 4) and max(kinds.values()) < 1.3 * min(kinds.values())


def test_enlarging_repeats_each_cell() -> None:
    mask = torch.tensor([[[True, False], [False, True]]])
    large = enlarge(mask, 3)
    for row in range(6):
        for column in range(6):
            assert large[0, row, column] == mask[0, row // 3, column // 3]


def slow_size(number: float, grid: Grid, scale: Range, aspect: Range) -> Grid:
    """The authors' rule, one number at a time."""
    area = int(grid[0] * grid[1] * (scale[0] + number * (scale[1] - scale[0])))
    ratio = aspect[0] + number * (aspect[1] - aspect[0])
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return max(1, min(height, grid[0] - 1)), max(1, min(width, grid[1] - 1))


@pytest.mark.parametrize(
    ("grid", "kind"), [((14, 14), TARGETS), ((14, 14), CONTEXT), ((5, 8), ((0.05, 0.6), (0.3, 3)))]
)
def test_blocks_equal_a_loop(grid: Grid, kind: tuple[Range, Range]) -> None:
    some = draws(300)
    masks = random_blocks(some, grid, 3, *kind)
    assert masks.shape == (300, 3, *grid)
    numbers, down, across = (
        some.uniform(name, *n).tolist() for name, n in (("size", ()), ("top", (3,)), ("left", (3,)))
    )
    for n in range(300):
        height, width = slow_size(numbers[n], grid, *kind)
        for k in range(3):
            top, left = int(down[n][k] * (grid[0] - height)), int(across[n][k] * (grid[1] - width))
            expected = torch.zeros(grid, dtype=torch.bool)
            expected[top : top + height, left : left + width] = True
            assert torch.equal(masks[n, k], expected)


@pytest.mark.parametrize(
    ("grid", "kind"),
    [((14, 14), TARGETS), ((14, 14), CONTEXT), ((4, 4), TARGETS), ((2, 2), TARGETS), ((5, 9), ((0.05, 0.6), (0.3, 3)))],
)
def test_the_sizes_listed_are_those_that_are_drawn(grid: Grid, kind: tuple[Range, Range]) -> None:
    found = {slow_size(number / 20000, grid, *kind) for number in range(20000)}
    assert set(block_sizes(grid, *kind)) == found
    drawn = {sides(mask[0]) for mask in random_blocks(draws(300), grid, 1, *kind)}
    assert drawn <= found


def test_blocks_of_an_image_share_a_size_and_have_places_of_their_own() -> None:
    masks = random_blocks(draws(200), (14, 14), 4, *TARGETS)
    for image in masks:
        assert len({sides(block) for block in image}) == 1
    assert len({sides(image[0]) for image in masks}) > 2
    assert torch.stack([(image[0] != image[1]).any() for image in masks]).float().mean() > 0.9


def test_blocks_are_as_large_and_as_far_spread_as_the_papers() -> None:
    masks = random_blocks(draws(4000), (14, 14), 4, *TARGETS)
    area = masks.sum((2, 3)).float() / 196
    assert area.min() > 0.14 and area.max() < 0.21  # whole patches
    assert area.mean().item() == pytest.approx(0.175, abs=0.005)
    often = masks.float().mean((0, 1))
    assert not often[-1].any() and not often[:, -1].any()  # as in the authors' code
    assert (often[:13, :13] - often[:13, :13].flip(0)).abs().max() < 0.03
    assert (often[:13, :13] - often[:13, :13].flip(1)).abs().max() < 0.03
    assert often[6, 6] > 0.3 > 0.05 > often[0, 0] > 0


def test_targets_and_context_are_distributed_as_lightlys() -> None:
    n = 1200
    targets = random_blocks(draws(n).stream("target"), (14, 14), 4, *TARGETS)
    block = random_blocks(draws(n).stream("context"), (14, 14), 1, *CONTEXT)[:, 0]
    context = remove_targets(block, targets, 10)
    collator = IJEPAMaskCollator(
        enc_mask_scale=CONTEXT[0], pred_mask_scale=TARGETS[0], aspect_ratio=TARGETS[1], nenc=1, npred=4, min_keep=10
    )
    torch.manual_seed(0)
    theirs: dict[str, Tensor] = {"context": torch.zeros(n, 196), "targets": torch.zeros(n, 4, 196)}
    for i in range(n):
        _, (seen,), wanted = collator([torch.zeros(1)])
        theirs["context"][i, seen[0]] = 1.0
        for k in range(4):
            theirs["targets"][i, k, wanted[k][0]] = 1.0
    for ours, other, name in ((context, theirs["context"], "context"), (targets, theirs["targets"], "targets")):
        flat = ours.flatten(-2).float()
        assert flat.sum(-1).mean().item() == pytest.approx(other.sum(-1).mean().item(), rel=0.03), name
        often = (flat.flatten(0, -2).mean(0), other.flatten(0, -2).mean(0))
        assert (often[0] - often[1]).abs().max() < 0.08, name


@pytest.mark.parametrize("least", [1, 5, 9, 16])
def test_the_context_is_the_block_without_targets_as_long_as_enough_is_left(least: int) -> None:
    block = torch.ones(50, 4, 4, dtype=torch.bool)
    block[:, 3] = False  # 12 cells
    targets = random_blocks(draws(50), (4, 4), 5, (0.2, 0.4), (0.75, 1.5))
    found = remove_targets(block, targets, least)
    kept = set[int]()
    for n in range(50):
        choices = [block[n] & ~targets[n, :removed].any(0) for removed in range(6)]
        enough = [removed for removed in range(6) if choices[removed].sum() >= least]
        kept.add(max(enough, default=0))
        assert torch.equal(found[n], choices[max(enough, default=0)])
    assert least < 16 or kept == {0}
    assert least != 5 or len(kept) > 1


def test_lists_hold_the_places_in_order_and_are_padded() -> None:
    mask = torch.tensor([[[False, True, True, False], [False, False, False, True]], [[True] * 4, [False] * 4]])
    index, real = true_indices(mask, 3)
    assert index.shape == real.shape == (2, 2, 3)
    assert real.tolist() == [[[True, True, False], [True, False, False]], [[True] * 3, [False] * 3]]
    assert index[0, 0, :2].tolist() == [1, 2] and index[0, 1, :1].tolist() == [3] and index[1, 0].tolist() == [0, 1, 2]
    assert all(len(set(row.tolist())) == 3 for row in index.flatten(0, 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda some: random_units(some, (4, 4), 8),
        lambda some: random_blocks(some, (8, 8), 4, *TARGETS),
        lambda some: random_blocks(some, (8, 8), 1, (0.3, 0.9), (1.0, 1.0)),
    ],
)
def test_masks_belong_to_positions(make: Callable[[Draws], Tensor]) -> None:
    whole = make(draws(32))
    assert torch.equal(make(Draws(0, torch.arange(31, 15, -1))), whole.flip(0)[:16])
    assert not torch.equal(make(draws(32, seed=1)), whole)
    assert len({tuple(mask.flatten().tolist()) for mask in whole}) > 8
