"""Published weights as plain tensors, read by a child process with limits; every failure is one sentence.

The child (core/convert/load.py) may be killed, crash or run out of memory. This process itself reads only JSON and safetensors.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..config.messages import spelt
from ..errors import UserError
from ..files import sha256
from .load import INDEX, NUMBER_TYPES, REFUSED, TENSORS

GIB = 2**30


class Limits(NamedTuple):
    """Limits of reading one file.

    memory: GiB, besides three times the file's size (mapped, copied, written). cpu, wall: seconds of processor and of real time, besides
    one second for each cpu_rate and wall_rate MiB of the file, since network disks are slow.
    """

    memory: float = 1.0
    cpu: float = 60.0
    wall: float = 120.0
    cpu_rate: float = 50.0
    wall_rate: float = 5.0


class Contents(NamedTuple):
    """What a file of weights holds.

    groups: tensors by name, for each place in the file ("state_dict", "classy_state_dict/base_model/model/trunk", "" for the top).
    keys: keys at the top level. arch: the architecture that the file names, if it does. sha256: digest of the file.
    """

    path: Path
    groups: dict[str, dict[str, Tensor]]
    keys: list[str]
    arch: str | None
    sha256: str


def read_weights(path: Path, limits: Limits = Limits()) -> Contents:
    """Read a file of torch.save or safetensors; leaves no temporary files. Raises UserError with the reason and a remedy."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: not a file; expected weights as .pth, .pth.tar, .pt, .ckpt, .bin or .safetensors")
        if status.st_size == 0:
            raise UserError(f"{path}: the file is empty; download it again")
        digest = sha256(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{path}: not a safetensors file, or a damaged one ({_line(error)}); download it again"
            ) from None
        if odd := next(
            (f"{spelt(name)} is {t.dtype}" for name, t in tensors.items() if t.dtype not in NUMBER_TYPES), None
        ):
            raise UserError(_sentence(path, "odd", odd, 0))
        return Contents(path, {"": tensors}, list(tensors), None, digest)
    with tempfile.TemporaryDirectory(prefix="rootstock-import-") as scratch:
        folder = Path(scratch)
        _run_child(path, folder, limits, status.st_size)
        index = json.loads((folder / INDEX).read_text())
        tensors = load_file(folder / TENSORS)
    groups: dict[str, dict[str, Tensor]] = {}
    for i, (place, name) in enumerate(index["tensors"]):
        groups.setdefault(place, {})[name] = tensors[str(i)]
    return Contents(path, groups, index["keys"], index["arch"], digest)


def _run_child(path: Path, folder: Path, limits: Limits, size: int) -> None:
    """Let the child write TENSORS and INDEX into `folder`. Raises UserError, or OSError for a full disk."""
    memory = 3 * size + int(limits.memory * GIB)
    cpu = limits.cpu + size / 2**20 / limits.cpu_rate
    wall = limits.wall + size / 2**20 / limits.wall_rate
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TORCH_FORCE_")}
    # The child imports from the same folders as this process, and not from its working directory (-P).
    environment.update(PYTHONPATH=os.pathsep.join(p or os.getcwd() for p in sys.path), OMP_NUM_THREADS="1")
    module = f"{__package__}.load"
    command = [sys.executable, "-P", "-m", module, str(path.resolve()), str(folder), str(memory), str(max(1, int(cpu)))]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            timeout=wall, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{path}: reading took more than {wall:.0f} s and was stopped; is the disk slow, or the file damaged?"
        ) from None
    if (folder / REFUSED).is_file():
        refused = json.loads((folder / REFUSED).read_text())
        if refused["kind"] == "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.parent))
        raise UserError(_sentence(path, refused["kind"], refused["detail"], memory))
    if done.returncode < 0:
        if -done.returncode == signal.SIGXCPU:
            raise UserError(
                f"{path}: reading took more than {cpu:.0f} s of processor time and was stopped; the file is damaged or hostile"
            )
        name = signal.Signals(-done.returncode).name
        raise UserError(
            f"{path}: the process that read it crashed ({name}); the file is damaged or hostile, download it again"
        )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"{path}: cannot be read ({last[0][:200]}); save its state_dict as safetensors and import that")


def _sentence(path: Path, kind: str, detail: str, memory: int) -> str:
    return f"{path}: " + {
        "unsafe": f"holds more than weights ({detail}), and reading that could run code from the file, so it was not read; if you "
        "trust its origin, load it with its own project, save only the state_dict with torch.save, and import that",
        "memory": f"asks for more than the {memory / GIB:.1f} GiB that a file of its size may need; it is damaged or hostile, "
        "download it again",
        "script": "is a TorchScript program, which can only be opened by running it; import the state_dict that it was made from",
        "empty": f"holds no tensors in dictionaries (its top level is {detail}); expected a state_dict or a checkpoint with one",
        "odd": f"holds tensors that are not plain numbers ({detail}); import the weights from before quantising or pruning",
        "damaged": f"is not a complete file of torch.save ({detail}); download it again",
    }[kind]  # fmt: skip


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
