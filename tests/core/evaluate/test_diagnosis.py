"""Predicted classes and their alarm, confusions by domain, BatchNorm's gap."""

import math

import numpy as np
import pytest
import torch

from rootstock.core.evaluate.diagnosis import (
    BatchNormInputs,
    LayerStatistics,
    batchnorm_gap,
    class_accuracies,
    class_confusions,
    count_predicted_classes,
)


def certain(classes: list[int], k: int, sure: float = 50.0) -> torch.Tensor:
    return sure * torch.eye(k)[classes]


def test_the_effective_number_of_classes_against_a_loop() -> None:
    logits = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    rows = [[math.exp(z) for z in row] for row in logits.double().tolist()]
    p = [sum(row[k] / sum(row) for row in rows) / 30 for k in range(5)]
    assert count_predicted_classes(logits).effective == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)))


@pytest.mark.parametrize("k", [2, 3, 10])
def test_one_class_for_everything_is_said_in_these_words_for_any_number_of_classes(k: int) -> None:
    found = count_predicted_classes(certain([1] * 40, k))
    assert found.effective == pytest.approx(1.0) and found.largest == 1.0
    assert found.alarm is not None and "predicts one class for everything" in found.alarm


def test_a_hedged_model_that_always_answers_one_class_is_seen_although_its_mean_is_spread() -> None:
    found = count_predicted_classes(certain([1] * 40, 10, sure=0.1))
    assert found.effective > 9.9 and found.alarm is not None and "one class for everything" in found.alarm


def test_fewer_than_half_of_the_classes_are_an_alarm_and_half_are_not() -> None:
    few, half = (
        count_predicted_classes(certain([0, 1, 2, 3] * 5, 10)),
        count_predicted_classes(certain([0, 1, 2, 3, 4] * 4, 10)),
    )
    assert few.effective == pytest.approx(4.0)
    assert few.alarm == "of 10 classes it predicts effectively 4.0, fewer than half"
    assert half.effective == pytest.approx(5.0) and half.alarm is None
    assert count_predicted_classes(certain(list(range(10)), 10)).alarm is None


def test_a_single_class_is_no_alarm_where_there_is_one() -> None:
    assert count_predicted_classes(torch.ones(5, 1)).alarm is None


def test_confusions_by_domain_against_a_loop() -> None:
    random = np.random.default_rng(0)
    labels, predictions, domains = (random.integers(k, size=80) for k in (4, 4, 3))
    expected = np.zeros((3, 4, 4), dtype=int)
    for y, p, d in zip(labels, predictions, domains, strict=True):
        expected[d, y, p] += 1
    found = class_confusions(labels, predictions, domains, 4)
    assert (found == expected).all()
    assert found.sum(0).sum() == 80
    accuracies = class_accuracies(found)
    for d in range(3):
        for k in range(4):
            mine = (domains == d) & (labels == k)
            assert accuracies[d, k] == pytest.approx((predictions[mine] == k).mean(), nan_ok=True)


def test_a_class_without_images_has_no_accuracy() -> None:
    found = class_accuracies(class_confusions(np.array([0, 0]), np.array([0, 1]), np.array([0, 0]), 3))
    assert found[0, 0] == 0.5 and np.isnan(found[0, 1:]).all()


def test_batchnorms_gap_in_deviations_of_the_source() -> None:
    source = [LayerStatistics(torch.zeros(2), torch.tensor([4.0, 1.0])), LayerStatistics(torch.ones(1), torch.ones(1))]
    target = [LayerStatistics(torch.tensor([2.0, 1.0]), torch.ones(2)), LayerStatistics(torch.ones(1), torch.ones(1))]
    assert batchnorm_gap(source, target) == pytest.approx(0.5)  # (1 + 0) / 2
    assert batchnorm_gap(source, source) == 0.0
    dead = [LayerStatistics(torch.zeros(2), torch.tensor([0.0, 1.0]))]
    assert batchnorm_gap(dead, [LayerStatistics(torch.tensor([9.0, 3.0]), torch.ones(2))]) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="same BatchNorm layers"):
        batchnorm_gap(source, target[:1])


def test_what_reaches_batchnorm_is_pooled_over_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(12, 4), torch.nn.BatchNorm1d(4)
    ).eval()
    # Far from 0, where E[x^2] - E[x]^2 has no digits left.
    images = torch.randn(11, 3, 2, 2, generator=generator) * 5 + 1000.0
    found = BatchNormInputs()
    with found.watching(net):
        for batch in images.split([4, 6, 1]):
            net(batch)
    net(images + 9.0)  # not watched any more
    first, second = found.statistics()
    torch.testing.assert_close(first.mean, images.double().mean((0, 2, 3)))
    torch.testing.assert_close(first.variance, images.double().var((0, 2, 3), correction=0), rtol=1e-5, atol=0.0)
    inner = net[:3](images).double().detach()
    torch.testing.assert_close(second.mean, inner.mean(0), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(second.variance, inner.var(0, correction=0), rtol=1e-4, atol=0.0)
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert BatchNormInputs().statistics() == []
