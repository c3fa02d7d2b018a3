"""Nominal rates of links from the output of nvidia-smi and the kernel, and the share of them that collectives use."""

import socket
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rootstock.launch.doctor import link_rates
from rootstock.launch.doctor.bandwidth import (
    CollectiveTime,
    bandwidth_finding,
    report_bandwidth,
    size_in_words,
    time_in_words,
)
from rootstock.launch.doctor.findings import Report
from rootstock.launch.doctor.link_rates import LinkRate, Links

A, B = "GPU-5a1b2c3d-0000-1111-2222-333344445555", "GPU-9f8e7d6c-0000-1111-2222-333344445555"
LISTED = f"0, {A}, 4, 16\n1, {B}, [N/A], 16\n"
NVLINK = f"""GPU 0: NVIDIA H100 80GB HBM3 (UUID: {A})
\t Link 0: 26.562 GB/s
\t Link 1: 26.562 GB/s
\t Link 2: <inactive>
GPU 1: NVIDIA H100 80GB HBM3 (UUID: {B})
\t Link 0: 26.562 GB/s
GPU 2: NVIDIA T4 (UUID: GPU-00000000-0000-0000-0000-000000000000)
"""
TOPOLOGY = """\t\x1b[4mGPU0\tGPU1\tGPU2\tmlx5_0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tSYS\tPXB\t0-55\t0\t\tN/A
GPU1\tNV18\t X \tPHB\tSYS\t0-55\t0\t\tN/A
GPU2\tSYS\tPHB\t X \tSYS\t56-111\t1\t\tN/A
mlx5_0\tPXB\tSYS\tSYS\t X \t\t\t\t

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
"""


def test_pcie_is_lanes_of_a_generation() -> None:
    assert link_rates.gpus(LISTED) == ({A: 0, B: 1}, {A: pytest.approx(31.5, rel=1e-2)})
    assert link_rates.gpus("No devices were found\n") == ({}, {})


def test_nvlink_is_the_sum_of_active_links() -> None:
    assert link_rates.nvlinks(NVLINK) == {A: pytest.approx(2 * 26.562), B: pytest.approx(26.562)}
    assert link_rates.nvlinks("") == {}


def test_the_topology_says_the_way_between_gpus_alone() -> None:
    ways = link_rates.topology(TOPOLOGY)
    assert ways[0, 1] == ways[1, 0] == "NV18" and ways[0, 2] == "SYS" and ways[1, 2] == "PHB"
    assert set(ways) == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_a_process_asks_for_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {link_rates.GPU_QUERY[0]: LISTED, "topo": TOPOLOGY, "nvlink": NVLINK}
    monkeypatch.setattr(link_rates, "nvidia_smi", lambda first, *_: answers[first])
    monkeypatch.setattr(link_rates, "fabric", lambda *_: ("eth0", 1.25))
    assert link_rates.own_links(A, "nccl", "node1") == Links(2 * 26.562, 16 * 1.969, {B: "NV18"}, 1.25, "eth0")
    assert link_rates.own_links("", "gloo", "node1") == Links(network=1.25, network_name="eth0")
    assert link_rates.own_links("GPU-of-a-MIG-slice", "nccl", "node1") == Links(None, None, {}, 1.25, "eth0")


def test_without_nvidia_smi_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert link_rates.nvidia_smi("topo", "-m") == ""
    script = tmp_path / "nvidia-smi"
    script.write_text('#!/bin/sh\necho "$@"; exit ${CODE:-0}\n')
    script.chmod(0o755)
    assert link_rates.nvidia_smi("topo", "-m") == "topo -m\n"
    monkeypatch.setenv("CODE", "9")
    assert link_rates.nvidia_smi("topo", "-m") == ""


def test_infiniband_is_the_sum_of_active_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for device, state, rate in (
        ("mlx5_0", "4: ACTIVE", "400 Gb/sec (4X NDR)"),
        ("mlx5_1", "1: DOWN", "40 Gb/sec (4X QDR)"),
    ):
        port = tmp_path / device / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
        (port / "rate").write_text(f"{rate}\n")
    assert link_rates.infiniband(tmp_path) == [50.0]
    assert link_rates.infiniband(tmp_path / "nowhere") == []
    monkeypatch.setattr(link_rates, "infiniband", lambda: [50.0, 50.0])
    monkeypatch.setattr(link_rates, "interface", lambda *_: ("eth0", 1.25))
    monkeypatch.delenv("NCCL_IB_DISABLE", raising=False)
    assert link_rates.fabric("nccl", "node1") == ("2 InfiniBand ports", 100.0)
    assert link_rates.fabric("gloo", "node1") == ("eth0", 1.25)
    monkeypatch.setenv("NCCL_IB_DISABLE", "1")
    assert link_rates.fabric("nccl", "node1") == ("eth0", 1.25)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("", ("wlan0", None)),  # of the route; its speed is unknown
        ("eth1", ("eth1", 3.125)),
        ("=eth1", ("eth1", 3.125)),
        ("eth", ("eth0", 1.25)),
        ("^docker", ("wlan0", None)),
        ("ib0,eth1", ("eth1", 3.125)),
    ],
)
def test_the_interface_is_the_named_one_or_the_route_s(
    wanted: str, expected: tuple[str, float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"lo": 0, "eth0": 10_000, "eth1": 25_000, "wlan0": 65535}
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {name: SimpleNamespace(speed=s) for name, s in speeds.items()})
    monkeypatch.setattr(link_rates, "routed", lambda _: "wlan0")
    assert link_rates.interface(wanted, "node1") == expected


def test_the_route_is_that_of_the_address() -> None:
    loopback = next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(a.family == socket.AF_INET and a.address == "127.0.0.1" for a in addresses)
    )
    assert link_rates.routed("127.0.0.1") == loopback
    assert link_rates.routed("no.such.host.invalid") == ""


SLOW = Links(nvlink=450, pcie=63, peers={B: "NV18"}, network=12.5, network_name="eth0")
QUICK = Links(nvlink=480, pcie=31.5, peers={A: "NV18"}, network=25, network_name="eth1")


@pytest.mark.parametrize(
    ("machines", "gpu", "known", "expected"),
    [
        (["m", "m"], [A, B], [SLOW, QUICK], LinkRate("NVLink", 450)),
        (["m", "m"], [A, B], [SLOW._replace(peers={B: "SYS"}), QUICK], LinkRate("PCIe", 31.5)),
        (["m", "m"], [A, B], [SLOW._replace(peers={}), QUICK], LinkRate("connection between the GPUs unknown", None)),
        (["m", "n"], [A, B], [SLOW, QUICK], LinkRate("network, eth0, eth1", 12.5)),
        (["m", "n"], ["", ""], [SLOW, QUICK._replace(network=None)], LinkRate("network, eth0, eth1", None)),
        (["m", "m"], ["", ""], [SLOW, QUICK], None),
    ],
)
def test_the_slowest_link_bounds_all(
    machines: Sequence[str], gpu: Sequence[str], known: Sequence[Links], expected: LinkRate | None
) -> None:
    assert link_rates.slowest_link(machines, gpu, known) == expected


def test_bus_bandwidth_is_that_of_nccl_tests() -> None:
    """By hand: 1 GB in 0.5 s is 2 GB/s. With 4 processes, an all-reduce moves 2 * 3/4 of it over each link; its two halves 3/4 each."""
    assert CollectiveTime("all_reduce", 10**9, 0.5, 0, 1).bus(4) == pytest.approx(3.0)
    assert CollectiveTime("all_gather", 10**9, 0.5, 0, 1).bus(4) == pytest.approx(1.5)
    assert CollectiveTime("reduce_scatter", 10**9, 0.5, 0, 1).bus(4) == pytest.approx(1.5)
    assert CollectiveTime("all_reduce", 10**9, 0.5, 0, 1).bus(2) == pytest.approx(2.0)


FOUND = [CollectiveTime("all_reduce", 8, 2e-5, 1e-5, 3e-5), CollectiveTime("all_reduce", 2**26, 0.01, 0.009, 0.012)]


@pytest.mark.parametrize(
    ("link", "verdict", "words"),
    [
        (LinkRate("NVLink", 10.0), "ok", "67 % of 10 GB/s (NVLink)"),
        (LinkRate("PCIe", 31.5), "note", "21 % of 31.5 GB/s (PCIe); less than half: NCCL_DEBUG=INFO"),
        (LinkRate("memory copy, measured", 31.5), "ok", "21 % of 31.5 GB/s (memory copy, measured)"),
        (LinkRate("network, eth0", None), "ok", "nominal rate unknown (network, eth0)"),
    ],
)
def test_bandwidth_is_judged_by_the_link(link: LinkRate, verdict: str, words: str) -> None:
    finding = bandwidth_finding(FOUND, link, 2)
    assert finding.verdict == verdict and words in finding.message
    assert "latency 20 us; all-reduce of 64 MiB at 6.71 GB/s" in finding.message and "too long" not in finding.message


def test_the_table_says_what_was_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    report_bandwidth([FOUND[0], FOUND[1]._replace(bytes=2**20)], LinkRate("NVLink", 10.0), 2, report)
    said = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in said.splitlines()]
    assert rows[1:3] == ["all-reduce 8 B 20 us [10 us, 30 us]", "all-reduce 1 MiB 10 ms [9 ms, 12 ms] 0.105 1 %"]
    assert "larger sizes would take too long" in said
    assert report.tables["bandwidth"][1]["of_nominal"] == pytest.approx(2**20 / 0.01 / 1e10)


def test_sizes_and_times_are_spoken() -> None:
    assert [size_in_words(size) for size in (8, 2**20 - 4, 2**26)] == ["8 B", "1 MiB", "64 MiB"]
    assert [time_in_words(t) for t in (2.5e-6, 9.99e-4, 0.0123)] == ["2.5 us", "999 us", "12.3 ms"]
