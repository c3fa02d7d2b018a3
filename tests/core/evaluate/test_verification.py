"""Errors of pairs equal scikit-learn's ROC curve, for the set itself and for any weights of its images."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from rootstock.core.errors import UserError
from rootstock.core.evaluate.cosines import pair_cosines, unit_rows
from rootstock.core.evaluate.counts import Floats, Ints
from rootstock.core.evaluate.image_pairs import ImagePairs, draw_pairs
from rootstock.core.evaluate.ranking import auroc
from rootstock.core.evaluate.statistics import drawn_weights
from rootstock.core.evaluate.verification import PairROC, verify_pairs

FAR = (0.2, 0.05)


def images(
    n: int, seed: int = 0, copies: int = 1, whole: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features that tell classes, labels, identities. whole: small integers, with many equal cosines."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=generator)
    x = torch.randn(n, 4, generator=generator) + torch.eye(4)[y]
    return x.round() if whole else x, y, torch.arange(n) // copies


def scored(x: torch.Tensor, y: torch.Tensor, keys: torch.Tensor) -> tuple[Floats, ImagePairs, Ints]:
    """The cosine of each pair, the pairs, the identities."""
    pairs, unit = draw_pairs(y.numpy(), keys.numpy(), 10**6, 0), unit_rows(x, "test")
    return pair_cosines(unit, unit, pairs.first, pairs.second), pairs, keys.numpy()


def by_scikit_learn(genuine: Any, score: Floats, weight: Floats) -> dict[str, float]:
    """EER where the lines FAR and FRR between the curve's points cross, FRR by its definition."""
    far, accepted, _ = roc_curve(genuine, score, sample_weight=weight, drop_intermediate=False)
    frr = 1 - accepted
    after = next(i for i in range(len(far)) if far[i] - frr[i] >= -1e-12)
    gap = frr - far
    part = gap[after - 1] / (gap[after - 1] - gap[after])
    found = {"eer": far[after - 1] + part * (far[after] - far[after - 1])}
    found |= {f"frr@{rate}": frr[far <= rate * (1 + 1e-12)].min() for rate in FAR}
    return found | {"pair_auroc": roc_auc_score(genuine, score, sample_weight=weight)}


@pytest.mark.parametrize("whole", [False, True])
def test_metrics_are_scikit_learns_for_any_weights(whole: bool) -> None:
    """Each draw equals the metrics of weighted pairs; the weight of a pair is the product of its images'."""
    score, pairs, keys = scored(*images(50, whole=whole))
    roc = PairROC(score, pairs, keys, FAR)
    weights = np.concatenate([np.ones((1, 50)), *drawn_weights(50, 12, 1)])
    found = roc(weights)
    for row, weight in enumerate(weights):
        both = weight[pairs.first] * weight[pairs.second]
        for name, value in by_scikit_learn(pairs.genuine, score, both).items():
            assert found[name][row] == pytest.approx(value, abs=1e-12), (row, name)
        assert found["pair_auroc"][row] == pytest.approx(auroc(score, pairs.genuine, both[None])[0], abs=1e-12)
    assert roc.distinct != whole


@pytest.mark.parametrize("n", range(1, 34))
def test_a_few_images(n: int) -> None:
    x, y, keys = images(n, seed=n, copies=1 + n % 2, whole=n % 3 == 0)
    found = verify_pairs(x, y, keys, pairs=10**6, far=FAR, seed=0)
    genuine, impostor = found.details["genuine"]["pairs"], found.details["impostor"]["pairs"]
    if not genuine or not impostor:
        assert found.metrics == {} and found.details["left_out"]["eer"].startswith(f"there are {genuine} genuine")
        return
    score, pairs, _ = scored(x, y, keys)
    expected = by_scikit_learn(pairs.genuine, score, np.ones(len(score)))
    named = {"eer", "pair_auroc"} | {f"frr@{rate}" for rate in FAR if 10 / rate <= impostor}
    assert found.metrics == {name: pytest.approx(expected[name], abs=1e-12) for name in named}
    assert set(found.details.get("left_out", {})) == set(expected) - named
    for name, (low, high) in found.intervals.items():
        assert 0 <= low <= high <= 1, name


def test_equal_error_by_hand() -> None:
    """Genuine 0.9, 0.8, 0.3; impostors 0.7, 0.2, 0.1: at 0.7 both rates are 1/3, at 0.3 FRR is 0."""
    y = np.array([0, 0, 0, 1])
    pairs = draw_pairs(y, np.arange(4), 10, 0)
    assert pairs.genuine.tolist() == [True] * 3 + [False] * 3
    roc = PairROC(np.array([0.9, 0.8, 0.3, 0.7, 0.2, 0.1]), pairs, np.arange(4), (0.5, 0.1))
    found = {name: value[0] for name, value in roc(np.ones((1, 4))).items()}
    assert found == pytest.approx({"eer": 1 / 3, "frr@0.5": 0, "frr@0.1": 1 / 3, "pair_auroc": 8 / 9})
    assert roc.thresholds() == {"eer": 0.7, "frr@0.5": 0.3, "frr@0.1": 0.8}
    accepts_all = PairROC(np.ones(6), pairs, np.arange(4), (0.1,))
    assert accepts_all(np.ones((1, 4)))["eer"][0] == 0.5 and accepts_all.thresholds() == {"eer": 1.0}
    assert np.isnan(roc(np.array([[0.0, 1.0, 0.0, 1.0]]))["eer"][0])  # no genuine pair has weight


def test_a_far_that_the_impostors_cannot_resolve_is_left_out() -> None:
    x, y, keys = images(60)
    impostor = verify_pairs(x, y, keys, pairs=10**6, far=(), seed=0).details["impostor"]["pairs"]
    found = verify_pairs(x, y, keys, pairs=10**6, far=(10 / impostor, 9.9 / impostor, 1e-9), seed=0)
    assert f"frr@{10 / impostor}" in found.metrics
    assert found.details["left_out"] == {
        f"frr@{9.9 / impostor}": f"it needs {10 / (9.9 / impostor):.6g} impostor pairs, there are {impostor}",
        "frr@1e-09": f"it needs 1e+10 impostor pairs, there are {impostor}",
    }


def test_copies_are_no_pairs_and_change_no_metric_and_no_interval() -> None:
    """Four copies of each image weigh each pair 16 times, and the bootstrap draws the same identities."""
    x, y, keys = images(40)
    one = verify_pairs(x, y, keys, pairs=10**6, far=FAR, seed=0)
    four = verify_pairs(x.repeat(4, 1), y.repeat(4), keys.repeat(4), pairs=10**6, far=FAR, seed=0)
    assert four.details["genuine"]["pairs"] == 16 * one.details["genuine"]["pairs"]
    assert four.metrics == pytest.approx(one.metrics) and set(four.intervals) == set(one.intervals)
    for name, pair in one.intervals.items():
        assert four.intervals[name] == pytest.approx(pair), name


def test_an_interval_says_how_far_another_set_of_images_may_be() -> None:
    """780 pairs of 40 images are no 780 independent ones, so the width is that of images: compared with 40 other sets."""
    low, high = verify_pairs(*images(40), pairs=10**6, far=(), seed=0).intervals["pair_auroc"]
    others = [images(40, seed=seed) for seed in range(1, 41)]
    values = [PairROC(*scored(*one), ())(np.ones((1, 40)))["pair_auroc"][0] for one in others]
    assert (high - low) / (2 * 1.96 * np.std(values, ddof=1)) == pytest.approx(1, abs=0.4)


def test_a_set_without_images_is_refused() -> None:
    with pytest.raises(UserError, match="no labelled images to score"):
        verify_pairs(*images(0), pairs=10, far=(), seed=0)
