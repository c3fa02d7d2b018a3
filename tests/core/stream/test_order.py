"""The order of batches: compared with loops, its properties, and the locality of shuffling in blocks."""

import math
from itertools import islice, pairwise
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from scipy import stats

from rootstock.core.config.resolve import Choice, ConfigError, build, validate
from rootstock.core.draws import permute, stream_key
from rootstock.core.errors import UserError
from rootstock.core.stream import order as module
from rootstock.core.stream.order import SHUFFLES, Blocks, Full, Order, Shuffle

SMALL = Blocks(size=4, mix=3)
BOTH = pytest.mark.parametrize("shuffle", [Full(), SMALL, Blocks()], ids=["full", "small blocks", "blocks"])

# (n, batch size, seed, name, step) -> the first four images. A change of any of these invalidates every committed result.
Key = tuple[int, int, int, str, int]
PINNED: dict[Key, list[int]] = {
    (1797, 64, 0, "", 0): [581, 1047, 668, 1255],
    (1797, 64, 0, "", 28): [573, 209, 1789, 1694],
    (60_000, 256, 3, "source", 1175): [54161, 26589, 55199, 15766],
}
PINNED_BLOCKS: dict[Key, list[int]] = {
    (1797, 64, 0, "", 0): [995, 1235, 1721, 1467],
    (60_000, 256, 3, "source", 1175): [56891, 50531, 2105, 50433],
    (10**9, 4096, 0, "", 244_140_625): [459_418_188, 459_418_194, 970_044_520, 25_849_257],
}


def epoch_of(order: Order, epoch: int = 0) -> list[int]:
    """The whole epoch, with the images that its batches leave out."""
    name = f"{order.name}/order/{epoch}"
    return order.shuffle.images(order.seed, name, order.n, np.arange(order.n)).tolist()


def slow_blocks(seed: int, name: str, n: int, shuffle: Blocks) -> list[int]:
    """Slow version with lists: rotate the set, cut it into runs, permute the runs, shuffle the groups."""

    def permuted(what: list[Any], stream: str) -> list[Any]:
        return [what[i] for i in permute(seed, f"{name}/{stream}", len(what), torch.arange(len(what))).tolist()]

    turn = (stream_key(seed, f"{name}/turn") % 2**64) * n // 2**64
    ring = [(turn + i) % n for i in range(n)]
    size = min(shuffle.size, n)
    whole = n // size * size
    runs = permuted([ring[at : at + size] for at in range(0, whole, size)], "runs")
    count = max(1, len(runs) // shuffle.mix)
    bounds = [g * len(runs) // count for g in range(count + 1)]
    epoch: list[int] = []
    for g, (first, end) in enumerate(pairwise(bounds)):
        group = [image for run in runs[first:end] for image in run]
        group += ring[whole:] if g == count - 1 else []
        epoch += permuted(group, f"group{g}")
    return epoch


@pytest.mark.parametrize(("key", "expected"), PINNED.items())
def test_the_order_is_pinned(key: Key, expected: list[int]) -> None:
    n, batch_size, seed, name, step = key
    assert Order(n, batch_size, seed, name).indices(step)[:4].tolist() == expected


@pytest.mark.parametrize(("key", "expected"), PINNED_BLOCKS.items())
def test_the_block_order_is_pinned(key: Key, expected: list[int]) -> None:
    n, batch_size, seed, name, step = key
    assert Order(n, batch_size, seed, name, Blocks()).indices(step)[:4].tolist() == expected


def test_the_full_order_is_the_permutation_of_the_epoch() -> None:
    order = Order(50, 8, seed=3, name="source")
    for step in (0, 5, 6, 100):
        epoch, i = divmod(step, 6)
        expected = permute(3, f"source/order/{epoch}", 50, torch.arange(8) + 8 * i)
        assert torch.equal(order.indices(step), expected)
        assert order.positions(step).tolist() == [step * 8 + k for k in range(8)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 23, 24, 25, 47, 48, 100, 101, 143, 144, 151])
def test_blocks_against_lists(n: int) -> None:
    for shuffle in (SMALL, Blocks(size=1, mix=1), Blocks(size=5, mix=1), Blocks(size=1, mix=4), Blocks(size=200)):
        for epoch in range(3):
            found = epoch_of(Order(n, 1, seed=7, name="x", shuffle=shuffle), epoch)
            assert found == slow_blocks(7, f"x/order/{epoch}", n, shuffle)
            assert sorted(found) == list(range(n))


@BOTH
@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (22, 8), (7, 7), (100, 33), (5, 1), (1000, 64)])
def test_an_epoch_holds_no_image_twice_and_leaves_out_others_each_time(
    n: int, batch_size: int, shuffle: Shuffle
) -> None:
    order, left_out = Order(n, batch_size, seed=0, shuffle=shuffle), set()
    for epoch in range(8):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        seen = [index for step in steps for index in order.indices(step).tolist()]
        assert len(set(seen)) == len(seen) == n - n % batch_size and set(seen) <= set(range(n))
        left_out.add(frozenset(range(n)) - frozenset(seen))
    assert len(left_out) > 1 or n % batch_size == 0


@BOTH
@pytest.mark.parametrize(("start", "stop"), [(0, 40), (3, 4), (11, 29), (12, 24), (5, 5), (10**9, 10**9 + 30)])
def test_steps_are_the_indices_and_positions_of_each(
    start: int, stop: int, shuffle: Shuffle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every amount computed ahead: a part of an epoch, exactly one, or less than a step."""
    order = Order(100, 8, seed=1, shuffle=shuffle)
    slices = [slice(2, 4), slice(4, 7), slice(0, 1)]
    for ahead in (1, 20, 72, 4096):
        monkeypatch.setattr(module, "AHEAD", ahead)
        found = list(order.steps(start, stop, slices))
        assert len(found) == stop - start
        for step, parts in zip(range(start, stop), found, strict=True):
            assert len(parts) == 3
            for rows, (indices, positions) in zip(slices, parts, strict=True):
                assert torch.equal(indices, order.indices(step, rows)) and indices.is_contiguous()
                assert torch.equal(positions, order.positions(step, rows)) and positions.is_contiguous()
        whole = [parts[0] for parts in order.steps(start, stop)]
        assert [i.tolist() for i, _ in whole] == [order.indices(step).tolist() for step in range(start, stop)]


@BOTH
@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_slices_of_any_number_of_processes_tile_the_batch(parts: int, shuffle: Shuffle) -> None:
    order, size = Order(300, 16, seed=2, shuffle=shuffle), 16 // parts
    shares = [[slice(k * size, (k + 1) * size)] for k in range(parts)]
    together = zip(*(order.steps(0, 30, share) for share in shares), strict=True)
    for step, found in enumerate(together):
        assert torch.cat([part[0][0] for part in found]).tolist() == order.indices(step).tolist()
        assert torch.cat([part[0][1] for part in found]).tolist() == order.positions(step).tolist()


@BOTH
def test_it_is_seekable_at_any_size(shuffle: Shuffle) -> None:
    """Position 10^12 of 10^9 images, without an array of that length."""
    order = Order(10**9, 4096, seed=0, shuffle=shuffle)
    step = 10**12 // 4096
    indices = order.indices(step)
    assert len(indices.unique()) == 4096 and indices.min() >= 0 and indices.max() < 10**9
    assert torch.equal(order.indices(step, slice(100, 200)), indices[100:200])
    assert torch.equal(order.indices(step, slice(7, 8)), indices[7:8])
    assert order.positions(step, slice(100, 101)).item() == step * 4096 + 100
    (first, _), (second, _) = (parts[0] for parts in islice(order.steps(step, 10**15), 2))
    assert torch.equal(first, indices) and torch.equal(second, order.indices(step + 1))


def test_epochs_names_and_seeds_have_their_own_orders() -> None:
    for shuffle in (Full(), SMALL):
        orders = [Order(50, 50, seed, name, shuffle) for seed in (0, 1) for name in ("", "source", "target")]
        assert len({tuple(order.indices(step).tolist()) for order in orders for step in range(3)}) == 18


@BOTH
def test_every_image_is_as_often_anywhere_in_the_epoch(shuffle: Shuffle) -> None:
    """Also for the images left out at the end of an epoch, and for the shorter run."""
    n, epochs = 30, 2_000
    order = Order(n, 7, seed=0, shuffle=shuffle)
    place = np.array([np.argsort(epoch_of(order, epoch)) for epoch in range(epochs)])  # [epochs, images]
    excluded = (place >= 28).sum(0)
    assert excluded.sum() == 2 * epochs and stats.chisquare(excluded).pvalue > 0.001
    for image in (0, 1, 13, 28, 29):
        assert stats.chisquare(np.bincount(place[:, image], minlength=n)).pvalue > 0.0005


@pytest.mark.parametrize(("n", "size", "mix"), [(3_000, 8, 4), (3_003, 8, 4), (1_999, 16, 5), (500, 7, 6), (300, 8, 8)])
def test_blocks_touch_few_runs_and_shards_at_a_time(n: int, size: int, mix: int) -> None:
    shuffle = Blocks(size=size, mix=mix)
    count, window = n // size, size * mix
    groups = max(1, count // mix)
    most = 2 * math.ceil(count / groups) + 1
    assert count < mix**2 or most <= 2 * mix + 3
    assert most <= 4 * mix + 1 and (groups == 1 or most <= 3 * mix + 2)
    for epoch in range(3):
        turn = (stream_key(5, f"/order/{epoch}/turn") % 2**64) * n // 2**64
        images = np.array(epoch_of(Order(n, 1, 5, shuffle=shuffle), epoch))
        runs = (images - turn) % n // size  # the short one is number `count`
        for first in range(0, n - window + 1):
            assert len(np.unique(runs[first : first + window])) <= most
        for run in range(count + 1):
            held = np.sort((images[runs == run] - turn) % n)
            assert (np.diff(held) == 1).all()
            for shard in (size, size + 1, 3 * size):  # the last shard takes what remains, so none is shorter than a run
                shards = np.minimum(images[runs == run] // shard, n // shard - 1)
                assert len(np.unique(shards)) <= 2


def test_blocks_mix_what_lies_together() -> None:
    """A batch of a set sorted by class has many classes, since each group mixes many runs."""
    order = Order(20_000, 256, seed=0, shuffle=Blocks(size=64, mix=32))
    classes = [len((order.indices(step) // 200).unique()) for step in range(order.steps_per_epoch)]
    assert min(classes) > 25
    runs = 20_000 // 64
    sizes = np.diff([g * runs // (runs // 32) for g in range(runs // 32 + 1)])
    assert sizes.min() >= 32


def shuffled(*, shuffle: Annotated[dict[str, Any], Choice(SHUFFLES)] = {"name": "full"}) -> None: ...


def test_shuffles_are_sections_of_a_config() -> None:
    def built(config: dict[str, Any]) -> Shuffle:
        return build(validate(config, shuffled)["shuffle"], SHUFFLES)

    assert built({}) == built({"shuffle": "full"}) == Full()
    assert built({"shuffle": "blocks"}) == Blocks()
    assert built({"shuffle": {"name": "blocks", "size": 64}}) == Blocks(size=64, mix=16)
    with pytest.raises(ConfigError, match="mixx"):
        built({"shuffle": {"name": "blocks", "mixx": 64}})


def test_what_cannot_be_ordered_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.shuffle\.size: 0 is given; expected at least 1"):
        Blocks(size=0)
    with pytest.raises(UserError, match=r"data\.shuffle\.mix: -2 is given; expected at least 1"):
        Blocks(mix=-2)
    with pytest.raises(
        UserError, match=r"batch_size: 64 is larger than the 22 training images of data\.target; .*at most 22"
    ):
        Order(22, 64, 0, "target", Blocks())
    with pytest.raises(UserError, match=r"optim\.batch_size: 0 is given; expected at least 1"):
        Order(22, 0, 0)
