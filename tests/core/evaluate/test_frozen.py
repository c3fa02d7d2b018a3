"""Features from the cache are those that would be computed, or they are computed.

Run as a script, this file is one of the processes of test_exact_over_processes_and_machines.
"""

import ast
import contextlib
import errno
import fcntl
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from rootstock.core import hostmemory, launchlog
from rootstock.core.errors import UserError
from rootstock.core.evaluate import feature_cache, feature_key, feature_stores, frozen
from rootstock.core.evaluate.augmented import RandomCrops
from rootstock.core.evaluate.feature_cache import Entry, NoRoom, entries_below, entry_of, look_up, new_files
from rootstock.core.evaluate.frozen import features_of, rows_to_check
from rootstock.core.evaluate.taps import Taps
from rootstock.core.evaluate.tensor_file import TensorFile, mapped
from rootstock.core.images.images import Images
from rootstock.core.images.open import open_images
from rootstock.core.manifest import read_record, write_record
from rootstock.core.model.backbone import Backbone, create
from rootstock.core.views.view import Evaluation
from rootstock.launch.verify import verify_folders
from rootstock.tests.conftest import Forks

CPU = torch.device("cpu")
N = 20


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache of features; nothing was warned of yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(launchlog, "_said", set())
    return tmp_path / "cache" / "rootstock" / "features"


class Network:
    """A small network, and how many images went through it."""

    def __init__(self, taps: tuple[str, ...] = ("pooled",), size: int = 16) -> None:
        torch.manual_seed(0)
        self.backbone = create(size, name="smallconv", args={"widths": (4, 4, 4, 8)})
        self.taps = Taps(self.backbone, taps)
        self.seen = 0
        self.backbone.get_submodule("model.blocks.0").register_forward_hook(self._count)

    def _count(self, _module: Any, inputs: tuple[Tensor, ...], _output: Any) -> None:
        self.seen += len(inputs[0])

    def __call__(self, images: Images, view: Evaluation | None = None, **more: Any) -> dict[str, Tensor]:
        self.seen = 0
        view = view or Evaluation(self.backbone.size)
        return features_of(self.taps, images, view, **{"device": CPU, "cache": 10**9, **more})


def digits(count: int = N, size: int = 16) -> Images:
    return open_images(f"sklearn:digits?size={size}").select(torch.arange(count))


def computed(network: Network, images: Images, view: Evaluation | None = None) -> dict[str, Tensor]:
    return network(images, view, cache=0)


def test_the_second_time_only_eight_rows_are_computed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, images = Network(("pooled", "tokens", "stage1")), digits()
    plain = computed(network, images)
    assert not place.exists() and network.seen == N
    first = network(images)
    assert network.seen == N
    second = network(images)
    assert network.seen == frozen.ROWS_CHECKED == 8
    for name, rows in plain.items():
        assert torch.equal(rows, first[name]) and torch.equal(rows, second[name])
        assert second[name].dtype == (torch.float16 if name == "tokens" else torch.float32)
    assert capsys.readouterr().err == ""
    # Whoever has safetensors can read an entry, and its manifest says what it is of.
    manifests = sorted(place.glob("*.json"))
    keys = {(record := read_record(path))["key"]["tap"]: (path, record) for path in manifests}
    assert set(keys) == set(plain)
    path, record = keys["pooled"]
    assert torch.equal(load_file(path.with_suffix(".safetensors"))["features"], plain["pooled"])
    assert record["shape"] == [N, 8] and record["key"]["network"]["name"] == "smallconv"
    assert record["key"]["view"]["interpolation"] == "bilinear" and record["key"]["images"]["number"] == N
    assert [why for _, why in entries_below(place)] == [""] * 6
    assert not list(place.glob(".*.part"))


def test_a_mapped_tensor_can_be_written_to_and_trained_on(place: Path) -> None:
    network, images = Network(), digits()
    found = network(images)["pooled"]
    before = found.clone()
    weight = torch.zeros(8, 2, requires_grad=True)
    (found @ weight).sum().backward()
    found.zero_()
    assert torch.equal(network(images)["pooled"], before) and 0 < network.seen <= 8


def test_a_part_of_the_taps_is_taken_from_the_cache(place: Path) -> None:
    images = digits()
    Network(("pooled",))(images)
    network = Network(("stage0", "pooled"))
    found = network(images)
    assert N < network.seen <= N + 8 and list(found) == ["stage0", "pooled"]


def nudge(network: Network) -> None:
    with torch.no_grad():
        network.backbone.get_parameter("model.blocks.3.0.weight")[0, 0, 0, 0] += 1e-6


def buffer(network: Network) -> None:
    network.backbone.get_buffer("model.blocks.2.1.running_mean")[0] += 1e-6


def unsaved(network: Network) -> None:
    network.backbone.model.register_buffer("angles", torch.zeros(1), persistent=False)


def norm_eps(network: Network) -> None:
    norm: Any = network.backbone.get_submodule("model.blocks.0.1")
    norm.eps = 1e-3


@pytest.mark.parametrize("change", [nudge, buffer, unsaved, norm_eps])
def test_another_network_misses(place: Path, change: Callable[[Network], None]) -> None:
    network, images = Network(), digits()
    network(images)
    change(network)
    expected = computed(network, images)
    found = network(images)
    assert network.seen == N and torch.equal(found["pooled"], expected["pooled"])


@pytest.mark.parametrize(
    ("view", "more"),
    [
        (Evaluation(8), {}),
        (Evaluation(16, crop=0.5), {}),
        (Evaluation(16, interpolation="bicubic"), {}),
        (Evaluation(16, mean=(0.4, 0.456, 0.406)), {}),
        (Evaluation(16, std=(0.3, 0.224, 0.225)), {}),
        (None, {"dtype": torch.float16}),
        (None, {"batch_size": 7}),
        (None, {"described": {"resize": 18}}),
        (None, {"weights": "others"}),
    ],
)
def test_another_view_or_number_format_misses(place: Path, view: Evaluation | None, more: dict[str, Any]) -> None:
    network, images = Network(), digits(size=24)
    usual = Evaluation(16)
    network(images, usual)
    network(images, view or usual, **more)
    assert network.seen == N
    network(images, usual)
    assert network.seen <= 8
    network(images, view or usual, **more)
    assert network.seen <= 8


def test_other_code_misses(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = Network(), digits()
    network(images)
    code = {**feature_key.feature_code_version(), "timm": "0.9"}
    monkeypatch.setattr(feature_key, "feature_code_version", lambda: code)
    network(images)
    assert network.seen == N


def test_every_package_of_the_sources_is_in_the_key() -> None:
    """Those of other names on PyPI by these; pyarrow and the like bring bytes, whose hashes are in the key."""
    named = {"PIL": "Pillow", "sklearn": "scikit-learn", "faiss": "faiss-cpu", "cv2": "opencv-python-headless"}
    bytes_alone = {"safetensors", "huggingface_hub", "fsspec", "pyarrow"}
    places = [feature_key.PACKAGE_FOLDER / source for source in feature_key.FEATURE_SOURCES]
    files = [path for place in places for path in ([place] if place.suffix else place.rglob("*.py"))]
    trees = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    imports = {alias.name for node in trees if isinstance(node, ast.Import) for alias in node.names}
    imports |= {str(node.module) for node in trees if isinstance(node, ast.ImportFrom) and not node.level}
    packages = {name.partition(".")[0] for name in imports} - sys.stdlib_module_names
    assert {named.get(name, name) for name in packages} == {*feature_key.LIBRARIES, *bytes_alone}


def test_the_code_version_sees_each_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("core/model/a.py", "core/numerics.py", "core/evaluate/taps.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a = 1\n")
    monkeypatch.setattr(feature_key, "PACKAGE_FOLDER", tmp_path)
    monkeypatch.setattr(feature_key, "FEATURE_SOURCES", ("core/model", "core/numerics.py", "core/evaluate/taps.py"))
    seen = {feature_key.feature_code_version.__wrapped__()["sources"]}
    for name in ("core/model/a.py", "core/numerics.py", "core/evaluate/taps.py"):
        (tmp_path / name).write_text("a = 2\n")
        seen.add(feature_key.feature_code_version.__wrapped__()["sources"])
    (tmp_path / "core/model/b.py").write_text("")
    seen.add(feature_key.feature_code_version.__wrapped__()["sources"])
    assert len(seen) == 5


def test_precision_is_in_the_key() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = feature_key.precision_of(CPU)
    assert half == "autocast bfloat16" != feature_key.precision_of(CPU)


def drawn(folder: Path, count: int = 4) -> Path:
    """Pictures whose files have one size whatever they show."""
    folder.mkdir()
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.bmp")
    return folder


def test_a_picture_that_changed_in_place_misses(place: Path, tmp_path: Path) -> None:
    network, folder = Network(), drawn(tmp_path / "set")
    before = network(open_images(f"folder:{folder}?labels=none"))["pooled"].clone()
    network(open_images(f"folder:{folder}?labels=none"))
    assert network.seen <= 4
    content = bytearray((folder / "2.bmp").read_bytes())
    content[-7] ^= 128
    (folder / "2.bmp").write_bytes(content)
    found = network(open_images(f"folder:{folder}?labels=none"))["pooled"]
    assert network.seen == 4 and [bool(row) for row in (found != before).any(1)] == [False, False, True, False]


def test_order_and_choice_of_pictures_miss(place: Path) -> None:
    network, images = Network(), digits()
    found = network(images)["pooled"]
    for rows in (torch.arange(N).flip(0), torch.arange(N - 1), torch.tensor([0, 0, 1])):
        assert torch.equal(network(images.select(rows))["pooled"], found[rows])
        assert network.seen == len(rows)


def test_blends_of_one_digit_are_told_apart(place: Path) -> None:
    network = Network()
    images = open_images("sklearn:digits-m?size=16&blends=2")
    pair = images.select(torch.tensor([0, 1]))
    found = network(pair)["pooled"]
    other = network(images.select(torch.tensor([1, 0])))["pooled"]
    assert torch.equal(found.flip(0), other) and not torch.equal(found, other)


def files_of(place: Path) -> tuple[Path, Path]:
    (manifest,) = place.glob("*.json")
    return manifest, manifest.with_suffix(".safetensors")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def folder_instead(path: Path) -> None:
    path.unlink()
    (path / "inner").mkdir(parents=True)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "flip": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zero": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "empty": lambda path: path.write_bytes(b""),
    "delete": Path.unlink,
    "folder": folder_instead,
}


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_and_the_entry_made_anew(
    place: Path, capsys: pytest.CaptureFixture[str], number: int, kind: str
) -> None:
    network, images = Network(), digits()
    right = network(images)["pooled"].clone()
    path = files_of(place)[number]
    DAMAGES[kind](path)
    if kind != "delete":
        assert verify_folders([place]) == 1
        assert str(path) in capsys.readouterr().err
    assert torch.equal(network(images)["pooled"], right) and network.seen == N
    said = capsys.readouterr().err
    if (number, kind) == (0, "delete"):  # without its manifest it is no entry
        assert said == ""
    else:
        assert (
            said.startswith(f"WARNING: {path} is ") and said.endswith("; it is made anew\n") and said.count("\n") == 1
        )
    assert torch.equal(network(images)["pooled"], right) and network.seen <= 8
    assert verify_folders([place]) == 0


def test_other_numbers_with_a_right_digest_are_found_by_their_rows(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, images = Network(), digits()
    right = network(images)["pooled"].clone()
    manifest, data = files_of(place)
    record = read_record(manifest)
    entry = Entry(record["key"])
    row = rows_to_check(entry, N)[0]
    data.unlink()
    file = TensorFile(data, (N, 8), torch.float32)
    wrong = right.clone()
    wrong[row] *= 1.01
    file.put(0, wrong)
    write_record(manifest, {**record, "sha256": file.digest()})
    file.close()
    assert torch.equal(network(images)["pooled"], right) and network.seen > N
    assert f"WARNING: {data} holds other features than the network gives (of picture {row}, they differ by" in (
        said := capsys.readouterr().err
    )
    assert said.count("\n") == 1
    network(images)
    assert network.seen <= 8


def test_a_cache_that_cannot_be_is_said_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, images = Network(), digits()
    right = computed(network, images)["pooled"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert torch.equal(network(images)["pooled"], right)
    said = capsys.readouterr().err
    assert said.startswith("WARNING: features are not cached (") and said.count("\n") == 1


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE, errno.EACCES])
def test_what_keeps_a_process_from_an_entry_is_no_damage(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, kind: int
) -> None:
    network, images = Network(), digits()
    right = network(images)["pooled"].clone()
    file, real = files_of(place)[kind], os.open

    def refused(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if str(path) == str(file):
            raise OSError(number, "Not now", str(path))
        return real(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", refused)
    assert torch.equal(network(images)["pooled"], right) and network.seen == N
    assert capsys.readouterr().err == f"WARNING: {file} cannot be used (Not now); its features are computed\n"
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(place.parents[1]))
    assert torch.equal(network(images)["pooled"], right) and network.seen <= 8


def test_memory_that_cannot_map_features_is_known_before_any_work(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, images, said = Network(), digits(), list[str]()
    right = computed(network, images)["pooled"]

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", full)
    assert torch.equal(network(images)["pooled"], right) and network.seen == N
    assert f"not cached ({place}: Cannot allocate memory); this run goes on" in capsys.readouterr().err
    monkeypatch.setattr(
        feature_stores, "stores_in_memory", lambda *_, **__: lambda _: (_ for _ in ()).throw(MemoryError())
    )
    with pytest.raises(
        UserError, match=rf"{place}: Cannot allocate memory; the memory has no 5KB in one piece; free some"
    ):
        network(images, log=said.append, batch_size=4)
    assert said == [] and network.seen == 4 and [path.name for path in place.iterdir()] == [".lock"]


def test_code_that_cannot_be_read_costs_the_cache_alone(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, images = Network(), digits()
    right = computed(network, images)["pooled"]
    monkeypatch.setattr(feature_key, "PACKAGE_FOLDER", tmp_path / "archive.zip")
    feature_key.feature_code_version.cache_clear()
    assert torch.equal(network(images)["pooled"], right) and not place.exists()
    feature_key.feature_code_version.cache_clear()
    assert capsys.readouterr().err.startswith("WARNING: features are not cached (")


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync", "replace"])
def test_a_full_disk_costs_the_cache_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: str
) -> None:
    network, images = Network(("pooled", "stage0")), digits()
    right = computed(network, images)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    found = network(images)
    monkeypatch.undo()
    assert all(torch.equal(found[name], right[name]) for name in right)
    said = capsys.readouterr().err
    assert f"features are not cached ({place}" in said and ": No space left" in said and said.count("\n") == 1
    assert [path.name for path in place.iterdir() if path.name != ".lock"] == []


def test_what_was_not_used_for_longest_goes_first_and_nothing_in_use(place: Path) -> None:
    network, images = Network(), digits()
    sets = [images.select(torch.arange(k, k + 12)) for k in range(4)]
    kept = network(sets[0])["pooled"]
    ages = list(place.glob("*.json"))
    for one in sets[1:3]:
        before = set(place.glob("*.json"))
        network(one)
        ages += set(place.glob("*.json")) - before
    for k, entry in enumerate(ages):
        os.utime(entry, (1000 + k, 1000 + k))
    sizes = [path.stat().st_size + path.with_suffix(".safetensors").stat().st_size for path in place.glob("*.json")]
    limit = sum(sizes) + 4096  # a fourth needs the place of one
    network(sets[3], cache=limit)
    # The oldest is in use, so the second one goes.
    assert [ages[k].exists() for k in range(3)] == [True, False, True]
    assert len(kept) == 12
    del kept
    os.utime(ages[2], (3000, 3000))
    network(sets[1], cache=limit)
    assert [ages[k].exists() for k in range(3)] == [False, True, True]


def test_more_than_the_bound_goes_to_a_file_that_is_deleted(place: Path) -> None:
    network, images, said = Network(("tokens", "pooled")), digits(), list[str]()
    right = computed(network, images)
    found = network(images, cache=5000, log=said.append)
    assert all(torch.equal(found[name], right[name]) for name in right)
    assert (
        len(said) == 1 and "(5KB)" in said[0] and f"temporary file in {place}, which is deleted at the end" in said[0]
    )
    assert [path.name for path in place.iterdir() if path.name != ".lock"] == []


def test_what_killed_commands_left_is_deleted_and_never_read(place: Path) -> None:
    network, images = Network(), digits()
    place.mkdir(parents=True)
    left = [place / ".pooled.dead.part", place / "orphan.safetensors"]
    for path in left:
        path.write_bytes(b"half")
    (file,) = new_files({"pooled": (2, 2)}, {"pooled": torch.float32}).values()
    network(images)
    assert file.path.exists() and not any(path.exists() for path in left)
    file.close()
    network(images)
    assert not file.path.exists()


def test_two_commands_at_once_do_not_take_the_same_room(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"shapes": {"x": (100, 10)}, "dtypes": {"x": torch.float32}, "limit": 12000}

    def meanwhile(*_: Any) -> None:
        with pytest.raises(
            NoRoom, match=r"^run.feature_cache is 12KB, and features in use, or of other users, leave no room"
        ):
            new_files(**asked)

    monkeypatch.setattr(os, "posix_fallocate", meanwhile)
    (file,) = new_files(**asked).values()
    feature_cache.drop(file)
    assert [path.name for path in place.iterdir()] == [".lock"]


def test_the_bound_holds_and_nothing_is_deleted_in_vain(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, images = Network(), digits()
    for k in range(3):
        network(images.select(torch.arange(k, k + 12)))
    kept, (entry, *_) = network(images.select(torch.arange(12)))["pooled"], place.glob("*.json")
    size = entry.stat().st_size + entry.with_suffix(".safetensors").stat().st_size
    assert capsys.readouterr().err == ""
    # What is in use leaves no room for 20 images, so the two others stay.
    network(images, cache=size + 4500)
    said = capsys.readouterr().err
    assert (
        "is 7KB, and features in use, or of other users, leave no room in it; give more); this run goes on without"
        in said
    )
    # A smaller bound holds at once, also if nothing new is kept.
    assert torch.equal(network(images.select(torch.arange(12)), cache=2 * size)["pooled"], kept) and network.seen <= 8
    assert len(list(place.glob("*.json"))) == 2
    # What another user's folder keeps counts.
    del kept
    real, oldest = Path.unlink, min(place.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)

    def unlink(path: Path, *arguments: Any, **more: Any) -> None:
        if path == oldest:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(path, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        network(images.select(torch.arange(5, 17)), cache=2 * size + 4096)
    assert oldest.exists() and len(list(place.glob("*.json"))) == 2
    network(images, cache=10)
    assert [path.name for path in place.iterdir()] == [".lock"]


@pytest.mark.parametrize("kind", ["nfs", "pipe"])
def test_locks_of_another_kind(place: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """NFS gives a lock of one's own only where the file is open for writing; and a pipe in the lock's place is not waited for."""
    real = fcntl.flock

    def flock(handle: int, how: int) -> None:
        if how & fcntl.LOCK_EX and fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    if kind == "pipe":
        place.mkdir(parents=True)
        os.mkfifo(place / ".lock")
    network, images = Network(), digits()
    for k in range(3):
        network(images.select(torch.arange(k, k + 12)), cache=7000)
    assert len(list(place.glob("*.json"))) == 2


def test_bytes_of_another_shape_miss(place: Path, tmp_path: Path) -> None:
    network, content = Network(), np.zeros((4, 8, 32, 3), np.uint8)  # of equal pixels, so no row could tell
    for shape in ((4, 8, 32, 3), (4, 32, 8, 3)):
        np.savez(tmp_path / "x.npz", images=content.reshape(shape))
        network(open_images(f"npz:{tmp_path / 'x.npz'}"))
        assert network.seen == 4


def test_of_two_commands_at_once_the_first_to_finish_makes_the_entry(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, images = Network(), digits()
    right = computed(network, images)["pooled"]
    real, inner = frozen.extract_taps, list[Tensor]()

    def twice(*arguments: Any, **more: Any) -> dict[str, Tensor]:
        if not inner:
            inner.append(torch.empty(0))
            inner[0] = network(images)["pooled"]
        return real(*arguments, **more)

    monkeypatch.setattr(frozen, "extract_taps", twice)
    found = network(images)["pooled"]
    assert torch.equal(found, right) and torch.equal(inner[0], right)
    assert len(list(place.glob("*.json"))) == len(list(place.glob("*.safetensors"))) == 1
    assert not list(place.glob(".*.part")) and capsys.readouterr().err == ""


@pytest.mark.parametrize(("factor", "low", "high"), [(1e7, 70000, 1e9), (1e-6, 1e-9, 6e-5)])
def test_tokens_that_float16_cannot_hold_are_float32(place: Path, factor: float, low: float, high: float) -> None:
    network, images, said = Network(("tokens", "stage0")), digits(), list[str]()
    with torch.no_grad():
        network.backbone.get_parameter("model.blocks.3.1.weight").mul_(factor)
    found = network(images, log=said.append)
    assert found["tokens"].dtype == torch.float32 and bool(found["tokens"].isfinite().all())
    assert low < float(found["tokens"].max()) < high
    assert len(said) == 1 and "tokens: float16 cannot hold some" in said[0]
    again = network(images, log=said.append)
    assert torch.equal(again["tokens"], found["tokens"]) and network.seen <= 8 and len(said) == 1


def test_little_memory_takes_a_file_and_no_room_at_all_is_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = Network(), digits()
    right = computed(network, images)["pooled"]
    monkeypatch.setattr(hostmemory, "available", lambda: 10)
    assert torch.equal(network(images, cache=0)["pooled"], right)
    assert [path.name for path in place.iterdir()] == [".lock"]

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        UserError, match=r"^the features of 20 images \(pooled\) take 5KB, .*10B of memory left; .*space left.*#\["
    ):
        network(images, cache=0)


def test_features_that_are_not_finite_are_refused_and_not_kept(place: Path) -> None:
    network, images = Network(), digits()
    with torch.no_grad():
        network.backbone.get_parameter("model.blocks.3.1.bias").fill_(float("nan"))
    with pytest.raises(UserError, match="features of all 20 images are not finite"):
        network(images)
    assert [path.name for path in place.iterdir() if path.name != ".lock"] == []


def test_a_digest_of_weights_sees_names_shapes_and_types() -> None:
    def network(**values: Tensor) -> Backbone:
        model: Any = torch.nn.Module()
        model.num_features = 1
        for name, value in values.items():
            model.register_buffer(name, value)
        return Backbone(model, {"size": 8}, (0.5,), (0.5,))

    zeros = torch.zeros(2, 3)
    kinds = [{"a": zeros}, {"b": zeros}, {"a": zeros.view(3, 2)}, {"a": zeros.int()}, {"a": zeros, "b": zeros[0]}, {}]
    assert len({feature_key.weights_digest(network(**kind)) for kind in kinds}) == len(kinds)


def test_a_mapped_file_is_in_use_until_its_last_tensor_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    file = TensorFile(path, (4, 2), torch.float64)
    file.put(2, torch.ones(2, 2, dtype=torch.float64))
    file.put(0, torch.zeros(2, 2, dtype=torch.float64))
    file.close()
    row = mapped(path, (4, 2), torch.float64)[3]
    assert not feature_cache.unused(path)
    path.unlink()
    assert row.tolist() == [1.0, 1.0]
    path.write_bytes(b"")
    assert feature_cache.unused(path)


def test_an_entry_of_another_key_is_damage(place: Path) -> None:
    network, images = Network(), digits()
    network(images)
    manifest, data = files_of(place)
    other = entry_of({"tap": "pooled"})
    os.rename(manifest, other.manifest)
    os.rename(data, other.data)
    with pytest.raises(feature_cache.DamagedFile, match="does not describe these features"):
        look_up(other)
    assert look_up(entry_of({"tap": "cls"})) is None


def test_exact_over_processes_and_machines(tmp_path: Path, forks: Forks) -> None:
    """1, 2 and 3 processes, of which the third is on another machine, with a cache of its own: the same bits."""
    drawn(tmp_path / "set", 7)
    caches = [{"XDG_CACHE_HOME": str(tmp_path / f"cache{rank // 2}")} for rank in range(3)]
    for code, said in forks(__file__, [[str(rank), tmp_path] for rank in range(3)], caches):
        assert code == 0 and said.splitlines()[-1].endswith("exact"), said


def one_process(rank: int, folder: Path) -> None:
    images, network = open_images(f"folder:{folder / 'set'}?labels=none"), Network(("pooled", "tokens"))
    counts = (1, 7)
    alone = {(n, b): network(images.select(torch.arange(n)), cache=0, batch_size=b) for n in counts for b in (2, 3)}
    crops = RandomCrops(images, Evaluation(16), seed=0, epoch=1)
    cropped = network(crops, cache=0, batch_size=2)
    feature_stores.identity = lambda: {"where": f"machine {rank // 2}"}
    place = Path(os.environ["XDG_CACHE_HOME"]) / "rootstock" / "features"

    def same(n: int, batch: int, seen: int | None, log: Callable[[str], None] = print, **more: Any) -> str:
        """What is said. seen: images that went through the network on all processes; None where rows of the cache are checked."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            found = network(images.select(torch.arange(n)), batch_size=batch, log=log, **more)
        assert all(torch.equal(rows, alone[n, batch][name]) for name, rows in found.items())
        total = torch.tensor(network.seen)
        dist.all_reduce(total)
        assert network.seen <= 8 if seen is None else int(total) == seen, (network.seen, seen)
        return said.getvalue()

    for world in (3, 2):
        if rank >= world:
            break
        dist.init_process_group("gloo", init_method=f"file://{folder / str(world)}", rank=rank, world_size=world)
        for name, rows in network(crops, cache=0, batch_size=2).items():
            assert torch.equal(rows, cropped[name])
        for n in counts:
            assert same(n, world, n) == "" and same(n, world, None) == ""
        assert len(list(place.glob("*.json"))) >= 2 * len(counts)
        if world == 3:
            # One machine's cache is damaged, then empty: all machines compute, and the right entries stay.
            if rank == 2:
                for path in place.glob("*.safetensors"):
                    flip(path)
            dist.barrier()
            said = same(7, 3, 7)
            assert rank or (said.count("sha256 differs") == 2 and said.count("\n") == 2), said
            assert same(7, 3, None) == ""
            if rank == 2:
                shutil.rmtree(place)
            dist.barrier()
            assert same(7, 3, 7) == "" and same(7, 3, None) == ""
            lines: list[str] = []
            same(7, 3, 7, lines.append, cache=2000, described={"a view": "that nobody had"})
            assert "temporary file" in lines[0] and not list(place.glob(".*.part"))
        # The disk of one machine is full: no machine waits for another.
        if rank == world - 1:
            os.posix_fallocate = lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
        said = same(7, world, 7, described={"another": "view"})
        assert rank or "No space left" in said or world == 2
        dist.barrier()
        dist.destroy_process_group()
    print(f"{rank}: exact")


if __name__ == "__main__":
    one_process(int(sys.argv[1]), Path(sys.argv[2]))
