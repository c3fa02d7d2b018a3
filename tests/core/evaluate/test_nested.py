"""Intervals over seeds and test images: against loops, by their coverage on a model with known variances, and at their limits."""

import numpy as np
import pytest

from rootstock.core.evaluate.nested import ImageScores, Nested, nested, paired_scores
from rootstock.core.evaluate.statistics import drawn_weights


def scores(values: list[float], drawn: list[int] | None = None) -> ImageScores:
    return ImageScores(np.array(values, dtype=np.float64), np.array(drawn or range(len(values)), dtype=np.int64))


def by_loops(trainings: list[list[ImageScores]], seed: int, resamples: int) -> list[float]:
    """Image by image, copy by copy: tests that share a cluster, or that others connect, share their draws."""
    groups: list[set[int]] = []
    for one in (one for tasks in trainings for one in tasks):
        known = {*one.drawn.tolist()}
        met = [group for group in groups if group & known]
        place = groups.index(met[0]) if met else len(groups)
        groups = [group for group in groups if group not in met]
        groups.insert(place, known.union(*met))
    pools = [sorted(group) for group in groups]
    weights = [np.concatenate(list(drawn_weights(len(pool), resamples, seed + k))) for k, pool in enumerate(pools)]
    found = []
    for b in range(resamples):
        seeds = []
        for tasks in trainings:
            means = []
            for one in tasks:
                which = next(k for k, pool in enumerate(pools) if one.drawn[0] in pool)
                total = count = 0.0
                for value, cluster in zip(one.values.tolist(), one.drawn.tolist(), strict=True):
                    times = weights[which][b][pools[which].index(cluster)]
                    total += times * value
                    count += times
                means.append(total / count if count else one.values.mean())
            seeds.append(sum(means) / len(means))
        found.append(sum(seeds) / len(seeds))
    return found


def test_draws_equal_loops_over_seeds_tasks_and_images_with_copies() -> None:
    random = np.random.default_rng(0)
    sets = [[3, 3, 8, 5, 9], [1, 2, 2, 4], [3, 3, 8, 5, 9]]
    trainings = [[scores(random.normal(size=len(s)).tolist(), s) for s in sets] for _ in range(3)]
    found = nested(trainings, seed=5, resamples=40)
    assert found.draws == pytest.approx(by_loops(trainings, 5, 40), abs=1e-12)
    assert found.values == pytest.approx([np.mean([one.values.mean() for one in tasks]) for tasks in trainings])
    assert found.clusters == 4 + 3


def test_tests_that_overlap_share_the_draws_of_what_they_share() -> None:
    """A chain: the first and the last meet by way of the second alone; one stands by itself, and one is so small that draws miss it."""
    random = np.random.default_rng(1)
    sets = [[1, 2, 3, 3], [3, 4, 5], [5, 6, 7, 8], [20, 21, 21], [8]]
    trainings = [[scores(random.normal(size=len(s)).tolist(), s) for s in sets] for _ in range(2)]
    found = nested(trainings, seed=2, resamples=40)
    assert found.draws == pytest.approx(by_loops(trainings, 2, 40), abs=1e-12)
    assert found.clusters == 8 + 2


def test_a_picture_more_or_less_does_not_make_a_test_another_one() -> None:
    """Seven tests, each of all pictures but one of its own, are as sure as one test, and not as seven."""
    random, images = np.random.default_rng(0), 400
    right = (random.random(images) < 0.6).astype(float)
    tests = [scores(np.delete(right, k).tolist(), np.delete(np.arange(images), k).tolist()) for k in range(7)]
    alone, all_of_them = nested([[scores(right.tolist())]], seed=0), nested([tests], seed=0)
    assert all_of_them.clusters == images
    assert np.std(all_of_them.draws) == pytest.approx(np.std(alone.draws), rel=0.05)


def test_tasks_on_the_same_images_share_their_draws() -> None:
    """What one task loses by a draw the other gains, so their mean doesn't move; on other images it would."""
    right = [1.0, 0.0] * 20
    wrong = [1.0 - value for value in right]
    assert float(np.ptp(nested([[scores(right), scores(wrong)]], seed=0).draws)) == pytest.approx(0.0, abs=1e-12)
    apart = scores(wrong, list(range(100, 140)))
    assert float(np.ptp(nested([[scores(right), apart]], seed=0).draws)) > 0.1


def model(random: np.random.Generator, seeds: int, images: int, between: float, picture: float, rest: float) -> Nested:
    """Differences with true mean 0: an effect of the seed, one of the picture that all seeds share, and the rest."""
    shared = random.normal(0, picture, images)
    trainings = [
        [scores((random.normal(0, between) + shared + random.normal(0, rest, images)).tolist())] for _ in range(seeds)
    ]
    return nested(trainings, seed=0, resamples=300)


@pytest.mark.parametrize(("between", "picture"), [(0.1, 0.3), (0.02, 0.5), (0.1, 0.0)])
def test_the_interval_covers_and_drawing_seeds_or_images_alone_does_not(between: float, picture: float) -> None:
    random, covered, naive, images_alone, false = np.random.default_rng(1), 0, 0, 0, 0
    runs = 250
    for run in range(runs):
        found = model(random, 3, 60, between, picture, 0.3)
        interval = found.interval(seed=run)
        assert interval.low is not None and interval.high is not None
        covered += interval.low <= 0 <= interval.high
        false += found.p() < 0.05
        drawn = np.array(found.values)[random.integers(3, size=(300, 3))].mean(axis=1)
        naive += bool(np.quantile(drawn, 0.025) <= 0 <= np.quantile(drawn, 0.975))
        images_alone += bool(np.quantile(found.draws, 0.025) <= 0 <= np.quantile(found.draws, 0.975))
    assert covered / runs > 0.93 and false / runs < 0.07
    assert naive / runs < 0.85
    assert between < 0.1 or images_alone / runs < 0.85


def test_p_of_a_bound_agrees_with_the_interval() -> None:
    """The interval's ends are where p is 0.05, within what 2,000 draws can tell."""
    random = np.random.default_rng(3)
    found = nested([[scores((0.2 + random.normal(0, 0.5, 300)).tolist())] for _ in range(5)], seed=0)
    interval = found.interval(seed=0)
    assert interval.low is not None and interval.high is not None
    for end in (interval.low, interval.high):
        assert found.p(end) == pytest.approx(0.05, abs=0.03)
    assert found.p(float(np.mean(found.values))) > 0.9 and found.p(interval.high + 0.2) < 0.01


def test_no_interval_leaves_its_span() -> None:
    nearly = [[scores([1.0] * 19 + [float(k > 0)])] for k in range(3)]
    interval = nested(nearly, seed=0).interval(seed=0, span=(0.0, 1.0))
    assert interval.high == 1.0 and interval.low is not None and 0.0 <= interval.low < 1.0
    free = nested(nearly, seed=0).interval(seed=0)
    assert free.high is not None and free.high > 1.0


def test_pairs_need_the_same_images() -> None:
    a, b = scores([1.0, 0.0, 1.0], [7, 8, 9]), scores([0.0, 0.0, 1.0], [7, 8, 9])
    assert paired_scores(a, b).values.tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="same images"):
        paired_scores(a, scores([0.0, 0.0, 1.0], [7, 9, 8]))
    with pytest.raises(ValueError, match="as many tasks"):
        nested([[a], [a, b]], seed=0)
