"""Label shift in `rootstock adapt`: weights of the loss equal re-sampling, corrected predictions, and what a result says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rootstock.adapt.dann import DANN
from rootstock.adapt.parts.resampling import HEAVIEST, Resampling, source_error
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.adapt.shift import Shift
from rootstock.adapt.source_only import SourceOnly
from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.evaluate.label_shift import balancing, class_priors
from rootstock.core.method import AdaptMethod, Domains, Labelled, Unlabelled
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.heads import Structure
from rootstock.launch.verbs import execute

LABELS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
OBEDIENT = sorted(name for name, method in ADAPT_METHODS.items() if method.resamples)


def classifier(extra: int = 0) -> Classifier:
    torch.manual_seed(0)
    structure = Structure(extra=extra)
    return Classifier(create(12, name="smallconv", args={"widths": [8, 8]}), ["a", "b", "c"], structure=structure)


def batch(labels: Tensor = LABELS) -> Domains:
    torch.manual_seed(1)
    images, draws = torch.randn(2, len(labels), 3, 12, 12), Draws(0, torch.arange(len(labels)))
    strong = tuple(0.5 * images + torch.randn_like(images))  # for methods that take a second view
    return Domains.of(Labelled(images[0], labels, draws, strong[:1]), Unlabelled(images[1], draws, more=strong[1:]))


def spread(model: Classifier) -> Classifier:
    """The head changed so that target images are predicted as different classes."""
    with torch.no_grad():
        features = model.encode(batch().target.images[None])[0]
        outputs = len(model.head.weight)
        model.head.weight.copy_(20 * torch.linalg.pinv(features - features.mean(0))[:, :outputs].T)
        model.head.bias.copy_(-(features @ model.head.weight.T).mean(0))
        assert len(model(batch().target.images).argmax(1).unique()) > 1
    return model


def weights() -> Tensor:
    return torch.from_numpy(balancing(class_priors(LABELS.numpy(), 3)))


@pytest.mark.parametrize("name", OBEDIENT)
def test_equal_weights_change_nothing_and_others_do(name: str) -> None:
    def gradients(source: Tensor | None, guesses: Tensor | None = None) -> list[Tensor]:
        make: Any = ADAPT_METHODS[name]
        method: AdaptMethod = make(spread(classifier(make.extra_outputs)))
        if source is not None:
            method.resampling = Resampling(source)
            method.resampling.frequencies.copy_(guesses if guesses is not None else torch.full((3,), 1 / 3))
            method.resampling.eval()  # frequencies stay
        turns = range(method.turns)
        for turn in turns:
            step = method(batch(), 0.7, turn) if method.turns > 1 else method(batch(), 0.7)
            step.loss.backward()
        return [p.grad for p in method.parameters() if p.grad is not None]

    plain, ones = gradients(None), gradients(torch.ones(3))
    rounding = 1e-6 * max(1.0, *(float(gradient.norm()) for gradient in plain))
    assert all(torch.allclose(a, b, atol=rounding) for a, b in zip(plain, ones, strict=True))
    assert not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(plain, gradients(weights()), strict=True))
    if "target" in ADAPT_METHODS[name].resamples:
        shifted = gradients(torch.ones(3), torch.tensor([0.2, 0.3, 0.5]))
        assert not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ones, shifted, strict=True))


def test_the_weighted_error_is_that_of_equally_many_images_a_class() -> None:
    """Copies of images until all classes have ten: the plain mean over these equals the weighted mean over the eight."""
    method = SourceOnly(classifier())
    method.resampling = Resampling(weights())
    logits = torch.randn(8, 3, dtype=torch.float64)
    found = source_error(method, logits, LABELS)
    copies = torch.repeat_interleave(torch.arange(8), torch.tensor([2] * 5 + [5] * 2 + [10]))
    assert float(found) == pytest.approx(float(F.cross_entropy(logits[copies], LABELS[copies])), rel=1e-6)


@pytest.mark.parametrize("name", ["cdan", "dann"])
def test_the_weighted_loss_of_domains_is_that_of_equally_many_images_a_class(name: str) -> None:
    """The same copies; the target's predicted classes lie in another order. CDAN's entropies are normalised over copies, too."""
    make: Any = ADAPT_METHODS[name]
    method = make(classifier(), hidden=8).double()
    features = torch.randn(2, 8, method.classifier.feature_dim, dtype=torch.float64)
    logits = 3 * torch.randn(2, 8, 3, dtype=torch.float64)
    source = weights()[LABELS]
    found = method.domain_loss(features, logits, 1.0, torch.stack([source, source.flip(0)]))[0].item()
    times = torch.tensor([2] * 5 + [5] * 2 + [10])
    copies = [torch.repeat_interleave(torch.arange(8), n) for n in (times, times.flip(0))]
    copied = (torch.stack([x[domain][copies[domain]] for domain in range(2)]) for x in (features, logits))
    assert found == pytest.approx(method.domain_loss(*copied, 1.0)[0].item(), rel=1e-6)
    assert found != pytest.approx(method.domain_loss(features, logits, 1.0)[0].item(), rel=1e-3)


def test_target_weights_follow_the_predicted_frequencies_and_rest_in_eval() -> None:
    resampling = Resampling(torch.ones(3))
    guesses = torch.tensor([0, 0, 0, 1])
    seen = torch.full((3,), 1 / 3)
    for step in range(2, 6):  # the mean of the initial frequencies and of all batches
        found = resampling.target(guesses)
        seen += (torch.tensor([0.75, 0.25, 0.0]) - seen) / step
        assert torch.allclose(found, 1 / (3 * seen[guesses]), atol=1e-6)
        assert float(resampling.batches) == step - 1  # until the step is judged
        resampling.after_step(torch.tensor(False))
    rare = resampling.eval().target(torch.tensor([2]))
    assert torch.allclose(resampling.frequencies, seen, atol=1e-6) and float(rare) <= HEAVIEST
    resampling.train().target(guesses, count=False)
    assert torch.allclose(resampling.frequencies, seen, atol=1e-6)
    for _ in range(1000):
        resampling.train().target(guesses)
        resampling.after_step(None)
    assert float(resampling.eval().target(torch.tensor([2]))) == HEAVIEST


def test_frequencies_are_saved_and_only_where_asked_for() -> None:
    method = DANN(classifier())
    before = set(method.state_dict())
    method.resampling = Resampling(weights())
    added = set(method.state_dict()) - before
    assert added == {f"resampling.{name}" for name in ("source_weights", "frequencies", "batches")}
    assert not list(method.resampling.parameters())


def test_the_correction_moves_predictions_to_the_targets_priors() -> None:
    random = np.random.default_rng(0)
    sets = []
    for prior in ([0.5, 0.5], [0.9, 0.1]):
        labels = random.choice(2, 3000, p=prior)
        x = random.normal(labels * 1.5 - 0.75, 1.0)
        sets.append((np.stack([np.zeros(3000), 3.0 * x], axis=1), labels))  # overconfident
    shift = Shift(sets[0][0], sets[0][1], sets[1][0])
    plain = (sets[1][0].argmax(1) == sets[1][1]).mean()
    for estimate in ("bbse", "mlls"):
        logs = shift.correct(sets[1][0], estimate)
        assert np.exp(logs).sum(axis=1) == pytest.approx(np.ones(3000))
        assert (logs.argmax(1) == sets[1][1]).mean() > plain + 0.05
        assert np.exp(logs)[:, 0].mean() == pytest.approx(0.9, abs=0.03)


CONFIG: dict[str, Any] = {
    "data": {
        "source": "sklearn:digits?size=16",
        "target": "sklearn:digits?size=16#[dirichlet=0.5,seed=1]",
        "size": 16,
        "views": "none",
    },
    "backbone": {"name": "smallconv", "args": {"widths": [8, 16]}},
    "method": "dann",
    "optim": {"lr": 3e-3, "batch_size": 64, "duration": 60},
}


def run(where: Path, **sections: Any) -> dict[str, Any]:
    options = {"dir": str(where / "run"), "workers": 0, "device": "cpu"}
    where.mkdir()
    (where / "config.yaml").write_text(json.dumps({**CONFIG, **sections, "run": options}))
    return execute("adapt", str(where / "config.yaml"), quiet=True)


def test_a_result_says_the_distance_of_class_priors(tmp_path: Path) -> None:
    """Estimated on the target's training part without labels; near the true one of the target's held-out part."""
    section = {"resample": "pseudo-labels", "correct": "bbse", "resamples": 20}
    result = run(tmp_path / "a", label_shift=section)
    told = result["label_shift"]
    assert told["measured_on"] == "held-out source" and told["resampled"] == ["source", "target"]
    true = told["true"]["target"]["total_variation"]
    assert true > 0.3 > 0.1 > told["true"]["source"]["total_variation"]
    for estimate in ("bbse", "bbse_soft", "mlls"):
        assert sum(told[estimate]["target"].values()) == pytest.approx(1)
        assert abs(told[estimate]["total_variation"] - true) < 0.15
        low, high = told[estimate]["interval"]
        assert 0 <= low <= high <= 1
    metrics = result["metrics"]
    assert metrics["target/corrected/accuracy"] >= metrics["target/classifier/accuracy"] - 0.02
    assert "source/corrected/accuracy" not in metrics


def test_wrong_sections_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"label_shift.resamples: expected 0 to 10,000, got -1"):
        run(tmp_path / "a", label_shift={"resamples": -1})


@pytest.mark.parametrize(
    ("evaluate", "remedy"), [({}, r"evaluate\.held_out=0\.1"), (None, r"evaluate=\{held_out: 0\.1\}")]
)
def test_a_correction_needs_source_images_that_no_training_saw(tmp_path: Path, evaluate: Any, remedy: str) -> None:
    """A test that is named source is sealed, so its labels cannot serve. The remedy works."""
    test = {"target": "sklearn:digits?size=16#[80%:]", "source": "sklearn:digits?size=16#[80%:,seed=3]"}
    given = {"data": {**CONFIG["data"], "test": test}, "optim": {**CONFIG["optim"], "duration": 2}}
    with pytest.raises(UserError, match=rf"label_shift\.correct: mlls measures .* add {remedy}$"):
        run(tmp_path / "a", label_shift={"correct": "mlls"}, evaluate=evaluate, **given)
    result = run(tmp_path / "b", label_shift={"correct": "mlls"}, evaluate={"held_out": 0.1}, **given)
    assert result["label_shift"]["measured_on"] == "held-out source"


def test_a_method_without_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DANN, "resamples", ())
    with pytest.raises(UserError, match=r"label_shift.resample: DANN takes no weights of images; use none"):
        run(tmp_path / "a", label_shift={"resample": "pseudo-labels"})


def test_every_method_that_trains_on_both_domains_takes_weights_of_both() -> None:
    """Not OSBP, whose last class has no share that weights could make equal; source-free methods see no source."""
    both = {name for name, method in ADAPT_METHODS.items() if "target" in method.resamples}
    learns_from_both = {name for name, m in ADAPT_METHODS.items() if m.sees_target and m.resamples}
    assert both == learns_from_both - {"osbp", "adabn"} and len(both) == 13
    assert {"source_only", "adabn", "osbp"} <= set(OBEDIENT)
    assert issubclass(DANN, AdaptMethod) and issubclass(Resampling, nn.Module)
