"""Each validator against a slow version, and on models whose accuracy is known: what it sees, and what it is blind to."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor

from rootstock.adapt.validators.candidate import (
    CandidateModel,
    SourceFeatures,
    SourceOutputs,
    TargetOutputs,
    by_content,
)
from rootstock.adapt.validators.dev import controlled_risk, density_ratio
from rootstock.adapt.validators.mixval import mixed_consistency
from rootstock.adapt.validators.registry import VALIDATORS
from rootstock.adapt.validators.snd import soft_neighborhood_density
from rootstock.adapt.validators.stored import candidate_of, tensors_of
from rootstock.adapt.validators.transfer_score import head_uniformity, hopkins
from rootstock.core.evaluate import domain_gap
from rootstock.core.evaluate.logreg import LogisticRegression, fit_choosing_C
from rootstock.tests.adapt.validators.models import K, N, Triple, generator, shuffled

NO_NETWORK = [name for name in VALIDATORS if name != "mixval"]


@pytest.fixture(scope="module")
def triple() -> Triple:
    return Triple()


@pytest.fixture(scope="module")
def scores(triple: Triple) -> dict[str, dict[str, float]]:
    """{validator: {candidate: score}}"""
    names, candidates = list(triple.candidates), list(triple.candidates.values())
    return {name: dict(zip(names, VALIDATORS[name].scores(candidates), strict=True)) for name in NO_NETWORK}


@pytest.fixture(scope="module")
def reordered(triple: Triple) -> list[CandidateModel]:
    return [shuffled(c, seed=3) for c in triple.candidates.values()]


def small(seed: int = 0, n: int = 23, k: int = 4) -> CandidateModel:
    """A candidate of few rows, for slow versions."""
    g = generator(seed)
    source = SourceOutputs(
        torch.randn(17, 5, generator=g),
        2 * torch.randn(17, k, generator=g),
        torch.arange(17) % k,
        torch.arange(100, 117),
    )
    trained = SourceFeatures(torch.randn(31, 5, generator=g), torch.arange(200, 231))
    target = TargetOutputs(torch.randn(n, 5, generator=g) + 0.5, 2 * torch.randn(n, k, generator=g), torch.arange(n))
    return CandidateModel(f"model {seed}", seed, target, source, trained, torch.randn(k, 5, generator=g))


def softmax(row: Tensor) -> list[float]:
    powers = [math.exp(float(z)) for z in row]
    return [x / sum(powers) for x in powers]


def entropy(p: list[float]) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def slow_entropy(c: CandidateModel) -> float:
    return -sum(entropy(softmax(row)) for row in c.target.logits) / len(c.target.logits)


def slow_diversity(c: CandidateModel) -> float:
    rows = [softmax(row) for row in c.target.logits]
    return entropy([sum(column) / len(rows) for column in zip(*rows, strict=True)])


def slow_bnm(c: CandidateModel) -> float:
    p = np.array([softmax(row) for row in c.target.logits])
    return float(np.sqrt(np.clip(np.linalg.eigvalsh(p.T @ p), 0, None)).sum()) / len(p)


def slow_corr_c(c: CandidateModel) -> float:
    p = [softmax(row) for row in c.target.logits]
    k = len(p[0])
    table = [[sum(row[a] * row[b] for row in p) for b in range(k)] for a in range(k)]
    return -sum(table[a][a] for a in range(k)) / math.sqrt(sum(x * x for row in table for x in row))


def slow_snd(c: CandidateModel) -> float:
    p = [softmax(row) for row in c.target.logits]
    unit = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in p]
    total = 0.0
    for i, a in enumerate(unit):
        row = [
            -1 / 0.05 if i == j else sum(x * y for x, y in zip(a, b, strict=True)) / 0.05 for j, b in enumerate(unit)
        ]
        total += entropy(softmax(torch.tensor(row, dtype=torch.float64)))
    return total / len(unit)


def slow_source(c: CandidateModel) -> float:
    source = c.held_out
    return sum(int(z.argmax()) == int(y) for z, y in zip(source.logits, source.labels, strict=True)) / len(
        source.labels
    )


def slow_doc(c: CandidateModel) -> float:
    source = sum(max(softmax(row)) for row in c.held_out.logits) / len(c.held_out.logits)
    target = sum(max(softmax(row)) for row in c.target.logits) / len(c.target.logits)
    return slow_source(c) - source + target


def slow_atc(c: CandidateModel) -> float:
    """The threshold by trying each source score as one."""
    sure = sorted(-entropy(softmax(row)) for row in c.held_out.logits)
    threshold = min(sure, key=lambda t: abs(sum(s < t for s in sure) / len(sure) - (1 - slow_source(c))))
    return sum(-entropy(softmax(row)) >= threshold - 1e-12 for row in c.target.logits) / len(c.target.logits)


def slow_nearest(c: CandidateModel) -> float:
    source, right = c.held_out, 0
    for row in c.target.features:
        cosines = [float(row @ other) / float(other.norm()) for other in source.features]
        i = cosines.index(max(cosines))
        right += int(source.logits[i].argmax()) == int(source.labels[i])
    return right / len(c.target.features)


def slow_rankme(c: CandidateModel) -> float:
    values = np.linalg.svd(c.target.features.double().numpy(), compute_uv=False)
    return math.exp(entropy([v / values.sum() for v in values]))


SLOW: dict[str, Callable[[CandidateModel], float]] = {
    "last": lambda c: float(c.step),
    "source_validation": slow_source,
    "entropy": slow_entropy,
    "diversity": slow_diversity,
    "im": lambda c: slow_diversity(c) + slow_entropy(c),
    "bnm": slow_bnm,
    "corr_c": slow_corr_c,
    "snd": slow_snd,
    "doc": slow_doc,
    "atc": slow_atc,
    "nearest_source": slow_nearest,
    "rankme": slow_rankme,
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_a_slow_version(name: str, seed: int) -> None:
    one = small(seed)
    expected = SLOW[name](one)
    assert VALIDATORS[name].scores([one]) == [pytest.approx(expected, rel=1e-5 if name == "rankme" else 1e-6)]


def test_the_values_of_a_good_and_a_collapsed_model_are_those_computed_by_the_authors_codes(
    scores: dict[str, dict[str, float]],
) -> None:
    """n = 1000, K = 10, as by the repositories of SND, EnsV and BNM on models of these entropies (tabulated to the third digit)."""
    expected = {
        "entropy": (-0.213, -0.208, -0.016),
        "im": (2.087, 2.092, 0.001),
        "bnm": (0.096, 0.097, 0.032),
        "corr_c": (-3.15, -3.15, -1.00),
        "snd": (4.598, 4.598, 6.907),
    }
    for name, values in expected.items():
        found = [scores[name][model] for model in ("good", "wrong", "collapsed")]
        assert found == pytest.approx(values, rel=0.003, abs=0.006), name


SEES_COLLAPSE = ("diversity", "im", "bnm", "class_ami", "dev", "devn", "ensv", "rankme", "transfer_score")


@pytest.mark.parametrize("name", SEES_COLLAPSE)
def test_prefers_the_good_model_to_the_collapsed_one(name: str, scores: dict[str, dict[str, float]]) -> None:
    assert scores[name]["good"] > scores[name]["collapsed"]


@pytest.mark.parametrize("name", ["entropy", "corr_c", "snd", "atc", "doc", "nearest_source", "iwv", "last"])
def test_blindness_it_prefers_the_collapsed_model_to_the_good_one(
    name: str, scores: dict[str, dict[str, float]], triple: Triple
) -> None:
    assert triple.accuracy["collapsed"] < 0.15 < 0.85 < triple.accuracy["good"]
    assert scores[name]["collapsed"] > scores[name]["good"]
    assert VALIDATORS[name].blind_to


def test_blindness_source_validation_cannot_tell_a_model_that_collapsed_on_the_target(
    scores: dict[str, dict[str, float]],
) -> None:
    assert len(set(scores["source_validation"].values())) == 1


def test_only_clusters_and_the_ensemble_tell_the_wrong_model_from_the_good_one(
    scores: dict[str, dict[str, float]], triple: Triple
) -> None:
    assert triple.accuracy["good"] == pytest.approx(0.90) and triple.accuracy["wrong"] == pytest.approx(0.54)
    assert scores["class_ami"]["good"] > 2 * scores["class_ami"]["wrong"]
    assert scores["ensv"]["good"] > scores["ensv"]["wrong"]


@pytest.mark.parametrize("name", sorted(set(NO_NETWORK) - {"class_ami", "ensv", "last"}))
def test_blindness_it_cannot_tell_confident_errors_from_a_good_model(
    name: str, scores: dict[str, dict[str, float]]
) -> None:
    good, wrong, collapsed = (scores[name][model] for model in ("good", "wrong", "collapsed"))
    assert abs(good - wrong) <= 0.01 * max(1.0, abs(good)), "it sees more than its page says"
    assert name in ("source_validation", "devn") or abs(good - wrong) < abs(good - collapsed) / 4


@pytest.mark.parametrize("name", ["diversity", "im", "bnm", "entropy", "corr_c", "snd", "class_ami"])
def test_blindness_a_permutation_of_the_classes_changes_nothing(name: str, triple: Triple) -> None:
    good = triple.candidates["good"]
    target = TargetOutputs(good.target.features, good.target.logits.roll(1, 1), good.target.keys)
    permuted = dataclasses.replace(good, target=target)
    assert VALIDATORS[name].scores([permuted]) == pytest.approx(VALIDATORS[name].scores([good]), rel=1e-9)
    assert float((target.logits.argmax(1) == triple.labels).double().mean()) < 0.1


@pytest.mark.parametrize("name", NO_NETWORK)
def test_the_order_of_rows_changes_nothing(
    name: str, reordered: list[CandidateModel], scores: dict[str, dict[str, float]]
) -> None:
    again = VALIDATORS[name].scores(reordered)
    assert again == pytest.approx(list(scores[name].values()), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", ["class_ami", "transfer_score", "ensv"])
def test_the_order_of_rows_changes_nothing_among_copies(name: str) -> None:
    one = small(3, n=40)
    target = TargetOutputs(one.target.features, one.target.logits, one.target.keys // 4)
    blends = dataclasses.replace(one, target=target)
    again = VALIDATORS[name].scores([shuffled(blends, seed=5)])
    assert again == pytest.approx(VALIDATORS[name].scores([blends]), rel=1e-9)


def test_content_orders_rows_by_key_and_copies_by_features() -> None:
    keys = torch.tensor([5, 3, 5, 3, 9])
    rows = torch.tensor([[1.0], [2.0], [0.5], [1.0], [7.0]])
    order = by_content(keys, rows)
    assert keys[order].tolist() == [3, 3, 5, 5, 9]
    for seed in range(4):
        shuffle = torch.randperm(5, generator=generator(seed))
        assert torch.equal(rows[shuffle][by_content(keys[shuffle], rows[shuffle])], rows[order])


def test_no_part_of_the_evidence_is_a_label_of_the_target() -> None:
    assert [field.name for field in dataclasses.fields(TargetOutputs)] == ["features", "logits", "keys", "units"]
    assert [field.name for field in dataclasses.fields(SourceFeatures)] == ["features", "keys", "units"]
    assert "labels" not in {field.name for field in dataclasses.fields(CandidateModel)}
    with pytest.raises(TypeError, match="labels"):
        TargetOutputs(torch.zeros(2, 3), torch.zeros(2, 4), torch.arange(2), labels=torch.zeros(2))  # pyright: ignore[reportCallIssue]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="target: features"):
        TargetOutputs(torch.zeros(3, 3), torch.zeros(2, 4), torch.arange(2))
    with pytest.raises(ValueError, match="one or more images"):
        TargetOutputs(torch.zeros(0, 3), torch.zeros(0, 4), torch.arange(0))
    with pytest.raises(ValueError, match="source: labels"):
        SourceOutputs(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(3), torch.arange(2))


def test_snd_by_blocks_is_the_whole_matrix() -> None:
    p = torch.randn(50, 6, generator=generator(0)).softmax(1)
    whole = soft_neighborhood_density(p, rows=50)
    assert [soft_neighborhood_density(p, rows=r) for r in (1, 7, 49)] == pytest.approx([whole] * 3, rel=1e-12)


def test_snd_of_one_class_for_everything_is_the_largest_there_is(scores: dict[str, dict[str, float]]) -> None:
    assert scores["snd"]["collapsed"] == pytest.approx(math.log(N - 1), abs=1e-3)


def test_bnm_between_its_bounds() -> None:
    balanced = 50.0 * torch.eye(K).repeat(20, 1)
    one = torch.zeros(200, K).index_fill(1, torch.tensor([0]), 50.0)
    found = [VALIDATORS["bnm"].score(_only(logits)) for logits in (balanced, one)]
    assert found == pytest.approx([math.sqrt(K / 200), 1 / math.sqrt(200)])


def _only(logits: Tensor, features: Tensor | None = None) -> CandidateModel:
    features = torch.randn(len(logits), 3, generator=generator(0)) if features is None else features
    return CandidateModel("one", 0, TargetOutputs(features, logits, torch.arange(len(logits))))


def test_class_ami_of_separate_clusters_is_that_of_the_true_classes(triple: Triple) -> None:
    good = triple.candidates["good"]
    expected = adjusted_mutual_info_score(good.target.logits.argmax(1).numpy(), triple.labels.numpy())
    assert VALIDATORS["class_ami"].score(good) == pytest.approx(expected, rel=1e-9)


def test_class_ami_of_features_and_predictions_that_collapsed_is_0_not_1() -> None:
    logits = torch.zeros(20, 3).index_fill(1, torch.tensor([1]), 9.0)
    assert adjusted_mutual_info_score([1] * 20, [0] * 20) == 1.0
    assert VALIDATORS["class_ami"].score(_only(logits, torch.ones(20, 3))) == 0.0
    two = logits.clone()
    two[:10, 0] = 20.0
    assert VALIDATORS["class_ami"].score(_only(two, torch.ones(20, 3))) == 0.0


def gaussians(rows: int, target_rows: int, shift: float = 1.0) -> CandidateModel:
    """Source N(0, 1), target N(shift, 1) in the first of two axes: the log density ratio is shift x - shift^2 / 2."""
    g = generator(1)
    x = [torch.randn(n, 2, generator=g) for n in (rows, rows, target_rows)]
    target = x[2] + torch.tensor([shift, 0.0])
    logits = torch.randn(rows, 3, generator=g)
    source = SourceOutputs(x[0], logits, torch.arange(rows) % 3, torch.arange(rows))
    return CandidateModel(
        "gaussians", 0,
        TargetOutputs(target, torch.zeros(target_rows, 3), torch.arange(10_000, 10_000 + target_rows)),
        source, SourceFeatures(x[1], torch.arange(20_000, 20_000 + rows)),
    )  # fmt: skip


def test_density_ratios_of_two_gaussians_of_domains_of_other_sizes() -> None:
    one = gaussians(300, 900)
    found = density_ratio(one).log()
    expected = one.held_out.features[:, 0].double() - 0.5
    assert float((found - expected).abs().mean()) < 0.35  # without N_s / N_t it is off by ln 3 = 1.1
    assert float(found.exp().mean()) == pytest.approx(1.0, abs=0.25)


def test_the_classifier_of_domains_is_chosen_on_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty patients of ten images each: what is held out to choose C holds no image of a patient that it was fitted on."""
    one, seen = gaussians(300, 300), list[Tensor]()
    assert one.trained is not None
    trained, target = torch.arange(300) // 10, 1000 + torch.arange(300) // 10

    def chosen(x: Tensor, y: Tensor, keys: Tensor, *_: Any, **__: Any) -> LogisticRegression:
        seen.append(keys)
        return fit_choosing_C(x, y, keys, 2, seed=0, values_of_C=(1.0,))

    monkeypatch.setattr(domain_gap, "fit_choosing_C", chosen)
    grouped = dataclasses.replace(
        one,
        target=dataclasses.replace(one.target, units=target),
        trained=dataclasses.replace(one.trained, units=trained),
    )
    density_ratio(grouped)
    density_ratio(dataclasses.replace(one, name="by image"))
    assert torch.equal(seen[0], torch.cat([trained, target]))
    assert torch.equal(seen[1], torch.cat([one.trained.keys, one.target.keys]))
    again = candidate_of(grouped.name, 0, tensors_of(grouped, half=True))
    assert again.trained is not None and again.trained.units is not None and again.target.units is not None
    assert torch.equal(again.trained.units, trained) and torch.equal(again.target.units, target)
    assert not [name for name in tensors_of(one) if name.endswith("units")]
    with pytest.raises(ValueError, match=r"target: units \(299,\) of 300 images"):
        dataclasses.replace(one.target, units=target[1:])


def test_dev_against_numpys_covariance() -> None:
    one = small(4)
    w = density_ratio(one).numpy()
    e = np.array([-math.log(softmax(z)[int(y)]) for z, y in zip(one.held_out.logits, one.held_out.labels, strict=True)])
    eta = -np.cov(w * e, w)[0, 1] / np.var(w, ddof=1)
    assert VALIDATORS["dev"].score(one) == pytest.approx(-(np.mean(w * e) + eta * np.mean(w) - eta), rel=1e-6)
    n = w / w.max() - (w / w.max()).mean() + 1
    eta = -np.cov(n * e, n)[0, 1] / np.var(n, ddof=1)
    assert VALIDATORS["devn"].score(one) == pytest.approx(-(np.mean(n * e) + eta * np.mean(n) - eta), rel=1e-6)
    wrong = np.array([int(z.argmax()) != int(y) for z, y in zip(one.held_out.logits, one.held_out.labels, strict=True)])
    assert VALIDATORS["iwv"].score(one) == pytest.approx(-np.mean(w * wrong), rel=1e-6)


def test_the_control_variate_removes_the_variance_of_the_weights() -> None:
    """With a constant loss the risk is that loss, however the weights vary; without the variate it is their mean times it."""
    w = torch.rand(50, generator=generator(0), dtype=torch.float64) * 3
    assert controlled_risk(w, torch.full((50,), 0.7, dtype=torch.float64)) == pytest.approx(0.7)
    assert abs(float(w.mean()) * 0.7 - 0.7) > 0.05
    assert controlled_risk(w[:1], torch.full((1,), 0.7, dtype=torch.float64)) == pytest.approx(0.7 * float(w[0]))
    equal = torch.full((50,), 0.25, dtype=torch.float64)
    losses = torch.rand(50, generator=generator(1), dtype=torch.float64)
    assert controlled_risk(equal, losses) == pytest.approx(0.25 * float(losses.mean()))


def test_transfer_score_against_loops() -> None:
    one = small(6, n=60)
    assert one.weight is not None
    x, k = one.target.features.double(), 4
    angles = []
    for a in range(k):
        for b in range(a + 1, k):
            u, v = one.weight[a].double(), one.weight[b].double()
            angles.append(abs(math.acos(float(u @ v) / float(u.norm() * v.norm())) - math.acos(-1 / (k - 1))))
    assert head_uniformity(one.weight) == pytest.approx(sum(angles) / len(angles), rel=1e-6)
    expected = hopkins(x) + SLOW["im"](one) / math.log(k) - sum(angles) / len(angles)
    assert VALIDATORS["transfer_score"].score(one) == pytest.approx(expected, rel=1e-6)


def test_hopkins_is_a_half_for_uniform_points_and_near_1_for_clusters() -> None:
    uniform = torch.rand(2000, 2, generator=generator(0))
    centres = torch.randint(5, (2000, 1), generator=generator(1)) / 5.0
    clustered = centres + 1e-3 * torch.rand(2000, 2, generator=generator(2))
    assert hopkins(uniform) == pytest.approx(0.5, abs=0.06)
    assert hopkins(clustered) > 0.95
    assert hopkins(torch.ones(30, 2)) == 0.5


def test_atc_on_a_target_like_the_source_gives_the_sources_accuracy(triple: Triple) -> None:
    source = triple.source
    same = TargetOutputs(source.features, source.logits, source.keys)
    one = dataclasses.replace(triple.candidates["good"], target=same)
    assert VALIDATORS["atc"].score(one) == pytest.approx(0.95)
    assert VALIDATORS["doc"].score(one) == pytest.approx(0.95)


def test_estimates_of_accuracy_follow_a_loss_of_confidence(triple: Triple) -> None:
    good = triple.candidates["good"]
    unsure = TargetOutputs(good.target.features, good.target.logits / 3, good.target.keys)
    for name in ("atc", "doc"):
        before, after = VALIDATORS[name].scores([good, dataclasses.replace(good, target=unsure)])
        assert after < before - 0.2


def test_estimates_of_accuracy_stay_between_0_and_1() -> None:
    """All wrong and then less sure, where no threshold is high enough; and all right and then surer."""
    labels, keys, features = torch.arange(12) % 3, torch.arange(12), torch.zeros(12, 2)
    sure, unsure = 9.0 * torch.eye(3)[labels], 0.1 * torch.eye(3)[labels]

    def scored(name: str, source: Tensor, target: Tensor) -> float:
        held_out = SourceOutputs(features, source, labels, keys)
        return VALIDATORS[name].score(CandidateModel("one", 0, TargetOutputs(features, target, keys), held_out))

    for name in ("atc", "doc"):
        assert scored(name, sure.roll(1, 1), unsure) == 0.0
        assert scored(name, unsure, sure) == 1.0
    assert scored("atc", sure.roll(1, 1), sure) == 0.0


def test_ensv_against_loops_and_only_on_the_same_images() -> None:
    models = [dataclasses.replace(small(seed), target=small(seed).target) for seed in range(4)]
    p = [[softmax(row) for row in model.target.logits] for model in models]
    mean = [[sum(one[i][k] for one in p) for k in range(4)] for i in range(23)]
    best = [row.index(max(row)) for row in mean]
    expected = [sum(int(z.argmax()) == b for z, b in zip(m.target.logits, best, strict=True)) / 23 for m in models]
    assert VALIDATORS["ensv"].scores(models) == pytest.approx(expected)
    other = TargetOutputs(models[0].target.features, models[0].target.logits, models[0].target.keys + 1)
    with pytest.raises(ValueError, match="same target images"):
        VALIDATORS["ensv"].scores([models[0], dataclasses.replace(models[1], target=other)])


def test_blindness_ensv_follows_candidates_that_are_wrong_alike(triple: Triple) -> None:
    good, wrong = triple.candidates["good"], triple.candidates["wrong"]
    found = VALIDATORS["ensv"].scores([good, wrong, wrong, wrong])
    assert found[1] == 1.0 > found[0]


class Linear:
    """A network on images that are vectors, and its candidate."""

    def __init__(self, name: str, images: Tensor, forward: Callable[[Tensor], Tensor]) -> None:
        logits = forward(images)
        target = TargetOutputs(images, logits, torch.arange(len(images)))
        self.candidate = CandidateModel(
            name, 0, target, mixed=lambda a, b, share: forward(share * images[a] + (1 - share) * images[b])
        )


@pytest.fixture(scope="module")
def networks() -> dict[str, CandidateModel]:
    """good: the classes' centres; permuted: the same with other names; wrong: cut up at random, certain; collapsed."""
    labels = torch.arange(300) % 5
    images = 0.4 * torch.randn(300, 8, generator=generator(0))
    images[torch.arange(300), labels] += 3.0
    jagged = 6 * torch.randn(8, 5, generator=generator(1))
    forwards: dict[str, Callable[[Tensor], Tensor]] = {
        "good": lambda x: 4 * x[:, :5],
        "permuted": lambda x: 4 * x[:, :5].roll(1, 1),
        "wrong": lambda x: 10 * torch.sin(x @ jagged),
        "collapsed": lambda x: torch.zeros(len(x), 5).index_fill(1, torch.tensor([2]), 9.0),
    }
    return {name: Linear(name, images, forward).candidate for name, forward in forwards.items()}


def test_mixval_ranks_the_good_network_above_the_wrong_and_the_collapsed_one(
    networks: dict[str, CandidateModel],
) -> None:
    names = ("good", "wrong", "collapsed")
    found = VALIDATORS["mixval"].scores([networks[name] for name in names])
    assert found[0] > max(found[1:])


def test_mixval_sees_the_boundary_where_confidence_sees_nothing(networks: dict[str, CandidateModel]) -> None:
    good, wrong = mixed_consistency(networks["good"]), mixed_consistency(networks["wrong"])
    assert good[0] == 1.0 and good[1] > 0.7
    assert wrong[0] < 0.6 and wrong[1] < 0.6


def test_blindness_mixval_gives_a_permutation_the_rank_of_the_good_network(networks: dict[str, CandidateModel]) -> None:
    found = VALIDATORS["mixval"].scores([networks["good"], networks["permuted"]])
    assert found[0] == found[1] == 1.5


def test_blindness_within_a_class_mixval_prefers_the_collapsed_network_to_the_wrong_one(
    networks: dict[str, CandidateModel],
) -> None:
    within, between = mixed_consistency(networks["collapsed"])
    assert within == 1.0 and math.isnan(between)
    assert within > mixed_consistency(networks["wrong"])[0]


def test_mixval_against_loops(networks: dict[str, CandidateModel]) -> None:
    """Each pair, with its own two rows: an image has one partner of its predicted class and one of another or none."""
    candidate, seen = networks["wrong"], list[tuple[int, int]]()
    assert callable(candidate.mixed)
    forward = candidate.mixed

    def spy(a: Tensor, b: Tensor, share: float) -> Tensor:
        assert share == 0.55
        seen.extend(zip(a.tolist(), b.tolist(), strict=True))
        return forward(a, b, share)

    within, between = mixed_consistency(dataclasses.replace(candidate, mixed=spy))
    predicted = candidate.target.logits.argmax(1)
    same = [(a, b) for a, b in seen if predicted[a] == predicted[b]]
    other = [(a, b) for a, b in seen if predicted[a] != predicted[b]]
    assert sorted(a for a, _ in same) == list(range(300)) and all(a != b for a, b in seen)
    for pairs, value in ((same, within), (other, between)):
        right = sum(int(forward(torch.tensor([a]), torch.tensor([b]), 0.55).argmax()) == predicted[a] for a, b in pairs)
        assert value == pytest.approx(right / len(pairs))


def test_mixval_is_the_mean_of_both_ranks() -> None:
    """The worst has rank 1, and no boundary at all is the worst one; equal ones share theirs."""
    found = [(0.9, 0.2), (0.5, 0.4), (0.9, math.nan), (0.7, 0.3)]
    candidates = [dataclasses.replace(small(), mixed=one) for one in found]
    within, between = (3.5, 1.0, 3.5, 2.0), (2.0, 4.0, 1.0, 3.0)
    assert VALIDATORS["mixval"].scores(candidates) == [(a + b) / 2 for a, b in zip(within, between, strict=True)]


def test_mixval_pairs_no_image_with_itself() -> None:
    """An image that is alone in its predicted class has no partner there."""
    images, seen = torch.eye(3)[[0, 0, 1, 2, 1, 0]], list[tuple[int, int]]()

    def mixed(a: Tensor, b: Tensor, share: float) -> Tensor:
        seen.extend(zip(a.tolist(), b.tolist(), strict=True))
        return share * images[a] + (1 - share) * images[b]

    found = mixed_consistency(dataclasses.replace(_only(images), mixed=mixed))
    same = [a for a, b in seen if torch.equal(images[a], images[b])]
    assert sorted(same) == [0, 1, 2, 4, 5] and all(a != b for a, b in seen)
    assert found == (1.0, 1.0)


def test_mixval_of_stored_consistencies_is_that_of_the_networks(networks: dict[str, CandidateModel]) -> None:
    again = [candidate_of(c.name, 0, tensors_of(c)) for c in networks.values()]
    assert VALIDATORS["mixval"].scores(again) == VALIDATORS["mixval"].scores(list(networks.values()))


def test_mixval_and_the_order_of_rows(networks: dict[str, CandidateModel]) -> None:
    for candidate in networks.values():
        assert mixed_consistency(shuffled(candidate, 4)) == pytest.approx(mixed_consistency(candidate), nan_ok=True)
