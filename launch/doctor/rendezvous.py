"""Do all processes join, and do their devices and versions match?

Each process writes its information into the rendezvous store, before any collective needs a connection between two processes. So the
doctor can name the processes that are missing, and what is wrong with the others.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.cuda import nccl
from torch.distributed import DistError, PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from ...core.environment import environment
from .findings import Finding, short_message
from .link_rates import Links, own_links

MUST_AGREE = ("rootstock", "torch", "nccl", "commit")  # differences in other versions are only noted


class ProcessesMissing(Exception):
    """Which processes did not join, in one sentence."""


class ProcessInfo(NamedTuple):
    """What a process reports about itself.

    machine: identifier of the computer, since two may have the same host name. device: the one it would train on.
    gpu: UUID of its GPU; "" on a CPU; None if the GPU that it should have does not exist.
    """

    rank: int
    host: str
    machine: str
    device: str
    gpu: str | None
    versions: dict[str, str]
    links: Links

    @staticmethod
    def from_json(text: str) -> ProcessInfo:
        *fields, own = json.loads(text)
        return ProcessInfo._make([*fields, Links._make(own)])


def own_info(rank: int, device: torch.device) -> ProcessInfo:
    """The information of this process. device: cpu, or the GPU that it would use."""
    about = environment()
    versions = {**about["versions"], "commit": about["commit"] or "unknown"}
    gpu: str | None = ""
    if device.type == "cuda":
        there = device.index < torch.cuda.device_count()
        gpu = f"GPU-{torch.cuda.get_device_properties(device).uuid}" if there else None
        versions["nccl"] = ".".join(map(str, nccl.version()))
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = boot.read_text().strip() if boot.exists() else platform.node()
    found = own_links(gpu or "", backend_of(device), os.environ.get("MASTER_ADDR", "localhost"))
    return ProcessInfo(rank, about["host"], machine, str(device), gpu, versions, found)


def backend_of(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"


def exchange_info(own: ProcessInfo, seconds: float) -> tuple[Store, list[ProcessInfo]]:
    """(store, information of all processes by rank), after all have joined. Raises ProcessesMissing after `seconds`."""
    address = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    wait = timedelta(seconds=seconds)
    check = "check that every process runs, and that its host can reach that address (name, route, firewall)"
    try:
        store, _, size = next(rendezvous("env://", timeout=wait))
    except (DistError, ValueError) as error:
        raise ProcessesMissing(
            f"not all processes reached {address} within {seconds:g} s ({short_message(error)}); {check}"
        ) from error
    shared = PrefixStore("rootstock-doctor", store)
    shared.set(f"info/{own.rank}", json.dumps(own))
    keys = [f"info/{rank}" for rank in range(size)]
    try:
        shared.wait(keys, wait)
    except DistError as error:
        missing = [str(rank) for rank, key in enumerate(keys) if not shared.check([key])]
        late = ", ".join(missing)
        raise ProcessesMissing(
            f"rank {late} of {size} did not join at {address} within {seconds:g} s; {check}"
        ) from error
    return shared, [ProcessInfo.from_json(shared.get(key).decode()) for key in keys]


def compare_processes(processes: Sequence[ProcessInfo]) -> Iterator[Finding]:
    """Which processes run where, on which device, and whether devices and versions fit."""
    for machine in dict.fromkeys(each.machine for each in processes):
        there = [each for each in processes if each.machine == machine]
        text = ", ".join(f"rank {each.rank} on {each.device}" for each in there)
        facts = {"host": there[0].host, "ranks": {each.rank: each.device for each in there}}
        yield Finding("ok", "host", f"{there[0].host}: {text}", facts)
    yield from _devices(processes)
    yield from _versions(processes)


def _devices(processes: Sequence[ProcessInfo]) -> Iterator[Finding]:
    kinds = _by(processes, lambda each: each.device.partition(":")[0])
    if len(kinds) > 1:
        yield Finding("wrong", "devices", f"{_listed(kinds)}; give every process a GPU, or use --device cpu")
    if missing := [each for each in processes if each.gpu is None]:
        yield Finding(
            "wrong",
            "devices",
            f"{_ranks(missing)}: {missing[0].device} does not exist; start one process per GPU, or use --device cpu",
        )
    shared = {
        gpu: those
        for gpu, those in _by([each for each in processes if each.gpu], lambda each: each.gpu).items()
        if len(those) > 1
    }
    for gpu, those in shared.items():
        yield Finding("wrong", "devices", f"{_ranks(those)} share one GPU, {gpu}; NCCL needs one for each process")


def _versions(processes: Sequence[ProcessInfo]) -> Iterator[Finding]:
    agreed = True
    for name in dict.fromkeys(name for each in processes for name in each.versions):
        found = _by(processes, lambda each, name=name: each.versions.get(name, "unknown"))
        if len(found) > 1:
            agreed = False
            must = name in MUST_AGREE
            remedy = "install the same version everywhere" if must else "the same version everywhere is safer"
            yield Finding("wrong" if must else "note", "versions", f"{name} differs: {_listed(found)}; {remedy}")
    if agreed:
        text = ", ".join(
            f"{name} {processes[0].versions[name]}" for name in MUST_AGREE if name in processes[0].versions
        )
        yield Finding("ok", "versions", f"the same on all processes ({text})", {"versions": processes[0].versions})


def _by(processes: Sequence[ProcessInfo], key: Callable[[ProcessInfo], Any]) -> dict[Any, list[ProcessInfo]]:
    found: dict[Any, list[ProcessInfo]] = {}
    for each in processes:
        found.setdefault(key(each), []).append(each)
    return found


def _listed(found: dict[Any, list[ProcessInfo]]) -> str:
    return ", ".join(f"{value} on {_ranks(those)}" for value, those in found.items())


def _ranks(processes: Sequence[ProcessInfo]) -> str:
    """`ranks 0 and 1 (node1), rank 2 (node2)`."""
    hosts = _by(processes, lambda each: each.host)
    return ", ".join(
        f"rank{'s' * (len(those) > 1)} {' and '.join(str(each.rank) for each in those)} ({host})"
        for host, those in hosts.items()
    )
