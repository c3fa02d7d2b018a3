"""OSBP against loops and by its properties, and tests with classes that the source lacks: whole runs, in-process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from rootstock.adapt.osbp import OSBP, unknown_loss
from rootstock.adapt.parts.transfer import Joint
from rootstock.adapt.shift import called_known, true_distances
from rootstock.core.errors import UserError
from rootstock.core.evaluate.predictions import read_predictions
from rootstock.core.images.open import open_images
from rootstock.core.images.sets import align
from rootstock.core.model.classifier import Classifier
from rootstock.launch.doctor.trial_steps import backbone
from rootstock.launch.verbs import execute
from rootstock.tests.adapt.one_update import domains, drawn, gradient_norms, small

DIGITS = "sklearn:digits?size=16"
CONFIG: dict[str, Any] = {
    "label_shift": {"resamples": 0},
    "backbone": {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}},
    "optim": {"name": "sgd", "lr": 0.1, "batch_size": 8, "duration": 4},
    "run": {"log_every": 1, "workers": 0, "device": "cpu", "checkpoint": {"every": "100%"}},
}


def slow(logits: Tensor, boundary: float) -> float:
    """-t log u - (1 - t) log(1 - u) with u from exponentials, row by row."""
    total = 0.0
    for row in logits.tolist():
        powers = [math.exp(z) for z in row]
        u = powers[-1] / sum(powers)
        total -= boundary * math.log(u) + (1 - boundary) * math.log(1 - u)
    return total / len(logits)


@pytest.mark.parametrize("boundary", [0.5, 0.2])
def test_the_unknown_loss_is_the_papers(boundary: float) -> None:
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    assert unknown_loss(logits, boundary).item() == pytest.approx(slow(logits, boundary))
    assert unknown_loss(logits + 5.0, boundary).item() == pytest.approx(slow(logits, boundary))


def test_a_gap_of_hundred_has_a_finite_loss_and_gradient() -> None:
    """log(1 - u) of a rounded u is minus infinity from a gap of about 17 on in float32."""
    for last in (100.0, -100.0):
        logits = torch.tensor([[0.0, 0.0, last]], requires_grad=True)
        loss = unknown_loss(logits, 0.5)
        loss.backward()
        assert loss.item() == pytest.approx(50.0, abs=0.5)
        assert logits.grad is not None and logits.grad[0, 2].item() == pytest.approx(math.copysign(0.5, last))


def test_the_head_pulls_to_the_boundary_and_the_features_push_away() -> None:
    """A small step of the head alone brings the mean u of the target closer to t; one of the features alone brings it further away."""
    batch = domains(12)

    def gap(method: Any, images: Tensor) -> float:
        return unknown_loss(method.classifier(images), 0.5).item()

    for part in ("head", "backbone"):
        method = small("osbp").eval()
        method.requires_grad_(True)
        before = gap(method, batch.target.images)
        step = method(batch, 0.5)
        # Of the target's loss alone: the cross-entropy on the source is taken away.
        control: Any = method(batch, 0.5).loss - step.metrics["transfer_loss"]
        assert control.item() == pytest.approx(step.loss.item() - before)
        features = method.classifier.encode(torch.stack([batch.source.images, batch.target.images]))
        loss, _ = method.transfer(Joint(features, method.classifier.head(features), batch.source.labels), 0.5)
        loss.backward()
        with torch.no_grad():
            for parameter in getattr(method.classifier, part).parameters():
                if parameter.grad is not None:
                    parameter -= 1e-4 * parameter.grad
        after = gap(method, batch.target.images)
        assert after < before if part == "head" else after > before


def test_the_features_gradient_is_linear_in_the_reversal_and_the_heads_does_not_see_it() -> None:
    batch, found = domains(), {}
    for reversal in (0.0, 1.0, -0.0, 2.0):
        method = small("osbp", reversal=abs(reversal))
        step = method(batch, 0.5)
        found[reversal] = [
            torch.cat([g.flatten() for g in torch.autograd.grad(step.loss, list(part.parameters()), retain_graph=True)])
            for part in (method.classifier.head, method.backbone)
        ]
    torch.testing.assert_close(found[1.0][0], found[2.0][0])
    torch.testing.assert_close(found[1.0][0], found[0.0][0])
    torch.testing.assert_close(found[2.0][1] - found[0.0][1], 2 * (found[1.0][1] - found[0.0][1]))
    assert not torch.allclose(found[1.0][1], found[0.0][1])
    alone = small("osbp", trade_off=0.0)(batch, 0.5)
    control = small("osbp", reversal=0.0)(batch, 0.5)
    assert control.loss.item() == pytest.approx(alone.loss.item() + control.metrics["transfer_loss"].item())


def test_what_is_watched_is_what_is_called_unknown() -> None:
    method, batch = small("osbp").eval(), domains()
    metrics = method(batch, 0.5).metrics
    for name, images in (("unknown_source", batch.source.images), ("unknown_target", batch.target.images)):
        called = [int(row.argmax()) == 4 for row in method.classifier(images)]
        assert metrics[name].item() == pytest.approx(sum(called) / len(called))
    u = method.classifier(batch.target.images).softmax(1)[:, -1].mean()
    assert metrics["unknown_probability"].item() == pytest.approx(u.item())


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(UserError, match=r"method\.boundary: must lie between 0 and 1, got 1\.0; 0\.5 is the published"):
        small("osbp", boundary=1.0)
    with pytest.raises(UserError, match=r"method\.reversal: must be 0 or more"):
        small("osbp", reversal=-1.0)
    with pytest.raises(ValueError, match="one output beside the classes"):
        OSBP(Classifier(backbone("conv"), ["a", "b"]))


def test_other_classes_are_the_last_one() -> None:
    images = open_images(f"{DIGITS}#[:50]")
    assert images.labels is not None and images.classes is not None
    found = align(images, ("7", "2", "5"), "data.test", unknown="unknown")
    expected = [["7", "2", "5"].index(c) if (c := images.classes[y]) in "725" else 3 for y in images.labels.tolist()]
    assert found.labels is not None and found.labels.tolist() == expected
    assert found.classes == ("7", "2", "5", "unknown")
    with pytest.raises(UserError, match="has classes that the training set lacks"):
        align(images, ("7", "2", "5"), "data.test")


def test_class_priors_are_of_the_known_classes() -> None:
    logits = torch.eye(4).double().numpy()[[0, 3, 1, 3]]
    assert called_known(logits, 3).tolist() == [0, 2] and called_known(logits[[1, 3]], 3).tolist() == [0, 1]
    images = align(open_images(f"{DIGITS}#[:50]"), ("0", "1"), "data.test", unknown="unknown")
    only = align(open_images(f"{DIGITS}#[:50]"), ("x", "y"), "data.test", unknown="unknown")
    found = true_distances(torch.tensor([0.5, 0.5]).double().numpy(), {"a": images, "b": only})
    assert images.labels is not None and set(found) == {"a"}
    share = float((images.labels == 0).sum() / (images.labels < 2).sum())
    assert found["a"]["total_variation"] == pytest.approx(abs(share - 0.5))


def start(folder: Path, data: dict[str, Any], method: Any = "osbp", *overrides: str, **more: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(
        yaml.safe_dump({**CONFIG, "data": {"size": 16, "views": "digits", **data}, "method": method, **more})
    )
    return execute("adapt", str(path), [f"run.dir={folder / 'run'}", *overrides], quiet=True)


@pytest.mark.parametrize("held_out", [True, False], ids=["held-out test", "data.test"])
def test_a_run_scores_unknown_images(held_out: bool, tmp_path: Path) -> None:
    """With every validator, a held-out source, and mixed images; and the scores on disk give the same metrics."""
    source = f"{DIGITS}&classes=4#[:60]"
    target, test = f"{DIGITS}#[160:260]", f"{DIGITS}#[260:330]"
    data = {"source": source, "target": target, **({} if held_out else {"test": {"target": test}})}
    evaluate = {"every": 2, "images": 50, "held_out": 0.2, "mixval": True}
    result = start(tmp_path / "a", data, evaluate=evaluate)
    metrics = [name for name in result["metrics"] if name.startswith("target/classifier/")]
    assert [name.rpartition("/")[2] for name in metrics[:4]] == ["hos", "os_star", "unknown_accuracy", "os"]
    star, unknown = (result["metrics"][f"target/classifier/{name}"] for name in ("os_star", "unknown_accuracy"))
    expected = 2 * star * unknown / (star + unknown) if star + unknown else 0.0
    assert result["metrics"]["target/classifier/hos"] == pytest.approx(expected)
    assert set(result["label_shift"]["true"]) == ({"source", "target"} if held_out else {"target"})
    assert list(result["label_shift"]["source"]) == ["0", "1", "2", "3"]
    assert result["diagnostics"]["target"]["classes"] == 5
    scores = json.dumps(result["validators"])
    assert "NaN" not in scores and "last" in scores
    kept = read_predictions(tmp_path / "a" / "run")
    assert kept is not None and kept.tests["target"].open_set
    assert kept.tests["target"].classes == ("0", "1", "2", "3", "unknown")
    if held_out:  # a source test has no unknown image
        assert "source/classifier/os_star" in result["metrics"] and "source/classifier/hos" not in result["metrics"]
        with pytest.raises(UserError, match=r"data\.target: .* classes that the training set lacks"):
            start(tmp_path / "b", data, "mcc")


def test_source_only_has_a_row_beside_it(tmp_path: Path) -> None:
    """On the same test, with an output that nothing teaches: its classes are told as osbp's are, and hardly anything is called unknown."""
    data = {"source": f"{DIGITS}&classes=4#[:60]", "target": f"{DIGITS}#[160:260]"}
    result = start(tmp_path / "a", data, {"name": "source_only", "unknown": True}, "optim.duration=60")
    found = {name: result["metrics"][f"target/classifier/{name}"] for name in ("os_star", "unknown_accuracy", "hos")}
    assert found["unknown_accuracy"] < 0.1 and found["hos"] < 0.2 < found["os_star"]
    plain = {"source": data["source"], "target": f"{DIGITS}&classes=4#[60:100]"}
    start(tmp_path / "b", plain, "source_only")
    kept = {"name": "source_only", "unknown": True, "keep_head": True}
    with pytest.raises(UserError, match=r"method\.keep_head: source_only with unknown needs .* leave unknown out$"):
        start(tmp_path / "c", plain, kept, backbone={"weights": str(tmp_path / "b" / "run")})


def test_a_source_class_cannot_be_called_unknown(tmp_path: Path) -> None:
    for name in ("a", "unknown"):
        (tmp_path / "source" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (16, 16), 40 * i + len(name)).save(tmp_path / "source" / name / f"{i}.png")
    source = f"folder:{tmp_path / 'source'}"
    with pytest.raises(UserError, match=r"data\.source: .* has a class named unknown, .* rename it"):
        start(tmp_path / "a", {"source": source, "target": f"{DIGITS}#[60:100]"})


def test_priors_of_unknown_images_are_not_corrected(tmp_path: Path) -> None:
    data = {"source": f"{DIGITS}#[:60]", "target": f"{DIGITS}#[60:100]"}
    with pytest.raises(
        UserError, match=r"label_shift\.correct: the classifier of OSBP has an output for unknown images"
    ):
        start(tmp_path / "a", data, "osbp", "label_shift.correct=bbse")


def test_it_is_the_peers_value() -> None:
    """The authors' fae4314 bce_loss and tllib c4aa59e UnknownClassBinaryCrossEntropy, both of log(p + 1e-6): loss, norm of the gradient."""
    logits = drawn().logits
    for boundary, value, length in ((0.5, 1.753041434018, 0.154531950392), (0.2, 0.774132905061, 0.055398498986)):
        loss = unknown_loss(logits[1], boundary)
        (norm,) = gradient_norms(loss, logits)
        assert (loss.item(), norm) == pytest.approx((value, length), rel=3e-4)  # at 0.2, tllib's alone
    # The authors' code fills both outputs with t, so its value at 0.2 is that at 0.5.
    assert unknown_loss(logits[1], 0.2).item() != pytest.approx(1.753041434018, rel=0.5)
