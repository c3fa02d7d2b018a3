"""One logistic regression for each class against scikit-learn, and how C is chosen."""

import logging

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn.functional import softplus

from rootstock.core.errors import UserError
from rootstock.core.evaluate.class_regressions import ClassRegressions, fit_classes, fit_classes_choosing_C
from rootstock.core.evaluate.held_out import held_out_rows
from rootstock.core.evaluate.logreg import DEFAULT_C

GRID = [1e-3, 0.1, 10.0, 1000.0]


def drawn(n: int, d: int = 6, k: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels of classes of different size that overlap, and identities."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) * 3 + 5
    logits = (x - 5) @ torch.randn(d, k, generator=g, dtype=torch.float64) / 3 - torch.arange(k)
    return x, (logits + torch.randn(n, k, generator=g) > 0).to(torch.uint8), torch.arange(n)


def objective(model: ClassRegressions, x: Tensor, labels: Tensor, c: int) -> float:
    """scikit-learn's, divided by C, of one class."""
    z = model.logits(x)[:, c]
    penalty = float(model.weight[c].square().sum()) / (2 * model.C)
    return float(softplus(torch.where(labels[:, c] > 0, -z, z)).sum()) + penalty


@pytest.mark.parametrize("d", [6, 90])
def test_the_optimum_of_each_class_is_scikit_learns(d: int) -> None:
    """With more features than images too."""
    x, labels, _ = drawn(60, d)
    for model in fit_classes(x, labels, GRID):
        scaled = ((x - model.mean) / model.scale).numpy()
        for c in range(3):
            peer = LogisticRegression(C=model.C, tol=1e-12, max_iter=100_000, solver="newton-cg")
            peer.fit(scaled, labels[:, c].numpy())
            theirs = model._replace(weight=model.weight.clone(), bias=model.bias.clone())
            theirs.weight[c], theirs.bias[c] = torch.from_numpy(peer.coef_[0]), float(np.ravel(peer.intercept_)[0])
            best = objective(theirs, x, labels, c)
            assert model.converged and objective(model, x, labels, c) <= best * (1 + 1e-6)


def test_choice_of_C_against_a_loop() -> None:
    """Highest macro AP on the slice over the classes that it has, then lowest BCE; then all images are fitted."""
    x, labels, keys = drawn(80, 30, seed=1)
    found = fit_classes_choosing_C(x, labels, keys, seed=3, values_of_C=GRID[::-1])
    outer = held_out_rows(keys, labels, seed=3)
    ranks = []
    for c, one in zip(GRID, found.tried, strict=True):
        logits = fit_classes(x[~outer], labels[~outer], [c])[0].logits(x[outer])
        there = [k for k in range(3) if labels[outer, k].any()]
        precision = np.mean([average_precision_score(labels[outer, k].numpy(), logits[:, k].numpy()) for k in there])
        z = torch.where(labels[outer] > 0, -logits, logits)
        ranks.append((one.average_precision, -one.bce))
        assert one.average_precision == pytest.approx(float(precision), abs=1e-12)
        assert one.bce == pytest.approx(float(softplus(z).mean()), rel=1e-3)
    assert GRID[ranks.index(max(ranks))] == found.C and found.held_out is not None
    assert torch.equal(found.held_out[1], labels[outer])
    whole = fit_classes(x, labels, [found.C])[0]
    assert torch.allclose(found.logits(x), whole.logits(x), atol=1e-3)


def test_a_single_C_is_fitted_without_the_slice_too_for_thresholds() -> None:
    x, labels, keys = drawn(40)
    found = fit_classes_choosing_C(x, labels, keys, seed=0, values_of_C=[0.5])
    assert found.C == 0.5 and found.held_out is not None and len(found.tried) == 1


def test_copies_stay_on_one_side_and_choose_as_one() -> None:
    """Copies count in the loss, so their C is that of one copy over their number."""
    x, labels, keys = drawn(50)
    one = fit_classes_choosing_C(x, labels, keys, seed=0, values_of_C=GRID)
    three = fit_classes_choosing_C(
        x.repeat(3, 1), labels.repeat(3, 1), keys.repeat(3), seed=0, values_of_C=[c / 3 for c in GRID]
    )
    assert pytest.approx(one.C) == 3 * three.C
    assert torch.allclose(one.weight, three.weight, atol=1e-3 * float(one.weight.abs().max()))
    precision = [tried.average_precision for tried in one.tried]
    assert [tried.average_precision for tried in three.tried] == pytest.approx(precision, abs=1e-12)


def test_a_class_of_all_or_no_images_has_a_bias_alone() -> None:
    x, labels, keys = drawn(20, k=4)
    labels[:, 1], labels[:, 2] = 0, 1
    (model,) = fit_classes(x, labels, [1.0])
    assert not model.weight[1:3].any() and model.iterations[1:3] == (0, 0)
    assert model.bias[1:3].tolist() == pytest.approx([np.log(0.5 / 20.5), np.log(20.5 / 0.5)])
    alone = fit_classes(x, labels[:, :1], [1.0])[0]
    assert torch.equal(alone.weight[0], model.weight[0])  # classes don't see each other
    assert fit_classes_choosing_C(x, labels, keys, seed=0, values_of_C=GRID).logits(x).isfinite().all()


def test_what_cannot_be_chosen_or_fitted(caplog: pytest.LogCaptureFixture) -> None:
    x, labels, _ = drawn(6)
    with caplog.at_level(logging.WARNING):
        found = fit_classes_choosing_C(x, labels, torch.zeros(6, dtype=torch.int64), seed=0, values_of_C=GRID)
    assert found.C == DEFAULT_C and found.held_out is None and "too few images" in caplog.text
    with pytest.raises(UserError, match="diverged"):
        fit_classes_choosing_C(x.where(x < 6, torch.nan), labels, torch.arange(6), seed=0, values_of_C=[1.0])
