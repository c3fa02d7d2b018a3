"""The keys that all adaptation methods share: in the schema, in messages, in whole runs, and in what a run leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rootstock.adapt.adapt import adapt
from rootstock.adapt.objective import METHOD, shared_options
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.core.config.descriptions import described_keys
from rootstock.core.config.json_schema import json_schema
from rootstock.core.config.resolve import ConfigError, load
from rootstock.core.config.schema import keys_of
from rootstock.core.errors import UserError
from rootstock.core.run import options as run_section
from rootstock.launch.verbs import execute
from rootstock.tests.adapt.digits import sets

CONFIG: dict[str, Any] = {
    "label_shift": {"resamples": 0},
    "data": {**sets(size=16), "size": 16, "views": "digits"},
    "backbone": {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}},
    "optim": {"name": "sgd", "lr": 0.1, "backbone_lr": 0.1, "batch_size": 8, "duration": 3},
    "run": {"log_every": 1, "workers": 0, "device": "cpu", "checkpoint": {"every": "100%"}},
}


def write(folder: Path, method: Any, **more: Any) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "method": method, **more}))
    return str(path)


def start(folder: Path, method: Any, *overrides: str, **more: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return execute("adapt", write(folder, method, **more), [f"run.dir={folder / 'run'}", *overrides], quiet=True)


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_each_method_has_the_shared_keys_beside_its_own() -> None:
    shared = keys_of(shared_options)
    assert set(shared) >= {"bottleneck", "head", "head_temperature", "batchnorm"}
    for name, method in ADAPT_METHODS.items():
        assert set(METHOD.keys({"name": name})) == {"name", *keys_of(method), *shared}
    options = json_schema({"adapt": adapt})["$defs"]
    described = described_keys(shared_options)
    for name in ADAPT_METHODS:
        properties = options[f"method.{name}"]["properties"]
        assert {key: properties[key]["description"] for key in shared} == {key: described[key] for key in shared}


def test_messages_know_both_kinds_of_keys(tmp_path: Path) -> None:
    config = {"name": "dann", "botleneck": 8, "hiden": 8}
    with pytest.raises(ConfigError) as refused:
        load(write(tmp_path, config), adapt, extra={"run": run_section.options})
    told = "\n".join(refused.value.problems)
    assert "method.botleneck: unknown key; did you mean bottleneck?" in told
    assert "method.hiden: unknown key; did you mean hidden?" in told
    with pytest.raises(ConfigError, match=r'method\.bottleneck: expected an integer or none, got "wide"'):
        load(write(tmp_path, {"name": "dann", "bottleneck": "wide"}), adapt, extra={"run": run_section.options})


def test_another_name_keeps_the_shared_keys_and_drops_the_others(tmp_path: Path) -> None:
    path = write(tmp_path, {"name": "dann", "hidden": 8, "bottleneck": 4, "batchnorm": "apart"})
    method = load(path, adapt, ["method=source_only", "run.dir=x"], {"run": run_section.options})["method"]
    assert method == {
        "name": "source_only",
        "label_smoothing": 0.0,
        "bottleneck": 4,
        "head": "linear",
        "head_temperature": 0.05,
        "batchnorm": "apart",
        "keep_head": False,
        "unknown": False,
        "mic": None,
    }


def test_a_key_of_both_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(*, bottleneck: int = 3) -> None: ...

    monkeypatch.setitem(METHOD.registry, "mine", mine)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="mine: bottleneck is a key of all names already"):
        METHOD.keys({"name": "mine"})


FEATURES_ALONE: list[dict[str, Any]] = [
    {"name": "dann"}, {"name": "cdan", "entropy": False}, {"name": "dan"}, {"name": "afn"}, {"name": "mdd"},
    {"name": "deepcoral", "layer": "features"},
]  # fmt: skip


@pytest.mark.parametrize("method", FEATURES_ALONE, ids=lambda method: method["name"])
def test_a_method_that_could_change_nothing_is_refused(method: dict[str, Any], tmp_path: Path) -> None:
    """Above a frozen network without a bottleneck its result would be that of its control; with one, or as a control, it runs."""
    more: dict[str, Any] = {"backbone": {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}, "freeze": "all"}}
    with pytest.raises(
        UserError, match=rf"^method: {method['name']}.* changes features alone, .* method\.bottleneck=256$"
    ):
        start(tmp_path / "a", method, **more)
    start(tmp_path / "b", {**method, "bottleneck": 4}, **more)
    start(tmp_path / "c", {**method, "trade_off": 0}, **more)


@pytest.mark.parametrize("name", sorted(name for name, kind in ADAPT_METHODS.items() if not kind.keeps_head))
def test_every_method_trains_with_a_bottleneck(name: str, tmp_path: Path) -> None:
    result = start(tmp_path / "a", {"name": name, "bottleneck": 6, "head": "weightnorm", "batchnorm": "apart"})
    folder = tmp_path / "a" / "run" / "classifier"
    told = json.loads((folder / "classifier.json").read_text())
    assert (told["bottleneck"], told["head"], told["extra"]) == (6, "weightnorm", ADAPT_METHODS[name].extra_outputs)
    weights = load_file(folder / "bottleneck.safetensors")
    assert weights["0.weight"].shape == (6, 8) and not torch.equal(weights["1.running_var"], torch.ones(6))
    assert 0.0 <= result["metrics"]["test/classifier/accuracy"] <= 1.0


def test_a_domains_own_statistics_are_in_checkpoints_and_not_in_exports(tmp_path: Path) -> None:
    start(tmp_path / "a", {"name": "dann", "hidden": 8, "bottleneck": 6, "batchnorm": "own"})
    run = tmp_path / "a" / "run"
    (checkpoint,) = (run / "checkpoints").iterdir()
    kept = load_file(checkpoint / "model.safetensors")
    exported = load_file(run / "classifier" / "backbone.safetensors") | load_file(
        run / "classifier" / "bottleneck.safetensors"
    )
    assert sum("of_source" in name for name in kept) == 5 * 5 and not any("of_source" in name for name in exported)
    mean = "blocks.0.1.running_mean"
    assert torch.equal(kept[f"classifier.backbone.model.{mean}"], exported[mean])
    twin = "classifier.backbone.model.blocks.0.1.of_source.running_mean"
    assert not torch.equal(kept[twin], exported[mean])
    with pytest.raises(UserError, match=r"method\.batchnorm: own needs a method that encodes source and target"):
        start(tmp_path / "b", {"name": "source_only", "batchnorm": "own"})


def test_a_method_that_keeps_the_head_takes_its_structure_from_the_run(tmp_path: Path) -> None:
    start(tmp_path / "a", {"name": "dann", "hidden": 8, "bottleneck": 6, "head": "cosine"})
    weights = {"backbone": {"weights": str(tmp_path / "a" / "run")}}
    start(tmp_path / "b", "adabn", "optim.duration=0", **weights)
    before, after = (load_file(tmp_path / k / "run" / "classifier" / "head.safetensors") for k in "ab")
    assert torch.equal(before["weight"], after["weight"])
    narrow = "bottleneck.safetensors"
    old, new = (load_file(tmp_path / k / "run" / "classifier" / narrow) for k in "ab")
    assert [name for name in old if not torch.equal(old[name], new[name])] == ["1.running_mean", "1.running_var"]
    with pytest.raises(UserError, match=r"method: bottleneck 5, head linear contradicts the classifier of"):
        start(tmp_path / "c", {"name": "adabn", "bottleneck": 5}, "optim.duration=0", **weights)


@pytest.mark.parametrize("batchnorm", ["joint", "apart", "own"])
@pytest.mark.parametrize("method", [{"name": "dann", "hidden": 8}, {"name": "cdan", "hidden": 8}], ids=["dann", "cdan"])
def test_chunks_change_nothing_with_a_bottleneck(method: dict[str, Any], batchnorm: str, tmp_path: Path) -> None:
    method = {**method, "bottleneck": 6, "batchnorm": batchnorm}
    norms = ["backbone.norm=group:2", "run.precision=fp32"]
    start(tmp_path / "whole", method, *norms)
    start(tmp_path / "cut", method, *norms, "run.chunk=4")
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5, abs=2e-7)
    with pytest.raises(UserError, match=r"run\.chunk: divides the batch, so BatchNorm cannot see the whole of it"):
        start(tmp_path / "batch", method, "backbone.norm=batch", "run.chunk=4")


def test_a_sketched_map_is_said_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = {"name": "cdan", "hidden": 8, "randomized_above": 32}
    tmp_path.joinpath("a").mkdir()
    execute("adapt", write(tmp_path / "a", method), [f"run.dir={tmp_path / 'a' / 'run'}"])
    told = capsys.readouterr()
    assert "method cdan: the discriminator sees a random sketch of 32 numbers" in told.out + told.err


def test_micro_batches_divide_the_bottlenecks_batchnorm(tmp_path: Path) -> None:
    vit = {
        "name": "vit_tiny_patch16_224",
        "args": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
    }
    method = {"name": "dann", "hidden": 8, "bottleneck": 6}
    with pytest.raises(UserError, match=r"run\.accumulate: divides the batch, so BatchNorm cannot see the whole of it"):
        start(tmp_path / "batch", method, "run.accumulate=2", backbone={**vit, "norm": "batch"})
    grouped = {**vit, "norm": "group:2"}
    start(tmp_path / "whole", method, backbone=grouped)
    start(tmp_path / "cut", method, "run.accumulate=2", backbone=grouped)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5, abs=2e-7)
