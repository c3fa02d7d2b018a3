"""`rootstock doctor --distributed`: several processes, on one node or several, that check the connections between them.

The processes are started by torchrun's agent, as in `rootstock launch`, or exist already (torchrun, accelerate, srun with RANK set). All
processes reach the same findings, and rank 0 prints them.
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

WRONG_FOUND = 3  # exit code, for our launcher, of a process that has found and reported something wrong
LATER = 5  # further seconds that the other processes wait, so that rank 0 reports first
SKEW = 1.0  # seconds by which clocks may differ
StageItem = TypeVar("StageItem")


def examine_distributed(
    nproc: int | None, nodes: int, rendezvous: str | None, job: str | None, device: str, seconds: int, as_json: bool
) -> int:
    """Start the processes, or act as one of those that were started already. Returns the exit code: 1 if something is wrong.

    nproc, nodes, rendezvous, job: as for `launch`, but two processes by default if there is no GPU. device: auto or cpu.
    seconds: how long processes wait for each other. Raises UserError.
    """
    if device not in ("auto", "cpu") or seconds < 1:
        raise UserError(f"doctor: expected --device auto or cpu and --timeout of 1 or more, got {device} and {seconds}")
    if nodes > 1 and "LOCAL_RANK" not in os.environ:
        os.environ.pop("RANK", None)  # the pod's number, set by PyTorchJob; see launch/cli.py
    if "RANK" in os.environ:
        if (nproc, nodes, rendezvous) != (None, 1, None):
            raise UserError("doctor: these processes were started already; leave --nproc, --nodes and --rendezvous out")
        return Participant(device, seconds, as_json).examine()
    if nproc is None:
        nproc = (torch.cuda.device_count() if device == "auto" else 0) or 2
    return _start(read_placement(nproc, nodes, rendezvous, job), device, seconds, as_json)


def _start(where: Placement, device: str, seconds: int, as_json: bool) -> int:
    arguments = ["doctor", "--distributed", "--device", device, "--timeout", str(seconds), *["--json"] * as_json]
    logs = Path(tempfile.mkdtemp(prefix="rootstock-doctor-"))
    try:
        code = start_processes(arguments, where, logs, answers=(WRONG_FOUND,), timeout=seconds)
    except RendezvousFailed as error:
        report, code = Report(as_json), WRONG_FOUND
        report.add(Finding("wrong", "rendezvous", str(error)))
        report.conclude()
    if code != 1:  # after a failure the logs are kept, since the launcher has printed their path
        shutil.rmtree(logs, ignore_errors=True)
    return code if code in (0, STOPPED) else 1


class ExaminationFailed(Exception):
    """Why the processes cannot continue, in one sentence."""


class Participant:
    """One of the processes. seconds: how long it waits for the others in each stage."""

    def __init__(self, device: str, seconds: int, as_json: bool) -> None:
        self.rank, self.seconds = int(os.environ["RANK"]), seconds
        self.timeout = seconds + LATER * (self.rank != 0)
        self.local = int(os.environ.get("LOCAL_RANK", "0"))
        on_gpu = device == "auto" and torch.cuda.is_available()
        self.device = torch.device("cuda", self.local) if on_gpu else torch.device("cpu")
        self.backend = backend_of(self.device)
        self.wrong_code = WRONG_FOUND if LAUNCHER in os.environ else 1
        self.report = Report(as_json, quiet=self.rank != 0)

    def examine(self) -> int:
        """Run all checks. Returns the exit code. Raises UserError, if this is not rank 0, for errors that rank 0 may not see."""
        try:
            store, processes = exchange_info(own_info(self.rank, self.device), self.timeout)
            self._add(compare_processes(processes))
            if not self.report.wrong:
                self._examine_connections(store, processes)
        except (ProcessesMissing, ExaminationFailed) as error:
            if self.rank != 0:
                raise UserError(str(error)) from error
            self.report.add(Finding("wrong", "reachable", str(error)))
            self.report.conclude()
            return self.wrong_code
        self.report.conclude()
        # Wait for rank 0 to report: torchrun kills all processes when one exits.
        with suppress(dist.DistError):
            store.set("reported" if self.rank == 0 else f"done/{self.rank}", "")
            others = [f"done/{rank}" for rank in range(1, len(processes))]
            store.wait(others if self.rank == 0 else ["reported"], timedelta(seconds=LATER))
        return self.wrong_code if self.report.wrong else 0

    def _examine_connections(self, store: Store, processes: Sequence[ProcessInfo]) -> None:
        """The checks that need connections between the processes."""
        with self._stage("connecting"):
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group(
                self.backend,
                store=store,
                rank=self.rank,
                world_size=len(processes),
                timeout=timedelta(seconds=2 * self.seconds),  # longer than that of the stage, whose message is better
                device_id=self.device if self.backend == "nccl" else None,
            )
            self._add(check_connection(self.backend, self.device))
            self._add(check_clocks(store, self.rank, len(processes)))
        if len(processes) > 1:
            self._measure_bandwidth(processes)
            self._add(self._in_time("computing together", equality(self.device)))
        else:
            self.report.add(
                Finding("note", "processes", "only one; start more with --nproc to check the connections between them")
            )
        dist.destroy_process_group()

    def _measure_bandwidth(self, processes: Sequence[ProcessInfo]) -> None:
        found = list(self._in_time("measuring bandwidth", bandwidth.measure_collectives(self.device)))
        link = slowest_link(
            [each.machine for each in processes],
            [each.gpu or "" for each in processes],
            [each.links for each in processes],
        )
        if link is None:
            with self._stage("measuring memory"):
                link = bandwidth.memory_copy_rate(self.device)
        bandwidth.report_bandwidth(found, link, len(processes), self.report)

    def _add(self, findings: Iterator[Finding]) -> None:
        for finding in findings:
            self.report.add(finding)

    def _in_time(self, doing: str, items: Iterator[StageItem]) -> Iterator[StageItem]:
        """The items; each must arrive within the stage's time."""
        while True:
            with self._stage(doing):
                item = next(items, None)
            if item is None:
                return
            yield item

    @contextmanager
    def _stage(self, doing: str) -> Iterator[None]:
        """Turn an error, or a missing answer from other processes, into one sentence. Raises ExaminationFailed."""
        check = (
            f"check that {self.backend.upper()}_SOCKET_IFNAME names an interface through which all hosts reach each other (`ip addr`), "
            "and that no firewall blocks the ports between them"
        )
        why = f"no answer within {self.seconds} s while {doing} with {self.backend}; {check}"
        alarm = Timer(self.timeout, self._end, [why])
        alarm.daemon = True
        alarm.start()
        try:
            yield
        except RuntimeError as error:
            raise ExaminationFailed(
                f"{doing} with {self.backend} failed on rank {self.rank} ({short_message(error)}); {check}"
            ) from error
        finally:
            alarm.cancel()

    def _end(self, why: str) -> None:
        """Report it, once on each host, and exit the process: a hanging collective cannot be interrupted otherwise."""
        if self.rank == 0:
            self.report.add(Finding("wrong", "reachable", why))
            self.report.conclude()
        elif self.local == 0:
            print(f"error: {why}", file=sys.stderr)
        sys.stdout.flush()
        os._exit(self.wrong_code)


def check_connection(backend: str, device: torch.device) -> Iterator[Finding]:
    """Check that the processes can sum their ranks."""
    count = dist.get_world_size()
    total, right = (
        all_reduce_sum(torch.tensor(float(dist.get_rank() + 1), device=device)).item(),
        count * (count + 1) / 2,
    )
    text = (
        f"{count} processes add up with {backend}" if total == right else f"the ranks' sum is {total:g}, not {right:g}"
    )
    yield Finding("ok" if total == right else "wrong", "reachable", text, {"backend": backend, "processes": count})


def check_clocks(store: Store, rank: int, count: int, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Report clocks that differ by more than SKEW; exact up to the time in which processes leave a barrier."""
    barrier()
    store.set(f"clock/{rank}", repr(now()))
    times = [float(store.get(f"clock/{other}")) for other in range(count)]
    apart = max(times) - min(times)
    if apart > SKEW:
        late = times.index(min(times))
        remedy = "synchronise them (NTP), or logs and the ages in `rootstock runs` are wrong"
        yield Finding(
            "note", "clocks", f"up to {apart:.1f} s apart, rank {late}'s is behind; {remedy}", {"seconds": apart}
        )
