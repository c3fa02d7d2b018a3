"""Many runs scored by validators, on constructed candidates whose accuracies are known."""

from typing import Any

import pytest
import torch

from rootstock.adapt.scored_runs import score_runs
from rootstock.adapt.stored_runs import RunFacts, StoredRun
from rootstock.adapt.validators.candidate import CandidateModel, SourceOutputs, TargetOutputs
from rootstock.adapt.validators.contract import Validator
from rootstock.adapt.validators.quality import ScoredRun, validator_quality
from rootstock.adapt.validators.registry import VALIDATORS
from rootstock.adapt.validators.selection import Scoring
from rootstock.core.images.open import open_images
from rootstock.tests.adapt.validators.models import CONFIDENT, corrupted, logits_of

N, K = 60, 4


def candidate(step: int, accuracy: float, images: int = 0) -> CandidateModel:
    """A confident candidate on the target, and one of nine in ten right on held-out source; images: which ones it is shown."""
    labels, keys = torch.arange(N) % K, torch.arange(N) + images
    logits, known = (
        logits_of(corrupted(labels, share, K, seed=step), CONFIDENT, K, seed=0) for share in (accuracy, 0.9)
    )
    features = torch.zeros(N, 3)
    source = SourceOutputs(features, known, labels, keys + 1000)
    return CandidateModel(f"step {step}", step, TargetOutputs(features, logits, keys), source)


def stored(name: str, candidates: list[CandidateModel], task: str = "a", **accuracies: dict[str, float]) -> StoredRun:
    splits = {"target": task, **{f"test.{test}": task for test in accuracies}}
    steps = {one.name: one.step for one in candidates}
    facts = RunFacts("dann", 0, ["digits"], [task], splits, None, accuracies, steps)
    return StoredRun(name, facts, lambda: candidates)


class ByRank(Validator):
    """Compares candidates: the rank of a step among those given."""

    name = "by_rank"
    blind_to = "everything"

    def scores(self, candidates: Any) -> list[float]:
        """0 to the number of candidates - 1."""
        steps = sorted(one.step for one in candidates)
        return [float(steps.index(one.step)) for one in candidates]


CHOSEN: dict[str, Validator] = {"last": VALIDATORS["last"], "by_rank": ByRank()}


def test_what_compares_candidates_sees_those_of_the_task_that_were_shown_the_same_images() -> None:
    one = stored("one", [candidate(1, 0.5), candidate(4, 0.9)], target={"step 1": 0.5, "step 4": 0.9})
    two = stored("two", [candidate(2, 0.7)], target={"step 2": 0.7})
    other_images = stored("three", [candidate(3, 0.8, images=7)], target={"step 3": 0.8})
    other_task = stored("four", [candidate(5, 0.8)], task="b", target={"step 5": 0.8})
    runs = score_runs([one, other_task, two, other_images], CHOSEN, say=pytest.fail)
    found = {run.run: run for run in runs}
    assert [found[name].among["by_rank"] for name in ("one", "two", "three", "four")] == [
        [0.0, 2.0],
        [1.0],
        [0.0],
        [0.0],
    ]
    assert found["one"].own.scores["by_rank"] == [0.0, 1.0]
    assert found["one"].among["last"] == [1.0, 4.0] == found["one"].own.scores["last"]
    assert found["one"].task == found["three"].task != found["four"].task
    quality = validator_quality(runs, {"by_rank"}, resamples=20)
    assert quality["by_rank"].spearman is not None and quality["by_rank"].spearman.estimate == 1.0
    # Over all images of the task, `last` is right in the first three, and wrong about the third run.
    assert quality["last"].spearman is not None and quality["last"].spearman.estimate == 1.0


def test_only_candidates_with_a_known_accuracy_count_and_each_test_has_its_own() -> None:
    run = stored(
        "one",
        [candidate(1, 0.5), candidate(2, 0.9)],
        source={"step 1": 0.9, "step 2": 0.4},
        target={"step 2": 0.9},
    )
    (found,) = score_runs([run], CHOSEN, say=pytest.fail)
    assert found.own.names == ("step 2",) and found.accuracies == (0.9,)
    (on_source,) = score_runs([run], CHOSEN, "source", say=pytest.fail)
    assert on_source.accuracies == (0.9, 0.4)
    said: list[str] = []
    assert score_runs([run], CHOSEN, "other", say=said.append) == []
    assert said == ["one has no accuracy on other; its tests: source, target"]


def test_the_test_of_the_target_is_found() -> None:
    def facts(*tests: str) -> RunFacts:
        return stored("x", [], "a", **{test: {} for test in tests}).facts

    assert facts("source", "other", "target").test(None) == "target"
    assert facts("source", "test").test(None) == "test"
    assert facts("source").test(None) is None
    assert facts("source").test("source") == "source"


def scored(run: str, task: str, accuracies: list[float], **scores: list[float]) -> ScoredRun:
    names = tuple(f"step {i}" for i in range(len(accuracies)))
    return ScoredRun(run, task, "same", tuple(accuracies), Scoring(names, scores, {}), scores)


RUNS = [
    scored("1", "a", [0.2, 0.6, 0.4], im=[1.0, 3.0, 2.0], last=[0.0, 1.0, 2.0]),
    scored("2", "a", [0.5, 0.8], im=[2.5, 4.0], last=[0.0, 1.0]),
    scored("3", "b", [0.9, 0.3], im=[0.0, 1.0], last=[0.0, 1.0]),
]


def test_regrets_are_means_over_runs_and_over_tasks() -> None:
    quality = validator_quality(RUNS, resamples=20)
    assert list(quality) == ["im", "last", "rule", "random"]
    assert quality["im"].in_runs is not None and quality["im"].in_tasks is not None
    assert quality["im"].in_runs[0] == pytest.approx((0.0 + 0.0 + 0.6) / 3)
    assert quality["im"].in_tasks[0] == pytest.approx((0.0 + 0.6) / 2)
    assert quality["rule"].in_runs == quality["im"].in_runs  # without held-out source there is no filter
    assert quality["last"].in_runs is not None and quality["last"].in_runs[0] == pytest.approx((0.2 + 0.0 + 0.6) / 3)
    # Of equal scores the last: step 2 of run 1.
    assert quality["last"].in_tasks is not None and quality["last"].in_tasks[0] == pytest.approx((0.4 + 0.6) / 2)
    by_chance = quality["random"]
    assert by_chance.in_runs is not None and by_chance.in_runs[0] == pytest.approx((0.2 + 0.15 + 0.3) / 3)
    assert by_chance.in_tasks is not None and by_chance.in_tasks[0] == pytest.approx(((0.8 - 0.5) + 0.3) / 2)
    assert by_chance.spearman is None and quality["rule"].weighted is None
    low, high = quality["im"].in_runs[1:]
    assert low == 0.0 and high is not None and 0.6 < high <= 1.0  # a t-interval, cut at what a regret can be


def test_correlations_are_taken_within_tasks() -> None:
    im = validator_quality(RUNS, resamples=200)["im"]
    assert im.spearman is not None and im.spearman.estimate == pytest.approx((1.0 - 1.0) / 2)
    assert (im.runs, im.tasks, im.candidates) == (3, 2, 7)
    assert im.spearman.low is not None and im.spearman.high is not None  # of draws of whole runs
    assert -1.0 <= im.spearman.low < im.spearman.high <= 1.0


def test_a_run_without_what_a_validator_needs_does_not_count_for_it() -> None:
    bare = scored("4", "b", [0.1, 0.2], last=[0.0, 1.0])
    quality = validator_quality([*RUNS, bare], resamples=20)
    assert (quality["im"].runs, quality["last"].runs, quality["random"].runs) == (3, 4, 4)
    alone = validator_quality([scored("5", "c", [0.3], im=[1.0])], resamples=20)["im"]
    assert alone.in_runs is None and alone.in_tasks is None


def facts_of(source: str, target: list[str], seed: int = 0, split: str = "a") -> RunFacts:
    splits = {"target": split, "test.target": "t"}
    return RunFacts("dann", seed, [source], target, splits, None, {"target": {"step 1": 0.5}}, {"step 1": 1})


def test_targets_of_one_identity_are_different_tasks() -> None:
    """A digit, its blends and other sizes of it have one hash of the split."""
    digits = "sklearn:digits#[40:]"
    uris = ("sklearn:digits-m?region=train&blends=1#[:40]", "sklearn:digits-m?region=test&blends=1#[:40]")
    uris += ("sklearn:digits?size=32#[:40]", "sklearn:digits?size=16#[:40]")
    assert len({open_images(uri).split_hash() for uri in uris}) == 1
    tasks = {facts_of(digits, [uri]).task("target") for uri in uris}
    assert len(tasks) == len(uris)
    assert facts_of(digits, list(uris[:2])).task("target") not in tasks
    assert facts_of(digits, [uris[0]], split="b").task("target") not in tasks


def test_a_task_is_that_of_the_seed_that_its_uris_name() -> None:
    plain, drawn = "sklearn:digits#[:40]", "sklearn:digits#[:40,seed={seed}]"
    for given in ((plain, drawn), (drawn, plain)):
        tasks = [facts_of(given[0], [given[1]], seed).task("target") for seed in (0, 1)]
        assert tasks[0] != tasks[1]
        written = [one.replace("{seed}", "1") for one in given]
        assert facts_of(written[0], [written[1]]).task("target") == tasks[1]
    assert len({facts_of(plain, [plain], seed).task("target") for seed in (0, 1)}) == 1


def test_what_compares_candidates_does_not_mix_targets_of_one_identity() -> None:
    found = []
    for name, target in (("plain", "sklearn:digits#[:40]"), ("blends", "sklearn:digits-m#[:40]")):
        run = stored(name, [candidate(1, 0.5)], target={"step 1": 0.5})
        found.append(run._replace(facts=run.facts._replace(target=[target])))
    assert len({run.task for run in score_runs(found, CHOSEN, say=pytest.fail)}) == 2
