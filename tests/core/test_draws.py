"""Draws compared with Python integers; their distributions and independence; the keyed permutation."""

import hashlib
import math
from fractions import Fraction

import pytest
import torch
from scipy import stats

from rootstock.core.draws import Draws, permute, splitmix64, stream_key

WORD = (1 << 64) - 1

# (seed, stream, position, index) -> the 64 bits. A change of any of these values invalidates every committed result: they are
# the order and the augmentation of all experiments.
PINNED_BITS = {
    (0, "p", 0, 0): 0x833FF593C811E4AF,
    (0, "view0/crop/area", 0, 0): 0x46C8FA76775BAACC,
    (0, "view0/crop/area", 1, 9): 0x17062979EEAA7CEC,
    (1, "view1/jitter/order", 255, 3): 0x766001AF5CFDD49B,
    (7, "source/view0/flip", 10**12, 0): 0xD0FF18821173726F,
    (7, "mask", 2**62, 195): 0x6FD7701A679A2759,
}
# (seed, stream, n, index) -> the image.
PINNED_PERMUTE = {
    (0, "/order/0", 1797, 0): 581,
    (0, "/order/0", 1797, 1): 1047,
    (0, "/order/1", 1797, 0): 573,
    (3, "source/order/5", 60_000, 59_999): 20_781,
    (0, "/order/0", 10**9, 123_456_789): 639_107_764,
    (1, "target/order/2", 2, 1): 1,
}

# The slow version: splitmix64 and a Feistel network on Python's integers, modulo 2^64.


def slow_mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def slow_key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")


def slow_bits(seed: int, name: str, position: int, index: int) -> int:
    golden = 0x9E3779B97F4A7C15
    row = slow_mix(slow_mix(position * golden & WORD) ^ slow_key(seed, name))
    return slow_mix((row + (index + 1) * golden) & WORD)


def slow_permute(seed: int, name: str, n: int, index: int) -> int:
    half = max(1, -(-(n - 1).bit_length() // 2))
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(8):
            key = slow_key(seed, f"{name}/round{turn}")
            f = slow_mix(slow_mix(right * 0x9E3779B97F4A7C15 & WORD) ^ key)
            left, right = right, left ^ (f & mask)
        index = left << half | right
        if index < n:
            return index


def unsigned(bits: torch.Tensor) -> list[int]:
    return [value & WORD for value in bits.flatten().tolist()]


def positions(n: int, start: int = 0) -> torch.Tensor:
    return torch.arange(start, start + n)


@pytest.mark.parametrize(("key", "expected"), PINNED_BITS.items())
def test_bits_are_pinned(key: tuple[int, str, int, int], expected: int) -> None:
    seed, name, position, index = key
    assert unsigned(Draws(seed, torch.tensor([position])).bits(name, index + 1))[index] == expected
    assert slow_bits(*key) == expected


@pytest.mark.parametrize(("key", "expected"), PINNED_PERMUTE.items())
def test_permute_is_pinned(key: tuple[int, str, int, int], expected: int) -> None:
    seed, name, n, index = key
    assert permute(seed, name, n, torch.tensor([index])).item() == expected
    assert slow_permute(*key) == expected


def test_everything_drawn_equals_the_slow_version() -> None:
    where = torch.tensor([0, 1, 63, 2**31, 10**15, 2**63 - 1])
    draws = Draws(5, where).stream("source").stream("view1")
    rows = [[slow_bits(5, "source/view1/x", p, i) for i in range(6)] for p in where.tolist()]
    assert unsigned(draws.bits("x", 2, 3)) == [value for row in rows for value in row]
    assert draws.uniform("x", 6).tolist() == [[(value >> 40) / 2**24 for value in row] for row in rows]
    assert draws.integers("x", 1000, 6).tolist() == [[(value >> 32) * 1000 >> 32 for value in row] for row in rows]
    assert draws.bernoulli("x", 0.3, 6).tolist() == [[(value >> 40) / 2**24 < 0.3 for value in row] for row in rows]

    def as_signed(value: int) -> int:
        return value - (1 << 64) if value >> 63 else value

    slow = [sorted(range(6), key=lambda i, row=row: as_signed(row[i])) for row in rows]
    assert draws.permutation("x", 6).tolist() == slow
    assert draws.choice("x", 6, 2).tolist() == [row[:2] for row in slow]


def test_bounds_round_product_and_sum_each_once() -> None:
    draws = Draws(0, positions(500))
    low, high = -0.7, 0.3
    found, unit = draws.uniform("x", low=low, high=high), draws.uniform("x")

    def float32(exact: Fraction) -> Fraction:
        return Fraction(torch.tensor(float(exact), dtype=torch.float32).item())

    span = float32(Fraction(high - low))
    slow = [float32(float32(Fraction(low)) + float32(span * Fraction(u))) for u in unit.tolist()]
    assert [Fraction(value) for value in found.tolist()] == slow


def test_a_row_belongs_to_its_position_alone() -> None:
    many, one = Draws(0, positions(50)), Draws(0, torch.tensor([37]))
    for name, shape in (("a", ()), ("b", (3,)), ("c", (2, 5))):
        assert torch.equal(many.bits(name, *shape)[37], one.bits(name, *shape)[0])
        assert torch.equal(many.normal(name, *shape)[37], one.normal(name, *shape)[0])
    # the same leading numbers whether few or many are drawn
    assert torch.equal(many.bits("a", 3), many.bits("a", 10)[:, :3])
    assert many.bits("a", 0).shape == (50, 0) and Draws(0, positions(0)).bits("a", 4).shape == (0, 4)


def test_the_draws_names_nest() -> None:
    draws = Draws(0, positions(3))
    assert torch.equal(draws.stream("source").stream("crop").bits("area"), draws.bits("source/crop/area"))
    assert torch.equal(draws.stream("source").bits("crop/area"), draws.bits("source/crop/area"))


@pytest.mark.parametrize("axis", ["positions", "indices", "streams"])
def test_uniformity_along_each_axis(axis: str) -> None:
    n = 20_000
    if axis == "positions":
        bits = Draws(0, positions(n, 10**9)).bits("x")
    elif axis == "indices":
        bits = Draws(0, positions(1)).bits("x", n)[0]
    else:
        one = Draws(0, positions(10))
        bits = torch.cat([one.bits(f"stream{i}") for i in range(n // 10)])
    unit = ((bits >> 40) & 0xFFFFFF).double() / 2**24
    assert stats.kstest(unit.numpy(), "uniform").pvalue > 0.001
    for shift in (0, 8, 24, 56):
        counts = torch.bincount((bits >> shift) & 255, minlength=256)
        assert stats.chisquare(counts.numpy()).pvalue > 0.001
    # each of the 64 bits is fair, and no two are correlated
    ones = torch.stack([(bits >> k) & 1 for k in range(64)]).double() * 2 - 1
    correlation = ones @ ones.T / n
    assert (ones.mean(1).abs() * math.sqrt(n)).max() < 4.5
    assert (correlation.fill_diagonal_(0).abs() * math.sqrt(n)).max() < 5.0


def test_distributions() -> None:
    draws = Draws(3, positions(20_000))
    assert stats.kstest(draws.normal("n").numpy(), "norm").pvalue > 0.001
    assert draws.normal("n", 50).isfinite().all()
    assert stats.chisquare(torch.bincount(draws.integers("i", 7), minlength=7).numpy()).pvalue > 0.001
    assert draws.integers("big", 2**31).max() < 2**31 and draws.integers("one", 1).eq(0).all()
    assert stats.binomtest(int(draws.bernoulli("b", 0.3).sum()), 20_000, 0.3).pvalue > 0.001
    assert not draws.bernoulli("b", 0.0).any() and draws.bernoulli("b", 1.0).all()
    rank = draws.permutation("p", 4) @ torch.tensor([64, 16, 4, 1])
    assert stats.chisquare(rank.unique(return_counts=True)[1].numpy()).pvalue > 0.001
    assert len(rank.unique()) == 24


def neighbours(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two arrays of bits that a weak hash would correlate."""
    n, here = 20_000, Draws(0, positions(20_000))
    return {
        "position": (here.bits("x"), Draws(0, positions(n, 1)).bits("x")),
        "far position": (here.bits("x"), Draws(0, positions(n, 2**32)).bits("x")),
        "index": (here.bits("x", 2)[:, 0], here.bits("x", 2)[:, 1]),
        "stream": (here.bits("view0/x"), here.bits("view1/x")),
        "seed": (here.bits("x"), Draws(1, positions(n)).bits("x")),
        "position against index": (here.bits("x"), Draws(0, positions(1)).bits("x", n + 1)[0, 1:]),
    }[kind]


@pytest.mark.parametrize("kind", ["position", "far position", "index", "stream", "seed", "position against index"])
def test_independence(kind: str) -> None:
    first, second = neighbours(kind)
    unit = [((bits >> 40) & 0xFFFFFF).double() / 2**24 for bits in (first, second)]
    assert abs(torch.corrcoef(torch.stack(unit))[0, 1]) * math.sqrt(len(first)) < 4
    table = torch.bincount((unit[0] * 10).long() * 10 + (unit[1] * 10).long(), minlength=100).view(10, 10)
    assert stats.chisquare(table.numpy().ravel()).pvalue > 0.001
    shared = len(first) - 1 if kind == "position" else 0
    assert len(torch.cat([first, second]).unique()) == 2 * len(first) - shared


@pytest.mark.parametrize("bit", [0, 1, 7, 31, 32, 47, 62])
def test_avalanche(bit: int) -> None:
    """Flipping one bit of the position flips each bit of the result half of the time."""
    where = positions(2_000) * 977
    changed = Draws(0, where).bits("x") ^ Draws(0, where ^ (1 << bit)).bits("x")
    flips = torch.stack([(changed >> k) & 1 for k in range(64)]).double()
    assert abs(flips.mean() - 0.5) < 0.01
    assert ((flips.mean(1) - 0.5).abs() < 5 * 0.5 / math.sqrt(2_000)).all()


def test_mix_is_a_bijection_on_what_it_is_given() -> None:
    assert len(splitmix64(torch.arange(-50_000, 50_000)).unique()) == 100_000


@pytest.mark.parametrize("n", [*range(1, 20), 63, 64, 65, 100, 255, 256, 257, 1023, 1025, 1797, 4096, 4097])
def test_permute_is_a_bijection(n: int) -> None:
    for seed, name in ((0, "/order/0"), (0, "/order/1"), (9, "source/order/0")):
        assert permute(seed, name, n, torch.arange(n)).sort().values.tolist() == list(range(n))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_small_permutations_are_all_equally_likely(n: int) -> None:
    places = n ** torch.arange(n)
    ranks = torch.tensor([int((permute(0, f"e{e}", n, torch.arange(n)) * places).sum()) for e in range(1_000)])
    counts = ranks.unique(return_counts=True)[1]
    assert len(counts) == math.factorial(n)
    assert stats.chisquare(counts.numpy()).pvalue > 0.001


@pytest.mark.parametrize("n", [10, 40])
def test_permute_sends_each_index_anywhere(n: int) -> None:
    images = torch.stack([permute(1, f"/order/{epoch}", n, torch.arange(n)) for epoch in range(400)])
    for index in (0, 1, n - 1):
        assert stats.chisquare(torch.bincount(images[:, index], minlength=n).numpy()).pvalue > 0.001
    # neighbours don't stay neighbours: their difference is 1 no more often than by chance
    step = (images[:, 1:] - images[:, :-1]) % n
    assert abs(float((step == 1).double().mean()) - 1 / (n - 1)) < 5 * math.sqrt(1 / (n - 1) / step.numel())


def test_permute_is_seekable_at_any_size() -> None:
    n = 10**9
    index = torch.tensor([0, 1, n // 2, n - 2, n - 1])
    image = permute(0, "/order/3", n, index)
    assert image.tolist() == [slow_permute(0, "/order/3", n, i) for i in index.tolist()]
    assert len(image.unique()) == 5 and image.min() >= 0 and image.max() < n
    some = permute(0, "/order/3", n, torch.arange(0, n, 50_021))
    assert len(some.unique()) == len(some)
    assert stats.kstest(some.double().numpy() / n, "uniform").pvalue > 0.001


def test_epochs_and_seeds_differ() -> None:
    orders = [permute(seed, f"/order/{epoch}", 1000, torch.arange(1000)) for seed in (0, 1) for epoch in (0, 1, 2)]
    for k, first in enumerate(orders):
        for second in orders[:k]:
            assert int((first == second).sum()) < 10


def test_stream_key_is_the_hash_of_its_name() -> None:
    assert stream_key(3, "a/b") & WORD == slow_key(3, "a/b")


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        Draws(0, torch.zeros(3))
    with pytest.raises(ValueError, match="int64"):
        Draws(0, torch.zeros(3, 1, dtype=torch.int64))
    draws = Draws(0, positions(2))
    with pytest.raises(ValueError, match="high"):
        draws.integers("x", 0)
    with pytest.raises(ValueError, match="without replacement"):
        draws.choice("x", 3, 4)
    with pytest.raises(ValueError, match="at least one"):
        permute(0, "x", 0, torch.arange(1))
