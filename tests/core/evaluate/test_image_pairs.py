"""Pairs are all pairs, or a uniform draw of both kinds that is a function of seed and identities."""

import numpy as np
import pytest

from rootstock.core.evaluate import image_pairs
from rootstock.core.evaluate.counts import Ints
from rootstock.core.evaluate.image_pairs import ImagePairs, draw_pairs


def labelled(n: int, classes: int = 4, copies: int = 1, seed: int = 0) -> tuple[Ints, Ints]:
    return np.random.default_rng(seed).integers(0, classes, n), np.arange(n) // copies * 7 - 5


def as_sets(found: ImagePairs) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    pairs = [tuple(sorted(p)) for p in zip(found.first.tolist(), found.second.tolist(), strict=True)]
    assert len(set(pairs)) == len(pairs)
    genuine = {p for p, kind in zip(pairs, found.genuine, strict=True) if kind}
    return genuine, set(pairs) - genuine  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("n", range(0, 34))
def test_all_pairs(n: int) -> None:
    y, keys = labelled(n, classes=1 + n % 5, copies=1 + n % 3)
    found = draw_pairs(y, keys, 10**6, 0)
    every = [(i, j) for j in range(n) for i in range(j) if keys[i] != keys[j]]
    genuine, impostor = as_sets(found)
    assert genuine == {(i, j) for i, j in every if y[i] == y[j]} and impostor == set(every) - genuine
    assert (found.of_genuine, found.of_impostor) == (len(genuine), len(impostor))


@pytest.mark.parametrize(
    ("classes", "most", "parts"), [(4, 100, (50, 50)), (4, 101, (50, 51)), (30, 400, (None, None)), (1, 60, (60, 0))]
)
def test_drawn_pairs_are_half_genuine(classes: int, most: int, parts: tuple[int | None, int | None]) -> None:
    """All genuine pairs if there are fewer than half; then more impostors."""
    y, keys = labelled(90, classes, copies=2)
    found = draw_pairs(y, keys, most, 5)
    genuine, impostor = as_sets(found)
    assert len(genuine) + len(impostor) == most and len(genuine) == (parts[0] or found.of_genuine)
    assert all(y[i] == y[j] and keys[i] != keys[j] for i, j in genuine)
    assert all(y[i] != y[j] and keys[i] != keys[j] for i, j in impostor)
    assert as_sets(draw_pairs(y, keys, most, 6)) != (genuine, impostor)


def test_a_draw_depends_on_identities_not_on_order_or_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    y, keys = labelled(80)
    genuine, impostor = as_sets(draw_pairs(y, keys, 200, 5))
    order = np.random.default_rng(1).permutation(80)
    again = as_sets(draw_pairs(y[order], keys[order], 200, 5))
    moved = [{tuple(sorted((int(order[i]), int(order[j])))) for i, j in pairs} for pairs in again]
    assert moved == [genuine, impostor]
    monkeypatch.setattr(image_pairs, "_BLOCK", 13)
    assert as_sets(draw_pairs(y, keys, 200, 5)) == (genuine, impostor)


def test_a_draw_is_uniform_over_pairs() -> None:
    y, keys = np.array([0, 0, 0, 0, 0, 1, 1, 1]), np.arange(8)
    counts: dict[tuple[int, int], int] = {}
    for seed in range(600):
        for pairs in as_sets(draw_pairs(y, keys, 8, seed)):
            for pair in pairs:
                counts[pair] = counts.get(pair, 0) + 1
    for i in range(8):
        for j in range(i + 1, 8):
            part = 4 / 13 if y[i] == y[j] else 4 / 15  # 10 + 3 genuine pairs, 15 impostors
            assert counts[i, j] == pytest.approx(600 * part, abs=5 * np.sqrt(600 * part))


def test_numbers_of_many_pairs_are_exact() -> None:
    """A class of 300,000 images has pairs beyond what a square root of float32, or a sum of int32, holds."""
    n = 300_000
    found = draw_pairs(np.zeros(n, np.int64), np.arange(n), 1000, 0)
    assert found.of_genuine == n * (n - 1) // 2 and found.of_impostor == 0
    assert len(as_sets(found)[0]) == 1000 and (found.first < found.second).all() and found.first.min() >= 0
