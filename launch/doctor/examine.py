"""`rootstock doctor`: what is installed and connected, tried rather than looked up, and what is wrong with it in words.

Each check does the smallest real thing (a product on the device, two processes that add a number), because what is installed
and what works differ exactly on the machines where one calls the doctor.
"""

from collections.abc import Callable, Iterator

from .findings import Finding, Report, guarded
from .installed import compiler, packages, python, torchvision
from .machine import devices, disk, faiss, memory, processes
from .rates import rates

CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    python,
    packages,
    torchvision,
    devices,
    faiss,
    processes,
    compiler,
    memory,
    disk,
    rates,
)


def examine(as_json: bool = False) -> int:
    """Print what every check finds. Returns the exit code: 1 if something essential is broken."""
    report = Report(as_json)
    for check in CHECKS:
        for finding in guarded(check):
            report.add(finding)
    report.conclude()
    return 1 if report.wrong else 0
