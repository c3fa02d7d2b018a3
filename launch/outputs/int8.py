"""model.int8.onnx: 8-bit weights and activations, and what that costs on pictures that calibrated nothing.

Static quantisation with QDQ nodes (Jacob et al. 2018, arXiv:1712.05877): activations are uint8 with one scale a tensor, from their least
and greatest values on the calibration pictures; weights are int8 with one scale an output channel. With one scale for a whole tensor,
networks with depthwise convolutions lose whole points, since their channels differ by orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.evaluate.features import EvaluationView, extract_taps
from ...core.evaluate.rounds import stores_in_memory
from ...core.evaluate.statistics import Interval, bootstrap_intervals, cluster_numbers, of_sums, wilson
from ...core.evaluate.trained import TrainedRun
from ...core.images.images import Images
from ...core.images.open import open_images
from ...core.images.parts import drawn_apart, linked_to
from ...core.views.view import stack_pictures
from .int8_graph import CalibratedGraph
from .onnx_file import ONNX_FILE, OnnxGraph, OnnxSession, RawPixels
from .pictures import damage_with_remedy
from .predict import labels_for

INT8_FILE = "model.int8.onnx"
CALIBRATED = 128  # pictures
BATCH = 16


class Int8Sets(NamedTuple):
    """calibration, test: without a common picture. labels: int64 [N] of the test, as outputs of the classifier; None without labels."""

    calibration: Images
    test: Images
    labels: Tensor | None


class Int8Outcome(NamedTuple):
    """What 8 bits cost. before, after: accuracies; difference: after - before, paired over pictures. Without labels None.

    agreement: part of the test pictures with the same highest output; None without a classifier. cosine: of the features, the mean over
    pictures. bytes: of the files of 32 and of 8 bits.
    """

    calibrated: int
    title: str
    pictures: int
    bytes: tuple[int, int]
    cosine: float
    agreement: float | None
    before: float | None
    after: float | None
    difference: Interval | None
    over: str = "pictures"  # as of `drawn_in_words`

    def in_words(self) -> list[str]:
        """For console and card."""
        large, small = self.bytes
        lines = [
            f"{INT8_FILE}: {small / 2**20:.2f} MiB instead of {large / 2**20:.2f} MiB ({large / small:.1f} times smaller), calibrated on "
            f"{self.calibrated} pictures; on {self.pictures} others of {self.title}:"
        ]
        lines.append(f"features: cosine with those of 32 bits {self.cosine:.4f} in the mean")
        if self.agreement is not None:
            lines.append(f"same class for {self.agreement:.1%} of them")
        if self.difference is not None and self.before is not None and self.after is not None:
            lines.append(accuracy_in_words(self.before, self.after, self.difference, self.over))
        return lines


def accuracy_in_words(before: float, after: float, difference: Interval, over: str) -> str:
    """Both accuracies and their difference, in per cent and points. over: as of `drawn_in_words`."""
    low, high = difference.low, difference.high
    between = (
        "" if low is None or high is None else f" [{100 * low:+.2f}, {100 * high:+.2f}] (95 %, paired over {over})"
    )
    return f"accuracy: {100 * before:.2f} % before, {100 * after:.2f} % after, difference {100 * difference.estimate:+.2f} points{between}"


def drawn_in_words(test: Images) -> str:
    """What the interval of a paired difference draws."""
    return "pictures" if test.groups is None else f"{len(test.units().unique())} groups"


def int8_sets(trained: TrainedRun, uris: Sequence[str], tests: Sequence[str], option: str = "--int8") -> Int8Sets:
    """The pictures that calibrate, drawn by content, and those that test: of `tests`, or the others of `uris`. Raises UserError.

    They share neither a picture nor a group. What has labels in `tests` (or in `uris`) is scored; calibration sees none. option: that
    gives `uris`.
    """
    pool = open_images(list(uris))
    trained.check_pictures(pool)
    calibration = drawn_apart(pool, CALIBRATED, 0, leave=not tests)
    if not len(calibration):
        if len(pool.keys().unique()) < 2:
            few, more = f"{len(pool)} pictures, of which half calibrate", "more"
        else:
            few, more = f"{len(pool)} pictures of one group, which cannot both calibrate and test", "other groups"
        raise UserError(f"{option}: {pool.uri} has {few}; give {more}, or others with --test URI")
    near = linked_to(pool, calibration)
    test = open_images(list(tests)) if tests else pool.select((~near).nonzero()[:, 0])
    trained.check_pictures(test)
    test = test.select(rows_apart(test, pool.select(near.nonzero()[:, 0]), "calibrate too"))
    scored = trained.classifier is not None and test.labels is not None
    labels = labels_for(trained, test, "--test" if tests else option) if scored else None
    return Int8Sets(calibration.unlabelled(), test, labels)


def rows_apart(test: Images, others: Images, do: str) -> Tensor:
    """int64 [M]: the test's pictures that share neither content nor a group with the others. do: what these do.

    Raises UserError if none is left.
    """
    rows = (~linked_to(test, others)).nonzero()[:, 0]
    if not len(rows):
        more = "" if bool(torch.isin(test.keys(), others.keys()).all()) else ", or are of groups of which pictures do"
        raise UserError(f"--test: all pictures of {test.uri} {do}{more}; give others")
    return rows


def write_int8(
    trained: TrainedRun,
    calibration: Images,
    folder: Path,
    uint8: bool,
    *,
    name: str = INT8_FILE,
    per_channel: bool = True,
) -> list[str]:
    """Write model.int8.onnx, or a file of another name, beside model.onnx. Returns the names of its files."""
    graph = calibrated_graph(trained, calibration, folder, uint8)
    graph.write(folder / name, per_channel=per_channel)
    return [path.name for path in sorted(folder.glob(f"{name}*"))]


def calibrated_graph(trained: TrainedRun, calibration: Images, folder: Path, uint8: bool) -> CalibratedGraph:
    """model.onnx of the folder, calibrated."""
    with damage_with_remedy():
        return CalibratedGraph(folder / ONNX_FILE, _batches(trained, calibration, uint8))


def measure_int8(
    trained: TrainedRun, sets: Int8Sets, folder: Path, uint8: bool, *, name: str = INT8_FILE, workers: int = 0
) -> Int8Outcome:
    """Show the test pictures to the run's network and to the graph of 8 bits."""
    test, view = sets.test, trained.view
    raw: EvaluationView = RawPixels(view) if uint8 else view

    def shown(model: nn.Module, view: EvaluationView) -> dict[str, Tensor]:
        dtypes = dict.fromkeys(OnnxGraph(trained, uint8).outputs, torch.float32)
        stores = stores_in_memory(len(test), dtypes)
        axes = dict.fromkeys(dtypes, 1)
        return extract_taps(model, test, view, axes, stores, device="cpu", workers=workers, batch_size=BATCH)

    with damage_with_remedy():
        own, rounded = shown(_Outputs(trained), view), shown(OnnxSession(folder / name), raw)
    cosine = float(nn.functional.cosine_similarity(own["features"].double(), rounded["features"].double()).mean())
    agreement = before = after = difference = None
    if trained.classifier is not None:
        classes = [found["logits"].argmax(1) for found in (own, rounded)]
        agreement = float((classes[0] == classes[1]).double().mean())
        if sets.labels is not None:
            right = [(found == sets.labels).numpy() for found in classes]
            before, after = (float(part.mean()) for part in right)
            difference = paired_difference(right[0], right[1], test.units().numpy())
    sizes = (_bytes(folder, ONNX_FILE), _bytes(folder, name))
    measured = (cosine, agreement, before, after, difference)
    return Int8Outcome(len(sets.calibration), test.uri, len(test), sizes, *measured, over=drawn_in_words(test))


class _Outputs(nn.Module):
    """The run's network with outputs by name, as a graph of ONNX has them."""

    def __init__(self, trained: TrainedRun) -> None:
        super().__init__()
        self.graph = OnnxGraph(trained, uint8=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.graph.outputs, self.graph(images), strict=True))


def paired_difference(before: np.ndarray, after: np.ndarray, clusters: np.ndarray) -> Interval:
    """The interval of the mean of after - before over pictures, by drawing identities with replacement.

    before, after: bool [N]. Where at most one identity changes, draws hardly differ: then Wilson's bound on the share that changes holds
    in both directions.
    """
    member, count = cluster_numbers(clusters)
    change = np.bincount(member, after.astype(np.float64) - before.astype(np.float64), minlength=count)
    sizes = np.bincount(member, minlength=count).astype(np.float64)
    estimate = float(change.sum() / sizes.sum())
    moved = len(np.unique(member[before != after]))
    if moved <= 1:
        bound = wilson(moved / count, count)[1]
        return Interval(estimate, -bound, bound, "wilson")
    statistic = of_sums(np.stack([change, sizes], axis=1), lambda sums: {"": sums[:, 0] / sums[:, 1]})
    return bootstrap_intervals(statistic, count, seed=0)[""]


def int8_section(
    outcome: Int8Outcome, calibration: Images, per_channel: bool = True, remarks: Sequence[str] = ()
) -> str:
    """Of README.md. remarks: further lines about the pictures that test."""
    first, *others = [*outcome.in_words(), *remarks]
    scale = "each output channel" if per_channel else "the whole tensor"
    return "\n".join(
        [
            "## 8 bits",
            "",
            first,
            "",
            *(f"- {line}" for line in others),
            "",
            f"Static, QDQ, one scale for {scale} of int8 weights, uint8 activations, least and greatest values of the calibration pictures "
            f"(of `{calibration.uri}`, split hash `{calibration.split_hash()}`). Measured with ONNX Runtime on the processor that exported "
            "it; x86 processors without VNNI may saturate, so measure there again. OpenVINO computes in bf16 by default where the "
            "processor can: compare with `INFERENCE_PRECISION_HINT` f32.",
        ]
    )


def _batches(trained: TrainedRun, images: Images, uint8: bool) -> Iterator[dict[str, np.ndarray]]:
    shown: EvaluationView = RawPixels(trained.view) if uint8 else trained.view
    for start in range(0, len(images), BATCH):
        rows = range(start, min(start + BATCH, len(images)))
        yield {"images": shown(stack_pictures([trained.view.worker(images.read(i)) for i in rows])).numpy()}


def _bytes(folder: Path, name: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"{name}*"))
