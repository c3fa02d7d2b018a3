"""A-distance and the MMD test on domains whose distance is known."""

import itertools

import pytest
import torch
from torch import Tensor

from rootstock.core.evaluate import domain_gap
from rootstock.core.evaluate.domain_gap import a_distance, domain_classifier, log_density_ratio, mmd_test
from rootstock.core.evaluate.logreg import LogisticRegression, fit_path
from rootstock.core.images.split import hash_order
from rootstock.core.kernels import multi_kernel_mmd
from rootstock.tests.cheaper import DOMAIN_C


@pytest.fixture(autouse=True)
def all_values_of_C(monkeypatch: pytest.MonkeyPatch) -> None:
    """As outside of the tests, which fit for one value elsewhere."""
    monkeypatch.setattr(domain_gap, "DOMAIN_C", DOMAIN_C)


def draw(n: int, shift: float = 0.0, seed: int = 0, d: int = 3) -> Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    x[:, 0] += shift
    return x


def keys(n: int, start: int = 0) -> Tensor:
    return torch.arange(start, start + n)


def test_alike_domains_have_about_0_within_the_interval() -> None:
    values = []
    for seed in range(4):
        found = a_distance(
            draw(200, seed=2 * seed), draw(200, seed=2 * seed + 1), keys(200), keys(200, 1000), seed=seed
        )
        assert found is not None
        assert 0.0 <= found.low <= found.value <= found.high <= 2.0 and found.error <= 0.5
        assert found.low < 0.15
        values.append(found.value)
    assert sum(values) / 4 < 0.2


def test_domains_that_are_told_apart_have_2() -> None:
    found = a_distance(draw(100), draw(100, shift=20.0, seed=1), keys(100), keys(100, 1000))
    assert found is not None
    assert found.value == found.high == 2.0 and found.error == 0.0
    assert 1.8 < found.low < 2.0 and 70 < found.images < 130  # an interval with a width, although no error was made


@pytest.mark.parametrize(("n", "m"), [(1500, 1500), (2400, 600)])
def test_a_known_error_whatever_the_sizes_of_the_domains(n: int, m: int) -> None:
    """Two normals 1 apart: the best error is Phi(-1/2) = .3085, so the distance 2 (1 - 2 .3085) = .766."""
    found = a_distance(draw(n, d=1), draw(m, shift=1.0, seed=1, d=1), keys(n), keys(m, 10_000))
    assert found is not None
    assert found.low < 0.766 < found.high
    assert found.value == pytest.approx(0.766, abs=0.2)


def test_copies_of_an_image_count_once_and_lie_on_one_side() -> None:
    """Every image four times: memorising copies would tell the domains apart."""
    x, y = draw(60, seed=2, d=100), draw(60, seed=3, d=100)
    first, second = (t.repeat_interleave(4, 0) for t in (x, y))
    found = a_distance(first, second, keys(60).repeat_interleave(4), keys(60, 500).repeat_interleave(4))
    assert found is not None
    assert 40 < found.images < 80 and found.low == 0.0
    memorised = a_distance(first, second, keys(240), keys(240, 500))
    assert memorised is not None and memorised.low > 0.5


def test_domains_that_are_slices_of_one_set_have_a_distance() -> None:
    """`#[:60%]` and `#[60%:]` are cut along the order of a hash; the halves must not follow it."""
    order = torch.tensor(hash_order(keys(200), 0))
    source, target = draw(120), draw(80, shift=20.0, seed=1)
    found = a_distance(source, target, order[:120], order[120:], seed=0)
    assert found is not None and found.value == 2.0
    assert 70 < found.images < 130


def test_an_image_of_both_domains_lies_on_one_side() -> None:
    x = draw(80, seed=4, d=60)
    found = a_distance(x, x + 0.0, keys(80), keys(80))
    assert found is not None and found.value == 0.0


def test_rows_in_another_order_give_the_same() -> None:
    x, y = draw(80), draw(90, shift=1.0, seed=1)
    first = a_distance(x, y, keys(80), keys(90, 100))
    order, other = (torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in (80, 90))
    second = a_distance(x[order], y[other], keys(80)[order], keys(90, 100)[other])
    assert first is not None and second is not None
    assert tuple(second) == pytest.approx(tuple(first), rel=1e-6)


def test_too_few_images_have_no_distance() -> None:
    assert a_distance(draw(6), draw(50), keys(6), keys(50, 100)) is None


def test_the_density_ratio_has_the_sizes_of_the_domains_taken_out() -> None:
    x, y = draw(600, d=1), draw(150, shift=1.0, seed=1, d=1)
    model = domain_classifier(x, y, keys(600), keys(150, 1000))
    found = log_density_ratio(model, torch.tensor([[0.5], [1.5]]), (600, 150))
    assert found.tolist() == pytest.approx([0.0, 1.0], abs=0.35)


def test_the_mmd_of_the_permutation_test_is_dans() -> None:
    x, y = draw(20).double(), draw(30, shift=0.5, seed=1).double()
    found = mmd_test(x, y, permutations=19)
    assert found.value == pytest.approx(float(multi_kernel_mmd(x, y)), rel=1e-9)


def test_p_is_small_for_different_domains_and_uniform_for_alike_ones() -> None:
    assert mmd_test(draw(40), draw(40, shift=1.5, seed=1), permutations=199).p == pytest.approx(1 / 200)
    p = torch.tensor([
        mmd_test(draw(15, seed=2 * s), draw(20, seed=2 * s + 1), seed=s, permutations=39).p for s in range(120)
    ])  # fmt: skip
    assert p.min() >= 1 / 40
    assert 0.4 < float(p.mean()) < 0.62
    assert float((p <= 0.1).double().mean()) == pytest.approx(0.1, abs=0.08)


def test_p_counts_against_loops() -> None:
    """All 20 splits of six rows into halves: p of the exact test; 999 draws come near it."""
    x, y = draw(3).double(), draw(3, shift=1.0, seed=1).double()
    both = torch.cat([x, y])
    values = []
    for rows in itertools.combinations(range(6), 3):
        rest = [i for i in range(6) if i not in rows]
        values.append(float(multi_kernel_mmd(both[list(rows)], both[rest])))
    exact = sum(v >= values[0] - 1e-12 for v in values) / 20
    assert mmd_test(x, y, permutations=999).p == pytest.approx(exact, abs=0.05)


def test_C_is_chosen_on_images_that_the_fit_has_not_seen() -> None:
    """Noise of many directions, in which a large C would find differences: the choice has fewer of the held-out images wrong."""
    x, y = draw(80, seed=4, d=60), draw(80, shift=2.0, seed=5, d=60)
    found = domain_classifier(x, y, keys(80), keys(80, 500))
    assert len(found.right) == len(DOMAIN_C) == 9
    assert found.right[DOMAIN_C.index(found.C)] == max(found.right) > found.right[-1]
    fresh = torch.cat([draw(2000, seed=6, d=60), draw(2000, shift=2.0, seed=7, d=60)])
    truth = torch.arange(2).repeat_interleave(2000)
    wrong = [
        float((one.logits(fresh).argmax(1) != truth).double().mean()) for one in (found, _of_one_C(x, y, DOMAIN_C[-1]))
    ]
    assert wrong[0] < wrong[1]


def _of_one_C(x: Tensor, y: Tensor, c: float) -> LogisticRegression:
    labels = torch.cat([torch.zeros(len(x)), torch.ones(len(y))]).long()
    return fit_path(torch.cat([x, y]).double(), labels, [c])[0]
