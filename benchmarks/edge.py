"""Size, speed and accuracy of a classifier in PyTorch, in ONNX Runtime, and there in 8 bits.

    rootstock import tf_efficientnet_lite0.safetensors --from timm --name tf_efficientnet_lite0 --size 96 --mean 0.5,0.5,0.5 \\
        --std 0.5,0.5,0.5 --to runs/lite0
    rootstock finetune benchmarks/edge.yaml
    python benchmarks/edge.py runs/lite0_imagenette --calibrate "tar:data/imagenette_96.tar.gz#train[:3%,seed=0]" \\
        --test "tar:data/imagenette_96.tar.gz#val[:1000,seed=0]" --markdown benchmarks/edge.md        two minutes on one core

Speed is the CPU time of one picture at a time, on one thread. 8 bits with one scale for a whole tensor of weights stand beside those that
`rootstock export --int8` writes, with one scale for each output channel.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from page import machine, number, publish, row, shown, spoken
from timing import Contender, Interval, interleaved, on_one_core

from rootstock.core.evaluate.trained import TrainedRun, load_trained
from rootstock.launch.outputs.checking import shown_pictures
from rootstock.launch.outputs.int8 import INT8_FILE, Int8Outcome, int8_sets, measure_int8, write_int8
from rootstock.launch.outputs.onnx_file import ONNX_FILE, OnnxSession, compare_onnx, write_onnx

PER_TENSOR = "model.per-tensor.onnx"
FORMS = {
    "PyTorch, 32 bits": "",
    "ONNX Runtime, 32 bits": ONNX_FILE,
    "ONNX Runtime, 8 bits (`--int8`)": INT8_FILE,
    "ONNX Runtime, 8 bits, one scale a tensor": PER_TENSOR,
}


def one_by_one(model: Callable[[torch.Tensor], Any], pictures: torch.Tensor) -> Callable[[int], Iterator[int]]:
    """Show so many pictures, each alone."""

    def show(batches: int) -> Iterator[int]:
        with torch.inference_mode():
            for i in range(batches):
                model(pictures[i % len(pictures)][None])
                yield 1

    return show


def measured(trained: TrainedRun, uris: Sequence[str], tests: Sequence[str], trials: int, seconds: float) -> list[str]:
    """The rows of the table, after a line about the pictures."""
    sets, compared = int8_sets(trained, uris, tests), shown_pictures(trained, tests)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_onnx(trained, compared, folder, uint8=False)
        (largest, *_) = sorted(
            compare_onnx(folder / ONNX_FILE, compared, uint8=False), key=lambda check: -check.largest
        )
        outcomes: dict[str, Int8Outcome] = {}
        for file, per_channel in ((INT8_FILE, True), (PER_TENSOR, False)):
            write_int8(trained, sets.calibration, folder, False, name=file, per_channel=per_channel)
            outcomes[file] = measure_int8(trained, sets, folder, False, name=file)
        sizes = {file: (folder / file).stat().st_size for file in FORMS.values() if file}
        sizes[""] = sum(p.numel() * p.element_size() for p in trained.backbone.parameters())
        models: dict[str, Any] = {
            form: OnnxSession(folder / file, threads=1) if file else trained.classifier for form, file in FORMS.items()
        }
        ways = [Contender(form, one_by_one(model, compared.inputs)) for form, model in models.items()]
        costs = interleaved(ways, on_one_core, trials, seconds)
    first = next(iter(FORMS))
    lines = [
        f"n = {len(sets.test)} test pictures; {len(sets.calibration)} others calibrate. {largest.in_words()}.",
        "",
        f"| form | MiB | ms a picture | times that of {first} | accuracy | points lost [95 %, paired] | same class |",
        "|---|---|---|---|---|---|---|",
    ]
    for form, file in FORMS.items():
        spent = Interval.quartiles([cost.main / 1000 for cost in costs[form]])
        cells = [
            form,
            f"{sizes[file] / 2**20:.2f}",
            f"{number(spent.median)} [{number(spent.low)}, {number(spent.high)}]",
        ]
        cells.append("1" if form == first else spoken(Interval.ratio(costs[form], costs[first])))
        lines.append(row([*cells, *accuracy(outcomes, file)]))
    return lines


def accuracy(outcomes: dict[str, Int8Outcome], file: str) -> list[str]:
    """The cells about accuracy: of 32 bits that before, of 8 bits that after and the difference."""
    found = outcomes.get(file)
    if found is None:
        before = next(iter(outcomes.values())).before
        return ["" if before is None else f"{100 * before:.2f} %", "", ""]
    if found.after is None or found.difference is None or found.agreement is None:
        return ["", "", ""]
    estimate, low, high = found.difference[:3]
    between = "" if low is None or high is None else f" [{-100 * high:.2f}, {-100 * low:.2f}]"
    return [f"{100 * found.after:.2f} %", f"{0.0 - 100 * estimate:.2f}{between}", f"{found.agreement:.1%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run of finetune or adapt")
    parser.add_argument("--calibrate", required=True, action="append", metavar="URI")
    parser.add_argument("--test", required=True, action="append", metavar="URI", help="labelled")
    parser.add_argument("--trials", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a trial")
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    trained = load_trained(asked.run)
    if trained.classifier is None:
        parser.error(f"{asked.run} has no classifier")
    stages = ", ".join(str(stage.get("weights") or stage.get("task")) for stage in trained.backbone.provenance)
    lines = [
        "# 8 bits",
        "",
        f"Command: `python benchmarks/edge.py {' '.join(shown(word) for word in sys.argv[1:])}`; "
        f"{asked.trials} interleaved trials: medians [quartiles], ratios with 95 % bootstrap intervals.",
        "",
        f"Network: {trained.backbone.spec['name']}, {trained.backbone.size} px, {len(trained.classifier.outputs)} classes, trained in "
        f"these stages: {stages}. "
        "What published weights have seen may hold the test pictures; then the accuracy says little, and the loss is what is measured.",
        "",
        machine(),
        "",
        *measured(trained, asked.calibrate, asked.test, asked.trials, asked.seconds),
    ]
    publish(lines, asked.markdown)


if __name__ == "__main__":
    main()
