"""model.onnx: the run's numbers in ONNX Runtime for any batch size, and what its metadata say; or nothing is kept."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rootstock.core.evaluate.trained import load_trained
from rootstock.core.images.open import open_images
from rootstock.launch.outputs import export
from rootstock.launch.outputs.checking import compared, shown_pictures
from rootstock.launch.outputs.export import export_network
from rootstock.tests.core.model.test_backbone import RESNET, TINY, VIT
from rootstock.tests.launch.outputs.conftest import Runs
from rootstock.tests.launch.outputs.test_export import HEADS, made

Command = Callable[..., subprocess.CompletedProcess[str]]
pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
onnxruntime: Any = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.fixture(scope="module")
def of_pixels(tmp_path_factory: pytest.TempPathFactory, runs: Runs) -> Path:
    """A small stem, a bottleneck and an output for unknown images, in a graph that takes pixels."""
    folder = tmp_path_factory.mktemp("onnx")
    head = HEADS["bottleneck cosine"]
    made("resnet10t", 16, {"stem": "small", "args": RESNET}, folder / "run", head)
    export_network(folder / "run", folder / "exported", images=[runs.pictures], onnx=True, uint8=True)
    return folder


def test_pixels_give_the_runs_numbers_for_any_batch_size(of_pixels: Path, runs: Runs) -> None:
    session = onnxruntime.InferenceSession(of_pixels / "exported" / "model.onnx", providers=["CPUExecutionProvider"])
    trained, images = load_trained(of_pixels / "run"), open_images(runs.pictures)
    assert trained.classifier is not None
    pixels = torch.stack([trained.view.worker(images.read(i)) for i in range(7)])
    with torch.no_grad():
        features = trained.backbone(trained.view(pixels))
        logits = trained.classifier(trained.view(pixels))
    for n in (7, 3, 1):
        found = session.run(None, {"images": pixels[:n].numpy()})
        np.testing.assert_allclose(found[0], features[:n], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[1], logits[:n], rtol=1e-4, atol=1e-4)
    assert [output.name for output in session.get_outputs()] == ["features", "logits"]


def test_the_metadata_describe_the_pictures(of_pixels: Path) -> None:
    session = onnxruntime.InferenceSession(of_pixels / "exported" / "model.onnx", providers=["CPUExecutionProvider"])
    told = json.loads(session.get_modelmeta().custom_metadata_map["rootstock"])
    trained = load_trained(of_pixels / "run")
    assert told["outputs"] == ["cat", "dog", "owl", "unknown"]
    assert told["preprocessing"]["mean"] == list(trained.view.mean) and told["preprocessing"]["resize"] == 16
    assert "uint8" in told["images"]
    card = (of_pixels / "exported" / "README.md").read_text()
    assert "## ONNX" in card and "logits of model.onnx in ONNX Runtime" in card and "same class for 100.0%" in card
    assert "model.onnx" in json.loads((of_pixels / "exported" / "MANIFEST.json").read_text())["sha256"]


def check_floats(name: str, size: int, options: dict[str, Any], runs: Runs, folder: Path) -> None:
    run = made(name, size, options, folder / "run")
    export_network(run, folder / "exported", images=[runs.pictures], onnx=True)
    shown = shown_pictures(load_trained(run), [runs.pictures])
    session = onnxruntime.InferenceSession(folder / "exported" / "model.onnx", providers=["CPUExecutionProvider"])
    for n in (7, 1):
        (found,) = session.run(None, {"images": shown.inputs[:n].numpy()})
        scale = float(shown.features.abs().max())
        np.testing.assert_allclose(found / scale, shown.features[:n] / scale, atol=1e-5)


def test_a_vit_that_pools_by_the_mean(runs: Runs, tmp_path: Path) -> None:
    check_floats("vit_tiny_patch16_224", 16, {"pooling": "mean", "args": VIT}, runs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "options"), TINY, ids=[f"{n}-{o.get('pooling', '')}" for n, _, o in TINY])
def test_every_family(name: str, size: int, options: dict[str, Any], runs: Runs, tmp_path: Path) -> None:
    check_floats(name, size, options, runs, tmp_path)


def test_what_differs_is_not_kept(
    runs: Runs, rootstock: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "ONNX_TOLERANCE", 1e-12)
    words = ("export", str(runs.pretrained), "--to", str(tmp_path / "exported"), "--images", runs.pictures, "--onnx")
    done = rootstock(*words)
    assert done.returncode == 1 and "nothing is written" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_a_missing_package_is_said_before_the_work(
    missing: str, runs: Runs, rootstock: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    done = rootstock("export", str(runs.pretrained), "--to", str(tmp_path / "exported"), "--onnx")
    assert done.returncode == 2 and f"--onnx needs {missing}; `pip install 'rootstock[onnx]'`" in done.stderr


def test_pixels_without_a_graph_are_refused(runs: Runs, rootstock: Command, tmp_path: Path) -> None:
    done = rootstock("export", str(runs.pretrained), "--to", str(tmp_path / "exported"), "--uint8")
    assert done.returncode == 2 and "add --onnx" in done.stderr


def test_pictures_of_16_bits_are_no_pixels_of_8(runs: Runs, rootstock: Command, tmp_path: Path) -> None:
    np.savez(tmp_path / "deep.npz", images=np.zeros((3, 3, 16, 16), dtype=np.uint16))
    words = ("export", str(runs.pretrained), "--to", str(tmp_path / "exported"), "--onnx", "--uint8")
    done = rootstock(*words, "--images", f"npz:{tmp_path / 'deep.npz'}?layout=NCHW")
    assert done.returncode == 2 and "have 16 bits" in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["deep.npz"]


def test_a_comparison_counts_what_changed() -> None:
    own = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    other = own.clone()
    other[1] = torch.tensor([0.2, 0.8])
    check = compared("x", other, own, "same class")
    assert (check.agreement, check.pictures) == (0.75, 4) and check.largest == pytest.approx(0.7)
    assert "same class for 75.0% of them" in check.in_words()
    # Row 1 has left row 0 and joined rows 2 and 3: the nearest of 0 and 1 are others now, and of 3 too.
    expected = [1, 0, 3, 2]
    unit = other / other.norm(dim=1, keepdim=True)
    now = [max((j for j in range(4) if j != i), key=lambda j, i=i: float(unit[i] @ unit[j])) for i in range(4)]
    agreed = sum(a == b for a, b in zip(now, expected, strict=True)) / 4
    assert compared("x", other, own, "same nearest picture").agreement == agreed < 1
