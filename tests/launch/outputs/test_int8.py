"""8 bits: pictures that calibrate test nothing, what is said of the loss is what two graphs predict, and what the graph holds."""

import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rootstock.core.errors import UserError
from rootstock.core.evaluate.statistics import Interval
from rootstock.core.evaluate.trained import load_trained
from rootstock.core.images.open import open_images
from rootstock.launch.outputs import int8
from rootstock.launch.outputs.export import export_network
from rootstock.launch.outputs.int8 import int8_sets, measure_int8, paired_difference
from rootstock.tests.core.model.test_backbone import RESNET
from rootstock.tests.launch.outputs.conftest import Runs
from rootstock.tests.launch.outputs.test_export import HEADS, made

Command = Callable[..., subprocess.CompletedProcess[str]]
onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
onnxruntime: Any = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
DIGITS = "sklearn:digits?size=16&classes=3"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of the digits 0 to 2, not trained but with class names that fit."""
    folder = tmp_path_factory.mktemp("int8")
    run = made("resnet10t", 16, {"stem": "small", "args": RESNET}, folder / "run", HEADS["linear"], ("0", "1", "2"))
    export_network(run, folder / "exported", images=[DIGITS], int8=[DIGITS], uint8=True)
    return folder


def test_what_is_said_of_the_loss_is_what_the_two_graphs_predict(exported: Path) -> None:
    trained, card = load_trained(exported / "run"), (exported / "exported" / "README.md").read_text()
    sets = int8_sets(trained, [DIGITS], [])
    pixels = torch.stack([trained.view.worker(sets.test.read(i)) for i in range(len(sets.test))])
    found = {}
    for name in ("model.onnx", "model.int8.onnx"):
        session = onnxruntime.InferenceSession(exported / "exported" / name, providers=["CPUExecutionProvider"])
        found[name] = session.run(["logits"], {"images": pixels.numpy()})[0].argmax(1)
    assert sets.labels is not None
    before, after = (found[name] == sets.labels.numpy() for name in found)
    assert f"accuracy: {100 * before.mean():.2f} % before, {100 * after.mean():.2f} % after" in card
    assert f"same class for {np.mean(found['model.onnx'] == found['model.int8.onnx']):.1%} of them" in card
    assert f"calibrated on 128 pictures; on {len(pixels)} others" in card
    assert f"split hash `{sets.calibration.split_hash()}`" in card


def test_weights_have_a_scale_for_each_channel_and_activations_are_unsigned(exported: Path) -> None:
    graph = onnx.load(exported / "exported" / "model.int8.onnx").graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    of_weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in tensors]
    weights = [
        node for node in of_weights if tensors[node.input[0]].dtype == np.int8 and tensors[node.input[0]].ndim == 4
    ]
    assert len(weights) >= 9
    for node in weights:
        assert tensors[node.input[1]].shape == (tensors[node.input[0]].shape[0],), node.name  # one an output channel
    activations = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert activations and all(tensors[node.input[2]].dtype == np.uint8 for node in activations)
    large, small = ((exported / "exported" / name).stat().st_size for name in ("model.onnx", "model.int8.onnx"))
    assert small < large


def test_no_picture_calibrates_and_tests(exported: Path) -> None:
    trained = load_trained(exported / "run")
    for uris, tests in (([DIGITS], []), ([f"{DIGITS}#[:100]"], [f"{DIGITS}#[50:150]"]), ([f"{DIGITS}#[:9]"], [])):
        sets = int8_sets(trained, uris, tests)
        calibrating, testing = set(sets.calibration.keys().tolist()), set(sets.test.keys().tolist())
        assert not calibrating & testing and sets.calibration.labels is None
        assert len(calibrating) == len(sets.calibration) <= 128
        assert sets.labels is not None and len(sets.labels) == len(sets.test)
        if not tests:
            assert calibrating | testing == set(open_images(uris).keys().tolist())
        again = int8_sets(trained, uris, tests)
        assert again.calibration.keys().tolist() == sets.calibration.keys().tolist()


def test_pictures_that_trained_are_counted_in_the_card(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, others = load_trained(exported / "run"), f"{DIGITS}#[300:340]"
    keys = int8_sets(trained, [DIGITS], [others]).test.keys()
    trained.backbone.seen = {"labelled": keys[:10].sort().values, "adapt": keys[5:].sort().values, "pretrain": keys[:0]}
    assert trained.classifier is not None
    trained.classifier.export(tmp_path / "run")
    export_network(tmp_path / "run", tmp_path / "exported", images=[DIGITS], int8=[DIGITS], test=[others])
    n, said, card = len(keys), capsys.readouterr().err, (tmp_path / "exported" / "README.md").read_text()
    for sentence in (
        f"WARNING: test: 10 of {n} images ({10 / n:.1%}) are training images too, whose labels are known: scores there say little of new "
        "images",
        f"test: {n - 5} of {n} images ({1 - 5 / n:.1%}) were seen in training without labels, by adapt: scores may be lower on images that "
        "no training saw",
    ):
        assert f"{sentence}\n" in said and f"- {sentence}\n" in card.partition("## 8 bits")[2]
    assert "training images too" not in (exported / "exported" / "README.md").read_text()  # that has seen none


def test_no_group_calibrates_and_tests(exported: Path, patients: Callable[[int], str]) -> None:
    trained = load_trained(exported / "run")
    for uris, tests, calibrated, tested in (
        ([patients(8)], [], 24, 24),
        ([patients(40)], [], 120, 120),  # half of them, though 128 are wanted
        ([patients(40)], [patients(39)], 128, 39 * 6 - 21 * 6),
        ([patients(3)], [f"{patients(40)}#[:50%]"], 18, None),
    ):
        sets = int8_sets(trained, uris, tests)
        groups = [set((images.groups if images.groups is not None else torch.empty(0)).tolist()) for images in sets[:2]]
        assert groups[0] and groups[1] and not groups[0] & groups[1], (uris, tests)
        assert len(sets.calibration) == calibrated and (tested is None or abs(len(sets.test) - tested) <= 6)
    with pytest.raises(UserError) as error:
        int8_sets(trained, [patients(1)], [])
    assert str(error.value) == (
        f"--int8: {patients(1)} has 6 pictures of one group, which cannot both calibrate and test; give other groups, or others with "
        "--test URI"
    )
    with pytest.raises(UserError) as error:
        int8_sets(trained, [f"{patients(2).partition('?')[0]}#[:6]"], [patients(2)])
    assert (
        str(error.value)
        == f"--test: all pictures of {patients(2)} calibrate too, or are of groups of which pictures do; give others"
    )


def test_the_interval_is_over_groups(
    exported: Path, patients: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a classifier which 8 bits change on all pictures of a patient, or on none."""
    trained, drawn = load_trained(exported / "run"), list[Any]()

    def difference(before: np.ndarray, after: np.ndarray, clusters: np.ndarray) -> Interval:
        drawn.append(clusters.tolist())
        return paired_difference(before, after, clusters)

    monkeypatch.setattr(int8, "paired_difference", difference)
    sets = int8_sets(trained, [patients(8)], [])
    outcome = measure_int8(trained, sets, exported / "exported", True)
    assert drawn == [sets.test.units().tolist()] and len(set(drawn[0])) == 4
    assert outcome.over == "4 groups"
    said = outcome._replace(before=0.75, after=0.5, difference=Interval(-0.25, -0.625, 0.0, "bca")).in_words()
    assert said[-1].endswith("difference -25.00 points [-62.50, +0.00] (95 %, paired over 4 groups)")


def test_mistakes_are_one_sentence(exported: Path, runs: Runs, rootstock: Command, tmp_path: Path) -> None:
    trained = load_trained(exported / "run")
    with pytest.raises(UserError, match=r"--test: all pictures of .* calibrate too"):
        int8_sets(trained, [f"{DIGITS}#[:20]"], [f"{DIGITS}#[:20]"])
    with pytest.raises(UserError, match=r"--int8: .* has the class 3, which resnet10t"):
        int8_sets(trained, ["sklearn:digits?size=16&classes=5"], [])
    with pytest.raises(UserError, match="half calibrate; give more"):
        int8_sets(trained, [f"{DIGITS}#[:1]"], [])
    words = ("export", str(runs.pretrained), "--to", str(tmp_path / "exported"), "--test", DIGITS)
    done = rootstock(*words)
    assert done.returncode == 2 and "add --int8 URI" in done.stderr


def test_the_difference_is_paired_over_pictures() -> None:
    random = np.random.default_rng(0)
    before = random.random(400) < 0.9
    after = before.copy()
    after[:10] = ~after[:10]
    found = paired_difference(before, after, np.arange(400))
    change = after.astype(float) - before
    half = 1.96 * change.std() / math.sqrt(400)
    assert found.estimate == change.mean() and found.low is not None and found.high is not None
    assert found.low == pytest.approx(change.mean() - half, abs=0.003)
    assert found.high == pytest.approx(change.mean() + half, abs=0.003)
    assert found.high - found.low < 0.5 * 2 * 1.96 * math.sqrt(
        2 * 0.9 * 0.1 / 400
    )  # far narrower than of two test sets
    # Copies of one picture count once: ten copies that change together say as little as one.
    copies = np.arange(400)
    copies[:10] = 0
    assert paired_difference(before, after, copies).method == "wilson"
    same = paired_difference(before, before, np.arange(400))
    assert same.estimate == 0.0 and same.high == -same.low > 0.005  # pyright: ignore[reportOptionalOperand, reportOperatorIssue]
