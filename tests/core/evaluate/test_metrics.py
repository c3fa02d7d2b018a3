import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from rootstock.core.errors import UserError
from rootstock.core.evaluate.metrics import classification, cluster_bootstrap

CLASSES = ["ant", "bee", "cat", "dog"]


def test_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    predictions = torch.tensor([0, 0, 1, 1, 2, 2])
    found = classification(labels, predictions, CLASSES[:3])
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert found["per_class"]["ant"] == pytest.approx({"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "support": 3})
    assert found["per_class"]["bee"] == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2})
    assert found["per_class"]["cat"] == pytest.approx({"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1})
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)


@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (50,), generator=generator)
    predictions = torch.where(
        torch.rand(50, generator=generator) < 0.6, labels, torch.randint(4, (50,), generator=generator)
    )
    found = classification(labels, predictions, CLASSES)
    theirs = [np.asarray(t) for t in precision_recall_fscore_support(labels, predictions, labels=range(4))]
    macro = precision_recall_fscore_support(labels, predictions, labels=range(4), average="macro")
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predictions), abs=1e-15)
    assert [found["precision"], found["recall"], found["f1"]] == pytest.approx(macro[:3], abs=1e-12)
    assert found["confusion"] == confusion_matrix(labels, predictions).tolist()
    for i, name in enumerate(CLASSES):
        row = dict(zip(("precision", "recall", "f1", "support"), (t[i] for t in theirs), strict=True))
        assert found["per_class"][name] == pytest.approx(row, abs=1e-12)


def test_a_class_without_test_images_stays_out_of_the_averages() -> None:
    """cat is predicted but absent, dog is neither; bee is there but never predicted, which counts as 0."""
    labels = torch.tensor([0, 0, 1, 1])
    predictions = torch.tensor([0, 2, 0, 0])
    found = classification(labels, predictions, CLASSES)
    assert found["per_class"]["cat"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    assert found["per_class"]["dog"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    assert found["per_class"]["bee"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2}
    # By hand, over ant (precision 1/3, recall 1/2, F1 2/5) and bee alone.
    assert [found["precision"], found["recall"], found["f1"]] == pytest.approx([1 / 6, 1 / 4, 1 / 5])


def test_result_is_plain_json() -> None:
    found = classification(torch.tensor([0, 1]), torch.tensor([1, 1]), CLASSES)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["classes"] == CLASSES


def test_bad_labels_are_named() -> None:
    with pytest.raises(UserError, match=r"labels lie in -1\.\.1, but 4 classes are numbered 0\.\.3"):
        classification(torch.tensor([-1, 1]), torch.tensor([1, 1]), CLASSES)
    with pytest.raises(UserError, match=r"predictions lie in 1\.\.7"):
        classification(torch.tensor([0, 1]), torch.tensor([1, 7]), CLASSES)
    with pytest.raises(UserError, match="no labelled images"):
        classification(torch.tensor([]), torch.tensor([]), CLASSES)
    with pytest.raises(ValueError, match="must both be"):
        classification(torch.tensor([0, 1]), torch.tensor([1]), CLASSES)
    with pytest.raises(ValueError, match="must differ"):
        classification(torch.tensor([0]), torch.tensor([0]), ["ant", "ant"])


def test_cluster_bootstrap_of_single_images_is_near_the_binomial() -> None:
    generator = torch.Generator().manual_seed(0)
    correct = torch.rand(400, generator=generator) < 0.8
    low, high = cluster_bootstrap(correct, torch.arange(400), seed=0)
    p = correct.double().mean().item()
    half = 1.96 * math.sqrt(p * (1 - p) / 400)
    assert (low, high) == pytest.approx((p - half, p + half), abs=0.006)


def test_cluster_bootstrap_sees_that_copies_add_nothing() -> None:
    """Eight identical images a group: the interval is that of the groups alone, sqrt(8) wider than for images."""
    generator = torch.Generator().manual_seed(0)
    correct, groups = torch.rand(100, generator=generator) < 0.8, torch.randperm(100, generator=generator)
    alone = cluster_bootstrap(correct, groups, seed=0)
    assert cluster_bootstrap(correct.repeat(8), groups.repeat(8), seed=0) == pytest.approx(alone, abs=1e-12)
    low, high = cluster_bootstrap(correct.repeat(8), torch.arange(800), seed=0)
    assert alone[0] is not None
    assert alone[1] is not None
    assert low is not None
    assert high is not None
    assert (alone[1] - alone[0]) / (high - low) == pytest.approx(math.sqrt(8), rel=0.1)


def test_cluster_bootstrap_against_a_loop() -> None:
    """Unequal groups: the drawn accuracy is right images over images, not the mean of groups' accuracies."""
    correct = torch.tensor([1, 0, 1, 1, 1, 0, 0, 0, 1, 1], dtype=torch.bool)
    groups = torch.tensor([7, 7, 7, -3, 5, 5, 5, 5, 9, 9])
    slow = []
    members = [correct[groups == g].tolist() for g in (-3, 5, 7, 9)]
    generator = torch.Generator().manual_seed(1)
    for drawn in torch.randint(4, (20000, 4), generator=generator).tolist():
        images = [right for g in drawn for right in members[g]]
        slow.append(sum(images) / len(images))
    expected = torch.quantile(torch.tensor(slow, dtype=torch.float64), torch.tensor([0.1, 0.9], dtype=torch.float64))
    found = cluster_bootstrap(correct, groups, seed=0, resamples=20000, level=0.8)
    assert found == pytest.approx(expected.tolist(), abs=0.02)


def test_cluster_bootstrap_is_a_function_of_the_set_and_the_seed() -> None:
    generator = torch.Generator().manual_seed(0)
    correct, groups = torch.rand(60, generator=generator) < 0.7, torch.randint(20, (60,), generator=generator)
    order = torch.randperm(60, generator=generator)
    found = cluster_bootstrap(correct, groups, seed=3)
    assert cluster_bootstrap(correct[order], groups[order], seed=3) == found
    assert cluster_bootstrap(correct, groups, seed=4) != found
    assert cluster_bootstrap(correct, torch.zeros(60), seed=0) == (None, None)
    with pytest.raises(ValueError, match="N >= 1"):
        cluster_bootstrap(correct[:0], groups[:0], seed=0)
