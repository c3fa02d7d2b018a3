"""How fast the collectives of training are, as bus bandwidth, which a link's nominal rate bounds whatever the number of processes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from scipy.stats import quantile_test

from ...core.distributed import all_reduce_min, barrier, transfers, world
from .findings import Finding, Report
from .link_rates import LinkRate

LATENCY, SIZES = 8, (2**20, 2**24, 2**26)  # bytes
REPETITIONS = 9  # of which the median's 95 % interval leaves out the fastest and the slowest
SECONDS, MOST_CALLS, SLOWEST = 0.02, 50, 0.1  # of a repetition; and of a call, above which larger sizes are left out
WORTH_A_NOTE = 0.5  # of the nominal
# NVIDIA's nccl-tests, doc/PERFORMANCE.md: what each rank's link carries of the whole, for n ranks. In-network reduction (NVLink SHARP)
# moves less, so that all-reduce may come out above the nominal.
BUS: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
}


class CollectiveTime(NamedTuple):
    """A collective on so many bytes (all processes' together): the median of a call's seconds with its 95 % interval."""

    collective: str
    bytes: int
    seconds: float
    low: float
    high: float

    def bus(self, processes: int) -> float:
        """GB/s."""
        return self.bytes / self.seconds * BUS[self.collective](processes) / 1e9


def measure_collectives(device: torch.device) -> Iterator[CollectiveTime]:
    """The latency of an all-reduce, and each collective at all sizes that do not take too long. All processes see the same."""
    yield time_collective("all_reduce", LATENCY, device)
    for collective in BUS:
        found = None
        for size in SIZES:
            if found is not None and found.seconds * size / found.bytes > SLOWEST:
                break
            yield (found := time_collective(collective, size, device))


def time_collective(collective: str, size: int, device: torch.device) -> CollectiveTime:
    """Time it; of each repetition the slowest process counts. size: in bytes, cut to a multiple of the processes' numbers."""
    buffer = torch.zeros(max(2, size // 4 // world() * world()), device=device)
    call = transfers(buffer)[collective]
    for _ in range(2):  # connections are made by the first
        call()
    (once,) = _slowest([_seconds(call, 1, device)], device)
    calls = min(MOST_CALLS, math.ceil(SECONDS / max(once, 1e-9)))
    barrier()
    seconds = _slowest([_seconds(call, calls, device) / calls for _ in range(REPETITIONS)], device)
    low, high = quantile_test(seconds).confidence_interval(0.95)
    return CollectiveTime(collective, buffer.numel() * 4, statistics.median(seconds), float(low), float(high))


def _seconds(call: Callable[[], Any], calls: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _slowest(seconds: Sequence[float], device: torch.device) -> list[float]:
    """Of each number, the largest of all processes."""
    return (-all_reduce_min(-torch.tensor(seconds, dtype=torch.float64, device=device))).tolist()


def memory_copy_rate(device: torch.device) -> LinkRate:
    """What takes a link's place between processes of one machine: bytes that each copies in memory, all at once, measured."""
    source = torch.zeros(SIZES[-1] // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    (seconds,) = _slowest([min(_seconds(lambda: target.copy_(source), 1, device) for _ in range(REPETITIONS))], device)
    return LinkRate("memory copy, measured", source.numel() * 4 / seconds / 1e9)


def report_bandwidth(found: Sequence[CollectiveTime], link: LinkRate, processes: int, report: Report) -> None:
    """The table, and in words how much of the link the largest all-reduce uses."""
    rate = link.rate
    rows = [
        {**row._asdict(), "bus_gb_per_s": row.bus(processes), "of_nominal": row.bus(processes) / rate if rate else None}
        for row in found
    ]
    report.tabulate(
        "bandwidth",
        rows,
        {
            "bandwidth": lambda row: row["collective"].replace("_", "-"),
            "size": lambda row: size_in_words(row["bytes"]),
            "median [95 %]": lambda row: " ".join(
                [time_in_words(row["seconds"]), f"[{time_in_words(row['low'])}, {time_in_words(row['high'])}]"]
            ),
            "bus GB/s": lambda row: f"{row['bus_gb_per_s']:.3g}" if row["bytes"] > LATENCY else "",
            "of nominal": lambda row: f"{100 * row['of_nominal']:.0f} %" if rate and row["bytes"] > LATENCY else "",
        },
    )
    report.add(bandwidth_finding(found, link, processes))


def bandwidth_finding(found: Sequence[CollectiveTime], link: LinkRate, processes: int) -> Finding:
    latency = time_in_words(found[0].seconds)
    best = max((row for row in found if row.collective == "all_reduce"), key=lambda row: row.bytes)
    facts = {"link": link.link, "nominal_gb_per_s": link.rate, "latency_s": found[0].seconds}
    said = f"latency {latency}; {size_in_words(best.bytes)} are all-reduced at {best.bus(processes):.3g} GB/s of bus bandwidth"
    said += ", larger ones would take too long; " if best.bytes < 0.9 * SIZES[-1] else "; "
    if link.rate is None:
        return Finding("ok", "bandwidth", f"{said}nominal unknown ({link.link})", facts)
    share = best.bus(processes) / link.rate
    said += f"{100 * share:.0f} % of {link.rate:.3g} GB/s ({link.link})"
    if share < WORTH_A_NOTE and not link.link.startswith("memory"):
        remedy = "less than half: NCCL_DEBUG=INFO tells which way it goes (interface, InfiniBand, peer-to-peer)"
        return Finding("note", "bandwidth", f"{said}; {remedy}", facts)
    return Finding("ok", "bandwidth", said, facts)


def size_in_words(size: int) -> str:
    return f"{size} B" if size < 2**19 else f"{round(size / 2**20)} MiB"


def time_in_words(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"
