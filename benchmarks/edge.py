"""Size, speed and accuracy of classifiers in PyTorch, in ONNX Runtime, and there in 8 bits.

    rootstock finetune benchmarks/edge.yaml
    rootstock finetune benchmarks/edge.yaml backbone.name=vit_tiny_patch16_224 optim.lr=1e-3 optim.duration=3ep \\
        run.dir=runs/edge_vit_tiny
    rootstock finetune benchmarks/edge.yaml backbone.name=mobilenetv3_large_100 run.dir=runs/edge_mobilenetv3
    rootstock import tf_efficientnet_lite0.safetensors --from timm --name tf_efficientnet_lite0 --size 96 --mean 0.5,0.5,0.5 \\
        --std 0.5,0.5,0.5 --to runs/lite0
    rootstock finetune benchmarks/edge.yaml backbone.weights=runs/lite0 backbone.name=auto optim.lr=5e-4 optim.duration=2ep \\
        run.dir=runs/edge_lite0
    python benchmarks/edge.py runs/edge_resnet18 runs/edge_vit_tiny runs/edge_mobilenetv3 runs/edge_lite0 \\
        --calibrate "tar:data/imagenette_96.tar.gz#train[:20%,seed=0]" --test "tar:data/imagenette_96.tar.gz#val" \\
        --markdown benchmarks/edge.md        some minutes a network on one core

Speed is the CPU time of one picture at a time, on one thread. 8 bits with one scale for a whole tensor of weights, the default of ONNX
Runtime's own function, stand beside those that `rootstock export --int8` writes, with one scale for each output channel, and beside those
of `rootstock quantize --lose`, which keeps some layers in 32 bits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from page import machine, number, publish, row, shown

from rootstock.core.evaluate.statistics import Interval
from rootstock.core.evaluate.trained import TrainedRun, load_trained
from rootstock.core.model.macs import bytes_of_tensors, macs_of
from rootstock.launch.compress.latency import Form, latency_of, latency_ratio, time_in_turn
from rootstock.launch.compress.quantize import (
    QuantizeSets,
    check_lose,
    chosen_layers,
    known_pictures,
    quantization_facts,
    quantize_sets,
)
from rootstock.launch.compress.sensitivity import Trials, by_noise, layer_effects, lost_at_most, slice_of
from rootstock.launch.outputs.checking import shown_pictures
from rootstock.launch.outputs.int8 import INT8_FILE, Int8Outcome, calibrated_graph, measure_int8
from rootstock.launch.outputs.int8_graph import CalibratedGraph
from rootstock.launch.outputs.onnx_file import ONNX_FILE, OnnxSession, compare_onnx, write_onnx

PER_TENSOR, CHOSEN = "model.per-tensor.onnx", "model.chosen.onnx"
FORMS = {
    "PyTorch, 32 bits": "",
    "ONNX Runtime, 32 bits": ONNX_FILE,
    "ONNX Runtime, 8 bits (`export --int8`)": INT8_FILE,
    "ONNX Runtime, 8 bits (`quantize --lose`)": CHOSEN,
    "ONNX Runtime, 8 bits, one scale a tensor": PER_TENSOR,
}
HEADS = (
    "form", "MiB", "times smaller", "ms a picture", "p95", "times as fast", "accuracy", "points lost [95 %, paired]", "same class",
    "layers in 32 bits",
)  # fmt: skip


class Asked(NamedTuple):
    """lose: points that layers may lose together; pictures: that each layer is shown; rounds: of timed calls."""

    calibrate: Sequence[str]
    test: Sequence[str]
    lose: float
    pictures: int
    rounds: int


def layers_to_keep(
    trained: TrainedRun, graph: CalibratedGraph, sets: QuantizeSets, asked: Asked, folder: Path
) -> list[str]:
    """The layers that `rootstock quantize --lose` keeps in 32 bits."""
    check_lose(sets, asked.lose)
    trials = Trials(graph, folder, trained.view, quantization_facts(trained, sets, uint8=False), per_channel=True)
    choosing = slice_of(sets.choosing, sets.labels, trained.view)
    effects = layer_effects(trials, choosing.first(asked.pictures), lambda line: print(line, file=sys.stderr))
    return list(chosen_layers(trials, choosing, by_noise(effects), asked.lose).kept)


def measured(trained: TrainedRun, asked: Asked) -> list[str]:
    """The rows of a network's table, after lines about the pictures."""
    sets, compared = quantize_sets(trained, asked.calibrate, asked.test), shown_pictures(trained, asked.test)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_onnx(trained, compared, folder, uint8=False)
        (largest, *_) = sorted(
            compare_onnx(folder / ONNX_FILE, compared, uint8=False), key=lambda check: -check.largest
        )
        graph = calibrated_graph(trained, sets.int8.calibration, folder, uint8=False)
        kept = layers_to_keep(trained, graph, sets, asked, folder)
        graph.write(folder / INT8_FILE)
        graph.write(folder / CHOSEN, keep=kept)
        graph.write(folder / PER_TENSOR, per_channel=False)
        outcomes = {
            file: measure_int8(trained, sets.int8, folder, uint8=False, name=file)
            for file in (INT8_FILE, CHOSEN, PER_TENSOR)
        }
        sizes = {file: (folder / file).stat().st_size for file in FORMS.values() if file}
        sizes[""] = bytes_of_tensors(trained.classifier or trained.backbone)
        models: dict[str, Any] = {
            form: OnnxSession(folder / file, threads=1) if file else trained.classifier for form, file in FORMS.items()
        }
        forms = [Form(form, model, compared.inputs[:1]) for form, model in models.items()]
        calls = time_in_turn(forms, threads=1, rounds=asked.rounds, clock=time.process_time)
    lines = [
        f"n = {len(sets.int8.test)} test pictures; {len(sets.int8.calibration)} others calibrate, and {len(sets.choosing)} others choose. "
        f"{largest.in_words()}.",
        *known_pictures(trained, sets),
        "",
        row(HEADS),
        f"|{'---|' * len(HEADS)}",
    ]
    layers = {CHOSEN: f"{len(kept)} of {len(graph.layers)}" + (f" ({', '.join(kept)})" if kept else "")}
    return [*lines, *(form_row(form, sizes, calls, outcomes, layers) for form in FORMS)]


def form_row(
    form: str,
    sizes: dict[str, int],
    calls: dict[str, list[float]],
    outcomes: dict[str, Int8Outcome],
    layers: dict[str, str],
) -> str:
    """A row of the table; sizes and speeds are compared with ONNX Runtime in 32 bits."""
    file, (_, reference, *_) = FORMS[form], FORMS
    spent = latency_of(calls[form])
    faster = "1" if form == reference else spoken(latency_ratio(calls[reference], calls[form]))
    smaller = "1" if form == reference else f"{sizes[ONNX_FILE] / sizes[file]:.2f}"
    times = f"{number(spent.median)} [{number(spent.low)}, {number(spent.high)}]"
    cells = [form, f"{sizes[file] / 2**20:.2f}", smaller, times, number(spent.p95), faster]
    return row([*cells, *accuracy(outcomes, file), layers.get(file, "")])


def spoken(found: Interval) -> str:
    return f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"


def accuracy(outcomes: dict[str, Int8Outcome], file: str) -> list[str]:
    """The cells about accuracy: of 32 bits that before, of 8 bits that after and the difference."""
    found = outcomes.get(file)
    if found is None:
        before = next(iter(outcomes.values())).before
        return ["" if before is None else f"{100 * before:.2f} %", "", ""]
    if found.after is None or found.difference is None or found.agreement is None:
        return ["", "", ""]
    estimate, low, high = found.difference[:3]
    between = "" if low is None or high is None else f" [{-100 * high:.2f}, {lost_at_most(found.difference):.2f}]"
    return [f"{100 * found.after:.2f} %", f"{0.0 - 100 * estimate:.2f}{between}", f"{found.agreement:.1%}"]


def section(trained: TrainedRun, asked: Asked) -> list[str]:
    """A network's part of the page."""
    assert trained.classifier is not None
    stages = ", ".join(str(stage.get("weights") or stage.get("task")) for stage in trained.backbone.provenance)
    about = trained.backbone
    return [
        "",
        f"## {about.spec['name']}",
        "",
        f"{about.size} px, {macs_of(trained.classifier, about.channels, about.size) / 1e6:,.1f} million multiply-adds, "
        f"{len(trained.classifier.outputs)} classes, trained in these stages: {stages}.",
        "",
        *measured(trained, asked),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="runs of finetune or adapt")
    parser.add_argument("--calibrate", required=True, action="append", metavar="URI", help="labelled")
    parser.add_argument("--test", required=True, action="append", metavar="URI", help="labelled")
    parser.add_argument("--lose", type=float, default=0.5, metavar="POINTS")
    parser.add_argument("--pictures", type=int, default=256, metavar="N", help="that each layer is shown")
    parser.add_argument("--rounds", type=int, default=200, help="of timed calls")
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    asked = Asked(given.calibrate, given.test, given.lose, given.pictures, given.rounds)
    networks = [load_trained(run) for run in given.runs]
    for trained in networks:
        if trained.classifier is None:
            parser.error(f"{trained.folder} has no classifier")
    lines = [
        "# 8 bits",
        "",
        f"Command: `python benchmarks/edge.py {' '.join(shown(word) for word in sys.argv[1:])}`.",
        "",
        f"{asked.rounds} rounds of calls in turn, one picture each: medians [quartiles] and 95th percentiles of CPU time on one thread, "
        "ratios paired by round with 95 % bootstrap intervals. Sizes and speeds are compared with ONNX Runtime in 32 bits.",
        "",
        f"Layers stay in 32 bits where 8 bits might lose more than {asked.lose:g} points on pictures that choose, by the 95 % bound, in "
        "the order of the noise that each layer alone makes. Test pictures choose nothing.",
        "",
        "What published weights have seen may hold the test pictures; then the accuracy says little, and the loss is what is measured.",
        "",
        machine(),
    ]
    for trained in networks:
        lines += section(trained, asked)
        publish(lines, given.markdown)  # whole networks, also if a later one fails


if __name__ == "__main__":
    main()
