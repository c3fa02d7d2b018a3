"""Budgets as they are typed, and the search for the largest share of a network that fits one."""

import pytest

from rootstock.core.errors import UserError
from rootstock.launch.compress.budget import Budget, EdgeCost, read_budget
from rootstock.launch.compress.forms import (
    MARGIN,
    SHARES_TRIED,
    TriedForm,
    largest_share,
    least_pruned,
    plain_json,
)


@pytest.mark.parametrize(
    ("latency", "size", "budget"),
    [
        ("5ms", "", Budget(5.0, None)),
        ("0.5 s", "2MB", Budget(500.0, 2_000_000)),
        ("250us", "1MiB", Budget(0.25, 1_048_576)),
        ("", "512KB", Budget(None, 512_000)),
    ],
)
def test_what_is_typed(latency: str, size: str, budget: Budget) -> None:
    found = read_budget(latency, size)
    assert found.size == budget.size and found.latency == pytest.approx(budget.latency)


@pytest.mark.parametrize(
    ("latency", "size", "said"),
    [
        ("", "", "--latency: give it, or --size: what is the network to fit, for example --latency 5ms or --size 2MB"),
        ("5", "", "--latency: expected a number with us, ms, s, for example 5ms, got '5'"),
        ("fast", "", "--latency: expected a number with us, ms, s, for example 5ms, got 'fast'"),
        ("-5ms", "", "--latency: expected a number with us, ms, s, for example 5ms, got '-5ms'"),
        ("0ms", "", "--latency: expected more than 0, got '0ms'"),
        ("", "2mb", "--size: expected a number with B, KB, kB, MB, GB, KiB, MiB, GiB, for example 2MB, got '2mb'"),
        ("5ms", "0MB", "--size: expected more than 0, got '0MB'"),
    ],
)
def test_what_is_refused(latency: str, size: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_budget(latency, size)
    assert str(refused.value) == said


def test_a_budget_holds_for_both() -> None:
    budget, cost = Budget(5.0, 1000), EdgeCost(4.9, 6.0, 1000)
    assert budget.holds(cost) and not budget.holds(cost, MARGIN)
    assert not budget.holds(cost._replace(bytes=1001)) and Budget(None, 1000).holds(cost, MARGIN)
    assert budget.in_words() == "5 ms a picture and 0.001 MB" and cost.in_words() == "4.9 ms (95 % within 6), 0.001 MB"


@pytest.mark.parametrize("most", [*range(0, 105, 5), 3, 97])
@pytest.mark.parametrize("least", [0.0, 0.3])
def test_the_largest_share_that_fits(most: int, least: float) -> None:
    """least: what pruning cannot go below."""
    asked: list[float] = []

    def form_of(share: float) -> TriedForm | None:
        asked.append(share)
        return TriedForm(share, share, False, EdgeCost(1.0, 1.0, round(100 * share))) if share >= least else None

    found = largest_share(form_of, Budget(None, most), SHARES_TRIED)
    fitting = [share for share in SHARES_TRIED if share >= least and round(100 * share) <= most]
    assert (None if found is None else found.share) == (fitting[0] if fitting else None)
    assert len(asked) <= 6 and len(set(asked)) == len(asked)


@pytest.mark.parametrize("eight", [0.4, 1.0, 1.6])
@pytest.mark.parametrize("most", [0, 1, 3, 20, 50, 97])
@pytest.mark.parametrize("least", [0.0, 0.3])
def test_the_precision_in_which_more_channels_stay(eight: float, most: int, least: float) -> None:
    """eight: the time of 8 bits over that of 32, which need not be the smaller one."""
    asked: list[tuple[float, bool]] = []

    def form_of(share: float, int8: bool) -> TriedForm | None:
        asked.append((share, int8))
        ms = 100 * share * (eight if int8 else 1.0)
        return TriedForm(share, share, int8, EdgeCost(ms, 9.0, 9)) if share >= least else None

    latency = most / MARGIN
    budget = Budget(latency, None)
    found = least_pruned(form_of, budget, SHARES_TRIED, True)
    fitting = [
        (share, not int8)
        for int8 in (False, True)
        for share in SHARES_TRIED
        if share >= least and 100 * share * (eight if int8 else 1.0) <= MARGIN * latency
    ]
    assert (None if found is None else (found.share, not found.int8)) == (max(fitting) if fitting else None)
    assert len(asked) <= 13 and len(set(asked)) == len(asked)
    alone = least_pruned(form_of, budget, SHARES_TRIED, False)
    assert (None if alone is None else (alone.share, True)) == max([one for one in fitting if one[1]], default=None)


def test_a_form_is_written_and_read() -> None:
    form = TriedForm(0.5, 0.439, True, EdgeCost(1.25, 2.0, 54_000))
    assert TriedForm.of_json(plain_json(form.as_json())) == form
    assert form.in_words() == "43.9% of the multiply-adds, 8 bits: 1.25 ms (95 % within 2), 0.054 MB"
    assert form._replace(share=None).in_words().startswith("all channels, 8 bits: ")
