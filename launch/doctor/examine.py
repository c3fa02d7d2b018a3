"""`rootstock doctor`: checks what is installed by trying it, and says in words what is wrong.

Each check does the smallest real operation (a product on the device, two processes that add a number), because something can be
installed and still not work.
"""

from collections.abc import Callable, Iterator

from .findings import Finding, Report, guarded
from .installed import compiler, packages, python, torchvision
from .machine import devices, disk, faiss, memory, processes
from .objects import object_storage
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
    object_storage,
    rates,
)


def examine(as_json: bool = False) -> int:
    """Run all checks and print their findings. Returns the exit code: 1 if something essential is broken."""
    report = Report(as_json)
    for check in CHECKS:
        for finding in guarded(check):
            report.add(finding)
    report.conclude()
    return 1 if report.wrong else 0
