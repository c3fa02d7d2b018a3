"""What every step reports of the representation, and when the alarm speaks."""

import pytest
import torch
from torch import Tensor

from rootstock.ssl.health import CollapseAlarm, health


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_an_even_representation_has_deviation_one_and_full_rank() -> None:
    found = health(rows(2, 4000, 16), rows(2, 4000, 8))
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
        assert health(x)["feature_rank"].item() == pytest.approx(slow, rel=1e-4)


def test_collapse_shows_as_no_deviation_or_one_direction() -> None:
    point = torch.ones(2, 64, 8) + 1e-4 * rows(2, 64, 8)
    assert health(point)["feature_std"].item() < 1e-3
    assert health(torch.ones(64, 8))["feature_rank"].isfinite()
    line = rows(64, 1) * torch.ones(8) + 1e-3 * rows(64, 8)
    assert health(line)["feature_rank"].item() == pytest.approx(1.0, abs=0.01)


def test_positives_are_compared_across_views() -> None:
    z = rows(1, 32, 8).expand(2, -1, -1)
    assert health(z, z)["positive_cosine"].item() == pytest.approx(1.0, abs=1e-6)
    opposite = torch.stack([z[0], -z[0]])
    assert health(z, opposite)["positive_cosine"].item() == pytest.approx(-1.0, abs=1e-6)


def test_the_alarm_waits_for_a_second_row_speaks_once_and_names_what_it_saw() -> None:
    alarm = CollapseAlarm()
    well, ill = {"embedding_std": 0.9, "embedding_rank": 20.0}, {"embedding_std": 1e-3, "embedding_rank": 20.0}
    assert [alarm(step, row) for step, row in ((1, ill), (2, well), (3, ill))] == [None] * 3
    said = alarm(4, ill)
    assert said is not None and "collapsed by step 4" in said and "embedding_std 0.001" in said
    assert alarm(5, ill) is None


def test_the_alarm_sees_one_direction_and_ignores_rows_without_health() -> None:
    alarm = CollapseAlarm()
    line = {"feature_std": 0.7, "feature_rank": 1.001}
    assert alarm(1, line) is None
    said = alarm(2, line)
    assert said is not None and "one direction" in said
    silent = CollapseAlarm()
    assert [silent(step, {"loss": 0.0}) for step in (1, 2, 3)] == [None] * 3
