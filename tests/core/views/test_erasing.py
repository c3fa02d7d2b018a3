"""Random erasing: torchvision's distribution, and each box."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as transforms
from scipy import stats

from rootstock.core.draws import Draws
from rootstock.core.views.erasing import Fill, erasing_boxes, random_erasing, within


def draws_of(n: int, seed: int = 0) -> Draws:
    return Draws(seed, torch.arange(n))


def torchvisions(n: int, height: int, width: int, scale: tuple[float, float]) -> np.ndarray:
    """torchvision's boxes; empty if nothing is erased."""
    torch.manual_seed(0)
    erase = transforms.RandomErasing(p=1.0, scale=scale)
    image, found = torch.empty(3, height, width), []
    for _ in range(n):
        p = erase.make_params([image])
        found.append([p["i"], p["j"], p["h"], p["w"]] if p["v"] is not None else [0, 0, 0, 0])
    return np.array(found)


@pytest.mark.parametrize(("height", "width", "scale"), [(224, 224, (0.02, 0.33)), (40, 90, (0.3, 0.9))])
def test_boxes_follow_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    n = 2_500
    ours = erasing_boxes(draws_of(n), height, width, scale).numpy()
    theirs = torchvisions(n, height, width, scale)
    empty = [[(b[:, 2] == 0).sum(), (b[:, 2] > 0).sum()] for b in (ours, theirs)]
    if empty[0][0] + empty[1][0]:
        result: Any = stats.fisher_exact(empty)
        assert result.pvalue > 0.001
    ours, theirs = ours[ours[:, 2] > 0], theirs[theirs[:, 2] > 0]
    measures: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda b: b[:, 2] * b[:, 3] / (height * width),
        lambda b: np.log(b[:, 2] / b[:, 3]),
        lambda b: b[:, 0] / (height - b[:, 2] + 1),
        lambda b: b[:, 1] / (width - b[:, 3] + 1),
    ]
    for measure in measures:
        result = stats.ks_2samp(measure(ours), measure(theirs))
        assert result.pvalue > 0.001
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()


def test_a_picture_too_small_for_any_try_stays() -> None:
    assert not erasing_boxes(draws_of(20), 1, 1, (0.5, 1.0)).any()
    x = torch.rand(20, 3, 1, 1)
    assert torch.equal(random_erasing(x.clone(), draws_of(20), 1.0, (0.5, 1.0), "noise"), x)


@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_boxes_are_filled_and_all_else_stays(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    n, p, scale = 200, 0.4, (0.05, 0.3)
    x, draws = torch.rand(n, 3, 20, 24) + 5.0, draws_of(n, seed=2)
    found = random_erasing(x.clone(), draws, p, scale, fill)
    erased = draws.bernoulli("p", p)
    assert stats.binomtest(int(erased.sum()), n, p).pvalue > 0.001
    values = []
    for k, (top, left, h, w) in enumerate(erasing_boxes(draws, 20, 24, scale).tolist()):
        expected = x[k].clone()
        if erased[k]:
            box = found[k, :, top : top + h, left : left + w]
            values.append(box.flatten())
            expected[:, top : top + h, left : left + w] = box
        assert torch.equal(found[k], expected)
    if fill == "mean":
        assert not torch.cat(values).any()
    else:
        assert stats.kstest(torch.cat(values).numpy(), "norm").pvalue > 0.001
    alone = random_erasing(x[7:9].clone(), Draws(2, draws.positions[7:9]), p, scale, fill)
    assert torch.equal(alone, found[7:9])
    # as on a device: one mask for the batch
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.allclose(random_erasing(x.clone(), draws, p, scale, fill), found, atol=1e-6)


def test_within() -> None:
    mask = within(torch.tensor([[1, 2, 2, 3], [0, 0, 0, 0]]), 5, 6)
    expected = torch.zeros(2, 1, 5, 6, dtype=torch.bool)
    expected[0, 0, 1:3, 2:5] = True
    assert torch.equal(mask, expected)
