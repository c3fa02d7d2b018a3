"""model.onnx of a trained network, by torch's exporter of captured graphs, and what ONNX Runtime makes of it."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.evaluate.trained import TrainedRun
from ...core.views.view import Evaluation, normalise
from .checking import Agreement, ExportCheck, ShownPictures, compared
from .network import preprocessing

ONNX_FILE = "model.onnx"
ONNX_TOLERANCE = 1e-3  # of the largest number: another library sums in another order
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONE_FILE = 1 << 30  # bytes of weights, beyond which they lie in a file beside it: a file of ONNX holds at most 2 GiB


def check_onnx(option: str = "--onnx") -> None:
    """Raises UserError where a package is missing."""
    if missing := missing_onnx():
        raise UserError(f"{option} needs {' and '.join(missing)}; `pip install 'rootstock[onnx]'`")


def missing_onnx() -> list[str]:
    """The packages that writing and running a graph need and that are not installed."""
    return [name for name in ONNX_PACKAGES if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # it was imported as None
        return False


class OnnxGraph(nn.Module):
    """What the graph computes: [N, C, S, S] -> features [N, D], and logits [N, K] where there is a classifier.

    uint8: whether it takes uint8 pixels and normalises them itself; else normalised floats.
    """

    def __init__(self, trained: TrainedRun, uint8: bool) -> None:
        super().__init__()
        self.backbone, self.classifier = trained.backbone, trained.classifier
        self.uint8, self.mean, self.std = uint8, trained.view.mean, trained.view.std
        self.outputs: tuple[str, ...] = ("features",) if trained.classifier is None else ("features", "logits")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.uint8:
            images = normalise(images.float() / 255.0, self.mean, self.std)
        features = self.backbone(images)
        return (features,) if self.classifier is None else (features, self.classifier(features))


class RawPixels:
    """The view of evaluation without its normalisation: uint8 [N, C, H, W] -> uint8 [N, C, S, S], for a graph that normalises itself.

    Raises UserError for pictures of 16 bits.
    """

    def __init__(self, view: Evaluation) -> None:
        self.worker = view.worker

    def __call__(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise UserError("--uint8: some pictures have 16 bits; leave it out, and normalise before the graph")
        return torch.stack([self.worker(image) for image in images])


class OnnxSession(nn.Module):
    """A file of ONNX on the CPU as a module: inputs [N, C, S, S] of its type -> its outputs by name, [N, ...] each.

    threads: that compute; None: ONNX Runtime's choice. takes_pixels: whether its images are uint8.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        if threads is not None:
            options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.takes_pixels = self.session.get_inputs()[0].type == "tensor(uint8)"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = self.session.run(self.outputs, {"images": images.contiguous().numpy()})
        return {name: torch.from_numpy(rows) for name, rows in zip(self.outputs, found, strict=True)}


def write_onnx(trained: TrainedRun, shown: ShownPictures, folder: Path, uint8: bool) -> list[str]:
    """Write model.onnx with any batch size, outputs `features` and `logits`, and a description in its metadata. Returns the files' names.

    Raises UserError for pictures of 16 bits where the graph is to take 8.
    """
    graph = OnnxGraph(trained, uint8).eval()
    example = (RawPixels(trained.view)(shown.cropped) if uint8 else shown.inputs)[:2]
    example = (
        example if len(example) > 1 else example.repeat(2, 1, 1, 1)
    )  # of one picture the batch size would be fixed
    with quiet():
        program = torch.onnx.export(
            graph, (example,), dynamo=True, verbose=False, input_names=["images"], output_names=list(graph.outputs),
            dynamic_shapes=({0: torch.export.Dim("pictures")},),
        )  # fmt: skip
    assert program is not None
    program.model.metadata_props["rootstock"] = json.dumps(described(trained, uint8))
    size = sum(p.numel() * p.element_size() for p in graph.parameters())
    program.save(str(folder / ONNX_FILE), external_data=size > ONE_FILE)
    return [path.name for path in sorted(folder.glob(f"{ONNX_FILE}*"))]


def described(trained: TrainedRun, uint8: bool) -> dict[str, Any]:
    """The entry `rootstock` of the metadata."""
    takes = (
        "uint8 pixels [N, C, S, S], resized and cropped as `preprocessing` says; the graph scales and normalises them"
    )
    if not uint8:
        takes = "float32 [N, C, S, S], prepared as `preprocessing` says"
    return {
        "images": takes,
        "preprocessing": preprocessing(trained),
        "outputs": None if trained.classifier is None else trained.classifier.outputs,
        "temperature": None if trained.calibration is None else trained.calibration.temperature,
    }


def compare_onnx(path: Path, shown: ShownPictures, uint8: bool) -> list[ExportCheck]:
    """Compare what ONNX Runtime makes of the pictures, all at once and one by one."""
    pictures, session = shown.cropped if uint8 else shown.inputs, OnnxSession(path)
    together, alone = session(pictures), [session(picture[None]) for picture in pictures]
    one_by_one = {name: torch.cat([found[name] for found in alone]) for name in together}
    checks = []
    for output, own in {"features": shown.features, "logits": shown.logits}.items():
        if own is None:
            continue
        of: Agreement = "same class" if output == "logits" else "same nearest picture"
        for how, found in (("", together), (", one picture at a time", one_by_one)):
            checks.append(compared(f"{output} of {path.name} in ONNX Runtime{how}", found[output], own, of))
    return checks


@contextmanager
def quiet(names: Sequence[str] = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "root")) -> Iterator[None]:
    """Within it, the exporter's progress and warnings are not printed: what it made is compared afterwards."""
    loggers = [logging.getLogger(None if name == "root" else name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def onnx_section(names: Sequence[str], uint8: bool, checks: Sequence[ExportCheck]) -> str:
    """Of README.md."""
    takes = "uint8 pixels that are resized and cropped; the graph normalises them" if uint8 else "normalised float32"
    return "\n".join(
        [
            "## ONNX",
            "",
            f"`{names[0]}` takes `images` [N, C, S, S] for any N ({takes}), and its metadata describe how pictures are prepared:",
            "",
            "```python",
            "import onnxruntime",
            f'session = onnxruntime.InferenceSession("{names[0]}")',
            'features, *logits = session.run(None, {"images": images})',
            "```",
            "",
            *(f"- {check.in_words()}" for check in checks),
        ]
    )
