"""`rootstock doctor`: what is installed and connected, tried rather than looked up, and what is wrong with it in words.

Each check does the smallest real thing (a product on the device, two processes that add a number), because what is installed
and what works differ exactly on the machines where one calls the doctor.
"""

import importlib
import os
import platform
import shutil
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console
from rich.markup import escape

GIB = 2**30


class Finding(NamedTuple):
    """verdict: `wrong` is an essential part that is broken, `note` what one may want to mend. said: one sentence."""

    verdict: Literal["ok", "note", "wrong"]
    subject: str
    said: str


def examine() -> int:
    """Print what every check finds. Returns the exit code: 1 if something essential is broken."""
    console = Console(highlight=False, soft_wrap=True)
    marks = {"ok": "[green]ok   [/]", "note": "[yellow]note [/]", "wrong": "[red]WRONG[/]"}
    wrong = 0
    for check in CHECKS:
        for finding in tried(check):
            console.print(f"{marks[finding.verdict]} {finding.subject:<12} {escape(finding.said)}")
            wrong += finding.verdict == "wrong"
    console.print(f"\n{wrong} wrong: mend these first" if wrong else "\nnothing essential is wrong", style="bold")
    return 1 if wrong else 0


def tried(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check's findings; one that cannot even finish is itself a finding, so the others are still made."""
    try:
        yield from check()
    except Exception as error:
        yield Finding("wrong", check.__name__, f"the check stopped at {type(error).__name__}: {_short(error)}")


def python() -> Iterator[Finding]:
    verdict = "ok" if sys.version_info >= (3, 11) else "wrong"
    yield Finding(verdict, "python", f"{platform.python_version()} on {platform.platform()} (3.11 or newer is needed)")
    if not hasattr(ssl, "OPENSSL_VERSION"):
        yield Finding("wrong", "ssl", f"`import ssl` gives {ssl}, not Python's own; remove ssl/__init__.py")


def packages() -> Iterator[Finding]:
    """Every package that setup.cfg asks for: there, new enough, and importable where a broken build is common."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in requires("rootstock") or []]
    except PackageNotFoundError:
        yield Finding("wrong", "packages", "rootstock is not installed here; run `pip install -e .` in the checkout")
        return
    found = []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found.append(f"{requirement.name} {version(requirement.name)}")
        except PackageNotFoundError:
            yield Finding("wrong", "packages", f"{requirement.name} is missing; run `pip install '{requirement}'`")
            continue
        if not requirement.specifier.contains(version(requirement.name), prereleases=True):
            yield Finding(
                "wrong", "packages", f"{found[-1]} is not {requirement.specifier}; run `pip install '{requirement}'`"
            )
    yield Finding("ok", "packages", ", ".join(found))
    for name in ("torch", "torchvision", "timm", "lightly", "faiss", "accelerate", "sklearn", "safetensors"):
        try:
            importlib.import_module(name)
        except Exception as error:
            yield Finding("wrong", name, f"cannot be imported ({_short(error)}); install it anew")


def torchvision() -> Iterator[Finding]:
    """torch and torchvision are compiled for each other; a wrong pair imports well and fails at its first operation."""
    import torch
    from torchvision.ops import nms

    pair = f"torchvision {version('torchvision')} with torch {version('torch')}"
    try:
        right = nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2), torch.tensor([0.1, 0.9]), 0.5).tolist() == [1]
        said = "its compiled operations work" if right else "a compiled operation computes wrongly"
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        right, said = False, f"its compiled operations do not work ({_short(error)}); install the matching pair"
    yield Finding("ok" if right else "wrong", "torchvision", f"{pair}: {said}")


def devices() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("ok", "cpu", f"{cores} cores usable, {torch.get_num_threads()} torch threads")
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(device)
        what = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, capability {properties.major}.{properties.minor}"
        try:
            product = torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
            right = bool((product == 64).all())
        except RuntimeError as error:
            yield Finding(
                "wrong",
                f"cuda:{index}",
                f"{what} cannot compute ({_short(error)}); is the driver as new as torch's CUDA?",
            )
            continue
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: use run.precision=fp16"
        yield Finding(
            "ok" if right else "wrong", f"cuda:{index}", f"{what}, {bf16}" if right else f"{what} computes wrongly"
        )
    if not torch.cuda.is_available():
        driver = Path("/proc/driver/nvidia/version").exists()
        why = (
            f"an NVIDIA driver is here, but torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use it; update the driver"
            if driver
            else "no GPU that torch can use; everything runs on the CPU"
        )
        yield Finding("wrong" if driver and torch.version.cuda else "ok", "gpu", why)


def faiss() -> Iterator[Finding]:
    import numpy
    from faiss import IndexFlatIP

    index = IndexFlatIP(2)
    index.add(numpy.eye(2, dtype=numpy.float32))
    _, nearest = index.search(numpy.array([[0.1, 0.9]], dtype=numpy.float32), 1)
    right = nearest.tolist() == [[1]]
    yield Finding(
        "ok" if right else "wrong", "faiss", "finds the nearest of two" if right else "finds a wrong neighbour"
    )


def processes() -> Iterator[Finding]:
    """Two processes of gloo, as torchrun starts them on a CPU, add up their ranks."""
    import torch
    from torch.multiprocessing.spawn import spawn

    if "RANK" in os.environ:
        world = f"rank {os.environ['RANK']} of {os.environ.get('WORLD_SIZE', '?')}"
        yield Finding(
            "note", "processes", f"started as {world}; call doctor without torchrun for the check of two processes"
        )
        return
    if not torch.distributed.is_available():
        yield Finding("note", "processes", "this torch is built without torch.distributed: one process only")
        return
    with tempfile.TemporaryDirectory() as folder:
        pair = spawn(_add, args=(f"{folder}/meeting",), nprocs=2, join=False)
        assert pair is not None  # with join=False
        try:
            deadline = time.monotonic() + 60
            while not (done := pair.join(timeout=1)) and time.monotonic() < deadline:
                pass
            said = "two gloo processes add up" if done else "two gloo processes do not answer within 60 s"
        except Exception as error:
            done, said = False, f"two gloo processes fail ({_short(error)})"
        finally:
            for process in filter(None, pair.processes):
                process.kill()
    remedy = "" if done else "; several processes won't work here: try GLOO_SOCKET_IFNAME=lo, or repair the host's name"
    yield Finding("ok" if done else "note", "processes", said + remedy)


def _add(rank: int, meeting: str) -> None:
    """One of the two processes. meeting: the path of the file through which they find each other."""
    import torch

    from ..core.distributed import all_reduce_sum

    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    total = all_reduce_sum(torch.tensor(rank + 1.0)).item()
    torch.distributed.destroy_process_group()
    if total != 3:
        raise RuntimeError(f"1 + 2 gave {total}")


def compiler() -> Iterator[Finding]:
    found = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if found:
        yield Finding("ok", "compiler", f"{found} (for run.compile=on on the CPU)")
    else:
        yield Finding(
            "note", "compiler", "no C++ compiler: run.compile=on does not work on the CPU; install g++ if you want it"
        )
    if not shutil.which("git"):
        yield Finding("note", "git", "not found: run.json cannot name the commit of the code")


def memory() -> Iterator[Finding]:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    said = f"{whole / GIB:.0f} GiB"
    if limit.exists() and (text := limit.read_text().strip()).isdigit() and int(text) < whole:
        whole, said = int(text), f"{int(text) / GIB:.1f} GiB for this container"
    few = whole < 4 * GIB
    yield Finding(
        "note" if few else "ok", "memory", said + ("; ImageNet-sized training wants 16 or more" if few else "")
    )
    if os.path.ismount("/dev/shm") and (shared := shutil.disk_usage("/dev/shm").free) < GIB:
        remedy = "loader workers pass images through it; start the container with --shm-size=8g, or use run.workers=0"
        yield Finding("note", "memory", f"only {shared / 2**20:.0f} MiB of shared memory in /dev/shm: {remedy}")


def disk() -> Iterator[Finding]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for subject, folder in (("disk", Path.cwd()), ("cache", cache), ("temporary", Path(tempfile.gettempdir()))):
        folder = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(folder).free
        if not os.access(folder, os.W_OK):
            yield Finding("wrong", subject, f"{folder} cannot be written")
        elif free < 2 * GIB:
            yield Finding(
                "note", subject, f"only {free / GIB:.1f} GiB free in {folder}; a run stops when the disk is full"
            )
        else:
            yield Finding("ok", subject, f"{free / GIB:.0f} GiB free in {folder}")


def _short(error: Exception) -> str:
    """The last line of an error that says something: of a child's traceback, that is its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    python,
    packages,
    torchvision,
    devices,
    faiss,
    processes,
    compiler,
    memory,
    disk,
)
