"""ImageNet-C's corruptions: slow versions pixel by pixel, the published constants, and draws by position."""

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.views.corruptions import CONSTANTS, corrupt, disk_kernel

NAMES = sorted(CONSTANTS)


def pictures(n: int = 4, size: int = 16) -> Tensor:
    smooth = torch.rand(n, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(smooth, size=size, mode="bilinear") * 255).to(torch.uint8)


def draws(n: int = 4, first: int = 0) -> Draws:
    return Draws(0, torch.arange(first, first + n))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("table", ["imagenet", "cifar"])
def test_higher_severity_moves_pixels_farther(name: str, table: str) -> None:
    clean = pictures(size=32)
    moved = [
        float((corrupt(clean, draws(), name, severity, table).double() - clean.double()).square().mean())  # pyright: ignore[reportArgumentType]
        for severity in range(1, 6)
    ]
    assert moved == sorted(moved) and moved[0] > 0


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_corrupted_alike_in_any_batch(name: str) -> None:
    clean = pictures()
    whole = corrupt(clean, draws(), name, 3)
    halves = [corrupt(clean[i : i + 2], draws(2, i), name, 3) for i in (0, 2)]
    assert torch.equal(whole, torch.cat(halves)) and whole.shape == clean.shape and whole.dtype == torch.uint8


def test_noise_has_the_published_deviation_and_a_value_of_its_own_everywhere() -> None:
    clean = torch.full((64, 3, 16, 16), 128, dtype=torch.uint8)
    noise = (corrupt(clean, draws(64), "gaussian_noise", 1).double() + 0.5 - 128) / 255  # cut off: half a level low
    assert float(noise.std()) == pytest.approx(0.08, rel=0.02) and abs(float(noise.mean())) < 0.002
    assert not torch.equal(noise[0], noise[1]) and not torch.equal(noise[:, 0], noise[:, 1])


def test_brightness_is_that_of_colorsys() -> None:
    clean = pictures(2, 8)
    clean[0, :, 0, 0] = 0  # black has no hue: it becomes gray
    found = corrupt(clean, draws(2), "brightness", 3)
    for n in range(2):
        for y in range(8):
            for x in range(8):
                h, s, v = colorsys.rgb_to_hsv(*(clean[n, :, y, x].double() / 255).tolist())
                expected = [math.floor(c * 255 + 1e-9) for c in colorsys.hsv_to_rgb(h, s, min(1.0, v + 0.3))]
                assert (found[n, :, y, x] - torch.tensor(expected)).abs().max() <= 1


def test_contrast_keeps_means_and_shrinks_distances() -> None:
    clean = pictures()
    found = corrupt(clean, draws(), "contrast", 1).double()
    assert torch.allclose(found.mean((2, 3)), clean.double().mean((2, 3)), atol=0.6)
    assert torch.allclose(found.std((2, 3)), 0.4 * clean.double().std((2, 3)), atol=0.6)


def test_defocus_is_a_loop_over_the_disk() -> None:
    clean, kernel = pictures(1, 12), disk_kernel(3, 0.1)
    found = corrupt(clean, draws(1), "defocus_blur", 1)
    assert float(kernel.sum()) == pytest.approx(1) and kernel.shape == (17, 17)

    def mirror(i: int) -> int:
        while not 0 <= i < 12:
            i = -i if i < 0 else 22 - i
        return i

    for y, x in ((0, 0), (5, 7), (11, 3)):
        total = sum(
            float(kernel[dy + 8, dx + 8]) * int(clean[0, 1, mirror(y + dy), mirror(x + dx)])
            for dy in range(-8, 9)
            for dx in range(-8, 9)
        )
        assert abs(int(found[0, 1, y, x]) - total) <= 1
    inside = [(dx, dy) for dx in range(-3, 4) for dy in range(-3, 4) if dx * dx + dy * dy <= 9]
    assert float(kernel[8, 8]) == pytest.approx(1 / len(inside), abs=1e-9)
    assert disk_kernel(10, 0.5).shape == (21, 21)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "jpeg_compression"])
def test_a_large_batch_takes_little_memory(name: str) -> None:
    """Nothing that is held at once is several times as large as the batch in doubles."""
    clean = pictures(64, 32)
    with torch.autograd.profiler.profile(use_kineto=False, profile_memory=True) as told:
        corrupt(clean, draws(64), name, 5)
    assert told is not None and told.function_events is not None
    assert 0 < max(event.cpu_memory_usage for event in told.function_events) <= 4 * 8 * clean.numel()


def test_jpeg_is_pillows() -> None:
    clean = pictures()
    buffer = io.BytesIO()
    Image.fromarray(clean[2].permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=10)
    expected = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)
    assert torch.equal(corrupt(clean, draws(), "jpeg_compression", 4)[2], expected)
    assert corrupt(clean[:, :1], draws(), "jpeg_compression", 4).shape == (4, 1, 16, 16)


def test_wrong_arguments_are_one_sentence() -> None:
    for name, severity, images, message in (
        ("snow", 1, pictures(), "unknown corruption snow; known: gaussian_noise"),
        ("contrast", 6, pictures(), "a severity of 1 to 5, got 6"),
        ("contrast", 1, pictures().float(), "8-bit pictures"),
        ("jpeg_compression", 1, pictures()[:, :2], "1 or 3 channels, but these have 2"),
    ):
        with pytest.raises(UserError, match=message):
            corrupt(images, draws(), name, severity)


def mirrored(image: Tensor, y: float, x: float) -> float:
    """The level of [H, W] at a place, bilinearly; mirrored at the centres of the outermost pixels."""
    size = len(image)

    def inside(place: float) -> float:
        place = abs(place) % (2 * (size - 1))
        return place if place <= size - 1 else 2 * (size - 1) - place

    y, x = inside(y), inside(x)
    corners = [(r, c) for r in (math.floor(y), math.floor(y) + 1) for c in (math.floor(x), math.floor(x) + 1)]
    weights = [(1 - abs(y - r)) * (1 - abs(x - c)) for r, c in corners]
    return sum(w * float(image[min(r, size - 1), min(c, size - 1)]) for w, (r, c) in zip(weights, corners, strict=True))


def either(found: Tensor, one: list[float], other: list[float]) -> int:
    """Which of two expected lists the levels are, 0 or 1; cut off to whole levels."""
    near = [max(abs(float(f) + 0.5 - e) for f, e in zip(found, expected, strict=True)) for expected in (one, other)]
    assert min(near) <= 0.51 < max(near)
    return near.index(min(near))


PLACES = ((0, 0), (3, 12), (8, 7), (15, 4))


def test_rotation_looks_up_turned_places() -> None:
    clean, ways = pictures(8), set()
    found = corrupt(clean, draws(8), "rotation", 3)
    for n in range(8):
        expected = []
        for angle in (math.radians(30), -math.radians(30)):
            at = [
                (
                    7.5 + math.cos(angle) * (r - 7.5) + math.sin(angle) * (c - 7.5),
                    7.5 - math.sin(angle) * (r - 7.5) + math.cos(angle) * (c - 7.5),
                )
                for r, c in PLACES
            ]
            expected.append([mirrored(clean[n, 1], y, x) for y, x in at])
        ways.add(either(torch.stack([found[n, 1, r, c] for r, c in PLACES]), *expected))
    assert ways == {0, 1}


def test_scale_looks_up_nearer_or_farther_places() -> None:
    clean, ways = pictures(8), set()
    found = corrupt(clean, draws(8), "scale", 5)
    for n in range(8):
        larger = [mirrored(clean[n, 0], 7.5 + (r - 7.5) / 2, 7.5 + (c - 7.5) / 2) for r, c in PLACES]
        smaller = [
            sum(mirrored(clean[n, 0], 7.5 + 2 * (r + dy - 7.5), 7.5 + 2 * (c + dx - 7.5)) for dy, dx in around) / 4
            for around in [[(dy, dx) for dy in (-0.25, 0.25) for dx in (-0.25, 0.25)]]
            for r, c in PLACES
        ]
        ways.add(either(torch.stack([found[n, 0, r, c] for r, c in PLACES]), larger, smaller))
    assert ways == {0, 1}


def test_occlusion_covers_its_share_at_any_place() -> None:
    clean = torch.full((200, 3, 20, 20), 255, dtype=torch.uint8)
    for severity, side in ((1, 6), (3, 11), (5, 14)):
        covered = corrupt(clean, draws(200), "occlusion", severity) == 127
        assert covered.all(1).sum((1, 2)).eq(side * side).all() and torch.equal(covered.any(1), covered.all(1))
        rows = covered[:, 0].any(2).int().argmax(1)
        assert set(rows.tolist()) == set(range(20 - side + 1))


def test_clutter_is_bars_of_one_colour_each() -> None:
    clean = torch.zeros(40, 3, 50, 50, dtype=torch.uint8)
    found = corrupt(clean, draws(40), "clutter", 1)
    colours = [len(image.flatten(1).unique(dim=1).T) - 1 for image in found]
    assert max(colours) <= 4 and sum(colours) > 3 * 40  # a bar may lie under others
    # A bar of 15 by 2 pixels; some lie partly outside.
    covered = [float((image > 0).any(0).sum()) / 4 for image in found]
    assert 15 < sum(covered) / 40 <= 30
    more = corrupt(clean, draws(40), "clutter", 2)
    assert bool((((found > 0).any(1)) <= ((more > 0).any(1))).all())
