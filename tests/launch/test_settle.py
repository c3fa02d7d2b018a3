"""Keys that say `auto`: the values that rules give them, the run that keeps them, and the network of a run before that of a config."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from rootstock.core.config.resolve import ConfigError
from rootstock.core.errors import UserError
from rootstock.core.model.backbone import create
from rootstock.launch import settle as rules
from rootstock.launch.settle import (
    Facts,
    batch_for,
    give_way,
    network_for,
    open_keys,
    settle,
    side_for,
    steps_for,
    whole_patches,
)
from rootstock.launch.verbs import execute, resolve

TINY = {"channels": [4, 4, 8, 8], "layers": [1, 1, 1, 1]}


def pictures(folder: Path, sides: list[tuple[int, int]], classes: int = 2) -> str:
    for number, side in enumerate(sides):
        path = folder / f"class{number % classes}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise(side, 60 + number % 40).convert("RGB").save(path)
    return f"folder:{folder}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Forty pictures, 40 px on the shorter side."""
    return pictures(tmp_path_factory.mktemp("photos"), [(40 + number % 9, 40) for number in range(40)])


def config(path: Path, **sections: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"seed": 0, **sections}))
    return str(path)


def pretraining(path: Path, train: str, **optim: Any) -> str:
    return config(
        path,
        data={"train": train, "size": "auto"},
        backbone={"name": "auto"},
        method={"name": "simclr", "projection": [8, 8]},
        optim={"name": "adamw", "lr": 1e-3, "batch_size": "auto", "duration": "auto", **optim},
        evaluate={"watch": None},
        run={"dir": str(path.parent / "run"), "device": "cpu", "workers": 0, "log_every": 1},
    )


@pytest.mark.parametrize(
    ("side", "accelerator", "expected"),
    [(8, True, 32), (35, True, 32), (36, True, 64), (227, True, 224), (500, True, 224), (227, False, 64), (50, False, 64)],
)  # fmt: skip
def test_the_side_is_what_pictures_have(side: int, accelerator: bool, expected: int) -> None:
    assert side_for(Facts((100,), side, accelerator)) == expected


@pytest.mark.parametrize(
    ("verb", "counts", "batch"),
    [("pretrain", (10,), 8), ("pretrain", (20,), 16), ("finetune", (19,), 8), ("adapt", (3, 900), 2), ("pretrain", (1,), 1),
     ("pretrain", (600,), 64), ("pretrain", (9999,), 256), ("adapt", (99, 300), 16), ("adapt", (9999, 999), 64)],
)  # fmt: skip
def test_the_batch_fits_eight_times_into_the_smallest_set(verb: str, counts: tuple[int, ...], batch: int) -> None:
    assert batch_for(verb, Facts(counts, 64, False)) == batch


@pytest.mark.parametrize(
    ("name", "args", "side", "expected"),
    [
        ("vit_tiny_patch14_reg4_dinov2", {}, 64, 70), ("vit_small_patch14_dinov2", {}, 224, 224), ("vit_tiny_patch16_224", {}, 96, 96),
        ("vit_tiny_patch16_224", {"patch_size": 12}, 32, 36), ("vit_tiny_patch14_reg4_dinov2", {"patch_size": 8}, 64, 64),
        ("resnet18", {}, 64, 64), ("auto", {}, 64, 64),
    ],
)  # fmt: skip
def test_the_side_is_one_that_patches_fill(name: str, args: dict[str, Any], side: int, expected: int) -> None:
    assert whole_patches(side, {"backbone": {"name": name, "args": args}}) == expected


def test_few_pictures_and_patches_of_14_get_values_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "FEWEST_STEPS", 2)
    monkeypatch.setattr(rules, "EPOCHS", {"pretrain": 0})
    few = pictures(tmp_path / "few", [(60, 60)] * 10)
    path = pretraining(tmp_path / "p" / "pretrain.yaml", few)
    keys = ["backbone.name=vit_small_patch14_dinov2", "backbone.args={depth: 1, embed_dim: 12, num_heads: 2}"]
    settled = settle("pretrain", resolve("pretrain", path, keys))
    assert (settled["data"]["size"], settled["optim"]["batch_size"]) == (70, 8)
    assert execute("pretrain", path, keys, quiet=True)["steps"] == settled["optim"]["duration"]


def test_steps_are_epochs_of_the_largest_set_within_bounds() -> None:
    for accelerator, part in ((True, 1), (False, 2)):  # on a CPU half of them
        assert steps_for("pretrain", Facts((6400,), 64, accelerator), 64) == 10_000 // part
        assert steps_for("adapt", Facts((60, 6400), 64, accelerator), 64) == 3_000 // part
        assert steps_for("pretrain", Facts((60,), 64, accelerator), 16) == rules.FEWEST_STEPS // part
        assert steps_for("pretrain", Facts((10**7,), 64, accelerator), 256) == rules.MOST_STEPS // part


@pytest.mark.parametrize("method", ["simclr", "mae", "simmim", "ijepa", "ibot", "dinov2", "dino", "lejepa", "byol"])
@pytest.mark.parametrize("size", [32, 64, 96, 224])
@pytest.mark.parametrize("accelerator", [True, False])
def test_every_method_can_be_built_on_the_network_that_it_gets(method: str, size: int, accelerator: bool) -> None:
    backbone = {"args": {}, "pooling": None, "stem": None, "weights": "none"}
    chosen = network_for(
        "pretrain",
        {"data": {"size": size}, "method": {"name": method}, "backbone": backbone},
        Facts((9,), size, accelerator),
    )
    hides = method in ("mae", "simmim", "ijepa", "ibot", "dinov2")
    assert chosen["name"].startswith("vit_") == hides
    if hides:  # small ones are built
        assert size % chosen["args"]["patch_size"] == 0
        model = create(
            size, name="vit_tiny_patch16_224", pooling=chosen["pooling"], args={**chosen["args"], "depth": 1}
        )
        assert model.size == size


def test_weights_of_timm_come_with_a_network_that_timm_has() -> None:
    backbone = {"args": {}, "pooling": None, "stem": None, "weights": "timm"}
    given = {"data": {"size": 32}, "method": {"name": "mcc"}, "backbone": backbone}
    assert network_for("adapt", given, Facts((9, 9), 32, False)) == {"name": "resnet10t"}
    assert network_for("adapt", given, Facts((9, 9), 32, True)) == {"name": "resnet18"}
    with pytest.raises(UserError, match=r"backbone.name: auto cannot tell which network w.safetensors is of"):
        network_for("adapt", {**given, "backbone": {**backbone, "weights": "w.safetensors"}}, Facts((9, 9), 32, True))


def test_what_is_settled_is_recorded_and_the_same_command_goes_on(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rules, "FEWEST_STEPS", 4)
    monkeypatch.setattr(rules, "EPOCHS", {"pretrain": 1})
    path = pretraining(tmp_path / "pretrain.yaml", photos)
    result = execute("pretrain", path)
    assert "auto: data.size=64 backbone.name=resnet10t optim.batch_size=16 optim.duration=2" in capsys.readouterr().err
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["data"]["size"] == 64 and written["backbone"]["name"] == "resnet10t"
    assert (written["optim"]["batch_size"], written["optim"]["duration"]) == (16, 2) and result["steps"] == 2
    # Other rules, as on another machine or in a later version: the run keeps its values.
    monkeypatch.setattr(rules, "FEWEST_STEPS", 7)
    monkeypatch.setattr(rules, "INPUT_SIDES", (32, 160))
    assert execute("pretrain", path, quiet=True) == result
    # A run's config is a config again.
    again = resolve("pretrain", str(tmp_path / "run" / "config.yaml"), ["run.dir=elsewhere"])
    assert not open_keys(again) and again["optim"]["duration"] == 2

    # A probe takes the network and the size of the run.
    probe = config(
        tmp_path / "probe.yaml",
        data={"train": photos, "size": "auto"},
        backbone={"name": "auto", "weights": str(tmp_path / "run")},
        evaluate={"knn": {"k": 3}},
        run={"dir": str(tmp_path / "probe"), "device": "cpu", "workers": 0},
    )
    settled = resolve("probe", probe)
    assert settled["data"]["size"] == 64 and settled["backbone"]["name"] is None
    assert "test/knn/accuracy" in execute("probe", probe, quiet=True)["metrics"]


def test_a_run_that_is_still_to_come_is_waited_for(photos: str, tmp_path: Path) -> None:
    probe = config(
        tmp_path / "probe.yaml",
        data={"train": photos, "size": "auto"},
        backbone={"name": "auto", "weights": str(tmp_path / "later")},
        evaluate={"knn": {"k": 3}},
        run={"dir": str(tmp_path / "probe"), "device": "cpu"},
    )
    assert open_keys(resolve("probe", probe)) == ["data.size", "backbone.name"]
    with pytest.raises(UserError, match=r"backbone.weights: .*later does not exist"):
        settle("probe", resolve("probe", probe))


def test_the_network_of_a_run_comes_before_the_config_s(photos: str, tmp_path: Path) -> None:
    create(32, name="resnet10t", args=TINY).export(tmp_path / "run")
    weights = str(tmp_path / "run")
    path = config(
        tmp_path / "probe.yaml",
        data={"train": photos, "size": 32},
        backbone={"name": "resnet50"},
        evaluate={"knn": {"k": 3}},
        run={"dir": str(tmp_path / "probe"), "device": "cpu", "workers": 0},
    )
    assert resolve("probe", path, [f"backbone.weights={weights}"])["backbone"]["name"] is None
    assert "test/knn/accuracy" in execute("probe", path, [f"backbone.weights={weights}"], quiet=True)["metrics"]
    # One that the command names stays, and contradicts.
    named = [f"backbone.weights={weights}", "backbone.name=resnet18", f"run.dir={tmp_path / 'other'}"]
    with pytest.raises(UserError, match=r"backbone.name: 'resnet18' contradicts 'resnet10t'"):
        execute("probe", path, named, quiet=True)
    same = {"backbone": {"name": "resnet10t", "weights": weights, "args": {}, "stem": None}}
    assert give_way(same, [f"backbone.weights={weights}"]) == "" and same["backbone"]["name"] == "resnet10t"


def test_auto_is_for_the_keys_that_say_so(photos: str, tmp_path: Path) -> None:
    path = pretraining(tmp_path / "pretrain.yaml", photos)
    with pytest.raises(ConfigError, match=r"optim.lr: expected a number, got \"auto\""):
        resolve("pretrain", path, ["optim.lr=auto"])
    with pytest.raises(
        ConfigError, match=r"optim.batch_size: expected an integer or auto, got \"atuo\"; did you mean auto\?"
    ):
        resolve("pretrain", path, ["optim.batch_size=atuo"])
    with pytest.raises(ConfigError, match=r"optim.duration: expected a duration .* or auto, got \"soon\""):
        resolve("pretrain", path, ["optim.duration=soon"])
    assert not (tmp_path / "run").exists()


def test_pictures_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for number in range(3):
        (broken / f"{number}.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"none of the pictures that were looked at can be read"):
        execute("pretrain", pretraining(tmp_path / "pretrain.yaml", f"folder:{broken}"), quiet=True)
