"""A process that loads one form of a network, shows it a picture a few times, and prints how much memory that took, as JSON.

`python -m rootstock.launch.compress.child FORM PATH SHAPE DTYPE THREADS`, with FORM torch, cuda or onnx. A graph of ONNX is run without
torch, as a device would run it.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = 3


def resident_peak() -> int:
    """Bytes of this process that were resident at most. What a process counts as its own after exec may hold its parent's; Linux's VmHWM
    does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_here(form: str, path: str, shape: list[int], dtype: str, threads: int) -> dict[str, int]:
    """before: bytes with the libraries loaded; peak: with the network, too. On a GPU: of torch's own there."""
    return {"onnx": _onnx, "torch": _torch, "cuda": _torch}[form](path, shape, dtype, threads, form == "cuda")


def _onnx(path: str, shape: list[int], dtype: str, threads: int, cuda: bool) -> dict[str, int]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    images, before = np.zeros(shape, dtype), resident_peak()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return _called(lambda: session.run(None, {"images": images}), before)


def _torch(path: str, shape: list[int], dtype: str, threads: int, cuda: bool) -> dict[str, int]:
    import torch

    from .networks import open_network

    torch.set_num_threads(threads)
    device = torch.device("cuda" if cuda else "cpu")
    images: Any = torch.zeros(shape, dtype=torch.float32, device=device)
    before = resident_peak()
    network = open_network(path).network
    assert network is not None
    network.to(device)
    with torch.inference_mode():
        found = _called(lambda: network(images), before)
    return {"before": 0, "peak": torch.cuda.max_memory_allocated(device)} if cuda else found


def _called(call: Callable[[], Any], before: int) -> dict[str, int]:
    for _ in range(CALLS):
        call()
    return {"before": before, "peak": resident_peak()}


if __name__ == "__main__":
    form, path, shape, dtype, threads = sys.argv[1:]
    print(json.dumps(measure_here(form, path, json.loads(shape), dtype, int(threads))))
