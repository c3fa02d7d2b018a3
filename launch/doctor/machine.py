"""Checks of the machine: devices, faiss, processes, memory, disks."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ...core.environment import processor, usable_cores
from .findings import Finding, short_message

BYTES_PER_GIB = 2**30
BUSY = 0.75  # load average a core, from which the doctor says so


def devices() -> Iterator[Finding]:
    import torch

    yield cpu(usable_cores(), torch.get_num_threads(), os.getloadavg()[0])
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(device)
        what = f"{properties.name}, {properties.total_memory / BYTES_PER_GIB:.0f} GiB, capability {properties.major}.{properties.minor}"
        try:
            product = torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
            right = bool((product == 64).all())
        except RuntimeError as error:
            yield Finding(
                "wrong",
                f"cuda:{index}",
                f"{what} cannot compute ({short_message(error)}); is the driver too old for torch's CUDA?",
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


def cpu(cores: int, threads: int, load: float) -> Finding:
    """The processor. load: processes that ran or waited for a core in the last minute, on average."""
    said = f"{processor()}, {cores} cores usable, {threads} torch threads"
    facts = {"cores": cores, "threads": threads, "load": load}
    if load < BUSY * cores:
        return Finding("ok", "cpu", said, facts)
    return Finding(
        "note", "cpu", f"{said}; the machine is busy (load average {load:.1f}): rates below are too low, and OMP_NUM_THREADS=1 may be "
        "faster than several threads that wait for each other", facts,
    )  # fmt: skip


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
    """Two gloo processes, as torchrun starts them on a CPU, add up their ranks."""
    import torch
    from torch.multiprocessing.spawn import spawn

    if "RANK" in os.environ:
        world = f"rank {os.environ['RANK']} of {os.environ.get('WORLD_SIZE', '?')}"
        yield Finding("note", "processes", f"started as {world}; run doctor without torchrun to check two processes")
        return
    if not torch.distributed.is_available():
        yield Finding("note", "processes", "this torch is built without torch.distributed: one process only")
        return
    with tempfile.TemporaryDirectory() as folder:
        pair = spawn(_add, args=(f"{folder}/rendezvous",), nprocs=2, join=False)
        assert pair is not None  # with join=False
        try:
            deadline = time.monotonic() + 60
            while not (done := pair.join(timeout=1)) and time.monotonic() < deadline:
                pass
            text = "two gloo processes add up" if done else "two gloo processes do not answer within 60 s"
        except Exception as error:
            done, text = False, f"two gloo processes fail ({short_message(error)})"
        finally:
            for process in filter(None, pair.processes):
                process.kill()
    remedy = (
        ""
        if done
        else "; several processes will not work here: try GLOO_SOCKET_IFNAME=lo, or make the host's name resolvable"
    )
    yield Finding("ok" if done else "note", "processes", text + remedy)


def _add(rank: int, rendezvous: str) -> None:
    """One of the two processes. rendezvous: path of the file through which they find each other."""
    import torch

    from ...core.distributed import all_reduce_sum

    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    total = all_reduce_sum(torch.tensor(rank + 1.0)).item()
    torch.distributed.destroy_process_group()
    if total != 3:
        raise RuntimeError(f"1 + 2 gave {total}")


def memory() -> Iterator[Finding]:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = f"{whole / BYTES_PER_GIB:.0f} GiB"
    if limit.exists() and (limited := limit.read_text().strip()).isdigit() and int(limited) < whole:
        whole, text = int(limited), f"{int(limited) / BYTES_PER_GIB:.1f} GiB for this container"
    few = whole < 4 * BYTES_PER_GIB
    yield Finding("note" if few else "ok", "memory", text + ("; training on ImageNet needs 16 or more" if few else ""))
    if os.path.ismount("/dev/shm") and (shared := shutil.disk_usage("/dev/shm").free) < BYTES_PER_GIB:
        remedy = "loader workers pass images through it; start the container with --shm-size=8g, or use run.workers=0"
        yield Finding("note", "memory", f"only {shared / 2**20:.0f} MiB of shared memory in /dev/shm: {remedy}")


def disk() -> Iterator[Finding]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for subject, folder in (("disk", Path.cwd()), ("cache", cache), ("temporary", Path(tempfile.gettempdir()))):
        folder = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(folder).free
        if not os.access(folder, os.W_OK):
            yield Finding("wrong", subject, f"{folder} cannot be written")
        elif free < 2 * BYTES_PER_GIB:
            yield Finding(
                "note",
                subject,
                f"only {free / BYTES_PER_GIB:.1f} GiB free in {folder}; a run stops if the disk is full",
            )
        else:
            yield Finding("ok", subject, f"{free / BYTES_PER_GIB:.0f} GiB free in {folder}")
