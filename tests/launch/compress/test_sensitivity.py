"""Layers in 8 bits, one at a time: which nodes are a layer, what noise is, and which layers stay in 32 bits."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rootstock.core.evaluate.statistics import Interval, wilson
from rootstock.core.evaluate.trained import TrainedRun, load_trained
from rootstock.core.images.open import open_images
from rootstock.launch.compress.sensitivity import (
    LayerEffect,
    Slice,
    Trials,
    by_noise,
    choose_kept,
    effect_of,
    expected_snr,
    layer_effects,
    outputs_of,
    pictures_needed,
    signal_to_noise,
    slice_of,
)
from rootstock.launch.outputs.checking import shown_pictures
from rootstock.launch.outputs.int8 import INT8_FILE, calibrated_graph, int8_sets, paired_difference, write_int8
from rootstock.launch.outputs.int8_graph import CalibratedGraph
from rootstock.launch.outputs.onnx_file import ONNX_FILE, write_onnx
from rootstock.tests.core.model.test_backbone import VIT
from rootstock.tests.launch.compress.conftest import DIGITS, Trained
from rootstock.tests.launch.outputs.test_export import HEADS, made

onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
quantization: Any = pytest.importorskip("onnxruntime.quantization", reason="onnxruntime is not installed")


def graph_of(run: Path, folder: Path) -> tuple[TrainedRun, CalibratedGraph]:
    trained = load_trained(run)
    write_onnx(trained, shown_pictures(trained, [DIGITS]), folder, uint8=False)
    return trained, calibrated_graph(trained, open_images(f"{DIGITS}#[:40]").unlabelled(), folder, uint8=False)


@pytest.fixture(scope="module")
def made_once(digits: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedRun, CalibratedGraph, Path]:
    folder = tmp_path_factory.mktemp("graph")
    return *graph_of(digits.run, folder), folder


def with_weights(network: nn.Module) -> set[str]:
    return {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def eight_bits(path: Path) -> int:
    """How many matrices and kernels of a graph have 8 bits."""
    return sum(tensor.data_type == 3 and len(tensor.dims) >= 2 for tensor in onnx.load(path).graph.initializer)


def test_layers_are_the_modules_that_have_weights(
    made_once: tuple[TrainedRun, CalibratedGraph, Path], tmp_path: Path
) -> None:
    trained, graph, _ = made_once
    assert set(graph.layers) == with_weights(trained.backbone.model) | {"head"}
    run = made("vit_tiny_patch16_224", 16, {"args": VIT}, tmp_path / "run", HEADS["linear"])
    trained, graph = graph_of(run, tmp_path)
    assert set(graph.layers) == with_weights(trained.backbone.model) | {"head"} and "blocks.0.attn.qkv" in graph.layers


def test_every_node_that_can_have_8_bits_is_in_one_layer(
    made_once: tuple[TrainedRun, CalibratedGraph, Path],
) -> None:
    _, graph, _ = made_once
    named = [name for nodes in graph.layers.values() for name in nodes]
    assert sorted(named) == sorted(node.name for node in graph.model.graph.node if node.op_type in graph.kinds)
    makers = {name: node for node in graph.model.graph.node for name in node.output}
    home = {name: layer for layer, nodes in graph.layers.items() for name in nodes}
    for node in graph.model.graph.node:
        if node.op_type == "Relu":  # with what it follows
            assert home[node.name] == home[makers[node.input[0]].name]
        if node.op_type == "Add":
            assert home[node.name] in {home[makers[name].name] for name in node.input}


def test_only_and_keep_say_which_layers_have_8_bits(made_once: tuple[TrainedRun, CalibratedGraph, Path]) -> None:
    _, graph, folder = made_once
    layers = list(graph.layers)
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, len(layers)),
        ({"only": ["conv1"]}, 1),
        ({"keep": ["conv1", "head"]}, len(layers) - 2),
        ({"keep": layers}, 0),
    ]
    for how, expected in cases:
        graph.write(folder / "x.onnx", **how)
        assert eight_bits(folder / "x.onnx") == expected
    kinds = {node.op_type for node in onnx.load(folder / "x.onnx").graph.node}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear"}  # with all layers in 32 bits nothing has 8


def test_the_whole_graph_is_that_of_onnx_runtimes_own_function(
    made_once: tuple[TrainedRun, CalibratedGraph, Path],
) -> None:
    trained, _, folder = made_once
    calibration = int8_sets(trained, [DIGITS], []).calibration
    pixels = torch.stack([trained.view.worker(calibration.read(i)) for i in range(len(calibration))])
    batches = iter([{"images": trained.view(part).numpy()} for part in pixels.split(16)])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(batches, None)

    for per_channel in (True, False):
        if not per_channel:
            batches = iter([{"images": trained.view(part).numpy()} for part in pixels.split(16)])
        kinds = [
            "Conv",
            "Gemm",
            "MatMul",
            "Add",
            "Relu",
            "Clip",
            "MaxPool",
            "AveragePool",
            "GlobalAveragePool",
            "Concat",
        ]
        quantization.quantize_static(
            folder / ONNX_FILE, folder / "own.onnx", Reader(), op_types_to_quantize=kinds, per_channel=per_channel,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip
        write_int8(trained, calibration, folder, uint8=False, per_channel=per_channel)
        assert (folder / INT8_FILE).read_bytes() == (folder / "own.onnx").read_bytes()


def test_signal_to_noise_by_hand() -> None:
    torch.manual_seed(0)
    before, noise = torch.randn(5, 3), 0.1 * torch.randn(5, 3)
    signal = spent = 0.0
    for i, j in itertools.product(range(5), range(3)):
        signal += float(before[i, j] - sum(before[i]) / 3) ** 2
        spent += float(noise[i, j] - sum(noise[i]) / 3) ** 2
    found = signal_to_noise(before, before + noise)
    assert found == pytest.approx(10 * math.log10(signal / spent), rel=1e-5)
    assert signal_to_noise(before, before + noise + torch.randn(5, 1)) == pytest.approx(found, abs=1e-4)
    assert signal_to_noise(before, before) is None
    ten = signal_to_noise(before.double(), before + noise.double() / 10)
    assert ten is not None and found is not None and ten - found == pytest.approx(20.0, abs=1e-6)


def test_an_effect_is_of_the_pictures_that_change_their_class() -> None:
    before = torch.eye(4)
    after = before.clone()
    after[0] = before[1]
    shown = Slice(torch.empty(4), torch.arange(4), torch.arange(4), torch.tensor([0, 1, 3, 3]))
    found = effect_of(before, after, shown)
    assert found.difference is not None and found.difference.estimate == -0.25
    assert effect_of(before, after, shown._replace(labels=None)).difference is None


def test_an_effect_is_sure_as_far_as_groups_go() -> None:
    """Two of eight patients change: the interval is theirs, not that of their pictures, and what the cache knows of others is not taken."""
    before = torch.eye(2)[[0, 1] * 16]
    after = before.clone()
    after[:8] = after[:8].flip(1)
    alone = torch.arange(32)
    shown = Slice(torch.empty(32), alone, alone // 4, torch.tensor([0, 1] * 16))
    assert shown.first(8).units.tolist() == [0] * 4 + [1] * 4
    found, by_picture = (
        effect_of(before, after, shown).difference,
        effect_of(before, after, shown._replace(units=alone)),
    )
    right = np.arange(32) >= 8
    assert found == paired_difference(np.ones(32, bool), right, np.arange(32) // 4)
    assert found is not None and found.low is not None and by_picture.difference is not None
    assert by_picture.difference.low is not None and found.low < by_picture.difference.low - 0.1


def test_the_cache_tells_groups_apart(made_once: tuple[TrainedRun, CalibratedGraph, Path]) -> None:
    trained, graph, folder = made_once
    images = open_images(f"{DIGITS}#[40:64]")
    shown = slice_of(images, images.labels, trained.view)
    trials = Trials(graph, folder, trained.view, {"groups": "told apart"}, per_channel=True)
    layer = list(graph.layers)[:1]
    trials.effect(shown, only=layer)
    trials.effect(shown, only=layer)
    assert trials.made == 1
    trials.effect(shown._replace(units=shown.units[:1].expand(24)), only=layer)
    assert trials.made == 2


def test_noises_add_up_and_the_noisiest_comes_first() -> None:
    effects = {name: LayerEffect(snr, None) for name, snr in {"a": 40.0, "b": None, "c": 20.0, "d": 40.0}.items()}
    assert by_noise(effects) == ["c", "a", "d", "b"]
    same = {name: LayerEffect(30.0, None) for name in "abcdefghij"}
    assert expected_snr(same) == pytest.approx(20.0)  # ten times the power
    assert expected_snr({"b": LayerEffect(None, None)}) is None


@pytest.mark.parametrize("layers", [1, 3, 6])
def test_the_fewest_layers_stay_whose_bound_is_low_enough(layers: int) -> None:
    order = [f"layer{k}" for k in range(layers)]
    for needed in range(layers + 1):
        asked = list[int]()

        def difference(keep: Sequence[str], needed: int = needed, asked: list[int] = asked) -> Interval:
            asked.append(len(keep))
            assert list(keep) == order[: len(keep)]
            # The estimate alone would do from the beginning.
            return Interval(-0.001, -0.004 if len(keep) >= needed else -0.011, 0.0, "percentile")

        found = choose_kept(order, difference, 1.0)
        assert found.kept == tuple(order[:needed]) and set(found.tried) == set(asked) and needed in asked
        assert len(asked) == len(set(asked)) <= 3 + math.log2(layers)


@pytest.mark.parametrize("points", [0.5, 1.0, 3.0])
def test_as_many_pictures_are_needed_as_bound_a_loss_of_nothing(points: float) -> None:
    needed = pictures_needed(points)
    assert 100 * wilson(0.0, needed)[1] <= points < 100 * wilson(0.0, needed - 1)[1]


def test_layers_that_are_known_are_not_computed_again(
    made_once: tuple[TrainedRun, CalibratedGraph, Path], digits: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, graph, folder = made_once
    images = open_images(digits.held_out)
    assert images.labels is not None
    shown = slice_of(images, images.labels, trained.view).first(40)

    def trials(about: str = "x") -> Trials:
        return Trials(graph, folder, trained.view, {"about": about}, per_channel=True)

    lines = list[str]()
    stopped = trials()

    def stop(before: Tensor, after: Tensor, shown: Slice) -> LayerEffect:
        if stopped.made == 2:
            raise KeyboardInterrupt
        return effect_of(before, after, shown)

    monkeypatch.setattr("rootstock.launch.compress.sensitivity.effect_of", stop)
    with pytest.raises(KeyboardInterrupt):
        layer_effects(stopped, shown, lines.append)
    assert lines[0].startswith(
        f"sensitivity: {len(graph.layers)} layers, one after another alone in 8 bits, on 40 pictures"
    )
    monkeypatch.undo()
    again = trials()
    found = layer_effects(again, shown, lines.append)
    assert again.made == len(graph.layers) - 2 and not list(folder.glob(".layer*"))
    straight = trials("other")
    assert layer_effects(straight, shown, lines.append) == found and straight.made == len(graph.layers)
    # Other pictures or labels are another question.
    other = trials()
    other.effect(shown.first(20), only=["conv1"])
    other.effect(shown._replace(labels=None), only=["conv1"])
    assert other.made == 2


def test_an_effect_is_that_of_the_graph(made_once: tuple[TrainedRun, CalibratedGraph, Path], digits: Trained) -> None:
    trained, graph, folder = made_once
    shown = slice_of(open_images(f"{digits.held_out}"), None, trained.view).first(30)
    found = Trials(graph, folder, trained.view, {"about": "graph"}, per_channel=True).effect(shown, keep=["conv1"])
    graph.write(folder / "x.onnx", keep=["conv1"])
    inputs = trained.view(shown.cropped)
    import onnxruntime

    logits = [
        onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"]).run(
            ["logits"], {"images": inputs.numpy()}
        )[0]
        for name in (ONNX_FILE, "x.onnx")
    ]
    assert found.snr == pytest.approx(signal_to_noise(*map(torch.from_numpy, logits)), abs=0.3)
    assert outputs_of(folder / ONNX_FILE, shown, trained.view, 1) == pytest.approx(logits[0], abs=1e-4)
