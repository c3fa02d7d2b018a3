"""Views against torchvision's functional API at the same parameters, their distributions, and their independence of the batch."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as transforms
import torchvision.transforms.v2.functional as tv
from scipy import stats
from sklearn.datasets import load_sample_image
from torch import Tensor

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.presets import VIEWS
from rootstock.core.views import (
    Evaluation,
    Interpolation,
    Multiview,
    View,
    affine,
    centre_boxes,
    crop_resize,
    normalise,
    random_boxes,
    resize_centre,
    stack_pictures,
)

MODES = {"bilinear": transforms.InterpolationMode.BILINEAR, "bicubic": transforms.InterpolationMode.BICUBIC}
PHOTO = torch.from_numpy(np.array(load_sample_image("china.jpg"))).permute(2, 0, 1).contiguous()


def pictures(n: int, height: int = 40, width: int = 52, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def draws_of(n: int, seed: int = 0) -> Draws:
    return Draws(seed, torch.arange(n))


def resized_crop(image: Tensor, box: list[int], size: int, kernel: str) -> Tensor:
    """torchvision's, on floats (its uint8 path rounds between rows and columns), clamped as it clamps uint8."""
    top, left, height, width = box
    out = tv.resized_crop(image.float(), top, left, height, width, [size, size], MODES[kernel], antialias=True)
    return out.clamp(0, 255)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 64])
def test_crop_resize_is_torchvisions(kernel: Interpolation, size: int) -> None:
    images = torch.stack([PHOTO[:, 50:250, 100:350], pictures(1, 200, 250)[0]]).repeat_interleave(6, 0)
    boxes = [[0, 0, 200, 250], [13, 40, 150, 31], [190, 240, 5, 7], [0, 0, 1, 1], [100, 3, 16, 64], [7, 9, 64, 16]] * 2
    flip = torch.tensor([False, True] * 6)
    found = crop_resize(images, torch.tensor(boxes), size, kernel, flip)
    assert found.dtype == torch.uint8
    for image, box, flipped, out in zip(images, boxes, flip, found, strict=True):
        expected = resized_crop(image, box, size, kernel)
        expected = tv.horizontal_flip(expected) if flipped else expected
        assert (out.float() - expected).abs().max() < 0.51
        if kernel == "bilinear":  # the uint8 path of bicubic also cuts overshoots between rows and columns
            top, left, height, width = box
            native = tv.resized_crop(image, top, left, height, width, [size, size], MODES[kernel], antialias=True)
            native = tv.horizontal_flip(native) if flipped else native
            assert (out.int() - native.int()).abs().max() <= 1


def test_crop_resize_of_a_whole_picture_of_the_size_is_that_picture() -> None:
    images = pictures(3, 32, 32)
    whole = torch.tensor([[0, 0, 32, 32]] * 3)
    for kernel in ("bilinear", "bicubic"):
        assert torch.equal(crop_resize(images, whole, 32, kernel), images)
        flipped = crop_resize(images, whole, 32, kernel, torch.tensor([True] * 3))
        assert torch.equal(flipped, images.flip(3))


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_channels_and_depths(channels: int, dtype: torch.dtype) -> None:
    images = pictures(4, channels=channels)
    deep = images if dtype == torch.uint8 else (images.int() * 257).to(torch.uint16)
    view = VIEWS["simclr"](16)
    crops = view.crop(deep, draws_of(4))
    assert crops.dtype == dtype and crops.shape == (4, channels, 16, 16)
    found = view(deep, draws_of(4))
    assert found.shape == (4, channels, 16, 16) and found.isfinite().all()
    # 257 v of 65535 is v of 255, up to the rounding of the crop
    assert (found - view(images, draws_of(4))).abs().max() < 0.06
    # each channel is cropped alike, whatever their number
    alone = torch.cat([view.crop(deep[:, c : c + 1], draws_of(4)) for c in range(channels)], 1)
    assert (alone.int() - crops.int()).abs().max() <= 1
    assert Evaluation(16)(deep).shape == (4, channels, 16, 16)


def torchvision_boxes(n: int, height: int, width: int) -> np.ndarray:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    scale, ratio = [0.08, 1.0], [3 / 4, 4 / 3]
    crop = transforms.RandomResizedCrop(8, (scale[0], scale[1]), (ratio[0], ratio[1]))
    found = [crop.make_params([image]) for _ in range(n)]
    return np.array([[p["top"], p["left"], p["height"], p["width"]] for p in found])


@pytest.mark.parametrize(("height", "width"), [(375, 500), (300, 300), (500, 200)])
def test_random_boxes_follow_torchvisions(height: int, width: int) -> None:
    n = 2_500
    ours = random_boxes(draws_of(n), height, width, (0.08, 1.0), (3 / 4, 4 / 3)).numpy()
    theirs = torchvision_boxes(n, height, width)
    measures: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda b: np.log(b[:, 2] * b[:, 3]),
        lambda b: np.log(b[:, 3] / b[:, 2]),
        lambda b: b[:, 0] / (height - b[:, 2] + 1),
        lambda b: b[:, 1] / (width - b[:, 3] + 1),
    ]
    for measure in measures:
        result: Any = stats.ks_2samp(measure(ours), measure(theirs))
        assert result.pvalue > 0.001
    assert (ours >= 0).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (3, 1000), (1000, 1), (1, 1), (30, 41)])
def test_the_fall_back_is_torchvisions(height: int, width: int) -> None:
    """No try of full area and its aspect fits a strip: then the largest central box within the aspects."""
    ours = random_boxes(draws_of(50), height, width, (1.0, 1.0), (3 / 4, 4 / 3))
    torch.manual_seed(0)
    crop = transforms.RandomResizedCrop(8, (1.0, 1.0))
    theirs = [crop.make_params([torch.empty(3, height, width)]) for _ in range(50)]
    expected = {(p["top"], p["left"], p["height"], p["width"]) for p in theirs}
    if not 3 / 4 <= width / height <= 4 / 3:
        assert {tuple(box) for box in ours.tolist()} == expected
    assert VIEWS["simclr"](8)(pictures(2, height, width), draws_of(2)).isfinite().all()


def test_each_try_is_used_when_the_ones_before_it_fail() -> None:
    """The same draws by a loop over tries, as torchvision's code reads."""
    height, width, scale, ratio, n = 60, 200, (0.08, 1.0), (3 / 4, 4 / 3), 400
    draws = draws_of(n)
    area = draws.uniform("area", 10, low=scale[0], high=scale[1])
    aspect = draws.uniform("aspect", 10, low=math.log(ratio[0]), high=math.log(ratio[1]))
    corner, tries = draws.uniform("corner", 2).tolist(), []
    for found, areas, aspects, (y, x) in zip(
        random_boxes(draws, height, width, scale, ratio).tolist(), area.tolist(), aspect.tolist(), corner, strict=True
    ):
        for k in range(10):
            target, r = height * width * areas[k], math.exp(aspects[k])
            w, h = round(math.sqrt(target * r)), round(math.sqrt(target / r))
            if 0 < w <= width and 0 < h <= height:
                assert found == [int(y * (height - h + 1)), int(x * (width - w + 1)), h, w]
                break
        else:
            k = 10
            assert found == [0, (width - 80) // 2, 60, 80]
        tries.append(k)
    assert set(tries) >= {0, 1, 2, 3}


def test_centre_boxes() -> None:
    assert centre_boxes(2, 100, 60, 1.0, torch.device("cpu")).tolist() == [[20, 0, 60, 60]] * 2
    assert centre_boxes(1, 40, 50, 0.5, torch.device("cpu")).tolist() == [[10, 15, 20, 20]]


@pytest.mark.parametrize(("height", "width"), [(427, 640), (120, 90), (257, 300)])
@pytest.mark.parametrize(("size", "crop"), [(32, 1.0), (56, 0.875), (64, 0.95)])
@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_evaluation_is_resize_and_centre_crop(
    height: int, width: int, size: int, crop: float, kernel: Interpolation
) -> None:
    image = PHOTO[:, :height, :width]
    found = Evaluation(size, crop=crop, interpolation=kernel).worker(image)
    whole = tv.resize(image.float(), [int(size / crop)], MODES[kernel], antialias=True)
    expected = tv.center_crop(whole, [size, size]).clamp(0, 255)
    assert (found.float() - expected).abs().max() < 0.51


def test_evaluation_in_one_batch_and_picture_by_picture() -> None:
    view = Evaluation(24, crop=0.875)
    images = pictures(9)
    one_by_one = torch.stack([view.worker(image) for image in images])
    assert torch.equal(view(images), view(one_by_one))
    expected = tv.normalize(one_by_one / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(view(images), expected, atol=1e-6)
    small = pictures(2, 24, 24)
    assert torch.equal(view.worker(small[0]), small[0])
    # enlarged, and an extreme strip
    assert view.worker(pictures(1, 5, 9)[0]).shape == (3, 24, 24)
    assert view.worker(pictures(1, 1, 3000)[0]).shape == (3, 24, 24)
    assert resize_centre(small, 24, 24, "bicubic").equal(small)


@pytest.mark.parametrize("crop", [0.0, -0.5, 1.2])
def test_evaluation_refuses_a_crop_beyond_the_picture(crop: float) -> None:
    with pytest.raises(UserError, match=r"data\.crop"):
        Evaluation(32, crop=crop)


@pytest.mark.parametrize("preset", VIEWS)
def test_a_view_does_not_depend_on_the_batch(preset: str) -> None:
    images, draws = pictures(64), Draws(7, torch.arange(64) * 31 + 5)
    view = VIEWS[preset](24)
    crops, floats = view.crop(images, draws), view(images, draws)
    for n in (0, 17, 63):
        alone = Draws(7, draws.positions[n : n + 1])
        assert torch.equal(view.crop(images[n : n + 1], alone)[0], crops[n])
        assert torch.allclose(view(images[n : n + 1], alone)[0], floats[n], atol=1e-5)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    shuffled = view(images[order], Draws(7, draws.positions[order]))
    assert torch.allclose(shuffled, floats[order], atol=1e-5)


def test_a_worker_and_the_resident_path_give_the_same_views() -> None:
    images, draws = pictures(12), draws_of(12, seed=3)
    views = Multiview([VIEWS["simclr"](24), VIEWS["digits"](24)])
    resident = views(images, draws)
    crops = torch.cat([views.crop(images[n : n + 1], Draws(3, torch.tensor([n]))) for n in range(12)])
    assert crops.shape == (12, 2, 3, 24, 24) and crops.dtype == torch.uint8
    assert resident.shape == (2, 12, 3, 24, 24)
    assert torch.equal(views(crops, draws), resident)
    # each view has a stream of its own
    assert torch.equal(VIEWS["simclr"](24)(images, draws.stream("view0")), resident[0])
    same = Multiview([VIEWS["simclr"](24)] * 2)(images, draws)
    assert (same[0] - same[1]).flatten(1).abs().amax(1).min() > 0


@pytest.mark.parametrize("preset", VIEWS)
def test_presets_build_and_vary_with_the_position(preset: str) -> None:
    view = VIEWS[preset](16, (0.5,), (0.25,))
    image = pictures(1, 32, 32).expand(6, -1, -1, -1)
    found = view(image, draws_of(6))
    assert found.shape == (6, 3, 16, 16) and found.dtype == torch.float32 and found.isfinite().all()
    differs = (found[1:] != found[:1]).flatten(1).any(1)
    assert bool(differs.any()) == (preset != "none")
    assert found.min() >= -2 - 1e-5 and found.max() <= 2 + 1e-5


def test_simclr_against_a_loop_over_torchvision() -> None:
    """The whole recipe, one picture and one operation after the other, with the parameters that the draws give."""
    n, size = 24, 32
    images, draws = pictures(n, 60, 80), draws_of(n, seed=5)
    view = View(
        size, (0.0,), (1.0,), scale=(0.2, 1.0), flip=0.5, grayscale=0.3, blur=0.5, blur_sigma=(3.5, 14.0), solarize=0.3, invert=0.3
    )  # fmt: skip
    found = view(images, draws)
    boxes = random_boxes(draws.stream("crop"), 60, 80, (0.2, 1.0), (3 / 4, 4 / 3)).tolist()
    chances = {"flip": 0.5, "gray": 0.3, "blur": 0.5, "solarize": 0.3, "invert": 0.3}
    chosen = {name: draws.bernoulli(name, p) for name, p in chances.items()}
    sigma = (draws.uniform("sigma", low=3.5, high=14.0) * size / 224).tolist()
    crops = view.crop(images, draws)
    for k in range(n):
        x = resized_crop(images[k], boxes[k], size, "bilinear")
        x = tv.horizontal_flip(x) if chosen["flip"][k] else x
        assert (x - crops[k].float()).abs().max() < 0.51
        x = crops[k].float() / 255
        x = tv.rgb_to_grayscale(x, num_output_channels=3) if chosen["gray"][k] else x
        x = tv.gaussian_blur(x, [9, 9], [sigma[k]] * 2) if chosen["blur"][k] else x
        near = (x - 0.5).abs() < 1e-6
        x = tv.solarize(x, 0.5) if chosen["solarize"][k] else x
        x = tv.invert(x) if chosen["invert"][k] else x
        assert ((x - found[k]).abs()[~near] < 1 / 255).all()


def test_affine_is_torchvisions() -> None:
    n, degrees, shift, zoom = 8, 30.0, 0.15, (0.7, 1.4)
    x = torch.nn.functional.pad(torch.rand(n, 3, 17, 17, generator=torch.Generator().manual_seed(0)), (8, 8, 8, 8))
    draws = draws_of(n)
    found = affine(x, draws, degrees, shift, zoom)
    angle = draws.uniform("rotate", low=-degrees, high=degrees).tolist()
    factor = draws.uniform("zoom", low=math.log(zoom[0]), high=math.log(zoom[1])).exp().tolist()
    move = draws.uniform("shift", 2, low=-2 * shift, high=2 * shift)
    for k in range(n):
        # The sampling grid is turned by the angle and then moved; torchvision moves the picture before it turns it.
        cos, sin = math.cos(math.radians(angle[k])) / factor[k], math.sin(math.radians(angle[k])) / factor[k]
        mx, my = (move[k] * x.shape[-1] / 2).tolist()
        det = cos * cos + sin * sin
        translate = [-(cos * mx + sin * my) / det, -(-sin * mx + cos * my) / det]
        expected = tv.affine(x[k], -angle[k], translate, factor[k], [0.0, 0.0], transforms.InterpolationMode.BILINEAR)
        assert (found[k] - expected).abs().max() < 1e-4
        assert max(abs(t) for t in translate) > 0
    # nothing to do is the identity
    assert torch.allclose(affine(x, draws, 0.0, 0.0, (1.0, 1.0)), x, atol=1e-5)


def test_affine_draws_are_uniform_within_their_ranges() -> None:
    """The moment of a dot tells the shift: uniform within the fraction of the side."""
    n, side = 2_000, 41
    x = torch.zeros(n, 1, side, side)
    x[:, :, 15:26, 15:26] = 1.0
    found = affine(x, draws_of(n), 0.0, 0.2, (1.0, 1.0))
    centre = (found.sum((1, 2)) @ torch.arange(float(side))) / found.sum((1, 2, 3)) - (side - 1) / 2
    assert stats.kstest((centre / side).numpy(), stats.uniform(-0.2, 0.4).cdf).pvalue > 0.001


def test_normalise_cycles_its_numbers() -> None:
    x = torch.rand(2, 5, 3, 3)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = torch.stack([(x[:, c] - mean[c % 3]) / std[c % 3] for c in range(5)], 1)
    assert torch.allclose(normalise(x, mean, std), expected)


def test_depths_that_meet_in_a_batch_keep_their_values() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    deep = torch.full((1, 16, 16), 40_000, dtype=torch.int32).to(torch.uint16)
    both = stack_pictures([levels, deep])
    assert both.dtype == torch.uint16 and torch.equal(both[1].int(), deep.int())
    assert torch.equal(both[0].float() / 65535, levels.float() / 255)
    assert stack_pictures([levels, levels]).dtype == torch.uint8


def test_the_probabilities_of_a_preset_are_met() -> None:
    """Flips of a half-black picture; a large sample, one position a row."""
    n = 3_000
    image = torch.zeros(n, 3, 2, 2, dtype=torch.uint8)
    image[..., 0] = 255
    options: dict[str, Any] = {"flip": 0.25}
    crops = View(2, **options).crop(image, draws_of(n))
    flipped = int((crops[:, 0, 0, 0] == 0).sum())
    assert stats.binomtest(flipped, n, 0.25).pvalue > 0.001
