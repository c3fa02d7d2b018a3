"""The prototype head: its parts are training patches of their class, its last layer the minimum that a slow search finds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from rootstock.core.errors import UserError
from rootstock.core.images.open import open_images
from rootstock.core.manifest import read_object
from rootstock.core.views.view import Evaluation
from rootstock.finetune.protocols.contract import Known
from rootstock.finetune.protocols.prototype_choice import choose_prototypes, content_order, separations
from rootstock.finetune.protocols.prototype_pictures import (
    BETWEEN,
    FRAME,
    MOST_COLUMNS,
    MOST_LINES,
    NAMED,
    PANEL,
    save_prototypes,
)
from rootstock.finetune.protocols.prototypes import PrototypeClassifier
from rootstock.finetune.protocols.sparse_layer import fit_sparse

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"per_class": 2, "candidates": 2, "C": (0.3,)}


def patched(n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """[N, 4, 6] and labels of 3 classes: each image has its class's patch somewhere among noise."""
    random = torch.Generator().manual_seed(seed)
    marks = 2.5 * torch.eye(6)[:3]
    y = torch.arange(n) % 3
    x = 0.4 * torch.randn(n, 4, 6, generator=random)
    x[torch.arange(n), torch.randint(4, (n,), generator=random)] += marks[y]
    return x, y


def known(x: Tensor, y: Tensor, keys: Tensor | None = None) -> Known:
    return Known({"patches": x}, y, torch.arange(len(y)) * 7 if keys is None else keys, ("ant", "bee", "cat"))


def test_prototypes_are_patches_of_training_images_of_their_class() -> None:
    x, y = patched()
    fitted = PrototypeClassifier(**QUICK).fit(known(x, y))
    told = fitted.facts["prototypes"]
    assert [one["class"] for one in told] == ["ant", "ant", "bee", "bee", "cat", "cat"]
    for one in told:
        row = one["key"] // 7
        assert ["ant", "bee", "cat"][int(y[row])] == one["class"] and int(one["image"]) == row
    for one in told[::2]:  # the most separating one is the patch that makes the class, not noise
        row = one["key"] // 7
        assert int(x[row, one["patch"]].argmax()) == int(y[row])
    assert len({(one["key"], one["patch"]) for one in told}) == 6
    tests, labels = patched(45, seed=1)
    assert float((fitted.scores({"patches": tests}).argmax(1) == labels).double().mean()) > 0.9


def test_scores_are_sums_of_similarities_by_hand() -> None:
    x, y = patched()
    fitted = PrototypeClassifier(**QUICK).fit(known(x, y))
    told, mean = fitted.facts["prototypes"], x.double().mean((0, 1))
    tests, _ = patched(5, seed=2)

    def similar(image: Tensor, one: dict[str, Any]) -> float:
        prototype = x[one["key"] // 7, one["patch"]].double() - mean
        return max(float(torch.cosine_similarity(patch.double() - mean, prototype, dim=0)) for patch in image)

    train = torch.tensor([[similar(image, one) for one in told] for image in x], dtype=torch.float64)
    middle, scale = train.mean(0), (train - train.mean(0)).square().mean().sqrt()
    own = torch.tensor([[similar(image, one) for one in told] for image in tests], dtype=torch.float64)
    weight = torch.tensor([[one["weights"].get(name, 0.0) for one in told] for name in ("ant", "bee", "cat")])
    logits = ((own - middle) / scale).double() @ weight.double().T
    found = fitted.scores({"patches": tests})
    bias = (found - logits).mean(0)
    torch.testing.assert_close(found, logits + bias, atol=1e-5, rtol=0)
    assert fitted.facts["weights_not_0"] == int((weight != 0).sum()) < weight.numel()


def test_the_order_of_rows_and_copies_of_identities_are_no_matter() -> None:
    x, y = patched()
    keys = torch.arange(60) // 6 * 5  # blends: several images share an identity
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    head = PrototypeClassifier(per_class=2, candidates=2, C=(0.1, 0.3))
    one, other = head.fit(known(x, y, keys)), head.fit(known(x[order], y[order], keys[order]))
    assert one.chosen == other.chosen and one.candidates == other.candidates
    assert torch.equal(*(fitted.scores({"patches": x}) for fitted in (one, other)))
    assert torch.equal(x[content_order(x, y, keys)], x[order][content_order(x[order], y[order], keys[order])])


def test_what_is_chosen_separates_best() -> None:
    x, y = patched()
    chosen = choose_prototypes(x, y, torch.arange(60), per_class=1, candidates=4, most=10_000, seed=0, device=CPU)
    similar = chosen.similarities(x)
    for j, label in enumerate(chosen.owner.tolist()):
        mine, column = y == label, similar[:, j]
        expected = (column[mine].mean() - column[~mine].mean()) / column.std(correction=0)
        assert float(chosen.separation[j]) == pytest.approx(float(expected), rel=1e-5)
        assert float(column[chosen.row[j]]) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(separations(similar, y, chosen.owner), chosen.separation, rtol=1e-12)
    # A class whose patches are all alike has one prototype, however many are asked for.
    alike = torch.cat([x, torch.ones(5, 4, 6)])
    found = choose_prototypes(
        alike,
        torch.cat([y, torch.full((5,), 3)]),
        torch.arange(65),
        per_class=3,
        candidates=2,
        most=99,
        seed=0,
        device=CPU,
    )
    assert found.owner.tolist().count(3) == 1


def test_the_last_layer_is_the_minimum_that_a_slow_search_finds() -> None:
    """L1 as the difference of two parts of at least 0, by L-BFGS-B."""
    torch.manual_seed(0)
    x, y, C = torch.randn(50, 4).double(), torch.arange(50) % 3, 0.2
    x[:, 0] += y
    layer = fit_sparse(x, y, C)
    rows = (x - layer.mean) / layer.scale

    def value(weight: Tensor, bias: Tensor) -> Tensor:
        return C * cross_entropy(rows @ weight.T + bias, y, reduction="sum") + weight.abs().sum()

    def split(numbers: Any) -> tuple[float, Any]:
        flat = torch.tensor(numbers, requires_grad=True)
        plus, minus, bias = flat[:12].view(3, 4), flat[12:24].view(3, 4), flat[24:]
        loss = C * cross_entropy(rows @ (plus - minus).T + bias, y, reduction="sum") + (plus + minus).sum()
        loss.backward()
        assert flat.grad is not None
        return loss.item(), flat.grad.numpy()

    slow = minimize(split, [0.0] * 27, jac=True, method="L-BFGS-B", bounds=[(0, None)] * 24 + [(None, None)] * 3)
    assert layer.converged and float(value(layer.weight, layer.bias)) == pytest.approx(slow.fun, rel=1e-4)
    assert 0 < int((layer.weight == 0).sum()) < 12
    assert int((fit_sparse(x, y, 1e-4).weight != 0).sum()) == 0  # a penalty beyond every gradient


@pytest.mark.parametrize("C", [0.01, 1.0, 10.0])
def test_likenesses_that_are_all_alike_are_fitted_to_the_end(C: float) -> None:
    """Cosines with many prototypes of noisy clusters: steps of the loss's bound would need thousands for the weaker penalties."""
    torch.manual_seed(0)
    centres, y = torch.randn(5, 32), torch.arange(400) % 5
    x, prototypes = (normalize(0.6 * centres[of] + torch.randn(len(of), 32), dim=1) for of in (y, torch.arange(60) % 5))
    layer = fit_sparse(x @ prototypes.T, y, C)
    assert layer.converged and layer.iterations < 400
    # At the minimum the gradient is the penalty where a weight is not 0, against its sign, and at most the penalty elsewhere.
    weight, bias = (part.clone().requires_grad_() for part in (layer.weight, layer.bias))
    rows = ((x @ prototypes.T).double() - layer.mean) / layer.scale
    slope, level = torch.autograd.grad(C * cross_entropy(rows @ weight.T + bias, y, reduction="sum"), [weight, bias])
    moved = layer.weight != 0
    assert (slope[moved] + layer.weight[moved].sign()).abs().max() < 0.02 and slope[~moved].abs().max() < 1.02
    assert level.abs().max() < 0.02


def test_prototypes_are_drawn_with_their_patch(tmp_path: Path) -> None:
    images = open_images("sklearn:digits")
    places = [(0, 3, 0), (1, 0, 0), (2, 1, 1)]
    save_prototypes(tmp_path, "prototypes", places, ("a", "b"), images, Evaluation(8), (2, 2))
    assert (tmp_path / "pictures" / "prototypes.png").stat().st_size > 300
    captions = read_object(tmp_path / "pictures" / "captions.json")
    assert list(captions) == ["prototypes.png"] and "sheet" not in captions["prototypes.png"]


def test_every_prototype_is_on_a_sheet(tmp_path: Path) -> None:
    """More classes than a sheet has lines, and more prototypes of one than a line has places: each has its frame somewhere."""
    images = open_images("sklearn:digits")
    owners = [*range(MOST_LINES), *[MOST_LINES] * (2 * MOST_COLUMNS + 1)]
    places = [(row, row % 4, owner) for row, owner in enumerate(owners)]
    classes = [f"class {k}" for k in range(MOST_LINES + 1)]
    save_prototypes(tmp_path, "linear@x", places, classes, images, Evaluation(8), (2, 2))
    captions = read_object(tmp_path / "pictures" / "captions.json")
    assert list(captions) == ["linear_x.png", "linear_x-2.png"]
    assert [text.rpartition("; ")[2] for text in captions.values()] == ["sheet 1 of 2", "sheet 2 of 2"]
    drawn, side = 0, PANEL + BETWEEN
    for name in captions:
        with Image.open(tmp_path / "pictures" / name) as sheet:
            pixels = np.asarray(sheet)
        panels = pixels[:, NAMED:].reshape(-1, side, (pixels.shape[1] - NAMED) // side, side, 3)
        drawn += int((panels == FRAME).all(-1).any((1, 3)).sum())
    assert drawn == len(places)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"per_class": 0}, "per_class: expected 1 to"),
        ({"C": ()}, "C: expected one or more numbers above 0"),
        ({"C": (0.0,)}, "C: exp"),
    ],
)
def test_numbers_out_of_range_are_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"evaluate.prototypes.{said}"):
        PrototypeClassifier(**given)
