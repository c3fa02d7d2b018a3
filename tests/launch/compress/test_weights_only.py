"""Weights of 8 bits in linear layers: what lies in the file is what torchao computes with, and model.py needs neither it nor Rootstock."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rootstock.core.errors import UserError
from rootstock.core.evaluate.features import extract
from rootstock.core.evaluate.trained import load_trained
from rootstock.core.images.open import open_images
from rootstock.launch.compress.networks import open_network
from rootstock.launch.compress.weights_only import (
    WeightsOutcome,
    by_torchao,
    export_weights_only,
    linear_layers,
    measured_loss,
)
from rootstock.launch.outputs.checking import shown_pictures
from rootstock.launch.outputs.int8 import paired_difference
from rootstock.tests.core.model.test_backbone import VIT
from rootstock.tests.launch.compress.conftest import DIGITS, Trained
from rootstock.tests.launch.outputs.test_export import HEADS, by_script, made

Command = Callable[..., subprocess.CompletedProcess[str]]
pytest.importorskip("torchao", reason="torchao is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run: a small ViT of digits; out: with weights of 8 bits."""
    found = tmp_path_factory.mktemp("weights")
    args = {**VIT, "embed_dim": 64}
    made("vit_tiny_patch16_224", 16, {"args": args}, found / "run", HEADS["linear"], ("0", "1", "2"))
    assert export_weights_only(found / "run", found / "out", [f"{DIGITS}#[100:]"], [DIGITS], "unknown") == 0
    # Before any test imports its model.py, which leaves such a folder.
    assert not list(found.glob(".*")) and not (found / "out" / "__pycache__").exists()
    return found


def test_the_file_holds_torchaos_numbers(folder: Path) -> None:
    trained, tensors = load_trained(folder / "run"), load_file(folder / "out" / "model.safetensors")
    own = trained.backbone.model.state_dict()
    layers = linear_layers(trained)
    assert len(layers) == 4 * VIT["depth"] and {name.removesuffix("_scale") for name in tensors} == set(own)
    for name, tensor in own.items():
        kept = tensors[name]
        if name.removesuffix(".weight") not in layers:
            assert torch.equal(kept, tensor)
            continue
        assert kept.dtype == torch.int8 and tensors[f"{name}_scale"].shape == (len(tensor), 1)
        # By hand: a row's largest weight is 127.5 of its scales, and halves are rounded to even.
        for row, whole, scale in zip(tensor, kept, tensors[f"{name}_scale"], strict=True):
            assert float(scale) == pytest.approx(float(row.abs().max()) / 127.5, rel=1e-6)
            assert (row - whole * scale).abs().max() <= 0.51 * float(scale)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert size < 0.45 * sum(tensor.numel() * tensor.element_size() for tensor in own.values())


@pytest.mark.slow
def test_the_script_gives_torchaos_outputs(folder: Path) -> None:
    trained = load_trained(folder / "run")
    torch.manual_seed(0)
    inputs = torch.randn(6, 3, 16, 16)
    rounded, _ = by_torchao(trained)
    with torch.no_grad():
        found, expected = by_script(folder / "out")(inputs), rounded(inputs)
        assert found == pytest.approx(expected, abs=1e-5 * float(expected.abs().max()))
        assert by_script(folder / "out", head=False)(inputs).shape == (6, 64)
    assert open_network(folder / "out").network is not None  # a script that is known
    code = "import sys; from model import load; load(); print({'rootstock', 'torchao'} & {name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder / "out", capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_is_said_of_the_loss_is_what_the_two_networks_predict(folder: Path) -> None:
    trained, test = load_trained(folder / "run"), open_images(f"{DIGITS}#[100:]")
    assert trained.classifier is not None and test.labels is not None
    inputs = trained.view(torch.stack([trained.view.worker(test.read(i)) for i in range(len(test))]))
    with torch.no_grad():
        models: list[Any] = [trained.classifier, by_script(folder / "out")]
        before, after = (float((model(inputs).argmax(1) == test.labels).double().mean()) for model in models)
    card = (folder / "out" / "README.md").read_text()
    assert f"accuracy: {100 * before:.2f} % before, {100 * after:.2f} % after" in card
    assert "12 linear layers have 8 bits" in card and "timm reads no weights of 8 bits" in card


def test_a_test_of_other_channels_is_refused(folder: Path, five: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        export_weights_only(folder / "run", tmp_path / "out", [five], [DIGITS], "unknown")
    assert str(error.value) == (
        f"{five}: its pictures have 5 channels, and vit_tiny_patch16_224 of {folder / 'run'} takes 3; give pictures of 3 channels"
    )
    assert not list(tmp_path.iterdir())


def test_the_interval_is_over_groups(folder: Path, patients: Callable[[int], str]) -> None:
    trained, test = load_trained(folder / "run"), open_images(patients(40))
    assert trained.classifier is not None and test.labels is not None
    worse = copy.deepcopy(trained.classifier)  # for a difference that is not 0
    worse.head.bias.data[0] += 0.3
    outcome = WeightsOutcome(1, (2, 1), None, "")
    shown = shown_pictures(trained, [DIGITS])
    found = measured_loss(trained, worse, shown, test, test.labels, outcome)
    logits = [extract(model, test, trained.view, device="cpu") for model in (trained.classifier, worse)]
    right = [(one.argmax(1) == test.labels).numpy() for one in logits]
    assert found.difference == paired_difference(right[0], right[1], test.units().numpy())
    assert found.difference != paired_difference(right[0], right[1], test.keys().numpy())
    assert found.in_words()[-1].endswith("(95 %, paired over 40 groups)")


def test_pictures_that_trained_are_counted_in_the_card(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, uri = load_trained(folder / "run"), f"{DIGITS}#[100:140]"
    trained.backbone.seen = {"labelled": open_images(uri).keys()[:4].sort().values}
    assert trained.classifier is not None
    trained.classifier.export(tmp_path / "run")
    export_weights_only(tmp_path / "run", tmp_path / "out", [uri], [DIGITS], "unknown")
    told = "WARNING: test: 4 of 40 images (10.0%) are training images too"
    assert told in capsys.readouterr().err and f"- {told}" in (tmp_path / "out" / "README.md").read_text()
    assert "training images too" not in (folder / "out" / "README.md").read_text()


def test_what_saves_nothing_is_refused(digits: Trained, folder: Path, tmp_path: Path, rootstock: Command) -> None:
    with pytest.raises(UserError) as error:
        export_weights_only(digits.run, tmp_path / "out", [], [DIGITS], "unknown")
    assert str(error.value) == (
        f"--weights-only: resnet10t of {digits.run} has no linear layer below its head, so nothing would be saved; give --calibrate URI "
        "instead"
    )
    done = rootstock("quantize", str(digits.run), "--to", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr == "error: quantize needs pictures that calibrate: --calibrate URI; or give --weights-only\n"
    done = rootstock(
        "quantize", str(digits.run), "--to", str(tmp_path / "out"), "--weights-only", "--calibrate", DIGITS
    )
    assert done.returncode == 2 and done.stderr == (
        "error: --weights-only calibrates nothing and writes no graph; leave --calibrate, --lose, --weights and --uint8 out\n"
    )
    assert not list(tmp_path.iterdir())
