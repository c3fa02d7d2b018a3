"""AaD against loops, its banks, and who is a neighbour."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rootstock.adapt.aad import attraction, nearest_rows, repulsion
from rootstock.core.errors import UserError
from rootstock.core.method import Domains, Overview
from rootstock.tests.adapt.one_update import CLASSES, IMAGES, PEERS, domains, drawn, gradient_norms, small

TARGETS, NEAR = 10, 3
ROWS = torch.tensor([7, 2, 9, 0, 4, 1])


def aad(**keys: Any) -> Any:
    method: Any = small("aad", **{"neighbours": NEAR, **keys})
    method.make_room(TARGETS)
    return method.double()


def batch(rows: Tensor = ROWS) -> Domains:
    pair = domains()
    return pair._replace(targets=(pair.target._replace(index=rows),))


def seen(method: Any, seed: int = 0) -> Overview:
    generator = torch.Generator().manual_seed(seed)
    features, logits = (
        torch.randn(TARGETS, n, generator=generator, dtype=torch.float64)
        for n in (method.classifier.feature_dim, CLASSES)
    )
    return Overview(torch.arange(TARGETS), features, logits)


def filled(**keys: Any) -> Any:
    method = aad(**keys)
    method.refresh(seen(method), 0.0)
    return method


def slow(method: Any, here: Domains, progress: float, dispersion: float, decay: float) -> float:
    """Equation 5 one pair at a time, from the banks as they are."""
    images = here.target.images
    features, p = method.classifier.features(images).tolist(), method.classifier(images).softmax(1).tolist()
    bank, theirs = method.bank_features.tolist(), method.bank_predictions.tolist()
    loss = 0.0
    for i, own in enumerate(here.target.index.tolist()):
        length = math.hypot(*features[i])
        cosines = {
            j: sum(a * b for a, b in zip(features[i], row, strict=True)) / length
            for j, row in enumerate(bank)
            if j != own
        }
        for j in sorted(cosines, key=lambda j: -cosines[j])[: method.neighbours]:
            loss -= sum(a * b for a, b in zip(theirs[j], p[i], strict=True)) / IMAGES
        for m in range(IMAGES):
            if m != i:
                weight = dispersion * (1 + 10 * progress) ** -decay
                loss += weight * sum(a * b for a, b in zip(p[i], p[m], strict=True)) / IMAGES
    return loss


@pytest.mark.parametrize(("progress", "dispersion", "decay"), [(0.0, 1.0, 5.0), (0.3, 2.0, 0.75), (1.0, 1.0, 0.0)])
def test_it_equals_loops(progress: float, dispersion: float, decay: float) -> None:
    method = filled(dispersion=dispersion, decay=decay).eval()
    step = method(batch(), progress)
    assert step.loss.item() == pytest.approx(slow(method, batch(), progress, dispersion, decay), rel=1e-10)


def test_an_image_is_never_its_own_neighbour() -> None:
    """Also where others are equal to it, and where its stored row is not the nearest."""
    generator = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(9, 4, generator=generator), dim=1)
    bank[5] = bank[2]
    for count in (1, 4, 8):
        found = nearest_rows(bank[[2, 5, 0]], bank, torch.tensor([2, 5, 0]), count)
        assert found.shape == (3, count)
        assert all(own not in row for own, row in zip((2, 5, 0), found.tolist(), strict=True))
        assert found[0, 0] == 5 and found[1, 0] == 2
    everyone = nearest_rows(bank, bank, torch.arange(9), 8)
    assert [sorted(row) for row in everyone.tolist()] == [[j for j in range(9) if j != i] for i in range(9)]


def test_the_gradient_goes_through_both_of_the_repulsion_and_not_into_the_bank() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    p = logits.softmax(1)
    pairs = sum((p[i] @ p[m] for i in range(5) for m in range(5) if m != i), start=p.new_zeros(())) / 5
    torch.testing.assert_close(repulsion(p), pairs)
    (ours,), (right,) = (torch.autograd.grad(loss, logits, retain_graph=True) for loss in (repulsion(p), pairs))
    torch.testing.assert_close(ours, right)
    once = sum((p[i] @ p[m].detach() for i in range(5) for m in range(5) if m != i), start=p.new_zeros(())) / 5
    torch.testing.assert_close(right, 2.0 * torch.autograd.grad(once, logits)[0])
    method = filled()
    method(batch(), 0.5).loss.backward()
    assert not method.bank_predictions.requires_grad and not method.bank_features.requires_grad


def test_without_repulsion_nothing_opposes_collapse() -> None:
    """All images as one class have the least loss there is, and no gradient; with repulsion they have one class too many."""
    one = torch.tensor([[1.0, 0.0, 0.0]]).expand(6, 3)
    theirs = one[:, None].expand(6, 4, 3)
    assert -attraction(one, theirs).item() == -4.0  # at most 1 for each of 4 neighbours
    spread = torch.eye(3).repeat(2, 1)
    assert repulsion(one).item() == 5.0 > repulsion(spread).item() == 1.0
    assert -attraction(spread, spread[:, None].expand(6, 4, 3)).item() == -4.0
    method = filled(dispersion=0.0).eval()
    step = method(batch(), 0.0)
    assert step.loss.item() == pytest.approx(-step.metrics["attraction"].item())


def test_banks_are_written_after_the_step_and_by_image() -> None:
    method = filled()
    features, predictions = method.bank_features.clone(), method.bank_predictions.clone()
    method(batch(), 0.5)
    assert torch.equal(method.bank_features, features)
    index, unit, p = method.latest
    method.after_step(0.5)
    for k, row in enumerate(ROWS.tolist()):
        assert torch.equal(method.bank_features[row], unit[k]) and torch.equal(method.bank_predictions[row], p[k])
    others = [row for row in range(TARGETS) if row not in ROWS.tolist()]
    assert torch.equal(method.bank_features[others], features[others]) and torch.equal(index, ROWS)
    assert torch.equal(method.bank_predictions[others], predictions[others])
    torch.testing.assert_close(method.bank_features.norm(dim=1), torch.ones(TARGETS, dtype=torch.float64))
    torch.testing.assert_close(method.bank_predictions.sum(1), torch.ones(TARGETS, dtype=torch.float64))
    before = method.bank_features.clone()
    method.after_step(0.5)  # nothing is left to write
    assert torch.equal(method.bank_features, before)


def test_no_row_of_a_skipped_step_is_written() -> None:
    """Neither the one that is no number nor the others of its batch; the next step writes its own."""
    method = filled()
    before = method.bank_features.clone(), method.bank_predictions.clone()
    here = batch()
    images = here.target.images.clone()
    images[2] = float("nan")
    method.eval()(here._replace(targets=(here.target._replace(images=images),)), 0.5)
    method.skipped = torch.tensor(True)
    method.after_step(0.5)
    assert torch.equal(method.bank_features, before[0]) and torch.equal(method.bank_predictions, before[1])
    method(here, 0.5)
    method.skipped = torch.tensor(False)
    method.after_step(0.5)
    assert method.bank_features.isfinite().all() and not torch.equal(
        method.bank_features[int(ROWS[1])], before[0][int(ROWS[1])]
    )


def test_the_order_of_the_bank_does_not_matter() -> None:
    method, order = aad(), torch.randperm(TARGETS, generator=torch.Generator().manual_seed(1))
    method.refresh(Overview(*(part[order] for part in seen(method))), 0.0)
    assert torch.equal(method.bank_features, filled().bank_features) and torch.equal(
        method.bank_predictions, filled().bank_predictions
    )


def test_the_source_takes_no_part() -> None:
    method, here = filled().eval(), batch()
    odd = here._replace(sources=(here.source._replace(images=here.source.images * float("nan")),))
    assert method(odd, 0.5).loss.item() == method(here, 0.5).loss.item()
    assert list(method.frozen(0.5)) == []  # the authors train the head too


def test_what_is_wrong_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.neighbours: expected 1 to 1,000, got 0; 5 is usual"):
        aad(neighbours=0)
    with pytest.raises(UserError, match=r"method\.neighbours: 10 other images are asked for, and the target has 10"):
        aad(neighbours=10)
    with pytest.raises(UserError, match=r"method\.dispersion: must be 0 or more"):
        aad(dispersion=-1.0)
    with pytest.raises(UserError, match=r"needs the index of each target image"):
        filled()(domains(), 0.5)


@pytest.mark.parametrize(
    ("count", "weight", "value", "length"),
    [(3, 1.0, -1.113431452287, 0.152398285279), (5, 0.25, -4.886739737246, 0.069148877561)],
)
def test_it_is_the_authors_value(count: int, weight: float, value: float, length: float) -> None:
    """cb5567c tar_adaptation.py, the target's rows as batch and both domains' as banks: equal up to sum S log S, which has no gradient."""
    found = drawn()
    bank = F.normalize(found.features.detach().flatten(0, 1), dim=1)
    stored = found.logits.detach().flatten(0, 1).softmax(1)
    near = stored[nearest_rows(bank[12:], bank, torch.arange(12, 24), count)]
    p = found.logits[1].softmax(1)
    loss = weight * repulsion(p) - attraction(p, near)
    (norm,) = gradient_norms(loss, found.logits)
    constant = (near * near.log()).sum((1, 2)).mean()
    assert (loss + constant).item() == pytest.approx(value, rel=PEERS) and norm == pytest.approx(length, rel=PEERS)


@pytest.mark.parametrize("name", ["aad", "shot"])
def test_the_control_of_a_source_free_method_keeps_its_forwards_and_has_no_gradient(name: str) -> None:
    usual, control = small(name), small(name, trade_off=0.0)
    for method in (usual, control):
        method.make_room(TARGETS)
        method.refresh(seen(method), 0.0)
        method.train()(batch(), 0.5).loss.backward()
    gradients = [[p.grad.abs().sum().item() for p in m.parameters() if p.grad is not None] for m in (usual, control)]
    assert any(gradients[0]) and gradients[1] and not any(gradients[1])
    first, second = ([b for n, b in m.named_buffers() if n.endswith("running_mean")] for m in (usual, control))
    assert first and all(torch.equal(a, b) and a.any() for a, b in zip(first, second, strict=True))
    with pytest.raises(UserError, match=r"method\.trade_off: must be 0 or more, got -1.*0 is the control"):
        small(name, trade_off=-1.0)
