"""MIC: its mask, its term against loops, its teacher, its control, and the term beside every method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from rootstock.adapt.parts.masked_consistency import MaskedConsistency, kept, masked_error
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.adapt.source_only import SourceOnly
from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.model import norm
from rootstock.launch.doctor.equality import classifier, domain_pair
from rootstock.tests.adapt.one_update import PEERS, drawn, gradient_norms

ROOM = 6  # target images
PLAIN: dict[str, Any] = {"jitter": 0.0, "blur": False}


def built(name: str = "source_only", **keys: Any) -> MaskedConsistency:
    torch.manual_seed(0)
    own: dict[str, Any] = {"hidden": 8} if name in ("dann", "cdan", "mdd") else {}
    kind = ADAPT_METHODS[name]
    method = kind(classifier(bottleneck=5, extra=kind.extra_outputs), None, **own)
    method.make_room(ROOM)
    made = MaskedConsistency(method, **keys).double()
    norm.convert_batch_norms(made, "local", 0, made.rows_per_position)
    return made


def test_the_term_equals_loops() -> None:
    logits = drawn().logits[1].detach()
    labels, quality = torch.arange(12) % 5, torch.linspace(0.2, 1.0, 12).double()
    errors = [float(row.exp().sum().log() - row[k]) for row, k in zip(logits, labels.tolist(), strict=True)]
    weighted = sum(q * e for q, e in zip(quality.tolist(), errors, strict=True)) / 12
    assert masked_error(logits, labels, quality).item() == pytest.approx(weighted, rel=1e-12)
    assert masked_error(logits, labels).item() == pytest.approx(sum(errors) / 12, rel=1e-12)


def test_the_mask_is_of_cells_and_keyed_by_position() -> None:
    images, draws = torch.ones(400, 3, 32, 32), Draws(0, torch.arange(400))
    mask = kept(draws, 0.7, 4, images)
    assert mask.shape == (400, 1, 32, 32)
    cells = mask.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4)  # [N, 1, 4, 4, 64]
    assert torch.equal(cells.amin(4), cells.amax(4)) and 0.27 < float(mask.mean()) < 0.33
    assert len({tuple(row) for row in cells[..., 0].flatten(1).tolist()}) > 300  # every image has its own
    later = kept(Draws(0, torch.arange(100, 300)), 0.7, 4, images[:200])
    assert torch.equal(later, mask[100:300])
    assert bool(kept(draws, 0.0, 4, images).all()) and not bool(kept(draws, 1.0, 4, images).any())


def test_without_mask_and_momentum_it_is_plain_pseudo_labels_of_itself() -> None:
    """The teacher is the student then, so each image costs -q log q."""
    method = built(ratio=0.0, momentum=0.0, **PLAIN).train()
    batch = domain_pair(method, 6, 1, torch.float64)
    for _ in range(2):
        step = method(batch, 0.5)
        p = method.logits(method.classifier, batch.target.images).detach().softmax(1).max(1).values
        assert step.metrics["mic_loss"].item() == pytest.approx(float(-(p * p.log()).mean()))
        assert step.metrics["mic_agreement"] == 1.0
        step.loss.backward()
        with torch.no_grad():
            for parameter in method.method.parameters():
                assert parameter.grad is not None
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
        norm.commit(norm.layers(method))
        method.after_step(0.5)
    masked = built(ratio=0.7, momentum=0.0, **PLAIN).train()
    assert masked(batch, 0.5).metrics["mic_loss"] != built(ratio=0.0, **PLAIN).train()(batch, 0.5).metrics["mic_loss"]


def test_the_teacher_is_a_moving_average_of_parameters_alone() -> None:
    method = built(momentum=0.7).train()
    slow = [p.clone() for p in method.teacher.parameters()]
    before = {name: value.clone() for name, value in method.teacher.named_buffers()}
    for i in range(1, 6):
        with torch.no_grad():
            for parameter in method.classifier.parameters():
                parameter += 0.1 * i
        method.after_step(0.0)
        alpha = min(1.0 - 1.0 / (i + 1), 0.7)
        slow = [alpha * s + (1.0 - alpha) * f for s, f in zip(slow, method.classifier.parameters(), strict=True)]
    for ours, right in zip(method.teacher.parameters(), slow, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-6, atol=1e-7)
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.named_buffers())
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert int(method.updates) == 5 and "updates" in method.state_dict()
    method(
        domain_pair(method, 6, 1, torch.float64), 0.5
    )  # its BatchNorm sees its own batch and keeps statistics of its own
    assert all(len(layer.pending) == 1 for layer in norm.layers(method.teacher))


def test_the_control_keeps_all_forwards_and_hands_on_no_gradient() -> None:
    term, control, plain = built(), built(weight=0.0), built(weight=0.0).method
    batch = domain_pair(control, 6, 1, torch.float64)
    steps = [made.train()(batch, 0.5) for made in (term, control, plain)]
    assert steps[0].metrics.keys() == steps[1].metrics.keys()
    for key, value in steps[0].metrics.items():
        torch.testing.assert_close(value, steps[1].metrics[key])
    torch.testing.assert_close(steps[1].loss, steps[2].loss)
    torch.testing.assert_close(steps[0].loss, steps[2].loss + steps[0].metrics["mic_loss"])
    counts = [[len(layer.pending) for layer in norm.layers(made.method)] for made in (term, control)]
    assert counts[0] == counts[1] and set(counts[0]) == {2}  # the method's forward and that of masked images
    ours, right = (
        torch.autograd.grad(step.loss, list(made.parameters()))
        for step, made in ((steps[1], control.method), (steps[2], plain))
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, right, strict=True))


@pytest.mark.parametrize("name", sorted(name for name, kind in ADAPT_METHODS.items() if not kind.online))
def test_it_is_a_term_beside_every_method(name: str) -> None:
    method = built(name, weight=0.5)
    batch = domain_pair(method, 6, 1, torch.float64)
    kind = ADAPT_METHODS[name]
    assert (method.rows_per_position, method.source_views, method.target_views) == (
        kind.rows_per_position,
        kind.source_views,
        kind.target_views,
    )
    assert method.sees_target and method.uses_pixels and method.backbone is method.method.backbone
    method.method.eval()  # without dropout
    for turn in range(method.turns):
        several: Any = (turn,) if method.turns > 1 else ()
        step, alone = method(batch, 0.5, *several), method.method(batch, 0.5, *several)
        term = 0.5 * step.metrics["mic_loss"] if turn == 0 else 0.0
        torch.testing.assert_close(step.loss, alone.loss + term)
        assert set(step.metrics) - set(alone.metrics) == (
            {"mic_loss", "mic_quality", "mic_agreement"} if turn == 0 else set()
        )
        inner: Any = method.method
        assert list(method.frozen(0.5, turn)) == list(inner.frozen(0.5, *several))
    # No tensor is saved twice.
    assert len({value.data_ptr() for value in method.state_dict().values() if value.numel() > 1}) == sum(
        value.numel() > 1 for value in method.state_dict().values()
    )


def test_colours_are_drawn_for_each_image_and_each_step() -> None:
    method = built()
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    draws = Draws(0, torch.arange(8))
    found = method.recoloured(images, draws)
    assert found.shape == images.shape and torch.equal(found, method.recoloured(images, draws))
    changed = (found - images).abs().amax((1, 2, 3)) > 1e-3
    assert int(changed.sum()) >= 4
    torch.testing.assert_close(method.recoloured(images[3:5], Draws(0, torch.arange(3, 5))), found[3:5])
    assert method.recoloured(images[:, :1], draws) is not None and torch.equal(
        method.recoloured(images[:, :1], draws), images[:, :1]
    )
    assert torch.equal(built(**PLAIN).recoloured(images, draws), images)


@pytest.mark.parametrize(("keys", "share"), [({"blur": False}, 0.8), ({"jitter": 0.0}, 0.5)])
def test_eight_images_in_ten_are_jittered_and_every_second_one_is_blurred(keys: dict[str, Any], share: float) -> None:
    images = torch.rand(600, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    found = built(**keys).recoloured(images, Draws(0, torch.arange(600)))
    changed = (found - images).abs().amax((1, 2, 3)) > 1e-5  # a blur of sigma 0.2 changes less
    assert changed.double().mean().item() == pytest.approx(share, abs=0.08)


def test_the_student_sees_recoloured_masked_images_and_the_teacher_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    method = built().train()
    target, seen = domain_pair(method, 6, 1, torch.float64).target, list[tuple[Any, Tensor]]()
    plain = method.logits

    def noted(network: Any, images: Tensor) -> Tensor:
        seen.append((network, images))
        return plain(network, images)

    monkeypatch.setattr(method, "logits", noted)
    method.consistency(target)
    draws = target.draws.stream("mic")
    recoloured = method.recoloured(target.images, draws)
    assert not torch.allclose(recoloured, target.images, atol=1e-3)
    assert [network for network, _ in seen] == [method.teacher, method.classifier]
    assert torch.equal(seen[0][1], target.images)
    assert torch.equal(seen[1][1], recoloured * kept(draws, 0.7, 4, target.images))


class Noted(SourceOnly):
    """Writes down what is handed to it."""

    def __init__(self) -> None:
        super().__init__(classifier())
        self.calls = list[tuple[Any, ...]]()

    def watch(self, batch: Any, progress: float, turn: int = 0) -> Mapping[str, Tensor]:
        self.calls.append(("watch", batch, progress, turn))
        return {"watched": torch.ones(())}

    def after_step(self, progress: float) -> None:
        self.calls.append(("after_step", progress))

    def refresh(self, seen: Any, progress: float) -> None:
        self.calls.append(("refresh", seen, progress))

    def conclude_source(self, source: Any) -> None:
        self.calls.append(("conclude_source", source))

    def conclude(self, target: Any) -> None:
        self.calls.append(("conclude", target))


def test_the_method_gets_all_that_the_loop_hands_on() -> None:
    inner = Noted()
    method, batch, seen, source, target = MaskedConsistency(inner), *(object() for _ in range(4))
    handed: Any = method
    assert handed.watch(batch, 0.1, 2) == {"watched": 1.0}
    handed.after_step(0.2)
    handed.refresh(seen, 0.3)
    handed.conclude_source(source)
    handed.conclude(target)
    assert inner.calls == [
        ("watch", batch, 0.1, 2),
        ("after_step", 0.2),
        ("refresh", seen, 0.3),
        ("conclude_source", source),
        ("conclude", target),
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ratio": 1.5}, r"method\.mic\.ratio: expected a number from 0 to 1, got 1.5; 0.7"),
        ({"weight": -1.0}, r"method\.mic\.weight: must be 0 or more.*0 is the control"),
        ({"grid": 0}, r"method\.mic\.grid: expected 1 to 256, got 0"),
        ({"momentum": 2.0}, r"method\.mic\.momentum"),
        ({"jitter": 0.7}, r"method\.mic\.jitter: expected 0 to 0.5, got 0.7"),
    ],
)
def test_bad_keys_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MaskedConsistency(SourceOnly(classifier()), **keys)


def test_it_is_the_authors_value() -> None:
    """2f932a9 EMATeacher and the loss of cdan_mcc_sdat_masking.py: weighted by the teacher's probability, and unweighted."""
    found = drawn()
    probability, labels = found.logits[1].detach().softmax(1).max(1)
    for quality, value, length in (
        (probability, 1.619550675915, 0.204103326090),
        (None, 2.488343026915, 0.291145073435),
    ):
        loss = masked_error(found.adversary[1], labels, quality)
        (norm,) = gradient_norms(loss, found.adversary)
        assert (loss.item(), norm) == pytest.approx((value, length), rel=PEERS)


def test_the_mask_is_the_authors() -> None:
    """2f932a9 Masking(block_size=8, ratio=0.7) on 32 px, with our uniform numbers in the place of its torch.rand."""
    mask = kept(Draws(7, torch.arange(12)), 0.7, 4, torch.ones(12, 3, 32, 32))
    assert mask.sum().item() == 3136.0
    assert (mask[:, 0].flatten(1).double() * torch.arange(1024)).sum().item() == 1661664.0


def test_no_running_statistic_of_the_teacher_is_ever_read() -> None:
    """Which is why it needs no average of buffers: it normalises by its own batch. What is tested and exported is the student."""
    plain, broken = built().train(), built().train()
    with torch.no_grad():
        for layer in norm.layers(broken.teacher):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.fill_(torch.nan)
            layer.running_var.fill_(torch.nan)
    batch = domain_pair(plain, 6, 1, torch.float64)
    steps = [made(batch, 0.5) for made in (plain, broken)]
    assert torch.equal(steps[0].loss, steps[1].loss)
    for made in (plain, broken):
        norm.commit(norm.layers(made))
        made.after_step(0.5)
    assert torch.equal(*(made(batch, 0.5).loss for made in (plain, broken)))
    assert plain.classifier is plain.method.classifier and plain.backbone is plain.method.backbone
