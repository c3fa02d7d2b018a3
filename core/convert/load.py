"""The one place where pickles are read: a child process that makes plain tensors of somebody else's checkpoint.

`python -m PACKAGE.core.foreign.load FILE FOLDER MEMORY SECONDS`. torch's weights_only unpickler builds tensors and plain
containers and calls nothing that a file names; a file can still ask for memory and time without end, so the process limits
itself before it reads, and hands on nothing but a safetensors file and an index in JSON.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import sys
import warnings
import zipfile
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

TENSORS, INDEX, REFUSED = "tensors.safetensors", "index.json", "refused.json"
KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool,
         torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # fmt: skip
# What a checkpoint keeps for resuming; of an optimizer's state that is twice the weights.
RESUMING = ("opt", "scaler", "amp", "lr_sched", "callbacks", "loops")
DEEPEST = 8


class Record:
    """Stands in for an object beside the weights (the arguments of a training, a numpy number); keeps nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Table:
    """Stands in for a class of dictionaries: the unpickler fills the plain one that it makes."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


# What published checkpoints hold beside tensors. The names are never looked up: their stand-ins are built in their place, so
# nothing of argparse, numpy, yacs or Lightning runs, nor need they be installed. Any other name is refused by torch.
RECORDS = (
    "argparse.Namespace",  # mae, dino, ibot, timm
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype",  # dino's learning rates
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray",
    "pathlib.PosixPath", "pathlib.Path", "typing.Any",
    "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata", "omegaconf.nodes.AnyNode", "builtins.dict", "builtins.list",  # dinov2, solo
)  # fmt: skip
TABLES = (
    "yacs.config.CfgNode",  # simmim
    "pytorch_lightning.utilities.parsing.AttributeDict",  # solo, lightly
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "vissl.utils.hydra_config.AttrDict",
    "collections.defaultdict",
)
STAND_INS: list[Any] = [*((Record, name) for name in RECORDS), *((Table, name) for name in TABLES)]


def limit(memory: int, seconds: int) -> None:
    """From here on at most `memory` more bytes (on Linux), files no larger, and `seconds` more of processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + seconds)
    _lower(resource.RLIMIT_FSIZE, memory)
    _lower(resource.RLIMIT_CORE, 0)
    pages = Path("/proc/self/statm")
    if pages.exists():
        _lower(resource.RLIMIT_AS, int(pages.read_text().split()[0]) * resource.getpagesize() + memory)


def _lower(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def load(path: str) -> Any:
    """What torch.save wrote there. Raises whatever torch says of a file that is none, or that holds more than data."""
    with open(path, "rb") as file:
        archive = file.read(4) == b"PK\x03\x04"
    if archive:
        with zipfile.ZipFile(path) as entries:
            # A mapped file is read as it lies on the disk.
            archive = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries.infolist())
            # torch itself does not look at the checksums.
            if damaged := entries.testzip():
                raise ValueError(f"{damaged} has not the checksum that it was written with")
    with warnings.catch_warnings(), torch.serialization.safe_globals(STAND_INS):
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)


def collect(tree: Any) -> Iterator[tuple[str, str, Tensor]]:
    """(place, name, tensor) of all tensors in nested dictionaries; place: the keys above the tensor's, joined by "/"."""
    seen: set[int] = set()
    waiting: deque[tuple[tuple[str, ...], Mapping[Any, Any]]] = deque([((), tree)] if isinstance(tree, Mapping) else [])
    while waiting:
        above, found = waiting.popleft()
        if id(found) in seen or len(above) > DEEPEST:
            continue
        seen.add(id(found))
        for key, value in found.items():
            if isinstance(value, Tensor) and isinstance(key, str):
                yield "/".join(above), key, value.detach()
            elif isinstance(value, Mapping) and isinstance(key, str) and not key.startswith(RESUMING):
                waiting.append(((*above, key), value))


def describe(tree: Any) -> dict[str, Any]:
    """What the file says of itself: its topmost keys, and the architecture's name where there is one (moco, timm)."""
    top = tree if isinstance(tree, Mapping) else {}
    arch = top.get("arch")
    return {
        "keys": [key for key in top if isinstance(key, str)][:1000],
        "arch": arch if isinstance(arch, str) else None,
    }


def refusal(error: BaseException) -> tuple[str, str]:
    """(kind, detail) of what kept a file from being read; foreign/file.py makes the sentence."""
    said = str(error)
    if unsafe := re.search(r"GLOBAL ([\w.]+)", said):
        return "unsafe", unsafe[1]
    if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in said:
        return "disk", ""
    if isinstance(error, MemoryError) or re.search(r"allocate memory|bad_alloc|not enough memory|File too large", said):
        return "memory", ""
    if "TorchScript" in said:
        return "script", ""
    said = said.partition("WeightsUnpickler error:")[2] or said
    line = next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)
    return "damaged", line.partition(". ")[0][:200]


def write(path: str, folder: Path) -> None:
    """Read the file at `path` and write TENSORS and INDEX, or REFUSED with the reason."""
    try:
        tree = load(path)
        found = list(collect(tree))
        odd = next((f"{name} is {t.layout} {t.dtype}" for _, name, t in found if not _plain(t)), None)
        if odd or not found:
            kind = "odd" if odd else "empty"
            return _refuse(folder, kind, odd or type(tree).__name__)
        # Cloned: safetensors takes no tensors that share memory, and tied weights do.
        save_file({str(i): t.contiguous().clone() for i, (_, _, t) in enumerate(found)}, folder / TENSORS)
        index = {"tensors": [(place, name) for place, name, _ in found], **describe(tree)}
        (folder / INDEX).write_text(json.dumps(index))
    except Exception as error:
        _refuse(folder, *refusal(error))


def _plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.dtype in KINDS and not tensor.is_meta


def _refuse(folder: Path, kind: str, detail: str) -> None:
    (folder / REFUSED).write_text(json.dumps({"kind": kind, "detail": detail}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    limit(int(sys.argv[3]), int(sys.argv[4]))
    write(sys.argv[1], Path(sys.argv[2]))
