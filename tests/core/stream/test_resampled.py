"""Orders by class, against a slow version with lists, and what they promise: shares, no repetition, any number of processes."""

from collections import Counter

import numpy as np
import pytest
import torch

from rootstock.core.draws import permute
from rootstock.core.errors import UserError
from rootstock.core.stream.batches import Share
from rootstock.core.stream.resampled import CLASS_POWERS, ResampledOrder, order_of_classes, shares

SIZES = [40, 0, 9, 3, 1]
LABELS = torch.repeat_interleave(torch.arange(5), torch.tensor(SIZES))[permute(7, "mixed", 53, torch.arange(53))]
EPOCHS, BATCH = 4, 8


def order_of(power: float) -> ResampledOrder:
    return ResampledOrder(53, BATCH, 5, labels=LABELS, power=power)


def slow_epochs(power: float) -> list[list[int]]:
    """Every epoch as a list: of each class its images in the order of endless rounds, as many as it has places, then all shuffled."""
    present = [k for k in range(5) if SIZES[k]]
    exact = [SIZES[k] ** (1 - power) for k in present]
    exact = [value * 53 / sum(exact) for value in exact]
    places = [int(value) for value in exact]
    for i in sorted(range(len(exact)), key=lambda i: (-(exact[i] - places[i]), i))[: 53 - sum(places)]:
        places[i] += 1
    rounds: list[list[int]] = []
    for i, k in enumerate(present):
        mine = [row for row in range(53) if LABELS[row] == k]
        endless: list[int] = []
        while len(endless) < EPOCHS * places[i]:
            turn = len(endless) // len(mine)
            endless += [mine[j] for j in permute(5, f"/class{i}/{turn}", len(mine), torch.arange(len(mine))).tolist()]
        rounds.append(endless)
    epochs = []
    for epoch in range(EPOCHS):
        slots = [image for i, n in enumerate(places) for image in rounds[i][epoch * n : (epoch + 1) * n]]
        epochs.append([slots[j] for j in permute(5, f"/order/{epoch}", 53, torch.arange(53)).tolist()])
    return epochs


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
def test_against_lists(power: float) -> None:
    order, expected = order_of(power), slow_epochs(power)
    for epoch in range(EPOCHS):
        assert order.images_of(epoch).tolist() == expected[epoch]
        for i in range(order.steps_per_epoch):
            step = epoch * order.steps_per_epoch + i
            assert order.indices(step).tolist() == expected[epoch][i * BATCH : (i + 1) * BATCH]


def test_classes_have_their_shares_and_images_take_turns() -> None:
    order = order_of(1.0)
    for epoch in range(EPOCHS):
        counts = LABELS[order.images_of(epoch)].bincount(minlength=5)
        assert counts.tolist() == [14, 0, 13, 13, 13]
    seen = Counter(image for epoch in range(EPOCHS) for image in order.images_of(epoch).tolist())
    for k in (0, 2, 3, 4):  # each image of a class as often as the others, but for a last unfinished round
        often = [seen[int(row)] for row in LABELS.eq(k).nonzero()[:, 0]]
        assert max(often) - min(often) <= 1, k


def test_several_processes_and_a_resume_see_one_order() -> None:
    order = order_of(0.5)
    whole = [order.indices(step) for step in range(12)]
    for start in (0, 5):
        parts = [list(order.steps(start, 12, Share(rank, 2, 2).slices(BATCH))) for rank in range(2)]
        for step in range(start, 12):
            rows = torch.cat([index for rank in range(2) for index, _ in parts[rank][step - start]])
            assert torch.equal(rows, whole[step])


def test_shares_are_proportional_and_exact_in_sum() -> None:
    random = np.random.default_rng(0)
    for power in (0.3, 0.5, 1.0):
        sizes = random.integers(1, 500, 20).tolist()
        found = shares(sizes, power)
        exact = np.array(sizes) ** (1 - power) / (np.array(sizes) ** (1 - power)).sum() * sum(sizes)
        assert found.sum() == sum(sizes) and np.abs(found - exact).max() < 1 and found.min() >= 1


def test_the_key() -> None:
    assert order_of_classes("uniform", LABELS, 8, 0, "blocks") is None
    found = order_of_classes("sqrt", LABELS, 8, 0, "full")
    assert found is not None and found.power == CLASS_POWERS["sqrt"] == 0.5
    for sampler, power in ((0.25, 0.25), (0.5, CLASS_POWERS["sqrt"]), (1, 1.0)):
        found = order_of_classes(sampler, LABELS, 8, 0, "full")
        assert found is not None and found.power == power
    assert order_of_classes(0.0, LABELS, 8, 0, "blocks") is None
    for sampler in (-0.1, 1.5, float("nan")):
        with pytest.raises(
            UserError, match=r"data\.sampler: expected .* a number from 0 \(uniform\) to 1 \(balanced\), got"
        ):
            order_of_classes(sampler, LABELS, 8, 0, "full")
    with pytest.raises(UserError, match=r"data\.sampler: balanced draws images by class.* use data\.shuffle=full"):
        order_of_classes("balanced", LABELS, 8, 0, "blocks")
