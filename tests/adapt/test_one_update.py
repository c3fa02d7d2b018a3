"""Every method of one loss and one update: its control, its forward, precision, and one process against several."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from rootstock.adapt.parts.transfer import effective_classes
from rootstock.core.errors import UserError
from rootstock.launch.doctor.trial_steps import distance
from rootstock.tests.adapt.exact_steps import STEPS, TRIALS, Trial, run
from rootstock.tests.adapt.one_update import CLASSES, IMAGES, NAMES, domains, drawn, small
from rootstock.tests.conftest import Forks

TURNS = {"mcd": 6}  # of a step; the others have one
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-4}
Results = dict[str, dict[str, Tensor]]


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(module.parameters(), found, strict=True)]


def test_there_are_nine() -> None:
    assert NAMES == ["afn", "bnm", "dan", "deepcoral", "deepjdot", "jan", "mcc", "mdd", "osbp"]


@pytest.mark.parametrize("name", NAMES)
def test_the_control_keeps_the_forward_and_hands_on_no_gradient(name: str) -> None:
    """Both domains still go through BatchNorm together; what the classifier learns is the cross-entropy on the source."""
    batch, keys = domains(), {"dropout": 0.0} if name == "afn" else {}
    control, method = small(name, CLASSES, trade_off=0.0, **keys), small(name, CLASSES, **keys)
    steps = {made: made(batch, 0.5) for made in (control, method)}
    for made in steps:  # as in every kind of forward
        assert all(int(n.num_batches_tracked or 0) in (0, 1) for n in made.modules() if isinstance(n, nn.BatchNorm2d))
    assert steps[control].metrics.keys() == steps[method].metrics.keys()
    for key, value in steps[control].metrics.items():  # the same forward
        torch.testing.assert_close(value, steps[method].metrics[key])
    features = control.classifier.encode(torch.stack([batch.source.images, batch.target.images]))
    alone = F.cross_entropy(control.classifier.head(features[0]), batch.source.labels)
    torch.testing.assert_close(steps[control].loss, alone, rtol=1e-6, atol=1e-9)
    for ours, right in zip(
        gradients(steps[control].loss, control.classifier), gradients(alone, control.classifier), strict=True
    ):
        torch.testing.assert_close(ours, right, rtol=1e-6, atol=1e-9)
    moved = gradients(steps[method].loss, method.backbone)
    assert any(
        not torch.allclose(a, b, rtol=1e-4, atol=1e-9)
        for a, b in zip(moved, gradients(alone, control.backbone), strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_cross_entropy_and_the_weighted_transfer_loss(name: str) -> None:
    method, batch = small(name, trade_off=0.7, label_smoothing=0.1).eval(), domains()
    step = method(batch, 0.5)
    logits = method.classifier(batch.source.images)
    source = F.cross_entropy(logits, batch.source.labels, label_smoothing=0.1)
    torch.testing.assert_close(step.loss, source + 0.7 * step.metrics["transfer_loss"])
    right = sum(int(logits[i].argmax()) == int(batch.source.labels[i]) for i in range(IMAGES))
    assert step.metrics["source_accuracy"].item() == pytest.approx(right / IMAGES)
    mean = method.classifier(batch.target.images).detach().softmax(1).mean(0)
    assert step.metrics["effective_classes"].item() == pytest.approx(float((-(mean * mean.log()).sum()).exp()))
    assert not any(metric.requires_grad for metric in step.metrics.values())
    assert step.loss.dtype == torch.float64


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_around_it_changes_no_transfer_loss(name: str) -> None:
    """Under autocast products of matrices would be in bfloat16: squared distances, covariances, confusions and norms would be noise."""
    method = small(name, classes=5).float()
    if name == "mdd":
        method.adversary = nn.Identity()  # a network may be in half precision
    if name == "osbp":
        method.classifier.head = nn.Identity()
    joint = drawn(dim=5).joint
    joint = type(joint)(joint.features.detach().float(), joint.logits.detach().float(), joint.labels)
    plain = method.transfer(joint, 0.5)[0]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = method.transfer(joint, 0.5)[0]
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(plain.item(), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_extreme_predictions_and_collapsed_features_have_finite_gradients(name: str) -> None:
    """Certain predictions that leave classes out, and features that are all equal: no logarithm of 0, no 0 / 0."""
    method = small(name, classes=5).float()
    for scale in (1e4, 0.0):
        joint = drawn(dim=method.classifier.feature_dim).joint
        features, logits = ((scale * part).detach().float().requires_grad_() for part in (joint.features, joint.logits))
        loss, _ = method.transfer(type(joint)(features, logits, joint.labels), 1.0)
        found = torch.autograd.grad(loss, (features, logits), allow_unused=True)
        assert loss.isfinite() and all(g is None or g.isfinite().all() for g in found), (name, scale)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_weights_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"method\.trade_off: must be 0 or more, got -1.*0 is the control"):
        small(name, trade_off=-1.0)
    with pytest.raises(UserError, match=r"method\.label_smoothing"):
        small(name, label_smoothing=1.0)


@pytest.mark.parametrize("name", ["dan", "jan", "deepcoral"])
def test_one_image_has_no_spread(name: str) -> None:
    with pytest.raises(UserError, match=r"optim\.batch_size: .* at least 2 of each"):
        small(name).eval()(domains(1), 0.5)


def test_effective_classes_count_classes() -> None:
    assert effective_classes(torch.full((8,), 0.125)).item() == pytest.approx(8.0)
    assert effective_classes(torch.tensor([1.0, 0.0, 0.0])).item() == pytest.approx(1.0)
    assert effective_classes(torch.tensor([0.5, 0.5, 0.0])).item() == pytest.approx(2.0)


class Alone(Results):
    """The results of one process by the trial's key, each computed at its first use."""

    def __missing__(self, key: str) -> dict[str, Tensor]:
        (trial,) = (trial for trial in TRIALS if trial.key == key)
        self[key] = run(trial)
        return self[key]


@pytest.fixture(scope="module")
def alone() -> Results:
    return Alone()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((2, "float64"), id="2"),
        pytest.param((2, "float32"), id="2-float32"),
        pytest.param((4, "float64"), id="4", marks=pytest.mark.slow),
        pytest.param((4, "float32"), id="4-float32", marks=pytest.mark.slow),
    ],
)
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Results:
    """The same on several processes."""
    out = tmp_path_factory.mktemp("exact") / "out.safetensors"
    count, dtype = request.param
    forks.group(Path(__file__).with_name("exact_steps.py"), out, dtype, count=count)
    results: Results = {}
    for key, value in load_file(out).items():
        trial, _, name = key.partition("|")
        results.setdefault(trial, {})[name] = value
    return results


def by_part(results: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Apart by `loss.TURN`, `grad.TURN` and `state`; a prefix alone would take turn 1 together with 10 and 11."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in results.items():
        kind, turn = name.split(".")[:2]
        parts.setdefault(kind if kind == "state" else f"{kind}.{turn}", {})[name] = value
    return parts


def check(trial: Trial, found: dict[str, Tensor], right: dict[str, Tensor], what: str) -> None:
    """The loss and the gradient of every turn of every step, and the weights and buffers after the last."""
    ours, theirs = by_part(found), by_part(right)
    turns = range(STEPS * TURNS.get(trial.name, 1))
    assert set(theirs) == {"state", *(f"{kind}.{turn}" for kind in ("loss", "grad") for turn in turns)} == set(ours)
    errors = {part: distance(ours[part], theirs[part], part) for part in theirs}
    worst = max(error for part, error in errors.items() if part.startswith("grad."))
    print(f"{what}, {trial.key}: relative error of the gradient {worst:.1e}")
    assert all(error <= BOUNDS[trial.dtype] for error in errors.values()), (what, trial.key, errors)


def test_several_processes_are_one(alone: Results, together: Results) -> None:
    compared = [trial for trial in TRIALS if trial.key in together]
    assert {trial.name for trial in compared} == {trial.name for trial in TRIALS} >= set(NAMES)
    for trial in compared:
        right = alone[trial.key]
        check(trial, {name: together[trial.key][name] for name in right}, right, "processes")


@pytest.mark.parametrize("trial", [trial for trial in TRIALS if trial.in_chunks], ids=lambda trial: trial.key)
def test_chunks_are_the_whole_batch(trial: Trial, alone: Results) -> None:
    check(trial, run(trial, chunk=4), alone[trial.key], "chunks")
