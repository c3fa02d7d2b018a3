"""The time of a point's network beside the reference's: both are called in turn, so that they share the machine's minutes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from ..compress.latency import Form, latency_ratio, time_in_turn
from ..outputs.onnx_file import ONNX_FILE, OnnxSession, quiet
from .point import Untrained


def time_beside(
    point: Untrained,
    reference: Untrained,
    *,
    runtime: str,
    threads: int,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Milliseconds of one picture in both networks, medians, and the median of their ratios by round. clock: seconds."""
    forms = [
        Form(name, _runnable(built, runtime, threads), torch.zeros(1, built.channels, built.size, built.size))
        for name, built in (("point", point), ("reference", reference))
    ]
    spent = time_in_turn(forms, threads=threads, rounds=rounds, clock=clock)
    return {
        "cost": latency_ratio(spent["point"], spent["reference"]).estimate,
        "milliseconds": median(spent["point"]),
        "reference_milliseconds": median(spent["reference"]),
    }


def _runnable(built: Untrained, runtime: str, threads: int) -> Callable[[torch.Tensor], Any]:
    network = built.network.eval()
    if runtime == "torch":
        return network
    with tempfile.TemporaryDirectory(prefix="rootstock-latency-") as folder:
        _write_graph(network, built, Path(folder) / ONNX_FILE)
        return OnnxSession(Path(folder) / ONNX_FILE, threads)


def _write_graph(network: nn.Module, built: Untrained, path: Path) -> None:
    example = torch.zeros(1, built.channels, built.size, built.size)
    with quiet(), torch.inference_mode():
        program = torch.onnx.export(network, (example,), dynamo=True, verbose=False, input_names=["images"])
    assert program is not None
    program.save(str(path))
