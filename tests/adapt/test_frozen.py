"""A frozen backbone encodes each image once: the weights are those of the run that encodes the images of every step."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from rootstock.adapt.frozen import FrozenFeatures
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.core.model.backbone import Backbone
from rootstock.core.views.augmentation import Augmentation
from rootstock.core.views.multiview import StillView, multiview
from rootstock.core.views.presets import VIEWS
from rootstock.launch.verbs import execute
from rootstock.tests.adapt.digits import sets

HALF = (0.5, 0.5, 0.5)
CONFIG: dict[str, Any] = {
    "label_shift": {"resamples": 0},
    "data": {**sets(size=20), "size": 16, "views": "none"},
    "backbone": {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}, "freeze": "all"},
    "optim": {"name": "sgd", "lr": 0.5, "batch_size": 8, "duration": 12},
    "run": {"log_every": 1, "workers": 0, "device": "cpu", "checkpoint": {"every": "50%"}},
}
METHODS: list[dict[str, Any]] = [
    {"name": "source_only", "bottleneck": 6},
    {"name": "dann", "hidden": 8, "bottleneck": 6, "batchnorm": "apart"},
    {"name": "cdan", "hidden": 8, "bottleneck": 6, "head": "cosine"},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each forward of the backbone had."""
    counts: list[int] = []
    forward = Backbone.forward

    def counting(backbone: Backbone, images: Tensor) -> Tensor:
        counts.append(len(images))
        return forward(backbone, images)

    monkeypatch.setattr(Backbone, "forward", counting)
    return counts


def start(folder: Path, method: dict[str, Any], *overrides: str, **data: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    config = {**CONFIG, "data": {**CONFIG["data"], **data}, "method": method}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return execute("adapt", str(folder / "config.yaml"), [f"run.dir={folder / 'run'}", *overrides], quiet=True)


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def trained(folder: Path) -> dict[str, Tensor]:
    classifier = folder / "run" / "classifier"
    return {
        f"{name}.{key}": value
        for name in ("head", "bottleneck")
        for key, value in load_file(classifier / f"{name}.safetensors").items()
    }


def cached(folder: Path) -> list[Path]:
    """The files of features in the cache."""
    return sorted((folder / "cache").rglob("features/*.safetensors"))


def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the frozen backbone encodes the images of every step."""
    monkeypatch.setattr(FrozenFeatures, "of", staticmethod(lambda *args: None))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_the_weights_are_those_of_features_computed_at_every_step(
    method: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = start(tmp_path / "once", method)
    anew(monkeypatch)
    every = start(tmp_path / "every", method)
    assert losses(tmp_path / "once") == pytest.approx(losses(tmp_path / "every"), rel=1e-5, abs=1e-6)
    assert len(set(losses(tmp_path / "every"))) == 12
    torch.testing.assert_close(trained(tmp_path / "once"), trained(tmp_path / "every"), rtol=1e-4, atol=1e-5)
    assert once["metrics"] == pytest.approx(every["metrics"], abs=1e-3)
    assert {key: once[key] for key in ("data", "seen_unlabelled", "seen_labelled", "steps", "images_seen")} == {
        key: every[key] for key in ("data", "seen_unlabelled", "seen_labelled", "steps", "images_seen")
    }


def test_pictures_of_several_sizes_are_cropped_as_in_training(
    draw: Callable[[Path, Iterable[str]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(8)]
    photos, sketches = (f"folder:{draw(tmp_path / name, names)}" for name in ("photos", "sketches"))
    data = {
        "source": photos,
        "target": sketches,
        "test": sketches,
        "views": {"name": "none", "interpolation": "bicubic"},
    }
    start(tmp_path / "once", METHODS[1], **data)
    anew(monkeypatch)
    start(tmp_path / "every", METHODS[1], **data)
    assert losses(tmp_path / "once") == pytest.approx(losses(tmp_path / "every"), rel=1e-5, abs=1e-6)


def test_each_image_is_encoded_once_and_in_a_later_run_not_at_all(tmp_path: Path, encoded: list[int]) -> None:
    start(tmp_path / "first", METHODS[1])
    assert sum(encoded) == 0  # taps call the timm model itself
    first = trained(tmp_path / "first")
    cache = cached(tmp_path)
    # Source and target as the training and as evaluation see them, and the test.
    assert len(cache) == 5 and not (tmp_path / "first" / "run" / "pictures" / "views.png").exists()
    start(tmp_path / "second", METHODS[2])
    assert cache == cached(tmp_path)
    start(tmp_path / "again", METHODS[1])
    again = trained(tmp_path / "again")
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert sum(encoded) == 0


def test_a_seed_that_holds_other_images_out_encodes_nothing_anew(tmp_path: Path) -> None:
    """Training and held-out images are parts of one domain, which is encoded as a whole."""
    held_out = "evaluate.held_out=0.3"
    start(tmp_path / "first", METHODS[1], held_out)
    cache = cached(tmp_path)
    assert len(cache) == 5
    start(
        tmp_path / "second",
        METHODS[1],
        held_out,
        "seed=1",
        f"backbone.weights={tmp_path / 'first' / 'run' / 'backbone'}",
    )
    assert cache == cached(tmp_path)
    states = [trained(tmp_path / name) for name in ("first", "second")]
    assert not torch.equal(states[0]["head.weight"], states[1]["head.weight"])


def test_a_stopped_run_ends_with_the_very_weights(tmp_path: Path) -> None:
    start(tmp_path / "straight", METHODS[2])
    expected = hashlib.sha256((tmp_path / "straight" / "run" / "classifier" / "head.safetensors").read_bytes())
    shutil.copytree(tmp_path / "straight" / "run", tmp_path / "stopped" / "run")
    run = tmp_path / "stopped" / "run"
    for name in ("result.json", "backbone", "classifier", "checkpoints/step-00000012", "MANIFEST.json"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    start(tmp_path / "stopped", METHODS[2])
    found = hashlib.sha256((run / "classifier" / "head.safetensors").read_bytes())
    assert found.hexdigest() == expected.hexdigest()


def test_where_steps_need_images_the_log_says_so(tmp_path: Path, encoded: list[int], capsys: Any) -> None:
    folder = tmp_path / "varied"
    folder.mkdir()
    config = {**CONFIG, "data": {**CONFIG["data"], "views": "digits_weak"}, "method": METHODS[1]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    execute("adapt", str(folder / "config.yaml"), [f"run.dir={folder / 'run'}"])
    told = capsys.readouterr()
    assert "the frozen backbone encodes the images of every step" in told.out + told.err
    # One forward a domain in each of 12 steps, and as each is logged, one more that watches the game.
    assert encoded.count(8) == 48
    before = len(encoded)
    start(tmp_path / "partly", METHODS[1], "backbone.freeze=stage2")
    assert len(encoded) > before


def test_a_method_that_uses_pixels_gets_them(
    tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ADAPT_METHODS["dann"], "uses_pixels", True)
    start(tmp_path / "pixels", METHODS[1])
    assert encoded.count(8) == 48


def test_only_views_of_which_nothing_is_drawn_are_still() -> None:
    for name, preset in VIEWS.items():
        assert preset().varies == (name != "none"), name
    still = {
        "ratio": (0.5, 2.0),
        "magnitude": 3.0,
        "blur_sigma": (1.0, 2.0),
        "interpolation": "bicubic",
        "jitter_p": (0.0,),
    }
    assert not Augmentation(**still).varies  # pyright: ignore[reportArgumentType]
    for key, value in {"flip": 0.1, "zoom": (0.9, 1.1), "scale": (1.0, 1.0), "grayscale": 0.5, "invert": 1.0}.items():
        assert Augmentation(**{key: value}).varies, key  # pyright: ignore[reportArgumentType]
    assert StillView.of(multiview(Augmentation(centre=0.5), 16, HALF, HALF, 1)) is None
    assert StillView.of(multiview(Augmentation(), 16, HALF, HALF, 2)) is None
    with pytest.raises(ValueError, match="whole of an image"):
        StillView(multiview(Augmentation(flip=0.5), 16, HALF, HALF, 1).views[0])
