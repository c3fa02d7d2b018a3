"""Presets have the published numbers, every key of data.views reaches its view, and a number out of range raises UserError."""

from typing import Any

import pytest
import torch
from scipy import stats

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.views.augmentation import PER_VIEW, Augmentation
from rootstock.core.views.erasing import erasing_boxes, random_erasing
from rootstock.core.views.multiview import multiview
from rootstock.core.views.presets import VIEWS
from rootstock.core.views.randaugment import rand_augment
from rootstock.core.views.timm_randaugment import TimmRandAugment, timm_rand_augment
from rootstock.core.views.view import View

PLAIN: dict[str, Any] = {
    "scale": None, "ratio": (3 / 4, 4 / 3), "interpolation": "bilinear", "flip": 0.0, "rotate": 0.0, "shift": 0.0,
    "zoom": (1.0, 1.0), "jitter": (0.0, 0.0, 0.0, 0.0), "jitter_p": 0.0, "grayscale": 0.0, "blur": 0.0,
    "blur_sigma": (0.1, 2.0), "difference": 0.0, "solarize": 0.0, "invert": 0.0,
    "centre": 1.0, "randaugment": 0, "magnitude": 9.0, "timm_randaugment": None, "erase": 0.0,
    "erase_scale": (0.02, 0.33), "erase_ratio": (0.3, 3.3), "erase_fill": "mean",
}  # fmt: skip
SIMCLR = {
    "scale": (0.08, 1.0), "flip": 0.5, "jitter": (0.8, 0.8, 0.8, 0.2), "jitter_p": 0.8, "grayscale": 0.2, "blur": 0.5,
}  # fmt: skip
BYOL = {
    "scale": (0.08, 1.0), "interpolation": "bicubic", "flip": 0.5, "jitter": (0.4, 0.4, 0.2, 0.1), "jitter_p": 0.8,
    "grayscale": 0.2,
}  # fmt: skip
FIRST, SECOND = {"blur": 1.0}, {"blur": 0.1, "solarize": 0.2}
DINO = {**BYOL, "scale": (0.4, 1.0)}

# preset -> differences of its two views from PLAIN, number of local crops, and their differences.
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any], int, dict[str, Any]]] = {
    "simclr": (SIMCLR, SIMCLR, 0, {}),
    "moco": (m := {**SIMCLR, "scale": (0.2, 1.0), "jitter": (0.4, 0.4, 0.4, 0.1)}, m, 0, {}),
    "mocov3": (
        v3 := {**BYOL, "scale": (0.2, 1.0), "interpolation": "bilinear", **FIRST},
        {**v3, **SECOND},
        0,
        {},
    ),
    "byol": ({**BYOL, **FIRST}, {**BYOL, **SECOND}, 0, {}),
    "barlow": ({**BYOL, **FIRST}, {**BYOL, **SECOND}, 0, {}),
    "vicreg": (v := {**BYOL, "blur": 0.5, "solarize": 0.1}, v, 0, {}),
    "dino": ({**DINO, **FIRST}, {**DINO, **SECOND}, 8, {**BYOL, "scale": (0.05, 0.4), "blur": 0.5}),
    "swav": (s := {**SIMCLR, "scale": (0.14, 1.0)}, s, 6, {**SIMCLR, "scale": (0.05, 0.14)}),
    "mae": (a := {"scale": (0.2, 1.0), "interpolation": "bicubic", "flip": 0.5}, a, 0, {}),
    "simmim": (i := {"scale": (0.67, 1.0), "flip": 0.5}, i, 0, {}),
    "supervised": (u := {"scale": (0.08, 1.0), "flip": 0.5}, u, 0, {}),
    "randaugment": (r := {**u, "randaugment": 2, "erase": 0.25, "erase_fill": "noise"}, r, 0, {}),
    "mae_finetune": (
        t := {
            **u,
            "interpolation": "bicubic",
            "timm_randaugment": "rand-m9-mstd0.5-inc1",
            "erase": 0.25,
            "erase_fill": "noise",
            "erase_scale": (0.02, 1 / 3),
            "erase_ratio": (0.3, 1 / 0.3),
        },
        t,
        0,
        {},
    ),
    "fixmatch": (
        f := {**u, "randaugment": 2, "magnitude": 27.0, "erase": 1.0, "erase_scale": (0.25, 0.25)},
        f,
        0,
        {},
    ),
    "none": ({}, {}, 0, {}),
}


def numbers_of(view: View) -> dict[str, Any]:
    return {key: getattr(view if key in PER_VIEW else view.augmentation, key) for key in PLAIN}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_numbers(name: str) -> None:
    first, second, count, local = PUBLISHED[name]
    made = multiview(VIEWS[name](), 224, (0.5,), (0.25,), 2)
    assert [numbers_of(view) for view in made.views] == [{**PLAIN, **first}, {**PLAIN, **second}]
    assert len(made.local) == count
    for view in made.local:
        found = numbers_of(view)
        # Blurred by as many pixels as the full views: sigma is given at 224 px.
        assert found.pop("blur_sigma") == pytest.approx((0.1 * 224 / 96, 2.0 * 224 / 96))
        assert found == {key: value for key, value in {**PLAIN, **local}.items() if key != "blur_sigma"}


def test_every_preset_is_in_the_table_or_is_for_digits() -> None:
    assert set(VIEWS) == {*PUBLISHED, "digits", "digits_targeted", "digits_weak"}


OTHER: dict[str, Any] = {
    "scale": (0.3, 0.9), "ratio": (0.5, 2.0), "interpolation": "bicubic", "flip": 0.3, "rotate": 7.0, "shift": 0.11,
    "zoom": (0.8, 1.3), "jitter": (0.1, 0.2, 0.3, 0.4), "jitter_p": 0.6, "grayscale": 0.15, "blur": 0.35,
    "blur_sigma": (0.2, 1.7), "difference": 0.25, "solarize": 0.45, "invert": 0.55, "centre": 0.9, "randaugment": 3, "magnitude": 11.0,
    "erase": 0.65, "erase_scale": (0.1, 0.2), "erase_ratio": (0.5, 2.5), "erase_fill": "noise", "timm_randaugment": "rand-m7",
}  # fmt: skip


@pytest.mark.parametrize("key", OTHER)
def test_a_key_reaches_the_view_and_nothing_else(key: str) -> None:
    (view,) = multiview(Augmentation(**{key: OTHER[key]}), 224, (0.5,), (0.25,), 1).views
    assert numbers_of(view) == {**PLAIN, key: OTHER[key]}


def test_local_keys_reach_the_local_crops() -> None:
    given: dict[str, Any] = {"local_scale": (0.1, 0.2), "local_blur": 0.4, "local_solarize": 0.3}
    made = multiview(
        Augmentation(local=3, local_size=20, blur=0.9, solarize=(0.1, 0.2), **given), 64, (0.5,), (0.25,), 2
    )
    assert [view.size for view in made.local] == [20] * 3
    assert {(view.augmentation.scale, view.blur, view.solarize) for view in made.local} == {((0.1, 0.2), 0.4, 0.3)}


def crops(n: int, size: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()


def test_a_view_passes_its_numbers_to_randaugment() -> None:
    images, draws = crops(40), Draws(3, torch.arange(40))
    view = View(24, (0.0,), (1.0,), augmentation=Augmentation(randaugment=3, magnitude=24.0))
    expected = rand_augment(images, draws.stream("randaugment"), 3, 24.0)
    assert torch.allclose(view.finish(images, draws), expected / 255.0, atol=1e-6)


def test_a_view_passes_its_colour_and_filter_to_timms_randaugment() -> None:
    images, draws = crops(20), Draws(3, torch.arange(20))
    augmentation = Augmentation(timm_randaugment="rand-m8-n3-inc1", interpolation="bicubic")
    view = View(24, (0.25,), (0.5,), augmentation=augmentation)
    settings = TimmRandAugment(8.0, operations=3, increasing=True)
    expected = timm_rand_augment(images, draws.stream("randaugment"), settings, (0.25,), "bicubic")
    assert torch.allclose(view.finish(images, draws), (expected / 255.0 - 0.25) / 0.5, atol=1e-6)
    with pytest.raises(UserError, match=r"timm_randaugment: rand-m9 is given; expected null beside randaugment"):
        Augmentation(timm_randaugment="rand-m9", randaugment=2)


@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_a_view_passes_its_numbers_to_erasing(fill: Any) -> None:
    images, draws = crops(40), Draws(3, torch.arange(40))
    view = View(24, (0.5,), (0.25,), augmentation=Augmentation(erase=0.6, erase_scale=(0.1, 0.3), erase_fill=fill))
    plain = View(24, (0.5,), (0.25,)).finish(images, draws)
    assert torch.equal(view.finish(images, draws), random_erasing(plain, draws.stream("erase"), 0.6, (0.1, 0.3), fill))


def test_two_views_are_erased_in_different_places() -> None:
    draws = Draws(0, torch.arange(50))
    first, second = (erasing_boxes(draws.stream(f"view{v}").stream("erase"), 64, 64, (0.02, 0.33)) for v in (0, 1))
    assert (first != second).any(1).sum() > 45
    views = multiview(Augmentation(erase=1.0), 16, (0.5,), (0.25,), 2).views
    images = torch.full((50, 3, 16, 16), 200, dtype=torch.uint8)
    gone = [view.finish(images, draws.stream(f"view{v}"))[:, 0] == 0 for v, view in enumerate(views)]
    assert (gone[0] != gone[1]).flatten(1).any(1).sum() > 45


def test_the_signs_of_two_turns_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    n, seen = 4_000, []

    def noted(x: torch.Tensor, operation: torch.Tensor, sign: torch.Tensor, strength: float) -> torch.Tensor:
        seen.append(sign)
        return x

    monkeypatch.setattr("rootstock.core.views.randaugment.augment", noted)
    rand_augment(crops(1, 2).expand(n, -1, -1, -1), Draws(1, torch.arange(n)), 2, 9.0)
    pairs = torch.bincount(((seen[0] > 0) * 2 + (seen[1] > 0)).long(), minlength=4)
    assert stats.chisquare(pairs.numpy()).pvalue > 0.001


def test_blur_reaches_four_of_the_largest_sigma() -> None:
    """One white pixel becomes 17 px wide at a sigma of 2 px."""
    image = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    image[:, :, 112, 112] = 255
    view = View(224, (0.0,), (1.0,), augmentation=Augmentation(blur=1.0, blur_sigma=(1.999, 2.0)))
    row = view.finish(image, Draws(0, torch.arange(1)))[0, 0, 112]
    assert (row > 0).nonzero().flatten().tolist() == list(range(104, 121))


WRONG: list[tuple[str, Any]] = [
    ("flip", 1.5), ("flip", -1.0), ("erase", 2.0), ("jitter_p", 3.0), ("grayscale", -0.1), ("blur", (0.5, 2.0)),
    ("solarize", 7.0), ("invert", 2.0), ("local_blur", 3.0), ("local_solarize", -2.0), ("scale", (1.0, 0.2)),
    ("scale", (-1.0, 0.0)), ("scale", (0.2, 3.0)), ("scale", (0.0, 0.0)), ("local_scale", (2.0, 3.0)),
    ("erase_scale", (0.5, 0.1)), ("erase_scale", (-0.1, 0.3)), ("erase_ratio", (0.0, 1.0)), ("ratio", (0.0, 1.0)), ("ratio", (2.0, 0.5)),
    ("zoom", (0.0, 1.0)), ("zoom", (1.2, 0.8)), ("blur_sigma", (0.0, 0.0)), ("blur_sigma", (2.0, 0.1)),
    ("jitter", (-1.0, 0.0, 0.0, 0.0)), ("jitter", (0.0, 0.0, 0.0, 0.9)), ("jitter", (0.0, 0.0, 0.0, -0.1)),
    ("rotate", -5.0), ("shift", -0.1), ("centre", -1.0), ("centre", 2.0), ("randaugment", -1), ("magnitude", -5.0),
    ("magnitude", 100.0), ("flip", float("nan")),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_number_out_of_its_range_is_one_sentence(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^data\.views\.{key}: .* is given; expected [^\n]+$"):
        multiview(Augmentation(**{key: value}), 32, (0.5,), (0.25,), 2)
