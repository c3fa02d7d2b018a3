"""What a link should carry, by the driver and the kernel: NVLink, PCIe, InfiniBand, Ethernet. Rates are GB/s (10^9 bytes) one way."""

import os
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

# A lane's GB/s one way by generation, after line coding (PCI-SIG: 2.5 and 5 GT/s with 8b/10b, 8 to 32 GT/s with 128b/130b, then
# 64 GT/s in flits of 242 bytes out of 256).
LANES = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
GPU_QUERY = ("--query-gpu=index,uuid,pcie.link.gen.max,pcie.link.width.max", "--format=csv,noheader")
UNKNOWN_SPEED = 65535  # what ethtool's -1 becomes in some versions of psutil, Mb/s


class Links(NamedTuple):
    """What one process can say of its own. nvlink, pcie: of its GPU. peers: for the other GPUs of its node, by UUID, what
    `nvidia-smi topo` calls the way to them. network: of the interface to the other nodes. Rates are None where nothing says them."""

    nvlink: float | None = None
    pcie: float | None = None
    peers: Mapping[str, str] = {}
    network: float | None = None
    network_name: str = ""


class LinkRate(NamedTuple):
    """The link that bounds a group of processes. rate: None where it is unknown."""

    link: str
    rate: float | None


def own_links(gpu: str, backend: str, master: str) -> Links:
    """Ask the machine. gpu: its UUID, or "" for a process without one. backend: nccl or gloo. master: the host where all meet."""
    name, network = fabric(backend, master)
    if not gpu:
        return Links(network=network, network_name=name)
    indices, buses = gpus(nvidia_smi(*GPU_QUERY))
    ways = topology(nvidia_smi("topo", "-m"))
    peers = {
        other: ways.get((indices[gpu], index), "")
        for other, index in indices.items()
        if gpu in indices and other != gpu
    }
    return Links(nvlinks(nvidia_smi("nvlink", "-s")).get(gpu), buses.get(gpu), peers, network, name)


def nvidia_smi(*arguments: str) -> str:
    """What nvidia-smi prints; "" where there is none, or it fails."""
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def gpus(listed: str) -> tuple[dict[str, int], dict[str, float]]:
    """Of GPU_QUERY's lines: each GPU's index, and its PCIe rate where generation and width are known; by UUID."""
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
    """Of `nvidia-smi nvlink -s`: the sum of each GPU's active links, by UUID; GPUs without any are left out."""
    rates: dict[str, float] = {}
    uuid = ""
    for line in listed.splitlines():
        if match := re.search(r"\(UUID: (GPU-[^)]+)\)", line):
            uuid = match[1]
        elif match := re.search(r"Link \d+: ([\d.]+) GB/s", line):
            rates[uuid] = rates.get(uuid, 0.0) + float(match[1])
    return rates


def topology(matrix: str) -> dict[tuple[int, int], str]:
    """Of `nvidia-smi topo -m`: the way between two GPUs by index, `NV18` for 18 NVLinks, `PIX`, `PHB`, `SYS` and so on for PCIe."""
    lines = [line.split() for line in re.sub(r"\x1b\[\d*m", "", matrix).splitlines()]  # headings come underlined
    rows = {line[0]: line[1:] for line in lines if line and re.fullmatch(r"GPU\d+", line[0]) and "X" in line}
    numbers = [int(name.removeprefix("GPU")) for name in rows]
    return {
        (int(name.removeprefix("GPU")), other): way
        for name, ways in rows.items()
        for other, way in zip(numbers, ways, strict=False)
        if way != "X"
    }


def fabric(backend: str, master: str) -> tuple[str, float | None]:
    """The network to the other nodes, by name, and what it carries: NCCL's is all active InfiniBand ports, if there are any."""
    if backend == "nccl" and os.environ.get("NCCL_IB_DISABLE", "0") == "0" and (ports := infiniband()):
        return f"{len(ports)} InfiniBand port{'s' * (len(ports) > 1)}", sum(ports)
    return interface(os.environ.get(f"{backend.upper()}_SOCKET_IFNAME", ""), master)


def infiniband(root: Path = Path("/sys/class/infiniband")) -> list[float]:
    """The rates of all active ports."""
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
    """An interface by its name (or its beginning, or `=name`, as NCCL reads them), or else that of the route to `master`."""
    import psutil

    states = psutil.net_if_stats()
    beginnings = (
        tuple(part.strip().removeprefix("=") for part in wanted.split(",")) if wanted[:1] not in ("", "^") else ()
    )
    name = next((name for name in states if beginnings and name.startswith(beginnings)), "") or routed(master)
    speed = states[name].speed if name in states else 0
    return name, speed / 8000 if 0 < speed < UNKNOWN_SPEED else None


def routed(master: str) -> str:
    """The interface whose address a packet to `master` would carry; "" where it cannot be told."""
    import psutil

    try:
        family, _, _, _, address = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as asked:
            asked.connect(address)  # of a datagram socket: looks up the route, and sends nothing
            own = asked.getsockname()[0]
    except OSError:
        return ""
    found = psutil.net_if_addrs().items()
    return next((name for name, addresses in found if own in [a.address.partition("%")[0] for a in addresses]), "")


def slowest_link(machines: Sequence[str], gpu: Sequence[str], known: Sequence[Links]) -> LinkRate | None:
    """The link that bounds these processes, of each of which are given its machine, its GPU's UUID or "", and its links.

    None for processes on one machine without GPUs: they pass memory. NVLink only where it joins every pair of GPUs.
    """
    if len(set(machines)) > 1:
        names = sorted({each.network_name or "?" for each in known})
        return LinkRate(f"network, {', '.join(names)}", _least([each.network for each in known]))
    if not all(gpu):
        return None
    ways = {each.peers.get(other, "") for own, each in zip(gpu, known, strict=True) for other in gpu if other != own}
    if "" in ways:
        return LinkRate("way between the GPUs unknown", None)
    if all(way.startswith("NV") for way in ways):
        return LinkRate("NVLink", _least([each.nvlink for each in known]))
    return LinkRate("PCIe", _least([each.pcie for each in known]))


def _least(rates: Sequence[float | None]) -> float | None:
    """The slowest decides; one that is unknown might be it."""
    given = [rate for rate in rates if rate is not None]
    return min(given) if len(given) == len(rates) else None
