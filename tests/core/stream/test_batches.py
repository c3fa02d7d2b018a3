"""The stream of batches is equal for any number of processes, micro-batches and workers, and for every way of reading a set."""

import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.images.damage import NEIGHBOUR_TRIES, Damage, read_or_neighbour
from rootstock.core.images.open import Images, open_images
from rootstock.core.images.pack.files import RECORDS
from rootstock.core.images.pack.record import Packing
from rootstock.core.images.pack.writer import pack
from rootstock.core.method import RawBatch
from rootstock.core.stream.batches import (
    MicroBatches,
    Resident,
    Share,
    _gathered,
    _to_reside,
    source_draws,
    stream,
    zip_pairs,
)
from rootstock.core.stream.order import Blocks, Full, Order, Shuffle
from rootstock.core.stream.prefetch import in_thread
from rootstock.core.views.multiview import Multiview, multiview
from rootstock.core.views.presets import VIEWS

CPU = torch.device("cpu")
N = 22
CROP = multiview(VIEWS["simclr"](), 12, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 2)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Python warns when a process with threads forks its workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 pictures of 22 sizes in two classes."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i in range(N):
        path = root / ("cat" if i % 2 else "dog") / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20 + i, 40 - i, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def images(folder: Path) -> Images:
    return open_images(f"folder:{folder}")


@pytest.fixture(scope="module")
def digits() -> Images:
    return open_images("sklearn:digits")


def batches_of(images: Images, order: Order, steps: int = 5, **options: Any) -> MicroBatches:
    return stream(images, order, CROP, steps=steps, device=CPU, **options)


def cropped(images: Images, index: int, draws: Draws) -> Tensor:
    """The two crops of one picture, uint8 [2, 3, 12, 12]."""
    return CROP.crop_each([images.read(index)], draws)["images"][0]


def whole(parts: list[RawBatch]) -> RawBatch:
    """Micro-batches as one."""
    images, positions, labels, _, index = zip(*parts, strict=True)
    return RawBatch(torch.cat(images), torch.cat(positions), torch.cat(labels), {}, torch.cat(index))


def global_batches(
    images: Images, order: Order, world: int, micro: int, workers: int = 0, steps: int = 5
) -> list[RawBatch]:
    """The batches of all processes, joined by rank."""
    ranks = [
        list(batches_of(images, order, steps, share=Share(rank, world, micro), workers=workers)(0))
        for rank in range(world)
    ]
    assert all(len(step) == micro for rank in ranks for step in rank)
    return [whole([part for rank in ranks for part in rank[step]]) for step in range(steps)]


def on_host(batch: RawBatch) -> RawBatch:
    images, positions, labels = (value.cpu() for value in batch[:3])
    return RawBatch(images, positions, labels, {}, batch.index.cpu())


def equal(first: RawBatch, second: RawBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip((*first[:3], first.index), (*second[:3], second.index), strict=True))


@pytest.mark.parametrize(("world", "micro"), [(1, 2), (1, 4), (2, 1), (2, 4), (4, 1), (4, 2)])
def test_resident_batches_are_the_same_on_any_number_of_processes(digits: Images, world: int, micro: int) -> None:
    order = Order(len(digits), 64, seed=3)
    one = global_batches(digits, order, 1, 1, steps=29)
    many = global_batches(digits, order, world, micro, steps=29)
    assert all(equal(a, b) for a, b in zip(one, many, strict=True))


@pytest.mark.parametrize(("world", "micro", "workers"), [(1, 1, 2), (2, 2, 0), (4, 2, 0), (1, 4, 2), (2, 1, 2)])
def test_loaded_batches_are_the_same_on_any_number_of_processes_and_workers(
    images: Images, world: int, micro: int, workers: int
) -> None:
    order = Order(N, 8, seed=3)
    one = global_batches(images, order, 1, 1)
    many = global_batches(images, order, world, micro, workers)
    assert all(equal(a, b) for a, b in zip(one, many, strict=True))
    assert one[0].images.shape == (8, 2, 3, 12, 12) and one[0].images.dtype == torch.uint8


def test_samples_are_the_pictures_of_the_order(images: Images) -> None:
    """Compared with a loop that reads, crops and labels one image at a time."""
    order = Order(N, 6, seed=1)
    for step, (sample,) in enumerate(batches_of(images, order)(0)):
        assert sample.positions.tolist() == [step * 6 + k for k in range(6)]
        assert torch.equal(sample.index, order.indices(step))
        for k, index in enumerate(order.indices(step).tolist()):
            draws = Draws(1, torch.tensor([step * 6 + k]))
            assert torch.equal(sample.images[k], cropped(images, index, draws))
            assert images.labels is not None and sample.labels[k] == images.labels[index]


def test_a_resident_set_and_a_folder_of_it_give_the_same_views(digits: Images, tmp_path: Path) -> None:
    pixels = digits.resident()
    assert pixels is not None and digits.labels is not None
    few = digits.select(torch.arange(16))
    for i in range(16):
        Image.fromarray(pixels[i].permute(1, 2, 0).numpy()).save(tmp_path / f"{i:02}.png")
    order = Order(16, 8, seed=0)
    for (resident,), (loaded,) in zip(
        batches_of(few, order)(0), batches_of(open_images(f"folder:{tmp_path}"), order)(0), strict=True
    ):
        draws = Draws(0, resident.positions)
        assert resident.images.ndim == 4 and loaded.images.ndim == 5
        assert torch.equal(CROP(resident, draws).images, CROP(loaded, draws).images)


@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (22, 8), (7, 7), (100, 33), (5, 1)])
def test_an_epoch_holds_no_image_twice_and_leaves_out_others_each_time(n: int, batch_size: int) -> None:
    order = Order(n, batch_size, seed=0)
    assert order.steps_per_epoch == n // batch_size
    left_out = set()
    for epoch in range(8):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        seen = [index for step in steps for index in order.indices(step).tolist()]
        assert len(set(seen)) == len(seen) == n - n % batch_size and set(seen) <= set(range(n))
        left_out.add(frozenset(range(n)) - frozenset(seen))
    assert len(left_out) > 1 or n % batch_size == 0


def test_epochs_names_and_seeds_have_their_own_orders() -> None:
    orders = [Order(50, 50, seed, name) for seed in (0, 1) for name in ("", "source", "target")]
    seen = {tuple(order.indices(step).tolist()) for order in orders for step in range(3)}
    assert len(seen) == 18


def test_the_order_is_seekable_far_out() -> None:
    order = Order(10**9, 4096, seed=0)
    step = 10**9
    indices = order.indices(step)
    assert len(indices.unique()) == 4096 and indices.min() >= 0 and indices.max() < 10**9
    assert torch.equal(order.indices(step, slice(100, 200)), indices[100:200])
    assert order.positions(step, slice(100, 101)).item() == step * 4096 + 100


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_the_middle_are_the_tail_of_a_straight_run(images: Images, workers: int) -> None:
    batches = batches_of(images, Order(N, 8, seed=0), steps=6, workers=workers, share=Share(micro=2))
    straight = list(batches(0))
    for start in (3, 5, 6):
        tail = list(batches(start))
        assert len(tail) == 6 - start
        assert all(equal(whole(a), whole(b)) for a, b in zip(straight[start:], tail, strict=True))


def test_a_seek_of_a_resident_set(digits: Images) -> None:
    batches = batches_of(digits, Order(len(digits), 100, seed=0), steps=40)
    straight = list(batches(0))
    assert all(equal(a, b) for (a,), (b,) in zip(straight[25:], batches(25), strict=True))


def test_the_stream_leaves_the_global_generator_alone(images: Images) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(batches_of(images, Order(N, 8, seed=0), steps=2)(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"optim\.batch_size: 64 is larger than the 22 training images of data\.target; .*at most 22"
    ):
        Order(22, 64, 0, "target")
    with pytest.raises(UserError, match="larger than the 22 training images; "):
        Order(22, 23, 0)
    with pytest.raises(UserError, match=r"optim\.batch_size: 0 is given; expected at least 1"):
        Order(22, 0, 0)


def test_sizes_that_do_not_divide_are_refused(digits: Images) -> None:
    with pytest.raises(
        UserError, match=r"batch_size: 10 does not divide into 2 processes x 2 micro-batches .* multiple of 4"
    ):
        batches_of(digits, Order(len(digits), 10, 0), share=Share(0, 2, 2))


def test_shares_tile_the_batch() -> None:
    for world, micro in ((1, 1), (2, 3), (4, 2)):
        rows = [row for rank in range(world) for s in Share(rank, world, micro).slices(24) for row in range(24)[s]]
        assert rows == list(range(24))


def damage_files(root: Path, images: Images, broken: list[int]) -> None:
    for index in broken:
        (root / images.name(index)).write_bytes(b"not a picture")


@pytest.fixture
def copies(folder: Path, tmp_path: Path) -> Path:
    for path in folder.glob("*/*.png"):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        (tmp_path / path.parent.name / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_damaged_picture_is_replaced_by_its_neighbour(copies: Path) -> None:
    images = open_images(f"folder:{copies}")
    assert images.labels is not None
    broken = [
        10,
        N - 1,
    ]  # the last of the first class, whose neighbour is of the second one; and the very last, whose is the first
    damage_files(copies, images, broken)
    order, found = Order(N, N, seed=0), []
    for workers in (0, 2):
        lines: list[str] = []
        damage = Damage(0.2, report=lines.append)
        found.append(list(batches_of(images, order, steps=2, workers=workers, damage=damage)(0)))
        assert sorted(damage.names.values()) == sorted(images.name(i) for i in broken)
        # reported once, not in every epoch
        assert len(lines) == 2 and all("replaced by its neighbour" in line for line in lines)
    for (first,), (second,) in zip(*found, strict=True):
        assert equal(first, second)
    (sample,) = found[0][0]
    for k, index in enumerate(order.indices(0).tolist()):
        neighbour = (index + 1) % N if index in broken else index
        crops = cropped(images, neighbour, Draws(0, torch.tensor([k])))
        assert torch.equal(sample.images[k], crops) and sample.labels[k] == images.labels[neighbour]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_damaged_pictures_end_the_run(copies: Path, workers: int) -> None:
    images = open_images(f"folder:{copies}")
    damage_files(copies, images, [2, 5, 9])
    with pytest.raises(
        UserError, match=r"^\d damaged pictures of 22, more than run\.damaged allows \(10\.0%\): .*png.*; .*repair"
    ) as caught:
        list(batches_of(images, Order(N, N, 0), steps=1, workers=workers, damage=Damage(0.1, report=lambda _: None))(0))
    assert "\n" not in str(caught.value)


def test_one_damaged_picture_of_few_is_tolerated_unless_none_is(copies: Path) -> None:
    images = open_images(f"folder:{copies}")
    damage_files(copies, images, [4])
    list(batches_of(images, Order(N, N, 0), steps=1, damage=Damage(report=lambda _: None))(0))
    with pytest.raises(UserError, match=r"1 damaged pictures of 22, more than run\.damaged allows \(0\.0%\)"):
        list(batches_of(images, Order(N, N, 0), steps=1, damage=Damage(0.0, report=lambda _: None))(0))


def test_two_sets_may_share_the_list_of_damage(copies: Path, folder: Path) -> None:
    """Images with equal numbers and names in different sets are different images."""
    first, second = open_images(f"folder:{copies}"), open_images(f"folder:{folder}")
    damage = Damage(report=lambda _: None)
    for images in (first, second):
        damage.note(images, torch.tensor([3]), torch.tensor([4]))
    assert list(damage.names.values()) == [first.name(3), second.name(3)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_of_damaged_pictures_is_one_sentence(copies: Path, workers: int) -> None:
    images = open_images(f"folder:{copies}")
    damage_files(copies, images, list(range(NEIGHBOUR_TRIES)))
    with pytest.raises(
        UserError, match=r"^16 damaged pictures in a row, the last: .*\.png: .*; `rootstock data"
    ) as caught:
        list(batches_of(images, Order(N, N, 0), steps=1, workers=workers, damage=Damage(1.0, report=lambda _: None))(0))
    assert "\n" not in str(caught.value)
    assert read_or_neighbour(images, 1)[1] == NEIGHBOUR_TRIES


def test_unlabelled_sets_yield_no_labels(folder: Path, digits: Images) -> None:
    loaded = open_images(f"folder:{folder}", role="unlabelled")
    for images in (loaded, digits.unlabelled()):
        for sample in next(batches_of(images, Order(len(images), 4, 0), share=Share(micro=2))(0)):
            assert sample.labels.shape == (0,) and len(sample.images) == 2


def test_pairs(images: Images, digits: Images) -> None:
    """Each domain has its own order and its own draws; a target's labels are empty."""
    source = batches_of(digits, Order(len(digits), 8, 0, "source"), share=Share(micro=2))
    target = batches_of(images.unlabelled(), Order(N, 4, 0, "target"), share=Share(micro=2))
    zipped = zip_pairs(source, target)
    everything = list(zipped(0))
    assert len(everything) == 5 and len(everything[0]) == 2
    pair = everything[0][1]
    assert len(pair.source.labels) == 4 and pair.target.labels.numel() == 0 and len(pair.target.images) == 2
    assert equal(next(iter(zipped(3)))[0].target, everything[3][0].target)
    draws = source_draws(0, pair.target.positions, "target")
    index = Order(N, 4, 0, "target").indices(0, slice(2, 4)).tolist()
    for k, i in enumerate(index):
        alone = Draws(0, pair.target.positions[k : k + 1]).stream("target")
        assert torch.equal(pair.target.images[k], cropped(images, i, alone))
    same = torch.equal(draws.bits("x"), source_draws(0, pair.target.positions, "source").bits("x"))
    assert not same and torch.equal(
        source_draws(0, pair.target.positions, "").bits("x"), Draws(0, pair.target.positions).bits("x")
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_depths_that_meet_in_a_folder(tmp_path: Path, workers: int) -> None:
    random = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(random.integers(0, 256, (20, 18, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray(random.integers(0, 65536, (16, 14), dtype=np.uint16)).save(tmp_path / f"{i}deep.png")
    images = open_images(f"folder:{tmp_path}")
    order = Order(8, 8, seed=0)
    (together,) = next(batches_of(images, order, workers=workers)(0))
    alone = next(batches_of(images, order, workers=workers, share=Share(micro=8))(0))
    assert together.images.dtype == torch.uint16
    assert {sample.images.dtype for sample in alone} == {torch.uint8, torch.uint16}

    def finished(sample: RawBatch) -> Tensor:
        return CROP(sample, Draws(0, sample.positions)).images

    separately = torch.cat([finished(sample) for sample in alone], 1)
    assert torch.allclose(finished(together), separately, atol=1e-5)


def test_a_resident_set_of_uint16(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (12, 9, 9, 5), dtype=np.uint16)
    np.savez(tmp_path / "deep.npz", images=pixels)
    images = open_images(f"npz:{tmp_path}/deep.npz?layout=NHWC")
    for (sample,) in islice(batches_of(images, Order(12, 4, 0))(0), 2):
        assert sample.images.dtype == torch.uint16 and sample.images.shape == (4, 5, 9, 9)
        views = CROP(sample, Draws(0, sample.positions)).images
        assert views.shape == (2, 4, 5, 12, 12) and views.isfinite().all()


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same 20 pictures of one shape: files, an archive, a pack of the files and a pack of their pixels."""
    root = tmp_path_factory.mktemp("ways")
    random = np.random.default_rng(1)
    for i in range(20):
        path = root / "files" / ("cat" if i % 2 else "dog") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (19, 17, 3), dtype=np.uint8)).save(path)
    with tarfile.open(root / "set.tar", "w") as archive:
        archive.add(root / "files", ".")
    uris = {"files": f"folder:{root}/files", "archive": f"tar:{root}/set.tar"}
    for name, packing in (("original", Packing()), ("raw", Packing("raw"))):
        pack(open_images(uris["files"]), {}, root / name, packing)
        uris[name] = f"pack:{root}/{name}"
    return uris


def crops_of(sample: RawBatch) -> Tensor:
    """The crops, uint8 [N, V, C, h, w]: sent by a worker, or cropped here from uncropped images."""
    if sample.images.ndim == 5:
        return sample.images
    return CROP.crop(sample.images, Draws(3, sample.positions))["images"]


@pytest.mark.parametrize("shuffle", [Full(), Blocks(size=3, mix=2)])
def test_every_way_to_read_a_set_gives_the_same_views(ways: dict[str, str], shuffle: Shuffle) -> None:
    """Bit for bit: resident, gathered from a mapped file, decoded out of files, an archive and a pack."""
    order = Order(20, 8, seed=3, shuffle=shuffle)
    share = Share(micro=2)
    expected = list(batches_of(open_images(ways["files"]), order, share=share)(0))
    assert expected[0][0].images.ndim == 5
    found: dict[str, Any] = {
        "gathered": batches_of(open_images(ways["raw"]), order, share=share),
        "not resident": batches_of(open_images(ways["raw"]), order, share=share, resident="off"),
        "resident": batches_of(open_images(ways["raw"]), order, share=share, resident="on"),
        "archive": batches_of(open_images(ways["archive"]), order, share=share, workers=2),
        "pack": batches_of(open_images(ways["original"]), order, share=share, workers=1),
    }
    for name, batches in found.items():
        for step, other in zip(expected, batches(0), strict=True):
            for a, b in zip(step, other, strict=True):
                assert (b.images.ndim == 5) == (name in ("archive", "pack")), name
                assert torch.equal(a.images, crops_of(b)), name
                assert torch.equal(a.positions, b.positions) and torch.equal(a.labels, b.labels), name


def test_a_gathering_thread_changes_nothing(ways: dict[str, str]) -> None:
    images, order = open_images(ways["raw"]), Order(20, 8, seed=3)
    straight = _gathered(images, order, [slice(0, 8)], range(5), Damage(), False)
    ahead = in_thread(_gathered(images, order, [slice(0, 8)], range(5), Damage(), False))
    assert all(equal(a, b) for (a,), (b,) in zip(straight, ahead, strict=True))


@pytest.mark.parametrize("broken", [7, 9])
@pytest.mark.parametrize("resident", ["auto", "on"])
def test_a_damaged_record_is_replaced_by_its_neighbour_too(
    ways: dict[str, str], tmp_path: Path, resident: Resident, broken: int
) -> None:
    """The neighbour of record 9 has another label; the label must belong to the image that is read."""
    shutil.copytree(ways["raw"].removeprefix("pack:"), tmp_path / "raw")
    with open(tmp_path / "raw" / RECORDS, "r+b") as file:
        file.seek(broken * 19 * 17 * 3)
        file.write(bytes(64))
    images, lines = open_images(f"pack:{tmp_path}/raw"), list[str]()
    order, damage = Order(20, 20, seed=0), Damage(report=lines.append)
    ((sample,),) = batches_of(images, order, steps=1, damage=damage, resident=resident)(0)
    whole = open_images(ways["raw"])
    assert whole.labels is not None and (whole.labels[broken] == whole.labels[broken + 1]) == (broken == 7)
    assert lines == [f"damaged picture replaced by its neighbour: {whole.name(broken)}"]
    for row, index in enumerate(order.indices(0).tolist()):
        read = broken + 1 if index == broken else index
        assert torch.equal(sample.images[row], whole.read(read)) and sample.labels[row] == whole.labels[read]


def shards_of(root: Path, count: int) -> str:
    """`count` archives, each with a damaged picture of the same name, and a good one."""
    for k in range(count):
        with tarfile.open(root / f"{k}.tar", "w") as archive:
            for name, content in (("bad.png", f"not picture {k}".encode()), (f"good{k}.png", None)):
                path = root / name
                if content is None:
                    Image.new("RGB", (20, 20), (k, 0, 0)).save(path)
                else:
                    path.write_bytes(content)
                archive.add(path, name)
    return f"tar:{root}/{{0..{count - 1}}}.tar"


def union_of(root: Path, count: int) -> list[str]:
    """`count` folders of the pictures that `shards_of` puts into archives."""
    for k in range(count):
        (root / str(k)).mkdir()
        (root / str(k) / "bad.png").write_bytes(b"not a picture")
        Image.new("RGB", (20, 20), (k, 0, 0)).save(root / str(k) / f"good{k}.png")
    return [f"folder:{root}/{k}" for k in range(count)]


def pack_of(root: Path, count: int) -> str:
    """A pack of `count` archives, in which all records of the damaged pictures are damaged."""
    uri = shards_of(root, count)
    for k in range(count):
        Image.new("RGB", (20, 20), (0, k, 0)).save(root / "bad.png")
        with tarfile.open(root / f"{k}.tar", "a") as archive:
            archive.add(root / "bad.png", "bad.png")
    images = open_images(uri)
    pack(images, {}, root / "pack", Packing("raw"))
    with open(root / "pack" / RECORDS, "r+b") as file:
        for i in range(len(images)):
            file.seek(i * 1200)
            file.write(bytes([200]) if images.name(i) == "bad.png" else b"")
    return f"pack:{root}/pack"


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (shards_of, ["{}/0.tar!bad.png", "{}/1.tar!bad.png", "{}/2.tar!bad.png"]),
        (union_of, ["{}/0/bad.png", "{}/1/bad.png", "{}/2/bad.png"]),
        (pack_of, ["{}/pack!bad.png (record 0)", "{}/pack!bad.png (record 1)", "{}/pack!bad.png (record 2)"]),
    ],
    ids=["shards", "union", "pack"],
)
def test_pictures_of_one_name_are_counted_and_told_apart(
    tmp_path: Path, make: Callable[[Path, int], str | list[str]], names: list[str]
) -> None:
    images, lines = open_images(make(tmp_path, 3)), list[str]()
    damage = Damage(1.0, report=lines.append)
    list(batches_of(images, Order(6, 6, 0), steps=2, damage=damage)(0))
    assert sorted(damage.names.values()) == [name.format(tmp_path) for name in names] and len(lines) == 3
    with pytest.raises(UserError, match=r"^\d damaged pictures of 6, more than run\.damaged allows \(33\.0%\): "):
        list(batches_of(images, Order(6, 6, 0), steps=1, damage=Damage(0.33, report=lambda _: None))(0))


@pytest.mark.parametrize(("fraction", "fits"), [(4, True), (3.99, False)])
def test_a_quarter_of_the_free_memory_may_be_taken(
    digits: Images, monkeypatch: pytest.MonkeyPatch, fraction: float, fits: bool
) -> None:
    size = len(digits) * 3 * 32 * 32
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(fraction * size), 10**12))
    assert _to_reside(digits, torch.device("cuda"), "auto") is fits
    assert _to_reside(digits, torch.device("cuda"), "on") and not _to_reside(digits, torch.device("cuda"), "off")


def test_a_set_larger_than_the_free_memory_cannot_be_resident(
    digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "deep.npz", x=np.zeros((5, 16, 20, 3), np.uint16))
    deep = open_images(f"npz:{tmp_path}/deep.npz?layout=NHWC")
    for images, size in ((digits, len(digits) * 3 * 32 * 32), (deep, 5 * 3 * 16 * 20 * 2)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, size=size: (size, 10**12))
        assert _to_reside(images, torch.device("cuda"), "on")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, size=size: (size - 1, 10**12))
        with pytest.raises(
            UserError, match=r"^run\.resident: on is given, but .* takes .* GB free; use run\.resident=auto"
        ):
            _to_reside(images, torch.device("cuda"), "on")


def test_pictures_that_differ_in_size_cannot_be_resident(images: Images) -> None:
    with pytest.raises(UserError, match=r"^run\.resident: on is given, but .* use run\.resident=auto, or pack them"):
        batches_of(images, Order(N, 8, 0), resident="on")


def test_large_pictures_are_cropped_before_the_next_ones_are_decoded(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's memory is bounded in bytes, not in images; how it divides its part changes no result."""
    order = Order(N, 16, seed=0)
    straight = list(batches_of(images, order, steps=3)(0))
    seen: list[int] = []

    class Counting(Multiview):
        def crop_each(
            self, pictures: Sequence[Tensor], draws: Draws, sizes: Sequence[tuple[int, int]] | None = None
        ) -> dict[str, Tensor]:
            seen.append(len(pictures))
            return super().crop_each(pictures, draws, sizes)

    monkeypatch.setattr("rootstock.core.stream.batches.CROP_BLOCK", 5000)
    bounded = list(stream(images, order, Counting(CROP.views), steps=3, device=CPU)(0))
    assert max(seen) <= 4 and sum(seen) == 48
    assert all(equal(a, b) for (a,), (b,) in zip(straight, bounded, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the way to a GPU needs one")
@pytest.mark.parametrize("resident", ["off", "on"])
def test_a_gpu_gets_the_same_samples(ways: dict[str, str], resident: Resident) -> None:
    order = Order(20, 8, seed=3)
    for name in ("raw", "files"):
        images, kind = open_images(ways[name]), "off" if name == "files" else resident
        on_gpu = stream(images, order, CROP, steps=5, device=torch.device("cuda"), resident=kind, workers=1)
        for (a,), (b,) in zip(on_gpu(0), batches_of(images, order)(0), strict=True):
            assert a.images.is_cuda and equal(on_host(a), b)
            if a.images.ndim == 4:
                crops = CROP.crop(a.images, Draws(3, a.positions))["images"]
                assert torch.equal(crops.cpu(), crops_of(b))
