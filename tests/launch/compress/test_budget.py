"""Budgets as they are typed, and the search for the largest share of a network that fits one."""

import pytest

from rootstock.core.errors import UserError
from rootstock.launch.compress.budget import Budget, EdgeCost, read_budget
from rootstock.launch.compress.compress import MARGIN, SHARES_TRIED, largest_share


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
def test_the_largest_share_that_fits(most: int) -> None:
    asked: list[float] = []

    def cost_of(share: float) -> EdgeCost:
        asked.append(share)
        return EdgeCost(share, share, round(100 * share))

    found = largest_share(cost_of, Budget(None, most))
    fitting = [share for share in SHARES_TRIED if round(100 * share) <= most]
    assert (found is None) == (not fitting)
    if found is not None:
        assert found == (fitting[0], EdgeCost(fitting[0], fitting[0], round(100 * fitting[0])))
    assert len(asked) <= 5 and len(set(asked)) == len(asked)
