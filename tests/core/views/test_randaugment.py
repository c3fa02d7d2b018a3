"""Every operation compared with torchvision's, the drawn operations, and a batch that mixes all of them."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as transforms
from scipy import stats
from sklearn.datasets import load_sample_image
from torch import Tensor

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.views.erasing import random_erasing
from rootstock.core.views.mixup import Mixing, mix_images
from rootstock.core.views.randaugment import COLOR, RANDAUGMENT_OPERATIONS, augment, rand_augment

PHOTO = torch.from_numpy(np.array(load_sample_image("flower.jpg"))).permute(2, 0, 1).contiguous()
PLAIN = transforms.InterpolationMode.NEAREST


def crops(size: int = 48) -> Tensor:
    """Parts of a photograph, noise, a dark ramp, an image of one level and one of two levels."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)
    ramp = torch.arange(size, dtype=torch.uint8).expand(3, size, size).contiguous()
    corners = ((100, 200), (300, 50), (10, 580), (200, 300))
    corners = [(min(y, PHOTO.shape[1] - size), min(x, PHOTO.shape[2] - size)) for y, x in corners]
    parts = [PHOTO[:, y : y + size, x : x + size] for y, x in corners]
    halves = torch.cat([torch.full((3, size, size // 2), 30), torch.full((3, size, size - size // 2), 90)], 2)
    return torch.stack([*parts, noise, ramp, torch.full_like(noise, 77), halves.to(torch.uint8)])


def torchvisions(image: Tensor, name: str, magnitude: int, sign: float) -> Tensor:
    """One operation, by torchvision's table of magnitudes."""
    transform: Any = transforms.RandAugment()
    levels, signed = transform._AUGMENTATION_SPACE[name]
    levels = levels(31, *image.shape[1:])
    value = 0.0 if levels is None else float(levels[magnitude]) * (sign if signed else 1.0)
    return transform._apply_image_or_video_transform(image, name, value, PLAIN, transform._fill)


@pytest.mark.parametrize("name", RANDAUGMENT_OPERATIONS)
@pytest.mark.parametrize("magnitude", [0, 3, 9, 27, 30])
@pytest.mark.parametrize("size", [48, 224])
def test_an_operation_is_torchvisions(name: str, magnitude: int, size: int) -> None:
    images = crops(size) if size == 48 else crops(size)[::3]
    operation = torch.full((len(images),), RANDAUGMENT_OPERATIONS.index(name))
    for sign in (1.0, -1.0):
        found = augment(images, operation, torch.full((len(images),), sign), magnitude / 30)
        assert found.dtype == torch.uint8
        for image, out in zip(images, found, strict=True):
            expected = torchvisions(image, name, magnitude, sign)
            off = (out.int() - expected.int()).abs()
            if name in ("ShearX", "ShearY", "Rotate"):
                # Only if a source point is exactly between two pixels, the grid's last bit decides.
                assert (off > 0).float().mean() < 0.002
            else:
                assert off.max() <= 1


def test_tables_of_levels_are_torchvisions_at_every_magnitude() -> None:
    """All 256 levels, since a threshold may round to either side."""
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1).contiguous()
    for name in ("Brightness", "Contrast", "Posterize", "Solarize"):
        for magnitude in range(31):
            kind = torch.tensor([RANDAUGMENT_OPERATIONS.index(name)])
            found = augment(image[None], kind, torch.ones(1), magnitude / 30)[0]
            off = (found.int() - torchvisions(image, name, magnitude, 1.0).int()).abs().max()
            assert off <= (0 if name in ("Posterize", "Solarize") else 1), (name, magnitude)


@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_of_other_channels(channels: int) -> None:
    images = crops()[:, :1].repeat(1, channels, 1, 1)
    for k, name in enumerate(RANDAUGMENT_OPERATIONS):
        found = augment(images, torch.full((len(images),), k), torch.ones(len(images)), 0.5)
        expected = torch.stack([torchvisions(image[:1], name, 15, 1.0) for image in images])
        off = (found[:, :1].int() - expected.int()).abs()
        assert ((off > 1).float().mean() < 0.002) and (off > 0).float().mean() < 0.05
        if k == COLOR:
            assert torch.equal(found, images)
    assert len(RANDAUGMENT_OPERATIONS) == len(transforms.RandAugment._AUGMENTATION_SPACE)
    assert tuple(transforms.RandAugment._AUGMENTATION_SPACE) == RANDAUGMENT_OPERATIONS


def test_a_batch_of_all_operations_is_each_alone_and_the_static_form_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = crops(32).repeat(8, 1, 1, 1)
    draws = Draws(3, torch.arange(len(images)))
    found = rand_augment(images, draws, 3, 9.0)
    for n in range(0, len(images), 7):
        alone = rand_augment(images[n : n + 1], Draws(3, draws.positions[n : n + 1]), 3, 9.0)
        assert torch.equal(alone[0], found[n])
    assert torch.equal(rand_augment(images[:, :, :31], draws, 0, 9.0), images[:, :, :31])
    # as on a GPU: every step on the whole batch
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(rand_augment(images, draws, 3, 9.0), found)


def test_it_traces_as_one_graph_with_erasing_and_mixing() -> None:
    """The form for torch.compile, with static shapes and no graph break, equals the CPU's row by row form."""

    def run(images: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        draws = Draws(0, positions)
        x = rand_augment(images, draws, 1, 9.0).float() / 255
        x = random_erasing(x, draws.stream("erase"), 0.5, (0.1, 0.3), "noise")
        return mix_images(x, positions % 3, draws.stream("mix"), 3, Mixing(0.8, 1.0))

    images, positions = crops(16), torch.arange(8)
    graph = torch.compile(run, backend="eager", fullgraph=True, dynamic=False)
    for found, expected in zip(graph(images, positions), run(images, positions), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_operations_and_signs_are_uniform_and_independent() -> None:
    """The operation is recognised on an image that each operation and sign changes differently."""
    n = 4_000
    image = PHOTO[:, 300:320, 50:70]
    table = {}
    for k in range(len(RANDAUGMENT_OPERATIONS)):
        for sign in (1.0, -1.0):
            out = augment(image[None], torch.tensor([k]), torch.tensor([sign]), 0.8)
            table.setdefault(out.numpy().tobytes(), (k, sign))
    assert len(table) == 9 * 2 + 5  # nine operations have a sign
    found = rand_augment(image.expand(n, -1, -1, -1), Draws(5, torch.arange(n)), 1, 24.0)
    counts: dict[tuple[int, float], int] = {}
    for out in found:
        key = table[out.numpy().tobytes()]
        counts[key] = counts.get(key, 0) + 1
    expected = [n / 14 if not 1 <= k <= 9 else n / 28 for k, _ in counts]
    assert len(counts) == 23
    assert stats.chisquare(list(counts.values()), expected).pvalue > 0.001
    # turns are drawn independently
    draws = Draws(5, torch.arange(n))
    first, second = (draws.integers(f"operation{turn}", 14) for turn in range(2))
    pairs = torch.bincount(first * 14 + second, minlength=196).numpy()
    assert stats.chisquare(pairs).pvalue > 0.001


def test_other_depths_are_refused() -> None:
    images = crops().int().to(torch.uint16)
    with pytest.raises(UserError, match=r"data\.views\.randaugment: works on 8-bit pictures"):
        rand_augment(images, Draws(0, torch.arange(len(images))), 2, 9.0)
