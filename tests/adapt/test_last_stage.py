"""Layers frozen up to a stage encode each image once: steps on their maps are those on images, whatever lies above the boundary."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from rootstock.adapt.frozen import FrozenFeatures
from rootstock.adapt.sets import Sets
from rootstock.core.evaluate.maps import BoundaryMaps, find_boundary
from rootstock.core.evaluate.taps import POOLED, Taps
from rootstock.core.images.open import open_images
from rootstock.core.model.backbone import Backbone, create
from rootstock.core.views.augmentation import Augmentation
from rootstock.core.views.multiview import StillView, multiview
from rootstock.core.views.view import Evaluation
from rootstock.launch.verbs import execute
from rootstock.tests.adapt.digits import sets

SMALL: dict[str, Any] = {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}, "freeze": "stage2"}
CONFIG: dict[str, Any] = {
    "label_shift": {"resamples": 0},
    "data": {**sets(size=20), "size": 16, "views": "none"},
    "backbone": SMALL,
    "optim": {"name": "sgd", "lr": 0.3, "backbone_lr": 0.5, "batch_size": 8, "duration": 6},
    "evaluate": None,
    "run": {"log_every": 1, "workers": 0, "device": "cpu", "checkpoint": {"every": "50%"}},
}
DANN: dict[str, Any] = {"name": "dann", "hidden": 8, "bottleneck": 6}
# A network of each kind: the last layer below the boundary, and the map there. The ViT adds positions and a class token below it.
NETWORKS: dict[str, tuple[dict[str, Any], str, tuple[int, ...]]] = {
    "smallconv": ({**SMALL, "freeze": "stage1"}, "blocks.1", (4, 8, 8)),
    "resnet": ({"name": "resnet10t", "freeze": "stage3"}, "layer3", (256, 2, 2)),
    "stem": ({"name": "resnet10t", "freeze": "stem"}, "maxpool", (64, 8, 8)),
    "efficientnet": ({"name": "tf_efficientnet_lite0", "freeze": "stage6"}, "blocks.5", (192, 1, 1)),
    "convnext": ({"name": "convnext_atto", "freeze": "stage2"}, "stages.1", (80, 4, 4)),
    "regnet": ({"name": "regnetx_002", "freeze": "stage3"}, "s3", (152, 2, 2)),
    "vit": (
        {
            "name": "vit_tiny_patch16_224",
            "freeze": "stage2",
            "args": {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2},
        },
        "blocks.1",
        (17, 24),
    ),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """What each forward of the backbone got for one image."""
    found: list[tuple[int, ...]] = []
    forward = Backbone.forward

    def noting(backbone: Backbone, images: Tensor) -> Tensor:
        found.append(tuple(images.shape[1:]))
        return forward(backbone, images)

    monkeypatch.setattr(Backbone, "forward", noting)
    return found


def start(
    folder: Path, method: dict[str, Any] = DANN, *overrides: str, quiet: bool = True, **sections: Any
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    config = {**CONFIG, "method": method} | {
        name: {**CONFIG[name], **keys} if isinstance(keys, dict) and CONFIG[name] else keys
        for name, keys in sections.items()
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return execute("adapt", str(folder / "config.yaml"), [f"run.dir={folder / 'run'}", *overrides], quiet=quiet)


def trained(folder: Path) -> dict[str, Tensor]:
    files = sorted((folder / "run" / "classifier").glob("*.safetensors"))
    return {f"{file.stem}.{key}": value for file in files for key, value in load_file(file).items()}


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the frozen layers encode the images of every step."""
    monkeypatch.setattr(FrozenFeatures, "of", staticmethod(lambda *args: None))


def same(once: Path, every: Path) -> None:
    """Two runs ended with the same weights, up to rounding, by way of the same losses."""
    assert losses(once) == pytest.approx(losses(every), rel=1e-5, abs=1e-6)
    assert len(set(losses(every))) == 6
    torch.testing.assert_close(trained(once), trained(every), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_layers_above_run_on_maps_as_the_whole_network_on_images(kind: str) -> None:
    """The very bits, in training and evaluation, gradients and running statistics included; the network itself stays as it was."""
    backbone, place, shape = NETWORKS[kind]
    torch.manual_seed(0)
    network = create(32, **backbone)
    images = torch.randn(4, 3, 32, 32)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    parts = dict(network.named_modules())
    assert find_boundary(network, images) == "" and network.boundary is not None
    assert (network.boundary.name, network.boundary.shape) == (place, shape)
    assert dict(network.named_modules()) == parts and list(network.state_dict()) == list(before)
    (maps,) = BoundaryMaps(network)(images).values()
    for training in (False, True):
        found = []
        for given in (images, maps):
            network.load_state_dict(before)
            network.train(training).zero_grad()
            features = network(given)
            features.square().sum().backward()
            gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
            found.append([features.detach(), *gradients, *(b.clone() for b in network.buffers())])
        assert len(found[0]) == len(found[1]) and len(gradients) > 2
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class Forked(nn.Module):
    """A network whose last layer also sees the first one's output; beside: whether it does."""

    num_features = 4

    def __init__(self, beside: bool, dropout: float = 0.0, inplace: bool = False) -> None:
        super().__init__()
        self.first, self.drop, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(dropout), nn.Conv2d(4, 4, 3)
        self.act, self.last, self.beside = nn.ReLU(inplace), nn.Conv2d(4, 4, 3), beside

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.first(x))
        y = self.last(self.act(self.second(x)))
        return (y + x[:, :, 2:-2, 2:-2] if self.beside else y).mean((2, 3))


class Writing(nn.Conv2d):
    """A layer that writes into its input."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.relu_())


def frozen_network(**keys: Any) -> Backbone:
    """The first and second convolution rest."""
    torch.manual_seed(0)
    network = Backbone(Forked(**keys), {"name": "forked", "args": {}, "size": 8, "stem": "default"}, [0.5], [0.5])
    network.still = [network.model.first, network.model.second]  # pyright: ignore[reportAttributeAccessIssue]
    for module in network.still:
        module.requires_grad_(False)
    return network


def test_networks_that_need_more_than_the_map_are_told_apart() -> None:
    images = torch.randn(4, 3, 8, 8)
    assert find_boundary(frozen_network(beside=False), images) == ""
    for keys, why in (({"beside": True}, "more than one map"), ({"beside": False, "dropout": 0.5}, "a Dropout among")):
        network = frozen_network(**keys)
        assert why in find_boundary(network, images) and network.boundary is None
    whole = create(16, **{**SMALL, "freeze": "none"})
    assert "none of the frozen layers" in find_boundary(whole, torch.randn(4, 3, 16, 16))


def test_maps_are_not_written_into() -> None:
    """Methods of several turns run the layers above on the same batch again."""
    network = frozen_network(beside=False)
    model: Any = network.model
    model.last, model.act = Writing(4, 4, 3), nn.Identity()
    images = torch.randn(4, 3, 8, 8)
    assert find_boundary(network, images) == "" and network.boundary is not None
    (maps,) = BoundaryMaps(network)(images).values()
    kept = maps.clone()
    assert bool((kept < 0).any()) and torch.equal(network(maps), network(images))
    assert torch.equal(maps, kept)


@pytest.mark.parametrize("batchnorm", ["joint", "apart", "own"])
def test_the_weights_are_those_of_images_at_every_step(
    batchnorm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shapes: list[tuple[int, ...]]
) -> None:
    method = {**DANN, "batchnorm": batchnorm}
    once = start(tmp_path / "once", method)
    # Beside the check of the boundary, every forward was of maps: of steps and of tests.
    assert shapes.count((3, 16, 16)) == 1 and set(shapes) == {(3, 16, 16), (6, 2, 2)}
    anew(monkeypatch)
    shapes.clear()
    every = start(tmp_path / "every", method)
    assert set(shapes) == {(3, 16, 16)}
    same(tmp_path / "once", tmp_path / "every")
    assert once["metrics"] == pytest.approx(every["metrics"], abs=1e-3)
    assert {key: once[key] for key in ("data", "steps", "images_seen")} == {
        key: every[key] for key in ("data", "steps", "images_seen")
    }


@pytest.mark.parametrize("method", [{"name": "mcd"}, {"name": "prototypes"}], ids=["turns", "prototypes"])
def test_turns_and_the_source_at_the_end(method: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    start(tmp_path / "once", method, evaluate={"images": 50, "mixval": True})
    anew(monkeypatch)
    start(tmp_path / "every", method)
    torch.testing.assert_close(trained(tmp_path / "once"), trained(tmp_path / "every"), rtol=1e-4, atol=1e-5)


def test_maps_are_kept_whatever_learns_above_them(tmp_path: Path, shapes: list[tuple[int, ...]]) -> None:
    start(tmp_path / "first")
    cache = sorted((tmp_path / "cache").rglob("features/*.safetensors"))
    # Source and target as the training and as evaluation see them, and the test; the last three when the layers above had learned.
    assert len(cache) == 5
    assert all(next(iter(load_file(file).values())).shape[1:] == (6, 2, 2) for file in cache)
    start(tmp_path / "second", DANN, "optim.lr=0.1", "optim.duration=3")
    assert sorted((tmp_path / "cache").rglob("features/*.safetensors")) == cache


def test_a_stopped_run_ends_with_the_very_weights(tmp_path: Path) -> None:
    start(tmp_path / "straight")
    expected = trained(tmp_path / "straight")
    run = tmp_path / "stopped" / "run"
    shutil.copytree(tmp_path / "straight" / "run", run)
    for name in ("result.json", "backbone", "classifier", "checkpoints/step-00000006", "MANIFEST.json"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    start(tmp_path / "stopped")
    found = trained(tmp_path / "stopped")
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize(
    ("method", "overrides", "why"),
    [
        ({"name": "fixmatch"}, [], "needs the pictures"),
        ({"name": "mcc", "mic": {}}, [], "needs the pictures"),
        (DANN, ["data.views=digits"], "with data.views=none"),
    ],
    ids=["strong views", "pixels", "augmentation"],
)
def test_steps_that_need_images_get_them(
    method: dict[str, Any], overrides: list[str], why: str, tmp_path: Path, shapes: list[tuple[int, ...]], capsys: Any
) -> None:
    start(tmp_path / "run", method, "optim.duration=1", *overrides, quiet=False)
    assert set(shapes) == {(3, 16, 16)}
    told = capsys.readouterr()
    log = " ".join((told.out + told.err).split())
    assert "the frozen layers encode the images of every step; " in log and why in log


@pytest.mark.parametrize("freeze", ["all", "stage2"])
def test_damaged_pictures_are_replaced_as_in_the_stream(
    freeze: str, draw: Callable[[Path, Iterable[str]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, labels of the neighbours and the names in the result are those of the run on images."""
    names = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(8)]
    source, target, test = (draw(tmp_path / name, names) for name in ("photos", "sketches", "tests"))
    for broken in (source / "cat" / "7.png", target / "cat" / "0.png"):
        broken.write_bytes(broken.read_bytes()[:60])
    data = {"source": f"folder:{source}", "target": f"folder:{target}", "test": f"folder:{test}"}
    sections = {"data": data, "backbone": {"freeze": freeze}, "run": {"damaged": 0.2}}
    found = start(tmp_path / "once", DANN, **sections)
    anew(monkeypatch)
    expected = start(tmp_path / "every", DANN, **sections)
    assert sorted(found["damaged"]) == sorted(expected["damaged"]) and len(found["damaged"]) == 2
    same(tmp_path / "once", tmp_path / "every")


@pytest.mark.parametrize("freeze", ["all", "stage2"])
def test_rows_of_blends_are_those_of_their_own_pixels(freeze: str) -> None:
    """Several images have one identity: each gets its own features in whatever part of the set, and so does another set of theirs."""
    plain, blends = open_images("sklearn:digits?size=16#[:30]"), open_images("sklearn:digits-m?size=16&blends=3#[:30]")
    assert torch.equal(plain.keys().unique(), blends.keys().unique()) and len(blends) == 3 * len(plain)
    network = create(16, **{**SMALL, "freeze": freeze}).eval()
    still = StillView(multiview(Augmentation(), 16, network.mean, network.std, 1).views[0])
    if freeze != "all":
        pictures = torch.stack([blends.read(i) for i in range(4)])
        assert find_boundary(network, still(pictures)) == ""
    taps = Taps(network, [POOLED]) if freeze == "all" else BoundaryMaps(network)
    options = {"workers": 0, "feature_cache": "0"}
    run: Any = SimpleNamespace(device=torch.device("cpu"), options=options, log=print)
    features, view = FrozenFeatures(run, taps, still, Sets(plain, blends, {})), Evaluation(16)
    mixed = torch.tensor([5, 80, 4, 3, 5, 31])
    for images in (plain, blends, plain.select(torch.arange(3, 9)), blends.select(mixed)):
        found = torch.cat(list(features.read(images, view)))
        pictures = torch.stack([images.read(i) for i in range(len(images))])
        (expected,) = taps(view(pictures)).values()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert len(found.flatten(1).unique(dim=0)) >= len(found) - 1  # no two images have the same features
