"""Peak memory of one form of a network, in a process of its own, so that nothing else is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from ...core.errors import MachineError


class PeakMemory(NamedTuple):
    """Bytes that were resident at most, and how many of these the libraries took before the network was loaded; on a GPU torch's own."""

    peak: int
    before: int


def peak_memory(
    form: Literal["torch", "cuda", "onnx"], path: Path, shape: Sequence[int], dtype: str, threads: int
) -> PeakMemory:
    """Of a fresh process that loads a form and shows it images of this shape. path: of a run or an export; of a graph for onnx.

    Raises MachineError if that process fails.
    """
    words = [form, str(path.absolute()), json.dumps(list(shape)), dtype, str(threads)]
    place = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.child", *words], capture_output=True, text=True, check=False, env=place
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MachineError(f"the memory of {path} could not be measured, since the process ended with: {last}")
    return PeakMemory(**{key: json.loads(done.stdout)[key] for key in ("peak", "before")})
