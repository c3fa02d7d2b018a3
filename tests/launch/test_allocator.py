"""Memory that torch frees stays with the process: a second round of large blocks asks the system for no page."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from rootstock.launch import cli

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work(prog_name):
    import numpy as np

    counts = []
    for _ in range(4):
        before = faults()
        blocks = [np.ones(40 << 17) for _ in range(3)]  # 40 MiB each: above every threshold of glibc
        del blocks
        counts.append(faults() - before)
    print(max(counts[1:]))

cli.app = work
cli.main()
"""


def _page_faults(variables: dict[str, str]) -> int:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=kept | variables, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other settings")
@pytest.mark.parametrize(("variables", "kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "1000000"}, False)])
def test_blocks_are_kept_unless_the_user_decides(variables: dict[str, str], kept: bool) -> None:
    faults = _page_faults(variables)
    assert faults < 100 if kept else faults > 100, faults


HOLES = """
import sys
from rootstock.launch.allocator import give_back_freed_memory, keep_freed_memory

def held():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("RssAnon")).split()[1])

import numpy as np
keep_freed_memory()
blocks = [np.ones(1 << 17) for _ in range(200)]  # 1 MiB each
del blocks[::2]  # 100 holes, none of which has room for a larger block
before = held()
give_back_freed_memory()
print(before - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other settings")
def test_what_is_free_between_blocks_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 90 << 10  # KiB: most of the 100 holes
