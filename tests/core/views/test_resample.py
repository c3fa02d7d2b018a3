"""Resampling equals torchvision and aten in every bit on each path; the distributions of boxes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as transforms
import torchvision.transforms.v2.functional as tv
from scipy import stats
from torch import Tensor

from rootstock.core.draws import Draws
from rootstock.core.views import resample
from rootstock.core.views.boxes import centre_boxes, random_boxes
from rootstock.core.views.resample import Interpolation, crop_resize, crop_resize_each, resize_centre, resize_matrix

MODES = {"bilinear": transforms.InterpolationMode.BILINEAR, "bicubic": transforms.InterpolationMode.BICUBIC}
KERNELS: list[Interpolation] = ["bilinear", "bicubic"]
# Without these CPU instructions torchvision's bilinear resizing uses floats; aten's integers are equal everywhere.
NATIVE = "AVX" in torch.backends.cpu.get_cpu_capability()


class Case:
    """Random pictures (noise, or saturated so that bicubic overshoots), boxes and flips."""

    def __init__(self, seed: int) -> None:
        self.numbers = np.random.default_rng(seed)
        self.n, self.channels = self.number(1, 6), self.number(1, 5)
        self.size = self.number(1, 64) if self.number(0, 1) else self.number(1, 6)
        self.kernel: Interpolation = KERNELS[self.number(0, 1)]
        height, width = self.side(), self.side()
        images = self.numbers.integers(0, 256, (self.n, self.channels, height, width), dtype=np.uint8)
        self.images = torch.from_numpy(images if self.number(0, 1) else (images > 127) * np.uint8(255))
        if self.number(0, 1):
            self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.boxes = torch.tensor([self.box(height, width) for _ in range(self.n)])
        self.flip = torch.from_numpy(self.numbers.random(self.n) < 0.5)

    def number(self, low: int, high: int) -> int:
        return int(self.numbers.integers(low, high + 1))

    def side(self) -> int:
        """Often tiny, often the size itself, else up to 30 times the size."""
        choices = [self.number(1, 3), self.size, self.number(1, 48), self.number(1, min(400, 30 * self.size))]
        return choices[self.number(0, 3)]

    def box(self, height: int, width: int) -> list[int]:
        h, w = ([1, side, self.number(1, side), self.number(1, side)][self.number(0, 3)] for side in (height, width))
        return [self.number(0, height - h), self.number(0, width - w), h, w]


def resized(image: Tensor, size: list[int], kernel: Interpolation) -> Tensor:
    """aten for each plane alone: with several planes and a result one pixel wide, it fails or confuses them."""
    op: Any = torch.ops.aten._upsample_bilinear2d_aa if kernel == "bilinear" else torch.ops.aten._upsample_bicubic2d_aa
    planes = [plane.clone(memory_format=torch.contiguous_format)[None, None] for plane in image]
    return torch.cat([op(plane, size, False, None, None)[0] for plane in planes])


def slow_crop(image: Tensor, box: list[int], size: int, kernel: Interpolation, flip: bool) -> Tensor:
    top, left, height, width = box
    found = resized(image[:, top : top + height, left : left + width], [size, size], kernel)
    if NATIVE and size > 1:
        theirs = tv.resized_crop(image, top, left, height, width, [size, size], MODES[kernel], antialias=True)
        assert torch.equal(found, theirs)
    return tv.horizontal_flip(found) if flip else found


def slow_crops(case: Case) -> Tensor:
    each = zip(case.images, case.boxes.tolist(), case.flip.tolist(), strict=True)
    return torch.stack([slow_crop(image, box, case.size, case.kernel, flip) for image, box, flip in each])


def without_aten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "_by_aten", lambda images: False)


def in_halves(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """The computation of an accelerator; dtype: the precision to which it may round the operands of a product."""
    without_aten(monkeypatch)

    def weighted(x: Tensor, weights: Tensor, bits: Tensor, _: torch.dtype, *, from_right: bool) -> Tensor:
        return resample._weighted_in_halves(x.float(), weights, bits, from_right)

    def product(x: Tensor, weights: Tensor, from_right: bool) -> Tensor:
        x, weights = x.to(dtype).float(), weights.to(dtype).float()
        return x @ weights.transpose(1, 2) if from_right else weights @ x

    monkeypatch.setattr(resample, "_weighted", weighted)
    monkeypatch.setattr(resample, "_product", product)


def test_every_path_is_torchvisions_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(150):
        case = Case(seed)
        expected = slow_crops(case)
        given: tuple[Any, ...] = case.boxes, case.size, case.kernel, case.flip
        assert torch.equal(crop_resize(case.images, *given), expected), seed
        assert torch.equal(crop_resize_each(list(case.images), *given), expected), seed
        with monkeypatch.context() as patch:
            without_aten(patch)
            assert torch.equal(crop_resize(case.images, *given), expected), seed
        with monkeypatch.context() as patch:
            in_halves(patch, torch.bfloat16)
            assert torch.equal(crop_resize(case.images, *given), expected), seed


def test_pictures_of_many_sizes() -> None:
    pictures, boxes, expected = [], [], []
    for seed in range(40):
        case = Case(seed)
        image = case.images[0, :1]
        pictures.append(image)
        boxes.append(case.boxes[0])
        expected.append(slow_crop(image, case.boxes[0].tolist(), 20, "bicubic", False))
    found = crop_resize_each(pictures, torch.stack(boxes), 20, "bicubic")
    assert torch.equal(found, torch.stack(expected)) and found.is_contiguous()


def test_small_images_in_more_than_one_chunk_under_a_low_precision_and_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (150, 3, 32, 32), dtype=torch.uint8, generator=generator)
    draws = Draws(0, torch.arange(150))
    boxes, flip = random_boxes(draws, 32, 32, (0.2, 1.0), (3 / 4, 4 / 3)), draws.bernoulli("flip", 0.5)
    for kernel in KERNELS:
        expected = crop_resize_each(list(images), boxes, 32, kernel, flip)
        assert torch.equal(crop_resize(images, boxes, 32, kernel, flip), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(crop_resize(images, boxes, 32, kernel, flip), expected)
        precision = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("medium")
            assert torch.equal(crop_resize(images, boxes, 32, kernel, flip), expected)
        finally:
            torch.set_float32_matmul_precision(precision)


def test_one_graph_under_compile() -> None:
    """Traced as a whole, which needs no C++ compiler: no call waits for a value."""
    case = Case(3)
    torch.compiler.reset()
    compiled: Any = torch.compile(crop_resize, backend="eager", fullgraph=True, dynamic=False)
    given: tuple[Any, ...] = case.images, case.boxes, case.size, case.kernel, case.flip
    assert torch.equal(compiled(*given), slow_crops(case))


@pytest.mark.parametrize("kernel", KERNELS)
def test_16_bits_are_exact_to_half_a_level_and_the_same_by_each_path(kernel: Interpolation) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(20_000, 40_000, (4, 5, 30, 41), generator=generator)
    images = levels.to(torch.uint16)
    boxes = torch.tensor([[0, 0, 30, 41], [3, 4, 9, 30], [29, 40, 1, 1], [1, 0, 29, 12]])
    flip = torch.tensor([True, False, True, False])
    found = crop_resize(images, boxes, 14, kernel, flip)
    assert found.dtype == torch.uint16
    assert torch.equal(crop_resize_each(list(images), boxes, 14, kernel, flip), found)
    for level, (top, left, height, width), mirror, out in zip(levels, boxes.tolist(), flip, found, strict=True):
        cut = level[:, top : top + height, left : left + width].double()
        slow = tv.resize(cut, [14, 14], MODES[kernel], antialias=True)
        slow = slow.flip(2) if mirror else slow
        assert (slow - out.double()).abs().max() < 1.4  # each pass rounds once; the absolute bicubic weights sum to 1.3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_a_whole_picture_of_the_size_is_that_picture(dtype: torch.dtype) -> None:
    images = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32).to(dtype)
    whole = torch.tensor([[0, 0, 32, 32]] * 2)
    for kernel in KERNELS:
        assert torch.equal(crop_resize(images, whole, 32, kernel), images)
        flipped = crop_resize(images, whole, 32, kernel, torch.tensor([True, False]))
        assert torch.equal(flipped.int(), torch.stack([images[0].int().flip(2), images[1].int()]))
        assert resize_centre(images, 32, 32, kernel) is images


def test_weights_are_those_of_a_cut_picture() -> None:
    """Rows sum to a power of two up to rounding, independent of the place of the crop."""
    start, length = torch.tensor([0, 7, 30]), torch.tensor([20, 20, 20])
    for kernel in KERNELS:
        weights, bits = resize_matrix(start, length, 50, 9, kernel)
        for n, first in enumerate(start.tolist()):
            assert torch.equal(weights[n, :, first : first + 20], weights[0, :, :20])
            assert weights[n].count_nonzero() == weights[0, :, :20].count_nonzero()
        assert (weights.sum(2) - 2.0 ** bits.double()[:, None]).abs().max() <= 10
        assert weights.abs().max() < 2**15


def test_resize_centre_is_torchvisions_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0)
    for seed in range(80):
        case = Case(seed)
        height, width = case.images.shape[2:]
        size, short = case.size, case.size + int(numbers.integers(0, case.size + 1))
        if max(height, width) > 40 * min(height, width):
            continue
        if (
            not NATIVE and int(short * width / min(height, width)) == 1
        ):  # aten's other kernel fails for a result one pixel wide
            continue
        whole = [int(short * side / min(height, width)) for side in (height, width)]
        expected = torch.stack(
            [tv.center_crop(resized(image, whole, case.kernel), [size, size]) for image in case.images]
        )
        if NATIVE and whole[1] > 1:
            theirs = tv.center_crop(tv.resize(case.images, [short], MODES[case.kernel], antialias=True), [size, size])
            assert torch.equal(theirs, expected)
        assert torch.equal(resize_centre(case.images, short, size, case.kernel), expected), seed
        with monkeypatch.context() as patch:
            without_aten(patch)
            assert torch.equal(resize_centre(case.images, short, size, case.kernel), expected), seed


def test_a_strip_is_never_computed_whole() -> None:
    """1 x 60,000 pixels at 224 would be 3 million columns."""
    strip = torch.arange(60_000).remainder(251).to(torch.uint8).view(1, 1, 1, -1)
    found = resize_centre(strip, 224, 224, "bicubic")
    assert found.shape == (1, 1, 224, 224) and found.unique().numel() > 1


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
    ours = random_boxes(Draws(0, torch.arange(n)), height, width, (0.08, 1.0), (3 / 4, 4 / 3)).numpy()
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
    """If no try fits, as in a strip at full area, the box is the largest central one within the aspect range."""
    ours = random_boxes(Draws(0, torch.arange(50)), height, width, (1.0, 1.0), (3 / 4, 4 / 3))
    torch.manual_seed(0)
    crop = transforms.RandomResizedCrop(8, (1.0, 1.0))
    theirs = [crop.make_params([torch.empty(3, height, width)]) for _ in range(50)]
    expected = {(p["top"], p["left"], p["height"], p["width"]) for p in theirs}
    if not 3 / 4 <= width / height <= 4 / 3:
        assert {tuple(box) for box in ours.tolist()} == expected


def test_each_try_is_used_when_the_ones_before_it_fail() -> None:
    """Slow version with the same draws: a loop over tries, as in torchvision's code."""
    height, width, scale, ratio, n = 60, 200, (0.08, 1.0), (3 / 4, 4 / 3), 400
    draws = Draws(0, torch.arange(n))
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


def test_boxes_of_many_sizes_are_those_of_each_alone() -> None:
    sizes = [(60, 200), (500, 375), (10, 400), (400, 10), (1, 1), (3, 1000), (31, 30)] * 20
    height, width = torch.tensor(sizes).unbind(1)
    draws = Draws(3, torch.arange(len(sizes)))
    together = random_boxes(draws, height, width, (0.3, 1.0), (3 / 4, 4 / 3))
    centred = centre_boxes(len(sizes), height, width, 0.8, torch.device("cpu"))
    for n, (h, w) in enumerate(sizes):
        alone = Draws(3, torch.tensor([n]))
        assert together[n].equal(random_boxes(alone, h, w, (0.3, 1.0), (3 / 4, 4 / 3))[0])
        assert centred[n].equal(centre_boxes(1, h, w, 0.8, torch.device("cpu"))[0])
