"""Placement of a launch's processes: how many on how many nodes, enough devices, and how nodes find the first one."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...core.errors import UserError


@dataclass(frozen=True)
class Placement:
    """Where the processes run.

    nproc: processes on each node. rendezvous: HOST:PORT of one node, the same on all; None for a single node.
    job: identifier that separates launches that share a rendezvous.
    """

    nproc: int
    nodes: int = 1
    rendezvous: str | None = None
    job: str = "rootstock"


def read_placement(nproc: int | None, nodes: int, rendezvous: str | None, job: str | None) -> Placement:
    """Check the options of the command line. nproc: None for one process per GPU, or one without a GPU. Raises UserError."""
    if nproc is None:
        import torch

        nproc = max(1, torch.cuda.device_count())
    for option, number in (("--nproc", nproc), ("--nodes", nodes)):
        if number < 1:
            raise UserError(f"{option} {number}: expected 1 or more")
    if nodes > 1 and rendezvous is None:
        raise UserError(
            f"--nodes {nodes}: add --rendezvous HOST:PORT, one node's name and a free port, the same on all nodes"
        )
    if rendezvous is not None and not rendezvous.rpartition(":")[2].isdigit():
        raise UserError(f"--rendezvous {rendezvous}: expected HOST:PORT, for example node1:29400")
    return Placement(nproc, nodes, rendezvous, job or os.environ.get("SLURM_JOB_ID") or "rootstock")


class RendezvousFailed(UserError):
    """Not all nodes joined the rendezvous."""


def check_devices(where: Placement, options: Mapping[str, Any]) -> None:
    """Raise UserError if there are more processes than GPUs. options: the `run` section."""
    import torch

    gpus = torch.cuda.device_count()  # asks the driver only; no CUDA context is created
    if options["device"] == "auto" and 0 < gpus < where.nproc:
        raise UserError(
            f"--nproc {where.nproc}: this node has {gpus} GPUs, one for each process; lower --nproc, or set run.device=cpu"
        )


def rendezvous_failed(where: Placement, reason: str) -> RendezvousFailed:
    return RendezvousFailed(
        f"--rendezvous {where.rendezvous}: not all of the {where.nodes} nodes joined ({reason}); is the same HOST:PORT given on all "
        f"of them, with --nodes {where.nodes} and the same --job, and does a firewall leave the port open?"
    )


def await_first_node(where: Placement, timeout: float) -> None:
    """Wait until the node of the rendezvous, if it is another one, accepts connections. Raises RendezvousFailed.

    torch would wait in C++, where signals are not handled.
    """
    if where.nodes == 1 or where.rendezvous is None:
        return
    host, _, port = where.rendezvous.rpartition(":")
    until, reason = time.monotonic() + timeout, ""
    while not _is_here(host):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
            return
        except OSError as error:  # the name of the host may also resolve only once it runs
            reason = str(error)
        if time.monotonic() > until:
            raise rendezvous_failed(where, reason)
        time.sleep(0.2)


def _is_here(host: str) -> bool:
    """Whether a name or address belongs to this machine: only then a socket can be bound to it."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
                return True
    return False
