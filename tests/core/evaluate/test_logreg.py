import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Theirs
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.evaluate.held_out import held_out_rows
from rootstock.core.evaluate.logreg import C_GRID, DEFAULT_C, LARGEST_C, SMALLEST_C, LogisticRegression, fit_choosing_C


def blobs(n: int, seed: int, classes: int = 4, dim: int = 6) -> tuple[Tensor, Tensor]:
    """Overlapping blobs far from the origin and of a large scale."""
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    return 300 + 40 * (centres[y] + torch.randn(n, dim, generator=generator)), y


def standardised(x: Tensor, train: Tensor) -> np.ndarray:
    """Centred features over their root mean square deviation, in numpy."""
    reference = train.double().numpy()
    centre = reference.mean(axis=0)
    return (x.double().numpy() - centre) / math.sqrt(float(((reference - centre) ** 2).mean()))


def fitted(x: Tensor, y: Tensor, num_classes: int, seed: int = 0, **options: Any) -> LogisticRegression:
    """Each image has an identity of its own."""
    return fit_choosing_C(x, y, torch.arange(len(y)), num_classes, seed=seed, **options)


def theirs(x: Tensor, y: Tensor, c: float) -> Theirs:
    return Theirs(C=c, tol=1e-8, max_iter=10000).fit(standardised(x, x), y)


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_the_optimum_is_scikit_learns(c: float) -> None:
    x, y = blobs(120, seed=0)
    test_x, _ = blobs(200, seed=1)
    model = fitted(x, y, 4, seed=0, values_of_C=[c])
    expected = theirs(x, y, c)
    assert not model.selected
    found = torch.softmax(model.logits(test_x), dim=1).numpy()
    np.testing.assert_allclose(found, expected.predict_proba(standardised(test_x, x)), atol=2e-3)
    assert float((model.predict(test_x).numpy() == expected.predict(standardised(test_x, x))).mean()) >= 0.99


@pytest.mark.parametrize("dim", [6, 120])
def test_choice_of_C_against_a_loop(dim: int) -> None:
    """The held-out slice decides, then all of train is fitted; features are standardised by the rows fitted on.

    In 120 dimensions every C from 1 on fits the training rows perfectly, so a choice made on them would differ.
    """
    x, y = blobs(150, seed=0, dim=dim)
    x = x + 150 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    test_x, _ = blobs(100, seed=1, dim=dim)
    grid = [1e-4, 1e-2, 1.0, 100.0]
    held_out = held_out_rows(torch.arange(len(y)), y, seed=5)
    scores = []
    for c in grid:
        inner = theirs(x[~held_out], y[~held_out], c)
        p = inner.predict_proba(standardised(x[held_out], x[~held_out]))
        truth = y[held_out].numpy()
        scores.append((int((p.argmax(axis=1) == truth).sum()), float(np.log(p[np.arange(len(p)), truth]).mean())))
    best = grid[scores.index(max(scores))]
    model = fitted(x, y, 4, seed=5, values_of_C=grid)
    assert model.C == model.fit.C == best and [fit.C for fit in model.choice] == grid
    expected = theirs(x, y, best).predict(standardised(test_x, x))
    assert float((model.predict(test_x).numpy() == expected).mean()) >= 0.99
    assert best == fitted(x, y, 4, seed=5, values_of_C=grid[::-1]).C


def test_scale_and_offset_of_the_features_dont_matter() -> None:
    x, y = blobs(120, seed=0)
    model = fitted(x, y, 4, seed=0, values_of_C=[0.01, 1.0])
    moved = fitted(x.double() * 1e-3 - 5, y, 4, seed=0, values_of_C=[0.01, 1.0])
    assert moved.C == model.C
    torch.testing.assert_close(moved.logits(x.double() * 1e-3 - 5), model.logits(x), atol=1e-4, rtol=1e-4)


def test_a_dead_feature_that_wakes_up_on_test_changes_nothing() -> None:
    x, y = blobs(120, seed=0)
    test_x, _ = blobs(50, seed=1)
    model = fitted(torch.cat([x, torch.zeros(120, 1)], dim=1), y, 4, seed=0, values_of_C=[1.0])
    asleep = model.predict(torch.cat([test_x, torch.zeros(50, 1)], dim=1))
    assert torch.equal(model.predict(torch.cat([test_x, torch.full((50, 1), 1e4)], dim=1)), asleep)


def test_classes_without_training_images_are_never_predicted() -> None:
    x, y = blobs(120, seed=0)
    every, alone = fitted(x, 2 * y + 1, 10, values_of_C=[0.1, 1.0]), fitted(x, y, 4, values_of_C=[0.1, 1.0])
    assert torch.equal(every.predict(x), 2 * alone.predict(x) + 1)
    assert fitted(x[:5], torch.full((5,), 3), 10).predict(x).unique().tolist() == [3]


def test_a_held_out_copy_may_have_a_label_that_the_fitted_part_lacks() -> None:
    """The only images of class 4 are wrongly labelled copies; whichever side they are on, a choice is made."""
    x, y = blobs(40, seed=0)
    keys = torch.cat([torch.arange(40), torch.arange(40)])
    for seed in range(6):
        odd = torch.full((40,), 4).where(torch.arange(40) == seed, y)
        model = fit_choosing_C(torch.cat([x, x]), torch.cat([y, odd]), keys, 5, seed=seed, values_of_C=[1e-3, 1.0])
        assert model.selected and model.classes.tolist() == [0, 1, 2, 3, 4]


def test_one_image_a_class_leaves_nothing_to_choose_on(caplog: pytest.LogCaptureFixture) -> None:
    x, _ = blobs(4, seed=0)
    with caplog.at_level(logging.WARNING):
        model = fitted(x, torch.arange(4), 4, seed=0)
    assert (model.C, model.selected) == (DEFAULT_C, False)
    assert model.predict(x).tolist() == [0, 1, 2, 3]
    assert "too few images" in caplog.text


def test_equal_features_give_the_majority() -> None:
    y = torch.tensor([0, 1, 1, 1, 2])
    assert fitted(torch.ones(5, 3), y, 3, values_of_C=[1.0]).predict(torch.ones(2, 3)).tolist() == [1, 1]


@pytest.mark.parametrize("dim", [3, 40])
def test_the_ends_of_C_are_found(dim: int) -> None:
    """Without a weight to speak of, and where every training image is right."""
    x, y = blobs(30, seed=0, dim=dim)
    for model in (fitted(x, y, 4, values_of_C=[c]) for c in (SMALLEST_C, LARGEST_C)):
        assert model.fit.converged and bool(model.logits(x).isfinite().all())
    least = fitted(x, y, 4, values_of_C=[SMALLEST_C])
    torch.testing.assert_close(least.logits(x)[0].softmax(0), y.bincount().double() / 30)


def test_the_grid_is_the_published_one() -> None:
    assert len(C_GRID) == 45
    assert (C_GRID[0], C_GRID[-1]) == pytest.approx((1e-6, 1e5))


def test_bad_input_is_named() -> None:
    x, y = blobs(10, seed=0)
    with pytest.raises(UserError, match="expected one or more numbers from 1e-12"):
        fitted(x, y, 4, values_of_C=[0.0, 1.0])
    with pytest.raises(UserError, match="expected one or more numbers from 1e-12"):
        fitted(x, y, 4, values_of_C=[])
    for c in (1e-300, 1e13, 1e300, math.inf, math.nan):
        with pytest.raises(UserError, match="expected one or more numbers from 1e-12"):
            fitted(x, y, 4, values_of_C=[c])
    with pytest.raises(UserError, match="is a part of the set unlabelled"):
        fitted(x, y - 5, 4)
    with pytest.raises(UserError, match="not finite"):
        fitted(x * math.nan, y, 4)
    with pytest.raises(UserError, match="at least one training image"):
        fitted(x[:0], y[:0], 4)
    with pytest.raises(ValueError, match="labels"):
        fitted(x, y[:3], 4)
