"""What says how far a map can be trusted: random weights, curves, the pointing game, and nearest pictures; each against a slow version."""

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.heads import Structure
from rootstock.finetune.explain.curves import CURVE_STEPS, blurred, curves_of, mean_intervals, ranks
from rootstock.finetune.explain.methods import Explainer, MapSettings, PicturesSeen, at_side
from rootstock.finetune.explain.nearest import Neighbour, nearest_pictures
from rootstock.finetune.explain.pointing import point_at, pointing_game
from rootstock.finetune.explain.randomised import (
    THRESHOLD,
    layers_from_the_head,
    map_rank_correlation,
    maps_of,
    randomised,
    sanity_check,
)
from rootstock.launch.explain.measured import sanity_as_json
from rootstock.launch.explain.page import caveats_of
from rootstock.tests.finetune.explain.conftest import Trained

Classifiers = dict[str, Classifier]
BLACK = torch.full((3, 1, 1), -1.0, dtype=torch.float64)
KEYS = torch.tensor([3, -8, 1 << 40, 77])


@pytest.fixture
def shown(pictures: Tensor, target: Tensor) -> PicturesSeen:
    return PicturesSeen(pictures, target, KEYS, KEYS, BLACK)


@dataclass
class Edges:
    """Looks at the pictures alone, as guided backpropagation is accused of: no network, no map that changes."""

    classifier: Classifier

    def __call__(self, shown: PicturesSeen) -> Tensor:
        return shown.images.diff(dim=3).abs().sum(1).float()


OF_RESNET = ("grad-cam", "saliency", "smoothgrad", "integrated-gradients")
OF_VIT = (*OF_RESNET, "attention-rollout", "gradient-attention")


@pytest.mark.parametrize(("family", "method"), [("resnet", m) for m in OF_RESNET] + [("vit", m) for m in OF_VIT])
def test_every_map_of_a_trained_network_passes(family: str, method: str, trained_networks: dict[str, Trained]) -> None:
    model, accuracy, seen = trained_networks[family]
    assert accuracy > 0.4  # what was learned is there to be lost
    settings = MapSettings(first_steps=4, most_steps=4, draws=4)
    found = sanity_check(lambda model: Explainer(method, model, settings), model, seen, seed=0)
    assert found.passed and not found.refused and found.unchanged == 0
    assert [level.what for level in found.levels][:: len(found.levels) - 1] == ["the head", "all weights"]
    last = found.levels[-1]
    assert last.interval is not None and last.interval.high is not None and last.interval.high < THRESHOLD
    assert last.units == 12 - last.constant >= 7
    assert last.interval.estimate == pytest.approx(np.nanmean(last.correlations))


@dataclass
class Emptied:
    """Looks at the pictures where the network is `trained`; of others, the maps of the first `constant` pictures are empty."""

    classifier: Classifier
    trained: Classifier
    constant: int

    def __call__(self, shown: PicturesSeen) -> Tensor:
        found = shown.images.mean(1).float()
        if self.classifier is not self.trained:
            found = found.flip(2)
            found[: self.constant] = 0
        return found


@pytest.mark.parametrize(("constant", "refused"), [(0, False), (1, False), (2, True), (4, True)])
def test_constant_maps_are_refused(constant: int, refused: bool, classifiers: Classifiers, shown: PicturesSeen) -> None:
    """An empty map differs from the trained network's, but has no order of places, so it neither passes nor lowers a mean."""
    trained = classifiers["resnet"]
    found = sanity_check(lambda model: cast("Explainer", Emptied(model, trained, constant)), trained, shown, seed=0)
    last, told = found.levels[-1], sanity_as_json(found)
    assert last.constant == constant and found.unchanged == 0
    assert bool(found.refused) == refused and not (refused and found.passed)
    if constant == 4:
        assert last.interval is None and told["levels"][-1]["rank_correlation"] is None
    else:
        assert last.interval is not None and told["levels"][-1]["rank_correlation"]["n"] == 4 - constant
        assert last.interval.estimate == pytest.approx(np.mean(last.correlations[constant:]))
    if refused:
        said = f"without any learned weight its maps are constant on {constant} of 4 pictures"
        assert said in told["refused"] and not told["passed"]
        assert (
            f"Empty has no verdict of the sanity check: {said}"
            in caveats_of({"empty": {"sanity": told, "constant": 0}})[0]
        )


def test_a_map_that_needs_no_network_does_not_pass(classifiers: Classifiers, shown: PicturesSeen) -> None:
    found = sanity_check(lambda model: cast("Explainer", Edges(model)), classifiers["resnet"], shown, seed=0)
    assert not found.passed and found.unchanged == 4
    assert all(value == pytest.approx(1.0) for level in found.levels for value in level.correlations)


def test_a_single_picture_is_no_evidence(shown: PicturesSeen) -> None:
    """And BatchNorm of features, as a bottleneck has it, knows no deviation of one."""
    torch.manual_seed(0)
    model = Classifier(create(32, name="smallconv"), ["a", "b", "c"], structure=Structure(bottleneck=4)).eval().double()
    found = sanity_check(lambda model: Explainer("saliency", model), model, shown.rows(slice(1)), seed=0)
    assert not found.passed and all(len(level.correlations) == 1 for level in found.levels)


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_weights_are_lost_from_the_head_down(family: str, classifiers: Classifiers, pictures: Tensor) -> None:
    model = classifiers[family]
    groups = layers_from_the_head(model)
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert set(groups[0]) == {"head.weight", "head.bias"}
    first = "conv1.0.weight" if family == "resnet" else "patch_embed.proj.weight"
    assert any(name.endswith(first) or name.endswith("conv1.weight") for name in groups[-1])
    some = groups[0] + groups[1]
    lost = randomised(model, some, pictures, seed=0)
    before, after = dict(model.named_parameters()), dict(lost.named_parameters())
    for name, old in before.items():
        new = after[name]
        assert torch.equal(old, new) == (name not in some) or bool((new == new.flatten()[0]).all()), name
        if name in some and new.ndim > 1:
            assert float(new.std()) == pytest.approx(float(old.std()), rel=0.35)
    again = randomised(model, some, pictures, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(lost.parameters(), again.parameters(), strict=True))
    assert bool(randomised(model, names, pictures, seed=1)(pictures).isfinite().all())


def test_rank_correlation_is_scipys_with_ties() -> None:
    a = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 5.0]])
    b = torch.tensor([[3.0, 1.0, 1.0], [1.0, 0.0, 4.0]])
    expected = cast("Any", spearmanr(a.flatten(), b.flatten())).statistic
    assert map_rank_correlation(a, b) == pytest.approx(expected)
    assert math.isnan(map_rank_correlation(a, torch.ones(2, 3)))


def test_curves_take_places_by_rank(classifiers: Classifiers, shown: PicturesSeen) -> None:
    """Pixel by pixel: after s of CURVE_STEPS parts, the highest s / CURVE_STEPS of the places have come or gone."""
    model = classifiers["resnet"]
    maps = maps_of(Explainer("grad-cam", model), shown, 4)
    found = curves_of(model, shown, maps, seed=5)
    large, blur = at_side(maps, 32), blurred(shown.images)
    for i, s in ((0, 0), (1, 7), (3, CURVE_STEPS)):
        order = sorted(range(32 * 32), key=lambda p: -float(large[i].flatten()[p]))
        come = torch.zeros(32 * 32, dtype=torch.bool)
        come[order[: math.ceil(s * 32 * 32 / CURVE_STEPS)]] = True
        for curve, base, inside in (
            (found.insertion, blur[i], True),
            (found.deletion, torch.zeros_like(blur[i]), False),
        ):
            mixed = torch.where(come.view(32, 32) == inside, shown.images[i], base)
            probability = model(mixed[None]).softmax(1)[0, int(shown.target[i])]
            assert float(curve[i, s]) == pytest.approx(float(probability), abs=1e-9)
    area = float(((found.insertion[2, 1:] + found.insertion[2, :-1]) / 2).sum() / CURVE_STEPS)
    assert found.areas()["insertion"][2] == pytest.approx(area)
    whole = model(shown.images).softmax(1).gather(1, shown.target[:, None])[:, 0]
    assert torch.allclose(found.insertion[:, -1], whole) and torch.allclose(found.deletion[:, 0], whole)


def test_equal_places_come_in_an_order_of_the_picture() -> None:
    flat = torch.zeros(2, 4, 4)
    found = ranks(flat, torch.tensor([1, 2]), 0)
    assert not torch.equal(found[0], found[1]) and torch.equal(found[1:], ranks(flat[1:], torch.tensor([2]), 0))
    assert sorted(found[0].flatten().tolist()) == list(range(16))


def test_the_blur_keeps_a_constant_and_spreads_a_point() -> None:
    assert torch.allclose(blurred(torch.full((1, 2, 16, 16), 0.3)), torch.tensor(0.3), atol=1e-6)
    point = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    point[0, 0, 15, 15] = 1.0
    found = blurred(point)[0, 0]
    assert (
        float(found.sum()) == pytest.approx(1.0)
        and torch.allclose(found, found.T)
        and torch.allclose(found, found.flip(0))
    )
    sigma = 10 / 224 * 31
    assert float(found[15, 16] / found[15, 15]) == pytest.approx(math.exp(-0.5 / sigma**2))


def test_points_within_the_tolerance_are_hits() -> None:
    mask = np.zeros((10, 10), dtype=bool)
    mask[2:4, 2:4] = True
    found = torch.zeros(10, 10)
    found[3, 6] = 1.0  # 3 px beside the object
    assert not point_at(found, mask, 0, 0, 2.9).hit
    near = point_at(found, mask, 0, 0, 3.0)
    assert near.hit and near.place == (3, 6) and near.centre
    assert not point_at(found, mask, 0, 0, 2.5).centre
    slow = np.mean(
        [min(math.hypot(r - a, c - b) for a in (2, 3) for b in (2, 3)) <= 3.0 for r in range(10) for c in range(10)]
    )
    assert near.chance == pytest.approx(slow) and point_at(found, mask, 0, 0, 0.0).chance == pytest.approx(0.04)
    with pytest.raises(ValueError, match="with an object"):
        point_at(found, np.zeros((10, 10), bool), 0, 0, 0.0)


def test_random_points_hit_as_often_as_chance_and_good_ones_more_often() -> None:
    random = np.random.default_rng(0)
    masks = np.zeros((200, 12, 12), dtype=bool)
    for mask, (r, c) in zip(masks, random.integers(0, 9, (200, 2)), strict=True):
        mask[r : r + 4, c : c + 4] = True
    keys = torch.arange(200)
    # A map of equal places points anywhere, another place in each picture.
    flat = [point_at(torch.zeros(12, 12), mask, key, 0, 0.0) for key, mask in enumerate(masks)]
    game = pointing_game(flat, keys, seed=0)
    assert len({one.place for one in flat}) > 50 and not game.better_than_chance
    assert game.chance.estimate == pytest.approx(16 / 144)
    low, high = game.above_chance.low, game.above_chance.high
    assert low is not None and high is not None and low < 0 < high
    good = pointing_game(
        [point_at(torch.from_numpy(mask).float(), mask, key, 0, 0.0) for key, mask in enumerate(masks)], keys, 0
    )
    assert good.hits.estimate == 1.0 and good.better_than_chance and good.n == 200
    assert good.above_centre.estimate == pytest.approx(1 - masks[:, 6, 6].mean())


def test_intervals_are_over_groups_of_pictures(classifiers: Classifiers, shown: PicturesSeen) -> None:
    """Four pictures of each of ten patients, all hit or none: as sure as ten pictures are."""
    hit = np.repeat(np.arange(10) % 2, 4).astype(float)
    units = torch.arange(10).repeat_interleave(4)
    found = mean_intervals({"hit": hit}, units, seed=0)["hit"]
    assert found == mean_intervals({"hit": hit[::4]}, units[::4], seed=0)["hit"]
    # The sanity check draws units too: of one unit there is no interval.
    one = shown._replace(units=torch.zeros(4, dtype=torch.int64))
    checks = [
        sanity_check(lambda model: Explainer("saliency", model), classifiers["resnet"], some, seed=0)
        for some in (shown, one)
    ]
    last = [check.levels[-1].interval for check in checks]
    assert last[0] is not None and last[1] is not None
    assert last[0].low is not None and last[1].low is None and last[0].estimate == last[1].estimate
    assert [check.passed for check in checks] == [True, False] and checks[1].refused


def test_nearest_pictures_are_others_and_different() -> None:
    torch.manual_seed(0)
    bank, keys = torch.randn(30, 6), torch.arange(30) * 13 - 50
    bank[7], keys[7] = bank[4], keys[4]  # a copy
    features, own = torch.stack([bank[4], bank[9] * 3 + 0.01]), torch.tensor([keys[4], 999])
    found = nearest_pictures(features, own, bank, keys, 3)
    for some, x, key in zip(found, features, own, strict=True):
        others = {int(keys[r]): r for r in reversed(range(30)) if int(keys[r]) != int(key)}
        cosines = {r: float(torch.cosine_similarity(x, bank[r], dim=0)) for r in others.values()}
        expected = sorted(cosines, key=lambda r: -cosines[r])[:3]
        assert [one.row for one in some] == expected and all(isinstance(one, Neighbour) for one in some)
        assert [one.cosine for one in some] == pytest.approx([cosines[r] for r in expected], abs=1e-6)
    assert found[1][0].row == 9
