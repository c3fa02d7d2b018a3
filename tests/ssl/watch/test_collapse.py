"""The collapse metrics of a step, and when the alarm warns."""

import math

import pytest
import torch
from torch import Tensor

from rootstock.ssl.watch.collapse import CollapseAlarm, collapse_metrics, describe_collapse


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_an_even_representation_has_deviation_one_and_full_rank() -> None:
    found = collapse_metrics(rows(2, 4000, 16), rows(2, 4000, 8))
    assert found["feature_std"].item() == pytest.approx(1.0, abs=0.02)
    assert found["feature_rank"].item() == pytest.approx(16.0, rel=0.02)
    assert found["embedding_rank"].item() == pytest.approx(8.0, rel=0.02)
    assert not any(value.requires_grad or value.ndim for value in found.values())


def test_the_rank_is_the_participation_ratio_whichever_matrix_is_smaller() -> None:
    for n in (5, 40):
        x = rows(n, 12)
        unit = x / x.norm(dim=1, keepdim=True)
        values = torch.linalg.eigvalsh(torch.cov(unit.T.double()))
        slow = float(values.sum() ** 2 / values.square().sum())
        assert collapse_metrics(x)["feature_rank"].item() == pytest.approx(slow, rel=1e-4)


def test_collapse_shows_as_no_deviation_or_one_direction() -> None:
    point = torch.ones(2, 64, 8) + 1e-4 * rows(2, 64, 8)
    assert collapse_metrics(point)["feature_std"].item() < 1e-3
    assert collapse_metrics(torch.ones(64, 8))["feature_rank"].isfinite()
    line = rows(64, 1) * torch.ones(8) + 1e-3 * rows(64, 8)
    assert collapse_metrics(line)["feature_rank"].item() == pytest.approx(1.0, abs=0.01)


def test_positives_are_compared_across_views() -> None:
    z = rows(1, 32, 8).expand(2, -1, -1)
    assert collapse_metrics(z, z)["positive_cosine"].item() == pytest.approx(1.0, abs=1e-6)
    opposite = torch.stack([z[0], -z[0]])
    assert collapse_metrics(z, opposite)["positive_cosine"].item() == pytest.approx(-1.0, abs=1e-6)


def test_the_auc_counts_pairs() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = torch.randn(2, 6, 4, generator=generator)
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (first, second))
    wins = [float(a[i] @ b[i] > a[i] @ b[j]) for i in range(6) for j in range(6) if j != i]
    found = collapse_metrics(torch.stack([first, second]), torch.stack([first, second]))
    assert found["positive_auc"].item() == pytest.approx(sum(wins) / len(wins))
    same = torch.ones(2, 5, 3)
    assert collapse_metrics(same, same)["positive_auc"].item() == 0.5
    apart = torch.eye(5).expand(2, -1, -1)
    assert collapse_metrics(apart, apart)["positive_auc"].item() == 1.0


WELL = {"embedding_std": 0.9, "positive_cosine": 0.9, "positive_auc": 0.98}
ILL = {"embedding_std": 0.4, "positive_cosine": 0.8, "positive_auc": 0.53}


def test_the_alarm_waits_for_a_second_row_speaks_once_and_names_what_it_saw() -> None:
    alarm = CollapseAlarm()
    assert [alarm(step, row) for step, row in ((1, ILL), (2, WELL), (3, ILL))] == [None] * 3
    said = alarm(4, ILL)
    assert said is not None and "collapsed by step 4" in said and "cosine 0.80" in said and "53%" in said
    assert alarm(5, ILL) is None


def test_a_resumed_alarm_says_what_a_straight_one_does() -> None:
    rows = [{"step": step, "loss": 1.0, **row} for step, row in ((1, WELL), (2, ILL), (3, ILL), (4, ILL))]
    straight = CollapseAlarm()
    said = [straight(row["step"], row) for row in rows]
    assert [one is not None for one in said] == [False, False, True, False]
    for cut in range(1, 4):
        resumed = CollapseAlarm(lambda cut=cut: [*rows[:cut], {"step": cut, "watch/rankme": 2.0}])
        assert [resumed(row["step"], row) for row in rows[cut:]] == said[cut:]


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"embedding_std": 1e-3}, "same embedding"),
        ({"feature_std": 1e-3}, "same feature"),
        ({**ILL, "positive_auc": 0.9}, None),  # views agree, others do not
        ({**ILL, "positive_cosine": 0.1}, None),  # an untrained network has not collapsed
        ({"prototypes_used": 1.01, "target_entropy": 0.0}, "same prototypes"),  # all images get one prototype
        (
            {"prototypes_used": 99.0, "target_entropy": math.log(99.0) - 0.001},
            "same prototypes",
        ),  # all images get all prototypes evenly
        (
            {"prototypes_used": 40.0, "target_entropy": 2.0, **ILL},
            None,
        ),  # a head's bottleneck has a direction in common
        ({"loss": 0.0}, None),
    ],
)
def test_what_is_a_collapse_and_what_is_none(row: dict[str, float], word: str | None) -> None:
    said = describe_collapse(row)
    assert (said is None) if word is None else (said is not None and word in said)
