"""SHOT against loops; who moves; pseudo-labels that belong to images."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rootstock.adapt.shot import UNLABELLED, information_maximisation, nearest_centroids
from rootstock.core.errors import UserError
from rootstock.core.method import Domains, Overview
from rootstock.tests.adapt.one_update import CLASSES, IMAGES, domains, drawn, gradient_norms, small

TARGETS = 10


def shot(**keys: Any) -> Any:
    method: Any = small("shot", **keys)
    method.make_room(TARGETS)
    return method


def batch(rows: Tensor | None = None) -> Domains:
    pair = domains()
    index = torch.arange(TARGETS - IMAGES, TARGETS) if rows is None else rows
    return pair._replace(targets=(pair.target._replace(index=index),))


def seen(seed: int = 0) -> Overview:
    generator = torch.Generator().manual_seed(seed)
    features, logits = (torch.randn(TARGETS, n, generator=generator, dtype=torch.float64) for n in (5, CLASSES))
    return Overview(torch.arange(TARGETS), features, logits)


def softmax(logits: Tensor) -> list[list[float]]:
    rows = [[math.exp(float(z)) for z in row] for row in logits]
    return [[value / sum(row) for value in row] for row in rows]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def slow_labels(features: Tensor, logits: Tensor) -> list[int]:
    """Both rounds one image and one class at a time."""
    rows = [[*map(float, row), 1.0] for row in features]
    rows = [[x / math.hypot(*row) for x in row] for row in rows]
    weights = softmax(logits)
    classes = sorted({row.index(max(row)) for row in weights})
    labels: list[int] = []
    for _ in range(2):
        centres: dict[int, list[float]] = {}
        for k in classes:
            total = sum(row[k] for row in weights)
            if total > 0.0:
                centres[k] = [
                    sum(w[k] * row[d] for w, row in zip(weights, rows, strict=True)) / total
                    for d in range(len(rows[0]))
                ]
        labels = [max(centres, key=lambda k, row=row: cosine(row, centres[k])) for row in rows]
        weights = [[float(label == k) for k in range(logits.shape[1])] for label in labels]
    return labels


def test_information_maximisation_equals_loops() -> None:
    logits = drawn().logits[1].detach()
    p = softmax(logits)
    mean = [sum(row[k] for row in p) / len(p) for k in range(5)]
    slow = -sum(x * math.log(x) for row in p for x in row) / len(p) + sum(m * math.log(m) for m in mean)
    assert information_maximisation(logits).item() == pytest.approx(slow, rel=1e-12)


def test_its_limits() -> None:
    """-log K where predictions are certain and balanced, 0 where all are the same; finite with a class that nobody has."""
    certain = 1e4 * torch.eye(4).repeat(2, 1)
    assert information_maximisation(certain).item() == pytest.approx(-math.log(4))
    assert information_maximisation(torch.zeros(8, 4)).item() == pytest.approx(0.0, abs=1e-6)
    logits = certain[:3].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(information_maximisation(logits), logits)
    assert gradient.isfinite().all()


def test_the_mean_of_shards_is_another_loss() -> None:
    logits = drawn().logits[1].detach()
    parts = [information_maximisation(part).item() for part in logits.split(3)]
    assert abs(sum(parts) / 4 - information_maximisation(logits).item()) > 0.05


@pytest.mark.parametrize("seed", range(5))
def test_pseudo_labels_equal_loops(seed: int) -> None:
    found = seen(seed)
    assert nearest_centroids(found.features, 2.0 * found.logits).tolist() == slow_labels(
        found.features, 2.0 * found.logits
    )


def test_a_mixture_gets_its_nearest_centres() -> None:
    """Also images that the classifier predicts wrongly: those are what pseudo-labels are for."""
    generator = torch.Generator().manual_seed(0)
    centres = 10.0 * torch.eye(4)
    truth = torch.arange(80) % 4
    features = centres[truth] + 0.5 * torch.randn(80, 4, generator=generator)
    logits = 3.0 * torch.nn.functional.one_hot(truth, 6).float()
    wrong = torch.arange(0, 80, 9)
    logits[wrong] = logits[wrong].roll(1, 1)[:, torch.tensor([3, 1, 2, 0, 4, 5])]
    logits[:, 4:] = -9.0
    assert (logits.argmax(1) != truth).any()
    assert torch.equal(nearest_centroids(features, logits), truth)  # and never one of the two absent classes


def test_a_class_that_loses_all_its_images_has_no_centroid() -> None:
    """One image is predicted as class 2 and lies nearer to class 0: the second round has nobody of class 2, and no 0 / 0."""
    features = torch.tensor([[9.0, 0.0], [9.0, 0.1], [9.0, 0.2], [0.0, 9.0], [0.1, 9.0]])
    logits = torch.tensor([[5.0, 0, 0], [5.0, 0, 0], [0.1, 0, 0.2], [0, 5.0, 0], [0, 5.0, 0]])
    assert nearest_centroids(features, logits).tolist() == slow_labels(features, logits) == [0, 0, 0, 1, 1]


def test_the_order_of_the_bank_does_not_matter() -> None:
    found, order = seen(), torch.randperm(TARGETS, generator=torch.Generator().manual_seed(1))
    straight, shuffled = shot(), shot()
    straight.refresh(found, 0.0)
    shuffled.refresh(Overview(*(part[order] for part in found)), 0.0)
    assert torch.equal(straight.pseudo_labels, shuffled.pseudo_labels) and straight.pseudo_labels.min() >= 0


def test_labels_are_those_of_the_images_not_of_the_rows() -> None:
    method = shot(pseudo_weight=0.7).eval()
    method.refresh(seen(), 0.0)
    rows = torch.tensor([7, 2, 9, 0, 4, 1])
    step = method(batch(rows), 0.5)
    logits = method.classifier(batch().target.images).detach()
    logs = logits.log_softmax(1)
    errors = [-logs[i, method.pseudo_labels[row]].item() for i, row in enumerate(rows.tolist())]
    right = information_maximisation(logits).item() + 0.7 * sum(errors) / IMAGES
    assert step.loss.item() == pytest.approx(right) and step.metrics["pseudo_changed"].item() == 1.0
    assert step.loss.item() != pytest.approx(method(batch(), 0.5).loss.item(), rel=1e-3)


def test_the_share_of_changed_labels() -> None:
    method = shot()
    method.refresh(seen(0), 0.0)
    before = method.pseudo_labels.clone()
    method.refresh(seen(0), 0.1)
    assert method.changed.item() == 0.0
    method.refresh(seen(1), 0.2)
    changed = sum(int(a) != int(b) for a, b in zip(before, method.pseudo_labels, strict=True))
    assert method.changed.item() == pytest.approx(changed / TARGETS) and changed > 0


def test_the_head_rests_and_the_source_takes_no_part() -> None:
    method = shot()
    method.refresh(seen(), 0.0)
    head = [p.clone() for p in method.classifier.head.parameters()]
    body = [p.clone() for p in method.backbone.parameters()]
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, weight_decay=0.1)
    here = batch()
    loss = method(here._replace(sources=(here.source._replace(images=here.source.images * float("nan")),)), 0.5).loss
    loss.backward()
    for parameter in method.frozen(0.5):
        parameter.grad = None
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(head, method.classifier.head.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(body, method.backbone.parameters(), strict=True))


def test_without_pseudo_labels_it_is_shot_im_and_looks_at_nothing() -> None:
    method = shot(pseudo_weight=0.0).eval()
    assert method.refresh_every is None and set(method.pseudo_labels.tolist()) == {UNLABELLED}
    right = information_maximisation(method.classifier(batch().target.images))
    torch.testing.assert_close(method(batch(), 0.5).loss, right)


def test_what_is_wrong_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.pseudo_weight: must be 0 or more, got -1.*SHOT-IM"):
        shot(pseudo_weight=-1.0)
    with pytest.raises(UserError, match=r"method\.refresh_every: expected more than 0, got 0; 1ep is usual"):
        shot(refresh_every=0)
    with pytest.raises(UserError, match=r"needs the index of each target image, and the batch has 0 for 6 images"):
        shot()(domains(), 0.5)


def test_it_is_the_authors_value() -> None:
    """f7d555a image_target.py: information maximisation, whose logarithms have 1e-5 inside, and obtain_label on both domains' rows."""
    found = drawn()
    loss = information_maximisation(found.logits[1])
    (norm,) = gradient_norms(loss, found.logits)
    assert (loss.item(), norm) == pytest.approx((-0.661280471942, 0.071813167647), rel=1e-4)
    labels = nearest_centroids(found.features.detach().flatten(0, 1), found.logits.detach().flatten(0, 1))
    assert labels.tolist() == [1, 2, 3, 2, 1, 2, 0, 4, 0, 0, 4, 1, 3, 3, 2, 4, 1, 1, 2, 3, 3, 2, 4, 3]
