"""Do the processes find each other, and do they fit together? Each leaves a card in the store where all meet, before any collective
needs a connection between two of them: so it can be said who did not come, and what is wrong with those who did.
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

MUST_AGREE = ("rootstock", "torch", "nccl", "commit")  # others may differ, and are noted


class ProcessesMissing(Exception):
    """In a sentence, who did not come."""


class ProcessInfo(NamedTuple):
    """What a process says of itself. machine: tells computers apart that have one name. device: the one it would train on. gpu: its
    UUID, "" without one, and None where the device that it should have is not there."""

    rank: int
    host: str
    machine: str
    device: str
    gpu: str | None
    versions: dict[str, str]
    own_links: Links

    @staticmethod
    def read(text: str) -> ProcessInfo:
        *fields, way = json.loads(text)
        return ProcessInfo._make([*fields, Links._make(way)])


def own_info(rank: int, device: torch.device) -> ProcessInfo:
    """This process's card. device: cpu, or the GPU that it would have."""
    about = environment()
    versions = {**about["versions"], "commit": about["commit"] or "unknown"}
    gpu: str | None = ""
    if device.type == "cuda":
        there = device.index < torch.cuda.device_count()
        gpu = f"GPU-{torch.cuda.get_device_properties(device).uuid}" if there else None
        versions["nccl"] = ".".join(map(str, nccl.version()))
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = boot.read_text().strip() if boot.exists() else platform.node()
    way = own_links(gpu or "", backend_of(device), os.environ.get("MASTER_ADDR", "localhost"))
    return ProcessInfo(rank, about["host"], machine, str(device), gpu, versions, way)


def backend_of(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"


def exchange_info(card: ProcessInfo, seconds: float) -> tuple[Store, list[ProcessInfo]]:
    """The store of a process that was started by torchrun or its like, and all cards by rank. Raises NotMet after so many seconds."""
    place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    wait = timedelta(seconds=seconds)
    check = "check that every process runs, and that its host reaches that address (name, route, firewall)"
    try:
        store, _, size = next(rendezvous("env://", timeout=wait))
    except (DistError, ValueError) as error:
        raise ProcessesMissing(
            f"not everybody reached {place} within {seconds:g} s ({short_message(error)}); {check}"
        ) from error
    own = PrefixStore("rootstock-doctor", store)
    own.set(f"card/{card.rank}", json.dumps(card))
    keys = [f"card/{rank}" for rank in range(size)]
    try:
        own.wait(keys, wait)
    except DistError as error:
        missing = [str(rank) for rank, key in enumerate(keys) if not own.check([key])]
        late = ", ".join(missing)
        raise ProcessesMissing(
            f"rank {late} of {size} did not come to {place} within {seconds:g} s; {check}"
        ) from error
    return own, [ProcessInfo.read(own.get(key).decode()) for key in keys]


def compare_processes(cards: Sequence[ProcessInfo]) -> Iterator[Finding]:
    """Who is there, on which device, and whether their versions agree."""
    for machine in dict.fromkeys(card.machine for card in cards):
        there = [card for card in cards if card.machine == machine]
        said = ", ".join(f"rank {card.rank} on {card.device}" for card in there)
        facts = {"host": there[0].host, "ranks": {card.rank: card.device for card in there}}
        yield Finding("ok", "host", f"{there[0].host}: {said}", facts)
    yield from _devices(cards)
    yield from _versions(cards)


def _devices(cards: Sequence[ProcessInfo]) -> Iterator[Finding]:
    kinds = _by(cards, lambda card: card.device.partition(":")[0])
    if len(kinds) > 1:
        yield Finding("wrong", "devices", f"{_listed(kinds)}; give every process a GPU, or say --device cpu")
    if missing := [card for card in cards if card.gpu is None]:
        yield Finding(
            "wrong",
            "devices",
            f"{_ranks(missing)}: {missing[0].device} is not there; start one process a GPU, or say --device cpu",
        )
    shared = {
        gpu: those
        for gpu, those in _by([card for card in cards if card.gpu], lambda card: card.gpu).items()
        if len(those) > 1
    }
    for gpu, those in shared.items():
        yield Finding("wrong", "devices", f"{_ranks(those)} are on one GPU, {gpu}; NCCL needs one for each process")


def _versions(cards: Sequence[ProcessInfo]) -> Iterator[Finding]:
    agreed = True
    for name in dict.fromkeys(name for card in cards for name in card.versions):
        found = _by(cards, lambda card, name=name: card.versions.get(name, "unknown"))
        if len(found) > 1:
            agreed = False
            must = name in MUST_AGREE
            remedy = "install the same everywhere" if must else "the same everywhere is safer"
            yield Finding("wrong" if must else "note", "versions", f"{name} differs: {_listed(found)}; {remedy}")
    if agreed:
        said = ", ".join(f"{name} {cards[0].versions[name]}" for name in MUST_AGREE if name in cards[0].versions)
        yield Finding("ok", "versions", f"the same on all processes ({said})", {"versions": cards[0].versions})


def _by(cards: Sequence[ProcessInfo], key: Callable[[ProcessInfo], Any]) -> dict[Any, list[ProcessInfo]]:
    found: dict[Any, list[ProcessInfo]] = {}
    for card in cards:
        found.setdefault(key(card), []).append(card)
    return found


def _listed(found: dict[Any, list[ProcessInfo]]) -> str:
    return ", ".join(f"{value} on {_ranks(those)}" for value, those in found.items())


def _ranks(cards: Sequence[ProcessInfo]) -> str:
    """`ranks 0 and 1 (node1), rank 2 (node2)`."""
    hosts = _by(cards, lambda card: card.host)
    return ", ".join(
        f"rank{'s' * (len(those) > 1)} {' and '.join(str(card.rank) for card in those)} ({host})"
        for host, those in hosts.items()
    )
