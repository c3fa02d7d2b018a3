"""Views compared with torchvision's functional API at equal parameters; their distributions; independence of the batch."""

import math
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
from rootstock.core.method import RawBatch
from rootstock.core.views.augmentation import Augmentation
from rootstock.core.views.boxes import random_boxes
from rootstock.core.views.multiview import Multiview, multiview
from rootstock.core.views.presets import VIEWS
from rootstock.core.views.resample import Interpolation, resize_centre
from rootstock.core.views.view import IMAGENET_MEAN, IMAGENET_STD, Evaluation, View, affine, normalise, stack_pictures

MODES = {"bilinear": transforms.InterpolationMode.BILINEAR, "bicubic": transforms.InterpolationMode.BICUBIC}
PHOTO = torch.from_numpy(np.array(load_sample_image("china.jpg"))).permute(2, 0, 1).contiguous()


def pictures(n: int, height: int = 40, width: int = 52, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def single(preset: str, size: int, *normalisation: tuple[float, ...]) -> View:
    """A preset's last view."""
    mean, std = normalisation or (IMAGENET_MEAN, IMAGENET_STD)
    count = 2 if preset in ("byol", "barlow", "mocov3", "dino") else 1
    return multiview(VIEWS[preset](), size, mean, std, count).views[-1]


def draws_of(n: int, seed: int = 0) -> Draws:
    return Draws(seed, torch.arange(n))


def resized_crop(image: Tensor, box: list[int], size: int, kernel: str) -> Tensor:
    """torchvision's result on uint8."""
    top, left, height, width = box
    return tv.resized_crop(image, top, left, height, width, [size, size], MODES[kernel], antialias=True)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_channels_and_depths(channels: int, dtype: torch.dtype) -> None:
    images = pictures(4, channels=channels)
    deep = images if dtype == torch.uint8 else (images.int() * 257).to(torch.uint16)
    view = single("simclr", 16)
    crops = view.crop(deep, draws_of(4))
    assert crops.dtype == dtype and crops.shape == (4, channels, 16, 16)
    found = view(deep, draws_of(4))
    assert found.shape == (4, channels, 16, 16) and found.isfinite().all()
    # 257 v of 65535 equals v of 255, except for the crop's rounding: uint8 is also rounded between columns and rows
    of_bytes = view.crop(images, draws_of(4)).double() / 255
    assert (crops.double() / torch.iinfo(dtype).max - of_bytes).abs().max() < 1.01 / 255
    assert (found - view(images, draws_of(4))).abs().max() < 0.12  # contrast, hue and 1 / std enlarge the difference
    # every channel is cropped equally, for any number of channels
    alone = torch.cat([view.crop(deep[:, c : c + 1], draws_of(4)) for c in range(channels)], 1)
    assert (alone.int() - crops.int()).abs().max() <= 1
    assert Evaluation(16)(deep).shape == (4, channels, 16, 16)


@pytest.mark.parametrize(("height", "width"), [(427, 640), (120, 90), (257, 300)])
@pytest.mark.parametrize(("size", "crop"), [(32, 1.0), (56, 0.875), (64, 0.95)])
@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_evaluation_is_resize_and_centre_crop(
    height: int, width: int, size: int, crop: float, kernel: Interpolation
) -> None:
    image = PHOTO[:, :height, :width]
    found = Evaluation(size, crop=crop, interpolation=kernel).worker(image)
    whole = tv.resize(image, [int(size / crop)], MODES[kernel], antialias=True)
    assert torch.equal(found, tv.center_crop(whole, [size, size]))


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


@pytest.mark.parametrize("crop", [0.0, -0.5, -1.0, 5e-324, 1.2, 1.5, float("nan")])
def test_evaluation_refuses_a_crop_beyond_the_picture_or_of_nothing(crop: float) -> None:
    with pytest.raises(UserError, match=r"data\.crop: .* expected the part of the shorter side to keep, 0\.01 to 1"):
        Evaluation(32, crop=crop)


@pytest.mark.parametrize("resize", [-1, 0, 31, 3201, 10**12])
def test_evaluation_resizes_to_the_pixels_given_and_refuses_others(resize: int) -> None:
    image = PHOTO[:, :120, :90]
    whole = tv.resize(image, [40], MODES["bicubic"], antialias=True)
    found = Evaluation(32, resize=40, interpolation="bicubic").worker(image)
    assert torch.equal(found, tv.center_crop(whole, [32, 32]))
    with pytest.raises(UserError, match=r"^data\.resize: .* data\.size is 32; .* 32 to 3200, and no crop$"):
        Evaluation(32, resize=resize)


@pytest.mark.parametrize("preset", VIEWS)
def test_a_view_does_not_depend_on_the_batch(preset: str) -> None:
    images, draws = pictures(64), Draws(7, torch.arange(64) * 31 + 5)
    view = single(preset, 24)
    crops, floats = view.crop(images, draws), view(images, draws)
    for n in (0, 17, 63):
        alone = Draws(7, draws.positions[n : n + 1])
        assert torch.equal(view.crop(images[n : n + 1], alone)[0], crops[n])
        assert torch.allclose(view(images[n : n + 1], alone)[0], floats[n], atol=1e-5)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    shuffled = view(images[order], Draws(7, draws.positions[order]))
    assert torch.allclose(shuffled, floats[order], atol=1e-5)


def sample_of(images: Tensor, draws: Draws, **extra: Tensor) -> RawBatch:
    return RawBatch(images, draws.positions, torch.empty(0, dtype=torch.int64), extra)


@pytest.mark.parametrize("preset", ["simclr", "byol", "dino"])
def test_a_worker_and_the_resident_path_give_the_same_views(preset: str) -> None:
    """Uncropped images on the device, a worker's list in two parts, and one image at a time give equal views."""
    images, draws = pictures(12), draws_of(12, seed=3)
    views = multiview(VIEWS[preset](), 24, (0.5,), (0.25,), 2)
    resident = views(sample_of(images, draws), draws)
    parts = [slice(0, 5), slice(5, 12)]
    by_worker = [views.crop_each(list(images[part]), Draws(3, draws.positions[part])) for part in parts]
    one_by_one = [views.crop(images[n : n + 1], Draws(3, torch.tensor([n]))) for n in range(12)]
    assert resident.images.shape == (2, 12, 3, 24, 24)
    for found in (by_worker, one_by_one):
        crops = {key: torch.cat([part[key] for part in found]) for key in found[0]}
        assert crops["images"].shape == (12, 2, 3, 24, 24) and crops["images"].dtype == torch.uint8
        again = views(sample_of(crops.pop("images"), draws, **crops), draws)
        assert torch.equal(again.images, resident.images)
        if resident.local is None:
            assert preset != "dino" and again.local is None
        else:
            assert resident.local.shape == (8, 12, 3, 8, 8)
            assert again.local is not None and torch.equal(again.local, resident.local)


def test_each_view_has_a_stream_of_its_own() -> None:
    images, draws = pictures(12), draws_of(12, seed=3)
    found = multiview(VIEWS["dino"](local=2), 24, (0.5,), (0.25,), 2)(sample_of(images, draws), draws)
    assert found.local is not None
    for rows in (found.images, found.local):
        assert (rows[0] - rows[1]).flatten(1).abs().amax(1).min() > 0
    alone = View(24, (0.5,), (0.25,), augmentation=Augmentation(scale=(0.08, 1.0), flip=0.5))
    views = Multiview([alone, View(24)], [alone])(sample_of(images, draws), draws)
    assert views.local is not None
    assert torch.equal(alone(images, draws.stream("view0")), views.images[0])
    assert torch.equal(alone(images, draws.stream("local0")), views.local[0])


def test_pictures_of_many_sizes_are_cropped_as_each_alone() -> None:
    sizes = [(40, 52), (17, 90), (200, 31), (24, 24), (1, 1), (300, 2)]
    images = [pictures(1, *size)[0] for size in sizes]
    images[2] = (images[2].int() * 257).to(
        torch.uint16
    )  # an image of another depth doesn't change the rounding of the others
    draws = draws_of(len(images), seed=1)
    for preset in ("simclr", "none"):
        view = single(preset, 16)
        found = view.crop_each(images, draws)
        assert found.dtype == torch.uint16
        alone = [view.crop(image[None], Draws(1, torch.tensor([n])))[0] for n, image in enumerate(images)]
        assert torch.equal(found, stack_pictures(alone))


def test_numbers_of_a_view_each() -> None:
    views = multiview(VIEWS["byol"](blur=[0.9, 0.2], jitter_p=0.3), 224, (0.5,), (0.25,), 2)
    assert [(view.blur, view.solarize, view.jitter_p) for view in views.views] == [(0.9, 0.0, 0.3), (0.2, 0.2, 0.3)]
    assert not views.local
    for count, given in ((1, "1 view;"), (3, "3 views;")):
        with pytest.raises(UserError, match=rf"data\.views\.blur: 2 numbers are given for {given}"):
            multiview(VIEWS["byol"](), 224, (0.5,), (0.25,), count)


def test_local_crops_as_in_dino_and_swav() -> None:
    dino, swav = (multiview(VIEWS[name](), 224, (0.5,), (0.25,), 2) for name in ("dino", "swav"))
    assert (len(dino.local), len(swav.local)) == (8, 6)
    assert {view.size for view in dino.local + swav.local} == {96}
    assert dino.local[0].augmentation.scale == (0.05, 0.4) and swav.local[0].augmentation.scale == (0.05, 0.14)
    # blurred by 0.1 to 2 pixels at 96 px as at 224 px, as in both papers' code
    low, high = dino.local[0].augmentation.blur_sigma
    assert (low * 96 / 224, high * 96 / 224) == pytest.approx((0.1, 2.0))
    assert multiview(VIEWS["dino"](), 32, (0.5,), (0.25,), 2).local[0].size == 16
    with pytest.raises(UserError, match=r"data\.views\.local: 8 local crops are given, but finetune uses none"):
        dino.refuse_local("finetune")
    with pytest.raises(UserError, match=r"data\.views\.local"):
        multiview(VIEWS["dino"](local=-1), 32, (0.5,), (0.25,), 2)


@pytest.mark.parametrize("preset", VIEWS)
def test_presets_build_and_vary_with_the_position(preset: str) -> None:
    view = single(preset, 16, (0.5,), (0.25,))
    image = pictures(1, 32, 32).expand(6, -1, -1, -1)
    found = view(image, draws_of(6))
    assert found.shape == (6, 3, 16, 16) and found.dtype == torch.float32 and found.isfinite().all()
    differs = (found[1:] != found[:1]).flatten(1).any(1)
    assert bool(differs.any()) == (preset != "none")
    if preset not in ("randaugment", "mae_finetune"):  # erased boxes contain normal noise
        assert found.min() >= -2 - 1e-5 and found.max() <= 2 + 1e-5


def test_simclr_against_a_loop_over_torchvision() -> None:
    """The whole recipe, one image and one operation at a time, with the drawn parameters."""
    n, size = 24, 32
    images, draws = pictures(n, 60, 80), draws_of(n, seed=5)
    augmentation = Augmentation(
        scale=(0.2, 1.0), flip=0.5, grayscale=0.3, blur=0.5, blur_sigma=(3.5, 14.0), solarize=0.3, invert=0.3
    )
    view = View(size, (0.0,), (1.0,), augmentation)
    found = view(images, draws)
    boxes = random_boxes(draws.stream("crop"), 60, 80, (0.2, 1.0), (3 / 4, 4 / 3)).tolist()
    chances = {"flip": 0.5, "gray": 0.3, "blur": 0.5, "solarize": 0.3, "invert": 0.3}
    chosen = {name: draws.bernoulli(name, p) for name, p in chances.items()}
    sigma = (draws.uniform("sigma", low=3.5, high=14.0) * size / 224).tolist()
    crops = view.crop(images, draws)
    for k in range(n):
        x = resized_crop(images[k], boxes[k], size, "bilinear")
        x = tv.horizontal_flip(x) if chosen["flip"][k] else x
        assert torch.equal(x, crops[k])
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
        # Here the sampling grid is rotated, then shifted; torchvision shifts the image before rotating it.
        cos, sin = math.cos(math.radians(angle[k])) / factor[k], math.sin(math.radians(angle[k])) / factor[k]
        mx, my = (move[k] * x.shape[-1] / 2).tolist()
        det = cos * cos + sin * sin
        translate = [-(cos * mx + sin * my) / det, -(-sin * mx + cos * my) / det]
        expected = tv.affine(x[k], -angle[k], translate, factor[k], [0.0, 0.0], transforms.InterpolationMode.BILINEAR)
        assert (found[k] - expected).abs().max() < 1e-4
        assert max(abs(t) for t in translate) > 0
    # without rotation, shift and zoom it is the identity
    assert torch.allclose(affine(x, draws, 0.0, 0.0, (1.0, 1.0)), x, atol=1e-5)


def test_affine_draws_are_uniform_within_their_ranges() -> None:
    """The centre of mass of a dot shows the shift: uniform within the fraction of the side."""
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
    """Flips of a half-black image; a large sample, one position for each row."""
    n = 3_000
    image = torch.zeros(n, 3, 2, 2, dtype=torch.uint8)
    image[..., 0] = 255
    options: dict[str, Any] = {"flip": 0.25}
    crops = View(2, augmentation=Augmentation(**options)).crop(image, draws_of(n))
    flipped = int((crops[:, 0, 0, 0] == 0).sum())
    assert stats.binomtest(flipped, n, 0.25).pvalue > 0.001


def test_what_needs_three_channels_is_told() -> None:
    said: list[str] = []
    views = multiview(VIEWS["simclr"](), 16, (0.5,), (0.25,), 2)
    views.warn_unused(3, said.append)
    multiview(VIEWS["mae"](), 16, (0.5,), (0.25,), 1).warn_unused(1, said.append)
    assert said == []
    views.warn_unused(1, said.append)
    assert said == [
        "WARNING: pictures of 1 channel: data.views.jitter_p, data.views.grayscale, data.views.blur need three and are left out"
    ]
    deep = pictures(4, channels=5)
    plain = View(16, (0.0,), (1.0,), augmentation=Augmentation(scale=(0.08, 1.0), flip=0.5))
    draws = draws_of(4).stream("view0")
    found = views(sample_of(deep, draws_of(4)), draws_of(4)).images[0] * 0.25 + 0.5
    assert torch.allclose(found, plain(deep, draws), atol=1e-6)


def test_a_local_crop_larger_than_any_picture_is_refused() -> None:
    with pytest.raises(UserError, match=r"local_size: .* a side in pixels, 1 to 16384"):
        Augmentation(local=2, local_size=10**12)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (37, 61), (90, 41), (24, 24), (24, 60), (300, 40)])
@pytest.mark.parametrize("options", [{}, {"crop": 0.8}, {"resize": 33}])
def test_the_places_of_a_mask_are_those_that_the_view_shows(height: int, width: int, options: dict[str, Any]) -> None:
    """Pixels tell their row and column, so the resized picture tells where each of its pixels comes from."""
    view = Evaluation(24, **options)
    ramp = torch.stack([torch.arange(height)[:, None].expand(height, width), torch.arange(width).expand(height, width)])
    shown = view.worker((ramp * 200).to(torch.uint16)).int() / 200
    rows, columns = view.places(height, width, 24)
    inner = slice(2, -2)  # at a picture's edge, the resizing kernel is cut off
    assert (shown[0, :, 0] - torch.tensor(rows))[inner].abs().max() <= 0.51
    assert (shown[1, 0] - torch.tensor(columns))[inner].abs().max() <= 0.51


def test_places_at_other_resolutions_cover_the_same_part() -> None:
    view = Evaluation(24, crop=0.75)
    for side in (8, 24, 100):
        rows, columns = view.places(64, 96, side)
        assert len(rows) == len(columns) == side
        assert min(rows) >= 8 and max(rows) < 56 and min(columns) >= 24 and max(columns) < 72
        # A centre between two pixels takes the second.
        assert rows[0] + rows[-1] in (63, 64) and columns[0] + columns[-1] in (95, 96)
