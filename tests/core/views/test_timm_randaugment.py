"""timm's RandAugment against timm's own operations, at the same magnitude and sign, level for level."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import auto_augment
from torch import Tensor

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.views.timm_randaugment import (
    NOTHING,
    TIMM_OPERATIONS,
    TIMM_STEPS,
    Operations,
    TimmRandAugment,
    operate,
    timm_rand_augment,
)

MEAN = (0.485, 0.456, 0.406)
FILL = (124, 116, 104)
INTERPOLATION = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """uint8 [3, 3, 30, 37]: two parts of a photograph, and one with few levels."""
    photo = torch.from_numpy(np.array(load_sample_image("china.jpg"))).permute(2, 0, 1)
    parts = [photo[:, :30, :37], photo[:, 180:210, 300:337]]
    return torch.stack([*parts, parts[1] // 32 * 9 + 40])


def timms(name: str, picture: Tensor, level: float, sign: float, interpolation: str) -> Tensor:
    """One operation of timm, its random sign put in the place of its draw."""
    if name == "Posterize" and level < 2.5:  # no bits stay: black, for which Pillow 13 raises an error
        return torch.zeros_like(picture)
    hparams = {"img_mean": FILL, "interpolation": INTERPOLATION[interpolation]}
    operation = auto_augment.AugmentOp(name, prob=1.0, magnitude=level, hparams=hparams)  # pyright: ignore[reportArgumentType]
    drawn = random.random
    random.random = lambda: 0.0 if sign > 0 else 1.0
    try:
        out = operation(Image.fromarray(picture.permute(1, 2, 0).numpy()))
    finally:
        random.random = drawn
    return torch.from_numpy(np.array(out)).permute(2, 0, 1)


@pytest.mark.parametrize("increasing", [True, False])
def test_every_operation_is_timms(pictures: Tensor, increasing: bool) -> None:
    names = auto_augment._RAND_INCREASING_TRANSFORMS if increasing else auto_augment._RAND_TRANSFORMS
    assert [name.removesuffix("Increasing") for name in names] == list(TIMM_OPERATIONS)
    levels, signs = [9.0, 8.7312, 0.0], [1.0, -1.0, 1.0]
    for interpolation in ("bicubic", "bilinear"):
        for kind, name in enumerate(names):
            for k in range(3):  # each picture at each level
                level = torch.tensor(levels).roll(k).double()
                sign = torch.tensor(signs).roll(k).double()
                given = Operations(torch.full((3,), kind), level, sign, increasing, FILL, interpolation)  # pyright: ignore[reportArgumentType]
                found = operate(pictures, given)
                for n in range(3):
                    expected = timms(name, pictures[n], float(level[n]), float(sign[n]), interpolation)
                    assert torch.equal(found[n], expected), (name, n, float(level[n]), interpolation)


def test_a_batch_is_augmented_by_the_draws_of_its_positions(pictures: Tensor) -> None:
    """The whole against timm's operations one after the other, by the same draws; in one batch, and in parts of it."""
    settings = TimmRandAugment.parse("rand-m9-mstd0.5-inc1")
    assert settings == TimmRandAugment(9.0, 0.5, 10.0, 2, 0.5, True)
    x, positions = pictures.repeat(8, 1, 1, 1), torch.arange(100, 124)
    draws = Draws(5, positions)
    found = timm_rand_augment(x, draws, settings, MEAN, "bicubic")
    applied, levels = [], []
    for n in range(len(x)):
        expected = x[n]
        for turn in range(2):
            applied.append(bool(draws.bernoulli(f"applied{turn}", 0.5)[n]))
            if applied[-1]:
                name = auto_augment._RAND_INCREASING_TRANSFORMS[int(draws.integers(f"operation{turn}", 15)[n])]
                levels.append(min(10.0, 9.0 + 0.5 * float(draws.normal(f"level{turn}")[n])))
                sign = -1.0 if draws.bernoulli(f"sign{turn}", 0.5)[n] else 1.0
                expected = timms(name, expected, levels[-1], sign, "bicubic")
        assert torch.equal(found[n], expected), n
    assert 12 < sum(applied) < 36 and len(set(levels)) == len(levels)
    parts = [
        timm_rand_augment(x[r], Draws(5, positions[r]), settings, MEAN, "bicubic") for r in (slice(9), slice(9, 24))
    ]
    assert torch.equal(torch.cat(parts), found)


def test_static_shapes_give_the_same(pictures: Tensor) -> None:
    """As on a GPU, where every image passes every step."""
    kind = torch.arange(NOTHING + 1)
    x = pictures.repeat(6, 1, 1, 1)[: len(kind)]
    sign = 1.0 - 2.0 * (kind % 2).double()
    given = Operations(kind, torch.full((len(kind),), 7.5).double(), sign, True, FILL, "bicubic")
    out = x
    for step, _ in TIMM_STEPS:
        out = step(out, given)
    assert torch.equal(out, operate(x, given)) and torch.equal(out[NOTHING], x[NOTHING])
    gray = operate(x[:, :1], given)
    assert gray.shape == (len(kind), 1, 30, 37) and torch.equal(gray[7], x[7, :1])  # Color


@pytest.mark.parametrize(
    "text", ["rand-m9-w0", "augmix-m3", "rand-m9-m8", "rand-p2", "rand-m9.5", "rand-m9-tweights", "m9"]
)
def test_other_strings_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"data\.views\.timm_randaugment: .*such as rand-m9-mstd0\.5-inc1"):
        TimmRandAugment.parse(text)


def test_strings_are_read_as_timm_reads_them() -> None:
    for text in ("rand-m9-mstd0.5-inc1", "rand-m7-n3", "rand-m15-mmax30-p0.7-mstd101", "rand"):
        theirs: Any = auto_augment.rand_augment_transform(text, {"img_mean": FILL})
        operation, ours = theirs.ops[0], TimmRandAugment.parse(text)
        assert (ours.operations, ours.p, ours.magnitude) == (theirs.num_layers, operation.prob, operation.magnitude)
        assert min(ours.spread, 101) == min(operation.magnitude_std, 101) and ours.largest == (
            operation.magnitude_max or 10
        )
        assert ours.increasing == ("PosterizeIncreasing" in [op.name for op in theirs.ops])
