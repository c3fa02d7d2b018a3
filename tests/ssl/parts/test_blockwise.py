"""Block-wise masks against the authors' loop, with the same random numbers, and with Python's."""

import math
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from rootstock.core.draws import Draws
from rootstock.ssl.parts.blockwise import TRIES, blockwise_masks, max_hidden, view_masks

Try = tuple[float, float, float, float]  # in 0..1: area, aspect ratio, top, left


def by_hand(rows: int, columns: int, wanted: float, least: int, tries: Iterator[Try]) -> list[list[bool]]:
    """Blocks are added until enough is hidden, or ten tries for one block failed, or no numbers are left."""
    mask = [[False] * columns for _ in range(rows)]
    hidden = 0
    while hidden < wanted:
        added = 0
        for _ in range(10):
            drawn = next(tries, None)
            if drawn is None:
                return mask
            area = least + (wanted - hidden - least) * drawn[0]
            ratio = math.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * drawn[1])
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height >= rows or width >= columns:
                continue
            top, left = int(drawn[2] * (rows - height + 1)), int(drawn[3] * (columns - width + 1))
            cells = [(y, x) for y in range(top, top + height) for x in range(left, left + width) if not mask[y][x]]
            if not 0 < len(cells) <= wanted - hidden:
                continue
            for y, x in cells:
                mask[y][x] = True
            added = len(cells)
            break
        if not added:
            break
        hidden += added
    return mask


def pythons(seed: int) -> Iterator[Try]:
    generator = random.Random(seed)
    while True:
        yield generator.random(), generator.random(), generator.random(), generator.random()


def wanted_of(n: int, views: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    part = 0.1 + 0.4 * torch.rand(n, views, generator=generator)
    return (part * count).long() * (torch.rand(n, views, generator=generator) > 0.2)


@pytest.mark.parametrize(("grid", "least"), [((14, 14), 16), ((16, 16), 4), ((4, 4), 1), ((5, 9), 4), ((2, 2), 1)])
def test_masks_are_those_of_the_authors_loop_with_the_same_numbers(grid: tuple[int, int], least: int) -> None:
    draws, wanted = Draws(3, torch.arange(40)), wanted_of(40, 2, grid[0] * grid[1])
    ours = blockwise_masks(draws, grid, wanted, least)
    assert ours.shape == (40, 2, *grid) and ours.dtype == torch.bool
    numbers = draws.uniform("blocks", 2, TRIES, 4).tolist()
    for n in range(40):
        for v in range(2):
            tries = iter([(a, b, c, d) for a, b, c, d in numbers[n][v]])
            assert ours[n, v].tolist() == by_hand(*grid, int(wanted[n, v]), least, tries)
    assert ours.any()


def measures(masks: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """For each mask: hidden cells as a fraction of those wanted, and the fraction of hidden cells whose right neighbour is hidden."""
    count = masks.sum((1, 2))
    pairs = (masks[:, :, 1:] & masks[:, :, :-1]).sum((1, 2))
    return {"filled": count / wanted, "together": pairs / count.clamp(min=1)}


def largest_gap(first: Tensor, second: Tensor) -> float:
    """The Kolmogorov-Smirnov statistic of two samples."""
    points = torch.cat([first, second]).sort().values
    shares = [torch.searchsorted(sample.sort().values, points, right=True) / len(sample) for sample in (first, second)]
    return float((shares[0] - shares[1]).abs().max())


@pytest.mark.parametrize("least", [16, 4])
def test_the_distribution_is_the_authors(least: int) -> None:
    """iBOT's masks (least 16) and DINOv2's (4) of 14 x 14 patches; the loops are not cut after a number of tries."""
    n = 600
    wanted = wanted_of(n, 1, 196).clamp(min=19)
    ours = blockwise_masks(Draws(0, torch.arange(n)), (14, 14), wanted, least)[:, 0]
    # iBOT's loop ends at a number that is not whole; DINOv2's at a whole one.
    fraction = 0.5 if least == 16 else 0.0
    theirs = torch.tensor([by_hand(14, 14, int(wanted[i, 0]) + fraction, least, pythons(i)) for i in range(n)])
    for name, found in measures(ours, wanted[:, 0]).items():
        expected = measures(theirs, wanted[:, 0])[name]
        assert largest_gap(found, expected) < 2.2 * math.sqrt(2 / n), name  # fails by chance once in 10^4
        assert found.mean().item() == pytest.approx(expected.mean().item(), rel=0.02)
    # Both hide the middle of the image more often, and equally so.
    gap = ours.float().mean(0) - theirs.float().mean(0)
    assert gap.abs().max() < 5 * math.sqrt(2 * 0.25 / n)
    assert ours[:, 6:8, 6:8].float().mean() > 1.5 * ours[:, ::13, ::13].float().mean()


def masks(n: int = 4000, views: int = 2, **changed: object) -> Tensor:
    options = {"ratio": (0.1, 0.5), "probability": 0.5, "least": 4, **changed}
    build: Callable[..., Tensor] = view_masks
    return build(Draws(1, torch.arange(n)), (14, 14), views, **options)


def test_half_of_the_views_are_masked_each_independently_and_a_tenth_to_half_of_them() -> None:
    found = masks()
    assert found.shape == (2, 4000, 196)
    used = found.any(-1)
    assert (used.float().mean(1) - 0.5).abs().max() < 0.04
    assert (used[0] & used[1]).float().mean().item() == pytest.approx(0.25, abs=0.03)
    part = found.float().mean(-1)[used]
    assert part.mean().item() == pytest.approx(0.3, abs=0.01)
    assert part.min() > 0.08 and part.max() <= 0.5
    below = (part < 0.2).float().mean().item()
    assert below == pytest.approx(0.25, abs=0.04)  # uniform


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_the_probability_is_that_of_a_mask(probability: float, expected: float) -> None:
    assert masks(200, probability=probability).any(-1).float().mean().item() == expected


def test_masks_belong_to_positions_and_differ_between_views() -> None:
    options = {"ratio": (0.1, 0.5), "probability": 1.0, "least": 4}
    build: Callable[..., Tensor] = view_masks
    whole = build(Draws(1, torch.arange(12)), (14, 14), 2, **options)
    part = build(Draws(1, torch.tensor([7, 3])), (14, 14), 2, **options)
    assert torch.equal(part, whole[:, [7, 3]])
    assert len({tuple(mask.tolist()) for mask in whole.flatten(0, 1)}) == 24


@pytest.mark.parametrize(("grid", "ratio", "most"), [((14, 14), 0.5, 98), ((4, 4), 0.3, 4), ((2, 2), 0.1, 1)])
def test_no_mask_hides_more_than_the_most(grid: tuple[int, int], ratio: float, most: int) -> None:
    assert max_hidden(grid, (0.05, ratio)) == most
    found = view_masks(Draws(0, torch.arange(300)), grid, 1, ratio=(ratio, ratio), probability=1.0, least=1)
    assert found.sum(-1).max() <= most
