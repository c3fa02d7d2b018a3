"""What is picked, what it costs, and how validators rank many runs."""

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, spearmanr

import rootstock.adapt.validators.ranking as ranking
from rootstock.adapt.validators.candidate import CandidateModel, SourceOutputs, TargetOutputs
from rootstock.adapt.validators.ranking import rank_correlation
from rootstock.adapt.validators.registry import VALIDATORS
from rootstock.adapt.validators.selection import Scoring, as_result, choose, pick, picks, regrets, score_candidates
from rootstock.adapt.validators.stored import candidate_of, tensors_of
from rootstock.core.errors import UserError
from rootstock.tests.adapt.validators.models import CERTAIN, CONFIDENT, corrupted, generator, logits_of

CHEAP = ("source_validation", "entropy", "im", "bnm", "corr_c", "atc", "doc")


def scoring(**scores: list[float]) -> Scoring:
    count = len(next(iter(scores.values())))
    return Scoring(tuple(f"c{i}" for i in range(count)), scores, {})


def runs(seed: int = 0, n: int = 200, k: int = 5) -> tuple[list[CandidateModel], list[float]]:
    """Six candidates of one task and their accuracies: the better, the more confident; the last one has collapsed on the target."""
    labels, keys = torch.arange(n) % k, torch.arange(n)
    candidates, accuracies = list[CandidateModel](), list[float]()
    for i, accuracy in enumerate((0.5, 0.6, 0.7, 0.8, 0.9, 0.2)):
        last = i == 5
        predicted = torch.zeros(n, dtype=torch.int64) if last else corrupted(labels, accuracy, k, seed=seed + i)
        logits = logits_of(predicted, CERTAIN if last else 1.2 - accuracy, k, seed=seed)
        guessed = logits_of(corrupted(labels, 0.70 if i == 0 else 0.90, k, seed=seed + 9), CONFIDENT, k, seed=seed)
        features = torch.randn(n, 4, generator=generator(seed))
        source = SourceOutputs(features, guessed, labels, keys + n)
        candidates.append(CandidateModel(f"step {i}", i, TargetOutputs(features, logits, keys), source))
        accuracies.append(float((logits.argmax(1) == labels).double().mean()))
    return candidates, accuracies


def test_the_largest_finite_score_is_picked_and_of_equals_the_last() -> None:
    assert pick([1.0, 3.0, 2.0]) == 1
    assert pick([3.0, 1.0, 3.0]) == 2
    assert pick([math.nan, -math.inf, 0.0, math.inf]) == 2
    assert pick([math.nan, math.nan]) is None
    assert picks(scoring(a=[1.0, 2.0], b=[math.nan, math.nan])) == {"a": 1}


def test_the_rule_filters_by_source_validation_and_then_takes_im() -> None:
    scores = scoring(source_validation=[0.90, 0.885, 0.80, 0.60], im=[1.0, 1.2, 1.9, 2.0], ensv=[0.9, 0.1, 0.9, 0.9])
    found = choose(scores)
    assert (found.picked, found.kept) == (1, (0, 1))
    assert choose(scores, then="ensv").picked == 0
    assert picks(scores)["im"] == 3  # without the filter
    assert "2 points" in found.rule and found.rule.endswith("im")


def test_the_boundary_of_the_filter_belongs_to_it() -> None:
    scores = scoring(source_validation=[0.90, 0.88, 0.879], im=[0.0, 1.0, 2.0])
    assert choose(scores).kept == (0, 1)
    assert choose(scores, source_only=0.93).kept == (0, 1)
    assert choose(scores, source_only=0.94).kept == (0,)


def test_if_nothing_is_as_good_as_source_only_the_best_by_source_stay_and_the_rule_says_so() -> None:
    found = choose(scoring(source_validation=[0.5, 0.6], im=[2.0, 1.0]), source_only=0.9)
    assert found.kept == (1,) and "none is within 5 points of source-only" in found.rule


def test_without_held_out_source_there_is_no_filter_and_without_a_number_the_last_is_taken() -> None:
    found = choose(scoring(im=[2.0, 1.0]))
    assert (found.picked, found.kept) == (0, (0, 1)) and "no held-out source" in found.rule
    assert choose(scoring(im=[math.nan, math.nan])).picked == 1
    with pytest.raises(ValueError, match="no candidate"):
        choose(Scoring((), {}, {}))


def test_the_rule_passes_by_the_collapsed_candidate_that_entropy_and_snd_pick() -> None:
    candidates, accuracies = runs()
    scored = score_candidates(candidates, {name: VALIDATORS[name] for name in (*CHEAP, "snd", "last")})
    picked = picks(scored) | {"rule": choose(scored).picked}
    cost = regrets(picked, accuracies)
    assert picked["entropy"] == picked["snd"] == picked["last"] == 5
    assert picked["rule"] == picked["im"] == 4
    assert cost["rule"].regret == 0.0 and cost["entropy"].regret > 0.6
    assert cost["rule"].oracle == max(accuracies) == cost["rule"].accuracy
    assert all(one.regret >= 0.0 for one in cost.values())


def test_a_validator_whose_evidence_is_missing_is_left_out_with_the_reason() -> None:
    candidates = runs()[0][:2]
    scored = score_candidates(candidates)
    assert scored.left_out["dev"] == "needs features of training source images"
    assert "mixed images" in scored.left_out["mixval"] and "weights" in scored.left_out["transfer_score"]
    bare = score_candidates([dataclasses.replace(candidates[0], source=None), *candidates[1:]])
    assert set(bare.left_out) - set(scored.left_out) == {"source_validation", "atc", "doc", "nearest_source"}
    assert set(scored.scores) | set(scored.left_out) == set(VALIDATORS)


def test_the_entry_of_a_result_is_plain_json() -> None:
    scores = scoring(im=[1.0, math.nan])
    found = as_result(scores, choose(scores))
    assert found["scores"] == {"im": [1.0, None]} and found["picks"] == {"im": "c0"}
    assert found["rule"]["pick"] == "c0"


def test_stored_candidates_give_the_same_scores() -> None:
    candidates, _ = runs()
    again = [candidate_of(c.name, c.step, tensors_of(c)) for c in candidates[:2]]
    assert score_candidates(again) == score_candidates(candidates[:2])
    half = {name: t.half() if t.is_floating_point() else t for name, t in tensors_of(candidates[0]).items()}
    close = score_candidates([candidate_of("a", 0, half)], {"im": VALIDATORS["im"]}).scores["im"][0]
    assert close == pytest.approx(VALIDATORS["im"].score(candidates[0]), abs=2e-3)


def test_consistencies_of_mixtures_stay_exact_where_all_else_is_stored_in_half() -> None:
    one = dataclasses.replace(runs()[0][0], mixed=(1 / 3, 2 / 7))
    stored = tensors_of(one, half=True)
    assert stored["target/logits"].dtype == torch.float16 and stored["target/keys"].dtype == torch.int64
    assert candidate_of("a", 0, stored).mixed == one.mixed
    large = dataclasses.replace(one, weight=torch.full((5, 4), 7e4))
    message = "weight of a candidate has numbers above 65504, beyond float16; take evaluate.half=false"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        tensors_of(large, half=True)


def test_stored_labels_of_the_target_are_refused_and_missing_arrays_named() -> None:
    tensors = tensors_of(runs()[0][0])
    with pytest.raises(UserError, match="target/labels is no part of a candidate"):
        candidate_of("a", 0, {**tensors, "target/labels": torch.zeros(200)})
    with pytest.raises(UserError, match="source/labels is missing"):
        candidate_of("a", 0, {name: t for name, t in tensors.items() if name != "source/labels"})
    with pytest.raises(UserError, match="target: features"):
        candidate_of("a", 0, {**tensors, "target/keys": torch.arange(3)})


def first(found: Any) -> float:
    return float(found[0])


def test_correlations_are_scipys_within_each_task() -> None:
    random = np.random.default_rng(0)
    scores, accuracies, tasks = random.normal(size=40), random.normal(size=40), np.arange(40) % 3
    scores += accuracies
    found = rank_correlation(scores.tolist(), accuracies.tolist(), tasks.tolist(), resamples=200)
    groups = [tasks == t for t in range(3)]
    assert found["spearman"].estimate == pytest.approx(
        np.mean([first(spearmanr(scores[g], accuracies[g])) for g in groups])
    )
    assert found["kendall"].estimate == pytest.approx(
        np.mean([first(kendalltau(scores[g], accuracies[g])) for g in groups])
    )
    for name in ("spearman", "weighted", "kendall"):
        interval = found[name]
        assert interval.low is not None and interval.high is not None
        assert -1 <= interval.low < interval.estimate < interval.high <= 1


def by_hand(score: list[float], accuracy: list[float], counts: list[int]) -> tuple[float, float]:
    """Spearman's and the weighted correlation of a task whose candidates stand there several times, with every row written out."""
    rows = [(s, a) for s, a, n in zip(score, accuracy, counts, strict=True) for _ in range(n)]
    dense = [{value: rank + 1 for rank, value in enumerate(sorted({row[i] for row in rows}))} for i in (0, 1)]
    weights = [max(dense[0][s] / len(dense[0]), dense[1][a] / len(dense[1])) ** 2 for s, a in rows]

    def ranks(side: int, weights: list[float]) -> list[float]:
        found = []
        for row in rows:
            equal = [w for other, w in zip(rows, weights, strict=True) if other[side] == row[side]]
            below = sum(w for other, w in zip(rows, weights, strict=True) if other[side] < row[side])
            found.append(below + sum(equal) / len(equal) * (len(equal) + 1) / 2)
        return found

    def correlation(weights: list[float]) -> float:
        x, y = ranks(0, weights), ranks(1, weights)
        total = sum(weights)
        mx, my = (sum(w * v for w, v in zip(weights, side, strict=True)) / total for side in (x, y))
        xy, xx, yy = (
            sum(w * p * q for w, p, q in zip(weights, *sides, strict=True))
            for sides in (
                ([v - mx for v in x], [v - my for v in y]),
                ([v - mx for v in x], [v - mx for v in x]),
                ([v - my for v in y], [v - my for v in y]),
            )
        )
        return xy / math.sqrt(xx * yy)

    return correlation([1.0] * len(rows)), correlation(weights)


def test_weighted_and_drawn_correlations_are_those_of_rows_written_out() -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        score, accuracy = (random.integers(0, 6, size=12).astype(float) for _ in range(2))  # with ties
        counts = random.integers(0, 4, size=12)
        counts[:2], score[:2], accuracy[:2] = 1, (0, 5), (5, 0)
        found = ranking._correlations(score, accuracy, counts[None].astype(float), ("spearman", "weighted"))
        expected = by_hand(score.tolist(), accuracy.tolist(), counts.tolist())
        assert (found["spearman"][0], found["weighted"][0]) == pytest.approx(expected, abs=1e-12)


def test_the_weighted_correlation_forgives_disorder_among_the_bad_and_not_among_the_good() -> None:
    accuracies = [0.1, 0.2, 0.3, 0.7, 0.8, 0.9]
    low, high = [3.0, 2.0, 1.0, 4.0, 5.0, 6.0], [1.0, 2.0, 3.0, 6.0, 5.0, 4.0]
    bad, good = (rank_correlation(scores, accuracies, resamples=10) for scores in (low, high))
    assert bad["spearman"].estimate == pytest.approx(good["spearman"].estimate)
    assert bad["weighted"].estimate > 0.9 > good["weighted"].estimate
    favourite = rank_correlation(
        [6.0, 1.0, 2.0, 3.0, 4.0, 5.0], accuracies, resamples=10
    )  # the worst has the largest score
    least = rank_correlation([2.0, 3.0, 4.0, 5.0, 6.0, 1.0], accuracies, resamples=10)  # the best has the smallest
    assert max(favourite["weighted"].estimate, least["weighted"].estimate) < 0.2


def test_scores_of_different_tasks_are_not_compared() -> None:
    """Within each task the ranking is perfect; over both at once it is not, since the harder task has larger scores."""
    scores, accuracies, tasks = [11.0, 12.0, 13.0, 1.0, 2.0, 3.0], [0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0, 0, 0, 1, 1, 1]
    assert rank_correlation(scores, accuracies, tasks, resamples=50)["spearman"].estimate == 1.0
    assert rank_correlation(scores, accuracies, resamples=50)["spearman"].estimate < 0


def test_candidates_of_one_run_are_drawn_together_and_widen_the_interval() -> None:
    random = np.random.default_rng(1)
    run = np.repeat(np.arange(12), 10)
    accuracy = random.normal(size=12)[run] + 0.1 * random.normal(size=120)
    score = accuracy + random.normal(size=12)[run]
    each, whole = (
        rank_correlation(score.tolist(), accuracy.tolist(), drawn=drawn, resamples=300)["spearman"]
        for drawn in (None, run.tolist())
    )
    assert each.low is not None and each.high is not None and whole.low is not None and whole.high is not None
    assert whole.high - whole.low > 1.5 * (each.high - each.low)


def test_a_score_that_is_no_number_ranks_last_and_a_constant_says_nothing() -> None:
    accuracies = [0.1, 0.2, 0.3, 0.4]
    assert rank_correlation([math.nan, 1.0, 2.0, 3.0], accuracies, resamples=50)["kendall"].estimate == 1.0
    assert rank_correlation([1.0] * 4, accuracies, resamples=50)["spearman"].estimate == 0.0


def test_many_candidates_get_the_scores_of_each_alone() -> None:
    candidates, _ = runs()
    chosen = {name: VALIDATORS[name] for name in CHEAP}
    found = score_candidates([candidates[i % 6] for i in range(30)], chosen)
    assert all(len(scores) == 30 for scores in found.scores.values())
    assert found.scores["im"][:6] * 5 == found.scores["im"]
