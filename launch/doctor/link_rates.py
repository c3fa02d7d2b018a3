"""Nominal rates of links (NVLink, PCIe, InfiniBand, Ethernet), as driver and kernel report them: GB/s (10^9 bytes) in one direction."""

import os
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

# GB/s of one PCIe lane in one direction by generation, after line coding (PCI-SIG: 2.5 and 5 GT/s with 8b/10b, 8 to 32 GT/s with
# 128b/130b, 64 GT/s in flits that carry 242 of 256 bytes).
LANES = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
GPU_QUERY = ("--query-gpu=index,uuid,pcie.link.gen.max,pcie.link.width.max", "--format=csv,noheader")
UNKNOWN_SPEED = 65535  # Mb/s; ethtool's -1 in some versions of psutil


class Links(NamedTuple):
    """The links of one process; unknown rates are None.

    nvlink, pcie: rates of its GPU. peers: connection to each other GPU of the node, by UUID, in the words of `nvidia-smi topo`.
    network: rate of the interface to the other nodes.
    """

    nvlink: float | None = None
    pcie: float | None = None
    peers: Mapping[str, str] = {}
    network: float | None = None
    network_name: str = ""


class LinkRate(NamedTuple):
    """A link and its rate; None if unknown."""

    link: str
    rate: float | None


def own_links(gpu: str, backend: str, master: str) -> Links:
    """The links of this process. gpu: UUID of its GPU, or "". backend: nccl or gloo. master: host of the rendezvous."""
    name, network = fabric(backend, master)
    if not gpu:
        return Links(network=network, network_name=name)
    indices, buses = gpus(nvidia_smi(*GPU_QUERY))
    connections = topology(nvidia_smi("topo", "-m"))
    peers = {
        other: connections.get((indices[gpu], index), "")
        for other, index in indices.items()
        if gpu in indices and other != gpu
    }
    return Links(nvlinks(nvidia_smi("nvlink", "-s")).get(gpu), buses.get(gpu), peers, network, name)


def nvidia_smi(*arguments: str) -> str:
    """The output of nvidia-smi; "" if it is missing or fails."""
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def gpus(listed: str) -> tuple[dict[str, int], dict[str, float]]:
    """Read the output for GPU_QUERY: by UUID, the index of each GPU, and its PCIe rate if generation and width are known."""
    indices, rates = {}, {}
    for line in listed.splitlines():
        if len(fields := [field.strip() for field in line.split(",")]) != 4 or not fields[0].isdigit():
            continue
        index, uuid, generation, width = fields
        indices[uuid] = int(index)
        if generation.isdigit() and width.isdigit() and int(generation) in LANES:
            rates[uuid] = LANES[int(generation)] * int(width)
    return indices, rates


def nvlinks(listed: str) -> dict[str, float]:
    """Read the output of `nvidia-smi nvlink -s`: by UUID, the total rate of a GPU's active links; GPUs without links are left out."""
    rates: dict[str, float] = {}
    uuid = ""
    for line in listed.splitlines():
        if match := re.search(r"\(UUID: (GPU-[^)]+)\)", line):
            uuid = match[1]
        elif match := re.search(r"Link \d+: ([\d.]+) GB/s", line):
            rates[uuid] = rates.get(uuid, 0.0) + float(match[1])
    return rates


def topology(matrix: str) -> dict[tuple[int, int], str]:
    """Read the output of `nvidia-smi topo -m`: (index, index) -> connection: `NV18` for 18 NVLinks, `PIX`, `PHB`, `SYS` ... for PCIe."""
    lines = [
        line.split() for line in re.sub(r"\x1b\[\d*m", "", matrix).splitlines()
    ]  # headings are underlined by escape codes
    rows = {line[0]: line[1:] for line in lines if line and re.fullmatch(r"GPU\d+", line[0]) and "X" in line}
    numbers = [int(name.removeprefix("GPU")) for name in rows]
    return {
        (int(name.removeprefix("GPU")), other): connection
        for name, connections in rows.items()
        for other, connection in zip(numbers, connections, strict=False)
        if connection != "X"
    }


def fabric(backend: str, master: str) -> tuple[str, float | None]:
    """(name, rate) of the network to the other nodes. NCCL uses all active InfiniBand ports, if there are any."""
    if backend == "nccl" and os.environ.get("NCCL_IB_DISABLE", "0") == "0" and (ports := infiniband()):
        return f"{len(ports)} InfiniBand port{'s' * (len(ports) > 1)}", sum(ports)
    return interface(os.environ.get(f"{backend.upper()}_SOCKET_IFNAME", ""), master)


def infiniband(root: Path = Path("/sys/class/infiniband")) -> list[float]:
    """The rates of all active InfiniBand ports."""
    found = []
    for port in sorted(root.glob("*/ports/*")):
        try:
            state, rate = (port / "state").read_text(), (port / "rate").read_text()
        except OSError:
            continue
        if "ACTIVE" in state and (match := re.match(r"([\d.]+) Gb/sec", rate)):
            found.append(float(match[1]) / 8)
    return found


def interface(wanted: str, master: str) -> tuple[str, float | None]:
    """(name, rate) of the interface `wanted` (a name, prefixes or `=name`, as in NCCL), otherwise of the one that routes to `master`."""
    import psutil

    states = psutil.net_if_stats()
    beginnings = (
        tuple(part.strip().removeprefix("=") for part in wanted.split(",")) if wanted[:1] not in ("", "^") else ()
    )
    name = next((name for name in states if beginnings and name.startswith(beginnings)), "") or routed(master)
    speed = states[name].speed if name in states else 0
    return name, speed / 8000 if 0 < speed < UNKNOWN_SPEED else None


def routed(master: str) -> str:
    """The interface from which a packet to `master` would leave; "" if unknown."""
    import psutil

    try:
        family, _, _, _, address = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # a datagram socket only looks up the route and sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return ""
    found = psutil.net_if_addrs().items()
    return next((name for name, addresses in found if own in [a.address.partition("%")[0] for a in addresses]), "")


def slowest_link(machines: Sequence[str], gpu: Sequence[str], known: Sequence[Links]) -> LinkRate | None:
    """The slowest link among these processes. machines, gpu, known: machine, GPU's UUID or "", and links of each process.

    None for processes on one machine without GPUs, which communicate through memory. NVLink only if it joins every pair of GPUs.
    """
    if len(set(machines)) > 1:
        names = sorted({each.network_name or "?" for each in known})
        return LinkRate(f"network, {', '.join(names)}", _least([each.network for each in known]))
    if not all(gpu):
        return None
    connections = {
        each.peers.get(other, "") for own, each in zip(gpu, known, strict=True) for other in gpu if other != own
    }
    if "" in connections:
        return LinkRate("connection between the GPUs unknown", None)
    if all(connection.startswith("NV") for connection in connections):
        return LinkRate("NVLink", _least([each.nvlink for each in known]))
    return LinkRate("PCIe", _least([each.pcie for each in known]))


def _least(rates: Sequence[float | None]) -> float | None:
    """The lowest rate; None if any is unknown, since that one might be the lowest."""
    given = [rate for rate in rates if rate is not None]
    return min(given) if len(given) == len(rates) else None
