"""`rootstock doctor --distributed`: several processes, here or on several nodes, that examine what is between them.

Started by torchrun's agent as `rootstock launch` starts a verb, or there already (torchrun, accelerate, or srun with RANK set). All
processes come to the same findings, and the first one prints them.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from threading import Timer
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from ...core.distributed import all_reduce_sum, barrier
from ...core.errors import UserError
from ..cluster.launcher import LAUNCHER, STOPPED, start_processes
from ..cluster.placement import Placement, RendezvousFailed, read_placement
from . import bandwidth
from .equality import equality
from .findings import Finding, Report, short_message
from .link_rates import slowest_link
from .rendezvous import ProcessesMissing, ProcessInfo, backend_of, compare_processes, exchange_info, own_info

WRONG_FOUND = 3  # how a process ends for its launcher when it found something wrong, and has said so
LATER = 5  # seconds by which the others let the first process speak
SKEW = 1.0  # seconds between clocks
Item = TypeVar("T")


def examine_distributed(
    nproc: int | None, nodes: int, rendezvous: str | None, job: str | None, device: str, seconds: int, as_json: bool
) -> int:
    """Start processes, or be one of those that are started already. Returns the exit code: 1 if something is wrong. Raises UserError.

    nproc, nodes, rendezvous, job: as for `launch`, but for two processes where there is no GPU. device: auto or cpu. seconds: how
    long they wait for each other.
    """
    if device not in ("auto", "cpu") or seconds < 1:
        raise UserError(f"doctor: expected --device auto or cpu and --timeout of 1 or more, got {device} and {seconds}")
    if nodes > 1 and "LOCAL_RANK" not in os.environ:
        os.environ.pop("RANK", None)  # PyTorchJob's number of the pod, see launch/cli.py
    if "RANK" in os.environ:
        if (nproc, nodes, rendezvous) != (None, 1, None):
            raise UserError("doctor: these processes are started already; leave --nproc, --nodes and --rendezvous out")
        return Participant(device, seconds, as_json).examine()
    if nproc is None:
        nproc = (torch.cuda.device_count() if device == "auto" else 0) or 2
    return _start(read_placement(nproc, nodes, rendezvous, job), device, seconds, as_json)


def _start(where: Placement, device: str, seconds: int, as_json: bool) -> int:
    arguments = ["doctor", "--distributed", "--device", device, "--timeout", str(seconds), *["--json"] * as_json]
    logs = Path(tempfile.mkdtemp(prefix="rootstock-doctor-"))
    try:
        code = start_processes(arguments, where, logs, answers=(WRONG_FOUND,), patience=seconds)
    except RendezvousFailed as error:
        report, code = Report(as_json), WRONG_FOUND
        report.add(Finding("wrong", "rendezvous", str(error)))
        report.conclude()
    if code != 1:  # of which the logs may tell more, and they were named
        shutil.rmtree(logs, ignore_errors=True)
    return code if code in (0, STOPPED) else 1


class ExaminationFailed(Exception):
    """Why the processes cannot go on, in a sentence."""


class Participant:
    """One of the processes. seconds: how long it waits for the others at each stage."""

    def __init__(self, device: str, seconds: int, as_json: bool) -> None:
        self.rank, self.seconds = int(os.environ["RANK"]), seconds
        self.patience = seconds + LATER * (self.rank != 0)
        self.local = int(os.environ.get("LOCAL_RANK", "0"))
        on_gpu = device == "auto" and torch.cuda.is_available()
        self.device = torch.device("cuda", self.local) if on_gpu else torch.device("cpu")
        self.backend = backend_of(self.device)
        self.found = WRONG_FOUND if LAUNCHER in os.environ else 1
        self.report = Report(as_json, quiet=self.rank != 0)

    def examine(self) -> int:
        """Returns the exit code. Raises UserError for what only this process can tell, if it is not the first."""
        try:
            store, cards = exchange_info(own_info(self.rank, self.device), self.patience)
            self._add(compare_processes(cards))
            if not self.report.wrong:
                self._examine(store, cards)
        except (ProcessesMissing, ExaminationFailed) as error:
            if self.rank != 0:
                raise UserError(str(error)) from error
            self.report.add(Finding("wrong", "reachable", str(error)))
            self.report.conclude()
            return self.found
        self.report.conclude()
        # None ends before the first has spoken: its end would be all the others' too.
        with suppress(dist.DistError):
            store.set("said" if self.rank == 0 else f"heard/{self.rank}", "")
            others = [f"heard/{rank}" for rank in range(1, len(cards))]
            store.wait(others if self.rank == 0 else ["said"], timedelta(seconds=LATER))
        return self.found if self.report.wrong else 0

    def _examine(self, store: Store, cards: Sequence[ProcessInfo]) -> None:
        """What needs connections."""
        with self._stage("connecting"):
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group(
                self.backend,
                store=store,
                rank=self.rank,
                world_size=len(cards),
                timeout=timedelta(seconds=2 * self.seconds),  # beyond that of the stage, which says more
                device_id=self.device if self.backend == "nccl" else None,
            )
            self._add(check_connection(self.backend, self.device))
            self._add(check_clocks(store, self.rank, len(cards)))
        if len(cards) > 1:
            self._measure(cards)
            self._add(self._in_time("computing together", equality(self.device)))
        else:
            self.report.add(
                Finding("note", "processes", "only one; --nproc starts more, to examine what is between them")
            )
        dist.destroy_process_group()

    def _measure(self, cards: Sequence[ProcessInfo]) -> None:
        found = list(self._in_time("measuring bandwidth", bandwidth.measure_collectives(self.device)))
        link = slowest_link(
            [card.machine for card in cards], [card.gpu or "" for card in cards], [card.links for card in cards]
        )
        if link is None:
            with self._stage("measuring memory"):
                link = bandwidth.memory_copy_rate(self.device)
        bandwidth.report_bandwidth(found, link, len(cards), self.report)

    def _add(self, findings: Iterator[Finding]) -> None:
        for finding in findings:
            self.report.add(finding)

    def _in_time(self, doing: str, items: Iterator[Item]) -> Iterator[Item]:
        """The items, of which each must come in time."""
        while True:
            with self._stage(doing):
                item = next(items, None)
            if item is None:
                return
            yield item

    @contextmanager
    def _stage(self, doing: str) -> Iterator[None]:
        """Within it, an error, or silence of the others, becomes one sentence. Raises Failed."""
        check = (
            f"check that {self.backend.upper()}_SOCKET_IFNAME names an interface by which all hosts reach each other (`ip addr`), "
            "and that no firewall closes the ports between them"
        )
        why = f"no answer within {self.seconds} s while {doing} by {self.backend}; {check}"
        silence = Timer(self.patience, self._end, [why])
        silence.daemon = True
        silence.start()
        try:
            yield
        except RuntimeError as error:
            raise ExaminationFailed(
                f"{doing} by {self.backend} failed on rank {self.rank} ({short_message(error)}); {check}"
            ) from error
        finally:
            silence.cancel()

    def _end(self, why: str) -> None:
        """Say it, once on each host, and end: a collective that hangs cannot be interrupted otherwise."""
        if self.rank == 0:
            self.report.add(Finding("wrong", "reachable", why))
            self.report.conclude()
        elif self.local == 0:
            print(f"error: {why}", file=sys.stderr)
        sys.stdout.flush()
        os._exit(self.found)


def check_connection(backend: str, device: torch.device) -> Iterator[Finding]:
    """Whether a sum is what it must be."""
    count = dist.get_world_size()
    total, right = (
        all_reduce_sum(torch.tensor(float(dist.get_rank() + 1), device=device)).item(),
        count * (count + 1) / 2,
    )
    said = f"{count} processes add up by {backend}" if total == right else f"the ranks' sum is {total:g}, not {right:g}"
    yield Finding("ok" if total == right else "wrong", "reachable", said, {"backend": backend, "processes": count})


def check_clocks(store: Store, rank: int, count: int, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """How far the clocks are apart, but for the time that a barrier takes to let all go."""
    barrier()
    store.set(f"clock/{rank}", repr(now()))
    times = [float(store.get(f"clock/{other}")) for other in range(count)]
    apart = max(times) - min(times)
    if apart > SKEW:
        late = times.index(min(times))
        remedy = "synchronise them (NTP), or ages in `rootstock runs` and logs mislead"
        yield Finding(
            "note", "clocks", f"up to {apart:.1f} s apart, rank {late}'s is behind; {remedy}", {"seconds": apart}
        )
