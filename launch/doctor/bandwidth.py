"""Speed of the collectives used in training, as bus bandwidth: it is comparable with a link's rate for any number of processes."""

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
REPETITIONS = 9  # the 95 % interval of their median leaves out the fastest and the slowest
SECONDS, MOST_CALLS = 0.02, 50  # length of a repetition, and most calls in it
SLOWEST = 0.1  # expected seconds of a call above which larger sizes are skipped
WORTH_A_NOTE = 0.5  # share of the nominal rate below which the doctor says so
# Part of the bytes that each rank's link carries, for n ranks (NVIDIA's nccl-tests, doc/PERFORMANCE.md). In-network reduction
# (NVLink SHARP) moves less, so all-reduce may exceed the nominal rate.
BUS: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
}


class CollectiveTime(NamedTuple):
    """Time of a collective. bytes: of all processes together. seconds: median of a call; low, high: its 95 % interval."""

    collective: str
    bytes: int
    seconds: float
    low: float
    high: float

    def bus(self, processes: int) -> float:
        """Bus bandwidth in GB/s."""
        return self.bytes / self.seconds * BUS[self.collective](processes) / 1e9


def measure_collectives(device: torch.device) -> Iterator[CollectiveTime]:
    """Latency of an all-reduce, then each collective at all sizes that are fast enough. All processes get the same numbers."""
    yield time_collective("all_reduce", LATENCY, device)
    for collective in BUS:
        found = None
        for size in SIZES:
            if found is not None and found.seconds * size / found.bytes > SLOWEST:
                break
            yield (found := time_collective(collective, size, device))


def time_collective(collective: str, size: int, device: torch.device) -> CollectiveTime:
    """Time a collective; in each repetition the slowest process counts. size: bytes, rounded down to a multiple of the processes."""
    buffer = torch.zeros(max(2, size // 4 // world() * world()), device=device)
    call = transfers(buffer)[collective]
    for _ in range(2):  # the first call makes the connections
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
    """The largest value over all processes, for each number."""
    return (-all_reduce_min(-torch.tensor(seconds, dtype=torch.float64, device=device))).tolist()


def memory_copy_rate(device: torch.device) -> LinkRate:
    """The measured rate at which all processes copy memory at the same time: the bound for CPU processes on one machine."""
    source = torch.zeros(SIZES[-1] // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    (seconds,) = _slowest([min(_seconds(lambda: target.copy_(source), 1, device) for _ in range(REPETITIONS))], device)
    return LinkRate("memory copy, measured", source.numel() * 4 / seconds / 1e9)


def report_bandwidth(found: Sequence[CollectiveTime], link: LinkRate, processes: int, report: Report) -> None:
    """Report the table of times, and how much of the link's rate the largest all-reduce uses."""
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
    """How much of the link's rate the largest all-reduce uses."""
    latency = time_in_words(found[0].seconds)
    best = max((row for row in found if row.collective == "all_reduce"), key=lambda row: row.bytes)
    facts = {"link": link.link, "nominal_gb_per_s": link.rate, "latency_s": found[0].seconds}
    text = f"latency {latency}; all-reduce of {size_in_words(best.bytes)} at {best.bus(processes):.3g} GB/s of bus bandwidth"
    text += ", larger sizes would take too long; " if best.bytes < 0.9 * SIZES[-1] else "; "
    if link.rate is None:
        return Finding("ok", "bandwidth", f"{text}nominal rate unknown ({link.link})", facts)
    share = best.bus(processes) / link.rate
    text += f"{100 * share:.0f} % of {link.rate:.3g} GB/s ({link.link})"
    if share < WORTH_A_NOTE and not link.link.startswith("memory"):
        remedy = "less than half: NCCL_DEBUG=INFO shows the connection it takes (interface, InfiniBand, peer-to-peer)"
        return Finding("note", "bandwidth", f"{text}; {remedy}", facts)
    return Finding("ok", "bandwidth", text, facts)


def size_in_words(size: int) -> str:
    return f"{size} B" if size < 2**19 else f"{round(size / 2**20)} MiB"


def time_in_words(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"
