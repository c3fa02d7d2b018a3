"""data.decode=scaled: the same boxes as after a full decode, so nearly the same views; equal ones where scaling saves no time."""

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from rootstock.core.draws import Draws
from rootstock.core.images.damage import Damage
from rootstock.core.images.decode import decode, decode_scaled
from rootstock.core.images.open import open_images
from rootstock.core.method import RawBatch
from rootstock.core.stream.batches import Decode, Share, stream
from rootstock.core.stream.order import Order
from rootstock.core.views.multiview import Multiview, multiview
from rootstock.core.views.presets import VIEWS
from rootstock.core.views.resample import crop_resize_each
from rootstock.core.views.scaled_decode import WORTHWHILE, scaled_boxes, useful_scale, worthwhile

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CROP = multiview(VIEWS["simclr"](), 32, MEAN, STD, 2)
LARGEST = 5.0
"""Mean absolute difference, of 255, between views after a full and a scaled decode; mostly a shift of half a pixel."""


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale small images too, although that saves no time."""
    monkeypatch.setattr("rootstock.core.views.scaled_decode.WORTHWHILE", 1)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Python warns when a process with threads forks its workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def jpeg(picture: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=92, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    """Two photographs, whole (427 x 640) and cut to sides that aren't multiples of a block; with subsampled and full colour."""
    pictures = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    cut = [picture.crop((31, 17, 31 + 531, 17 + 377)) for picture in pictures]
    return [jpeg(picture, subsampling=2 * k) for k in (0, 1) for picture in (*pictures, *cut)]


def position(p: int) -> Draws:
    return Draws(0, torch.tensor([p]))


def both_ways(content: bytes, views: Multiview, draws: Draws) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """The crops of one image after a full and after a scaled decode, and the scale."""
    scales: list[int] = []

    def scale(height: int, width: int) -> int:
        scales.append(views.scale(draws, height, width))
        return scales[-1]

    picture, size = decode_scaled(content, "x", scale)
    return views.crop_each([decode(content, "x")], draws), views.crop_each([picture], draws, [size]), scales[0]


@pytest.mark.parametrize("name", ["simclr", "byol", "dino", "none"])
def test_views_are_nearly_those_of_a_full_decode(photographs: list[bytes], name: str) -> None:
    views = multiview(VIEWS[name](), 48, MEAN, STD, 2)
    differences: dict[int, list[float]] = {1: [], 2: [], 4: [], 8: []}
    for p in range(40):
        full, scaled, scale = both_ways(photographs[p % len(photographs)], views, position(p))
        assert full.keys() == scaled.keys()
        for key, crops in full.items():
            assert crops.shape == scaled[key].shape
            differences[scale].append(float((crops.float() - scaled[key].float()).abs().mean()))
    assert not any(differences[1]) and sum(map(len, differences.values())) > len(differences[1])  # some are scaled
    assert np.mean([*differences[2], *differences[4], *differences[8]]) < LARGEST


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_where_nothing_is_rounded_only_the_decoding_differs(photographs: list[bytes], scale: int) -> None:
    """With boxes on the grid of the smaller image, the only difference is libjpeg's filter."""
    random, size, found = np.random.default_rng(0), 32, []
    for content in photographs:
        picture, full = decode_scaled(content, "x", lambda height, width: scale)
        sides = random.integers(size, [side // scale + 1 for side in full])
        corner = random.integers(0, [side // scale + 1 for side in full] - sides)
        box = torch.from_numpy(np.concatenate([corner, sides]))[None]
        assert scaled_boxes(box * scale, torch.tensor([full]), torch.tensor([picture.shape[1:]])).equal(box)
        crops = [
            crop_resize_each([p], b, size, "bilinear") for p, b in ((decode(content, "x"), box * scale), (picture, box))
        ]
        found.append(float((crops[0].float() - crops[1].float()).abs().mean()))
    assert np.mean(found) < 2


def test_views_are_not_shifted(photographs: list[bytes]) -> None:
    """Over many boxes, no small shift makes the scaled views more similar to the full ones."""
    errors = torch.zeros(3, 3)
    seen = 0
    for p in range(96):
        full, scaled, scale = both_ways(photographs[p % len(photographs)], CROP, position(p))
        seen += scale > 1
        if scale > 1:
            a, b = full["images"].float(), scaled["images"].float()
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    moved = b.roll((down, right), (3, 4))
                    errors[down + 1, right + 1] += (moved - a)[..., 2:-2, 2:-2].square().mean()
    assert seen > 30
    best = errors[1, 1]
    assert (errors.flatten()[[0, 1, 2, 3, 5, 6, 7, 8]] > 2 * best).all()
    # the minimum of a parabola through the errors of the shifts shows the bias
    for before, after in ((errors[0, 1], errors[2, 1]), (errors[1, 0], errors[1, 2])):
        assert abs(float((before - after) / (2 * (before + after - 2 * best)))) < 0.1


def test_a_scaled_box_is_the_same_place() -> None:
    """Centre and sides are exact within half a pixel of the smaller image, inside it, and not smaller than the view."""
    random = np.random.default_rng(0)
    shifts = []
    for _ in range(2000):
        scale, size = int(random.choice([1, 2, 4, 8])), int(random.integers(1, 30))
        box = random.integers(scale * size, 4 * scale * size + 1, 2)
        full = box + random.integers(0, 200, 2)
        corner = random.integers(0, full - box + 1)
        stored = -(-full // scale)
        (found,) = scaled_boxes(*(torch.from_numpy(x)[None] for x in (np.concatenate([corner, box]), full, stored)))
        corners, sides = found.numpy()[:2], found.numpy()[2:]
        assert (corners >= 0).all() and (corners + sides <= stored).all() and (sides >= size).all()
        shift = corners + sides / 2 - (corner + box / 2) / scale
        # if the last block is incomplete, the image's edge may limit a box
        assert (np.abs(shift) <= 0.5).all() and (np.abs(sides - box / scale) <= 0.5).all()
        shifts.append(shift)
        assert scale > 1 or found.tolist() == [*corner, *box]
    assert np.abs(np.mean(shifts, 0)).max() < 0.02


def test_useful_scale_keeps_the_crop_as_large_as_the_view() -> None:
    for height, width, size in [
        (500, 375, 224),
        (448, 448, 224),
        (447, 900, 224),
        (2000, 3000, 224),
        (10, 10, 32),
        (99, 99, 1),
    ]:
        scale = useful_scale(height, width, size)
        assert scale == 1 or min(height, width) / scale >= size
        assert scale == 8 or min(height, width) / (2 * scale) < size


@pytest.mark.parametrize("name", ["simclr", "dino"])
def test_the_scale_is_that_of_the_smallest_box_for_its_view(name: str) -> None:
    """Compared with all boxes of each position, also local ones, drawn for many positions at once."""
    views = multiview(VIEWS[name](), 48, MEAN, STD, 2)
    draws = Draws(0, torch.arange(64))
    sides = []
    for prefix, group in (("view", views.views), ("local", views.local)):
        for v, view in enumerate(group):
            boxes, _ = view.boxes(draws.stream(f"{prefix}{v}"), 700, 900)
            sides.append(boxes[:, 2:].amin(1) / view.size)
    smallest = torch.stack(sides).amin(0)
    found = torch.tensor([views.scale(position(p), 700, 900) for p in range(64)])
    expected = 2 ** smallest.clamp(1, 8).log2().floor().long()
    assert found.equal(expected) and len(found.unique()) > 1


def test_small_pictures_are_decoded_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rootstock.core.views.scaled_decode.WORTHWHILE", WORTHWHILE)
    views = multiview(VIEWS["none"](), 224, MEAN, STD, 2)  # the whole of the shorter side
    found = {side: views.scale(position(0), side, side) for side in (100, 448, 1000, 1500, 4000)}
    assert found == {100: 1, 448: 1, 1000: 4, 1500: 4, 4000: 8}
    assert not worthwhile(1400, 1400, 2) and worthwhile(1500, 1500, 2) and not worthwhile(9000, 9000, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photographs: list[bytes]) -> Path:
    """JPEGs in colour and gray, a rotated one, a small one, a damaged one, and a PNG."""
    root = tmp_path_factory.mktemp("pictures")
    for k, content in enumerate(photographs):
        (root / f"{k}.jpg").write_bytes(content)
    picture = Image.open(io.BytesIO(photographs[0]))
    (root / "gray.jpg").write_bytes(jpeg(picture.convert("L")))
    turned = Image.Exif()
    turned[0x0112] = 6
    (root / "turned.jpg").write_bytes(jpeg(picture, exif=turned))
    (root / "small.jpg").write_bytes(jpeg(picture.resize((40, 30))))
    (root / "damaged.jpg").write_bytes(photographs[1][:20000])
    picture.resize((160, 107)).save(root / "other.png")
    return root


def batches(folder: Path, decode: Decode, start: int = 0, **options: int) -> tuple[list[RawBatch], list[str]]:
    """Steps `start` to 3, each with its micro-batches joined, and the damaged images."""
    images = open_images(f"folder:{folder}")
    damage = Damage(0.2, report=lambda _: None)
    world, micro, workers = (
        options.get(name, default) for name, default in (("world", 1), ("micro", 1), ("workers", 0))
    )
    order = Order(len(images), 12, seed=5)
    shares = [Share(rank, world, micro) for rank in range(world)]
    ranks = [
        list(
            stream(
                images, order, CROP, steps=3, device=CPU, share=share, workers=workers, damage=damage, decode=decode
            )(start)
        )
        for share in shares
    ]
    joined = []
    for parts in zip(*ranks, strict=True):
        flat = [part for rank in parts for part in rank]
        joined.append(
            RawBatch(torch.cat([p.images for p in flat]), torch.cat([p.positions for p in flat]), flat[0].labels)
        )
    return joined, sorted(damage.names.values())


def test_views_depend_on_nothing_but_the_position(folder: Path) -> None:
    """Processes, micro-batches, workers and the first step change no bit, as with full decoding."""
    straight, damaged = batches(folder, "scaled")
    assert damaged == ["damaged.jpg"]
    full, found = batches(folder, "full")
    assert found == damaged
    for options in ({"world": 2, "micro": 2}, {"workers": 2}, {"micro": 4, "workers": 1}):
        other, damaged = batches(folder, "scaled", **options)
        assert damaged == found
        assert all(torch.equal(a.images, b.images) for a, b in zip(straight, other, strict=True))
    tail, _ = batches(folder, "scaled", start=2, workers=1)
    assert len(tail) == 1 and torch.equal(tail[0].images, straight[2].images)
    differences = torch.cat(
        [(a.images.float() - b.images.float()).abs().mean((1, 2, 3, 4)) for a, b in zip(full, straight, strict=True)]
    )
    assert 0 < differences.mean() < LARGEST and (differences == 0).any()


def test_every_row_is_decoded_and_cropped_by_its_own_draws(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with one image at a time, decoded at the scale of its position's draws and cropped by the same draws."""
    names = [path.name for path in sorted(folder.iterdir())]
    straight, damaged = batches(folder, "scaled")
    monkeypatch.setattr("rootstock.core.stream.batches.CROP_BLOCK", 50_000)
    bounded, _ = batches(folder, "scaled")
    order, scales = Order(len(names), 12, seed=5), list[int]()
    for step, (sample, other) in enumerate(zip(straight, bounded, strict=True)):
        for k, index in enumerate(order.indices(step).tolist()):
            name = names[(index + 1) % len(names)] if names[index] in damaged else names[index]
            draws = Draws(5, torch.tensor([step * 12 + k]))
            picture, size = decode_scaled((folder / name).read_bytes(), name, partial(CROP.scale, draws))
            scales.append(-(-size[0] // picture.shape[1]))
            expected = CROP.crop_each([picture], draws, [size])["images"][0]
            assert sample.images[k].equal(expected) and other.images[k].equal(expected), (step, name)
    assert len(set(scales)) > 2


def test_how_many_pictures_are_held_at_once_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, _ = batches(folder, "scaled")
    monkeypatch.setattr("rootstock.core.stream.batches.CROP_BLOCK", 50_000)
    bounded, _ = batches(folder, "scaled")
    assert all(torch.equal(a.images, b.images) for a, b in zip(straight, bounded, strict=True))
