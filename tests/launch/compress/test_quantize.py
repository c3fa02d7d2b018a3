"""`rootstock quantize`: what calibrates, chooses and tests are different pictures, and what is written is what was measured."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rootstock.core.errors import UserError
from rootstock.core.evaluate.trained import load_trained
from rootstock.core.manifest import read_manifest
from rootstock.launch.compress.quantize import (
    QUANTIZATION_FILE,
    Wanted,
    check_lose,
    quantization_facts,
    quantize_network,
    quantize_sets,
)
from rootstock.tests.launch.compress.conftest import DIGITS, Trained
from rootstock.tests.launch.outputs.conftest import small

Command = Callable[..., subprocess.CompletedProcess[str]]
onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
onnxruntime: Any = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.mark.parametrize("apart", [True, False])
def test_no_picture_is_in_two_sets(digits: Trained, apart: bool) -> None:
    trained = load_trained(digits.run)
    # Half of the test calibrates or chooses too, and is left out of it.
    sets = quantize_sets(trained, [f"{DIGITS}#[:300]"], [f"{DIGITS}#[200:400]"] if apart else [])
    keys = [set(images.keys().tolist()) for images in (sets.int8.calibration, sets.choosing, sets.int8.test)]
    assert [len(one) for one in keys] == ([128, 172, 100] if apart else [128, 86, 86])
    assert not keys[0] & keys[1] and not keys[2] & (keys[0] | keys[1])
    assert sets.labels is not None and sets.int8.labels is not None
    for images, labels in ((sets.choosing, sets.labels), (sets.int8.test, sets.int8.labels)):
        assert torch.equal(images.labels, labels) and len(labels) == len(images)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("apart", [True, False])
def test_no_group_is_in_two_sets(digits: Trained, patients: Callable[[int], str], apart: bool) -> None:
    every = patients(40)
    uris = [f"{every}#[:70%]"] if apart else [every]
    sets = quantize_sets(load_trained(digits.run), uris, [f"{every}#[50%:]"] if apart else [])
    groups = [set(images.groups.tolist()) for images in (sets.int8.calibration, sets.choosing, sets.int8.test)]  # pyright: ignore[reportOptionalMemberAccess]
    assert not groups[0] & groups[1] and not groups[2] & (groups[0] | groups[1])
    assert [len(one) for one in groups] == ([22, 6, 12] if apart else [20, 10, 10])
    for images, labels in ((sets.choosing, sets.labels), (sets.int8.test, sets.int8.labels)):
        assert torch.equal(images.labels, labels)  # pyright: ignore[reportArgumentType]


def test_too_few_groups_to_choose_by_are_refused(digits: Trained, patients: Callable[[int], str]) -> None:
    uri = f"{patients(40)}#[:12]"  # two patients
    with pytest.raises(UserError) as error:
        quantize_sets(load_trained(digits.run), [uri], [])
    assert str(error.value) == (
        f"--calibrate: {uri} has 12 pictures; beside those that calibrate, too few are left to choose by; give more groups"
    )


@pytest.fixture(scope="module")
def quantized(digits: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("quantized") / "out"
    wanted = Wanted([f"{DIGITS}#[:400]"], [f"{DIGITS}#[400:]"], 3.0, 32, per_channel=True, uint8=True)
    assert quantize_network(digits.run, to, wanted, [DIGITS], "unknown") == 0
    return to


def test_the_folder_is_whole_and_says_what_each_layer_costs(quantized: Path) -> None:
    found = json.loads((quantized / QUANTIZATION_FILE).read_text())
    assert set(read_manifest(quantized) or {}) >= {QUANTIZATION_FILE, "model.int8.onnx", "model.onnx", "README.md"}
    assert [path.name for path in quantized.iterdir() if path.name.startswith(".")] == []
    levels = [layer["snr_db"] for layer in found["layers"].values()]
    assert levels == sorted(levels) and found["pictures_a_layer"] == 32
    assert found["kept"] == list(found["layers"])[: len(found["kept"])]
    enough = {int(count): -100 * one["low"] <= 3.0 for count, one in found["tried"].items()}
    assert all(fine == (count >= len(found["kept"])) for count, fine in enough.items()) and len(found["kept"]) in enough
    card = (quantized / "README.md").read_text()
    for layer in found["layers"]:
        assert f"| {layer} |" in card
    assert "one scale for each output channel of int8 weights" in card and "### By layer" in card
    assert "test: 107 of 137 images" in card and "are training images too" in card
    weights = {
        tensor.name for tensor in onnx.load(quantized / "model.int8.onnx").graph.initializer if tensor.data_type == 3
    }
    assert not [layer for layer in found["kept"] if any(f".{layer}.weight" in name for name in weights)]


def test_the_loss_is_that_of_the_two_graphs_on_the_test(quantized: Path, digits: Trained) -> None:
    found = json.loads((quantized / QUANTIZATION_FILE).read_text())
    trained = load_trained(digits.run)
    sets = quantize_sets(trained, [f"{DIGITS}#[:400]"], [f"{DIGITS}#[400:]"])
    test = sets.int8.test
    assert found["pictures"]["test"]["images"] == len(test) and test.labels is not None
    pixels = torch.stack([trained.view.worker(test.read(i)) for i in range(len(test))]).numpy()
    right = []
    for name in ("model.onnx", "model.int8.onnx"):
        session = onnxruntime.InferenceSession(quantized / name, providers=["CPUExecutionProvider"])
        right.append(float((session.run(["logits"], {"images": pixels})[0].argmax(1) == test.labels.numpy()).mean()))
    assert [found["test"]["before"], found["test"]["after"]] == pytest.approx(right)


def test_what_is_known_of_a_network_is_not_taken_for_another_of_equal_weights(digits: Trained) -> None:
    trained, other = load_trained(digits.run), load_trained(digits.run)
    other.backbone.spec["args"] = {**other.backbone.spec["args"], "act_layer": "silu"}
    sets = quantize_sets(trained, [f"{DIGITS}#[:400]"], [])
    facts = [quantization_facts(one, sets, False) for one in (trained, other)]
    assert facts[0] == quantization_facts(load_trained(digits.run), sets, False) != facts[1]


def test_a_tensor_has_one_scale_only_where_that_was_asked_for(digits: Trained, tmp_path: Path) -> None:
    wanted = Wanted([f"{DIGITS}#[:300]"], [], None, 16, per_channel=False, uint8=False)
    quantize_network(digits.run, tmp_path / "out", wanted, [DIGITS], "unknown")
    graph = onnx.load(tmp_path / "out" / "model.int8.onnx").graph
    scales = {tensor.name: list(tensor.dims) for tensor in graph.initializer if tensor.name.endswith("weight_scale")}
    assert scales and all(dims in ([], [1]) for dims in scales.values())
    assert "one scale for the whole tensor of int8 weights" in (tmp_path / "out" / "README.md").read_text()
    found = json.loads((tmp_path / "out" / QUANTIZATION_FILE).read_text())
    assert found["weights"] == "per-tensor" and found["kept"] == [] and found["tried"] == {}


def test_nothing_is_left_of_a_command_that_failed(
    digits: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rootstock.launch.compress.quantize.layer_effects", fail)
    wanted = Wanted([DIGITS], [], None, 16, per_channel=True, uint8=False)
    with pytest.raises(KeyboardInterrupt):
        quantize_network(digits.run, tmp_path / "out", wanted, [DIGITS], "unknown")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tests", [True, False])
def test_pictures_of_other_channels_are_refused(tests: bool, digits: Trained, five: str) -> None:
    with pytest.raises(UserError) as error:
        quantize_sets(load_trained(digits.run), [digits.train if tests else five], [five] if tests else [])
    assert str(error.value) == (
        f"{five}: its pictures have 5 channels, and resnet10t of {digits.run} takes 3; give pictures of 3 channels"
    )


def test_what_cannot_be_shown_is_refused(digits: Trained, tmp_path: Path) -> None:
    trained = load_trained(digits.run)
    sets = quantize_sets(trained, [f"{DIGITS}#[:300]"], [])
    with pytest.raises(UserError) as error:
        check_lose(sets, 1.0)
    assert str(error.value) == (
        "--lose 1: 86 pictures are left to choose by, and that a loss is so small takes 381 at least; give more with --calibrate, or "
        "allow more points"
    )
    with pytest.raises(
        UserError, match=r"^--lose is about accuracy, and the pictures of --calibrate have no labels; give"
    ):
        check_lose(sets._replace(labels=None), 1.0)
    unlabelled = sets._replace(int8=sets.int8._replace(labels=None))
    with pytest.raises(UserError, match=r"^--lose is about accuracy, and the pictures of --test have no labels; give"):
        check_lose(unlabelled, 1.0)
    with pytest.raises(UserError, match=r"^--calibrate: .* has 20 pictures; beside those that calibrate, too few are"):
        quantize_sets(trained, [f"{DIGITS}#[:20]"], [f"{DIGITS}#[20:]"])
    with pytest.raises(UserError, match=r"^--test: all pictures of .* calibrate or choose; give others$"):
        quantize_sets(trained, [DIGITS], [f"{DIGITS}#[:200]"])
    with pytest.raises(UserError, match=r"^--calibrate: .* has the class 3, which resnet10t of"):
        quantize_sets(trained, ["sklearn:digits?size=16&classes=5"], [])
    small().export(tmp_path / "pre")
    wanted = Wanted([DIGITS], [], 1.0, 16, per_channel=True, uint8=False)
    with pytest.raises(UserError, match=r"^.*pre has a network and no classifier, so it has no classes to predict"):
        quantize_network(tmp_path / "pre", tmp_path / "out", wanted, [DIGITS], "unknown")


def test_a_network_without_classifier_has_noise_alone(tmp_path: Path) -> None:
    small().export(tmp_path / "pre")
    wanted = Wanted([f"{DIGITS}#[:300]"], [], None, 16, per_channel=True, uint8=False)
    quantize_network(tmp_path / "pre", tmp_path / "out", wanted, [DIGITS], "unknown")
    found = json.loads((tmp_path / "out" / QUANTIZATION_FILE).read_text())
    assert all(layer["difference"] is None and layer["snr_db"] > 10 for layer in found["layers"].values())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--device", "cuda"],
            "--device: cuda is given, and graphs of 8 bits are for the CPU; leave it out, or for a GPU `rootstock export --onnx`",
        ),
        (["--lose", "0"], "--lose: expected points of accuracy, more than 0 and less than 100, got 0; 0.5 is usual"),
        (["--pictures", "1"], "--pictures: expected 2 or more, got 1; 512 are usual"),
        (["--weights", "tensor"], "--weights: expected per-channel or per-tensor, got tensor"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], sentence: str, rootstock: Command) -> None:
    done = rootstock("quantize", "run", "--to", "out", "--calibrate", DIGITS, *words)
    assert done.returncode == 2 and done.stderr == f"error: {sentence}\n"
