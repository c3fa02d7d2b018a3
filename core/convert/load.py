"""The only place where pickles are read: a child process that turns a published checkpoint into plain tensors.

`python -m PACKAGE.core.convert.load FILE FOLDER MEMORY SECONDS`. torch's weights_only unpickler builds only tensors and plain
containers, and calls nothing that the file names. A file can still demand endless memory and time, so the process limits itself
before it reads. Its output is a safetensors file and an index in JSON.
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
NUMBER_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool,
         torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # fmt: skip
# Keys of what a checkpoint keeps only for resuming; an optimizer's state alone is twice the weights. Skipped.
RESUMING = ("opt", "scaler", "amp", "lr_sched", "callbacks", "loops")
DEEPEST_PLACE = 8


class Discarded:
    """Replaces an object that is not weights (the arguments of a training, a numpy number); keeps nothing of it."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class PlainDictionary:
    """Replaces a subclass of dict: the unpickler fills a plain dictionary instead."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


# Classes that published checkpoints hold besides tensors. They are never imported: the classes above are built instead, so no code of
# argparse, numpy, yacs or Lightning runs, and they need not be installed. torch refuses any other name.
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
STAND_INS: list[Any] = [*((Discarded, name) for name in RECORDS), *((PlainDictionary, name) for name in TABLES)]


def limit(memory: int, seconds: int) -> None:
    """Limit this process to `memory` more bytes (on Linux), files of that size, and `seconds` more of processor time."""
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


def unpickle(path: str) -> Any:
    """The object that torch.save wrote. Raises torch's own errors if it is no such file, or holds more than data."""
    with open(path, "rb") as file:
        archive = file.read(4) == b"PK\x03\x04"
    if archive:
        with zipfile.ZipFile(path) as entries:
            # Only uncompressed entries can be memory-mapped.
            archive = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries.infolist())
            # torch itself does not verify the checksums.
            if damaged := entries.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
    with warnings.catch_warnings(), torch.serialization.safe_globals(STAND_INS):
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)


def collect(tree: Any) -> Iterator[tuple[str, str, Tensor]]:
    """(place, name, tensor) of all tensors in nested dictionaries; place: the keys above the tensor's, joined by "/"."""
    seen: set[int] = set()
    waiting: deque[tuple[tuple[str, ...], Mapping[Any, Any]]] = deque([((), tree)] if isinstance(tree, Mapping) else [])
    while waiting:
        above, found = waiting.popleft()
        if id(found) in seen or len(above) > DEEPEST_PLACE:
            continue
        seen.add(id(found))
        for key, value in found.items():
            if isinstance(value, Tensor) and isinstance(key, str):
                yield "/".join(above), key, value.detach()
            elif isinstance(value, Mapping) and isinstance(key, str) and not key.startswith(RESUMING):
                waiting.append(((*above, key), value))


def top_level(tree: Any) -> dict[str, Any]:
    """The file's keys at the top level, and the architecture that it names, if it does (moco's and timm's do)."""
    top = tree if isinstance(tree, Mapping) else {}
    arch = top.get("arch")
    return {
        "keys": [key for key in top if isinstance(key, str)][:1000],
        "arch": arch if isinstance(arch, str) else None,
    }


def failure(error: BaseException) -> tuple[str, str]:
    """(kind, detail) of why a file could not be read; core/convert/file.py words the message."""
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


def write_plain(path: str, folder: Path) -> None:
    """Read the file at `path` and write TENSORS and INDEX, or REFUSED with the reason."""
    try:
        tree = unpickle(path)
        found = list(collect(tree))
        odd = next((f"{name} is {t.layout} {t.dtype}" for _, name, t in found if not _plain(t)), None)
        if odd or not found:
            kind = "odd" if odd else "empty"
            return _refuse(folder, kind, odd or type(tree).__name__)
        # Cloned: safetensors takes no tensors that share memory, and tied weights do.
        save_file({str(i): t.contiguous().clone() for i, (_, _, t) in enumerate(found)}, folder / TENSORS)
        index = {"tensors": [(place, name) for place, name, _ in found], **top_level(tree)}
        (folder / INDEX).write_text(json.dumps(index))
    except Exception as error:
        _refuse(folder, *failure(error))


def _plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.dtype in NUMBER_TYPES and not tensor.is_meta


def _refuse(folder: Path, kind: str, detail: str) -> None:
    (folder / REFUSED).write_text(json.dumps({"kind": kind, "detail": detail}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    limit(int(sys.argv[3]), int(sys.argv[4]))
    write_plain(sys.argv[1], Path(sys.argv[2]))
