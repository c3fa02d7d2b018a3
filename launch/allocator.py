"""How the C library keeps memory that torch frees on a CPU.

glibc gives every block above 32 MiB back to the system when it is freed and asks for it anew, and the system fills each new page with
zeros. The activations of a training step are such blocks, so a step on a CPU spends up to half of its time on pages. Here freed memory
stays with the process, as torch's own allocator does it on a GPU. benchmarks/allocator.md measures the speed and the peak of memory.

Memory that stays goes to pieces, though: stages with blocks of other sizes find no room between the old ones. So a process that runs
several stages gives back what is free after each; without that, a hundred short stages came to hold ten times what one needs.
"""

import ctypes
import os
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX
NEVER_TRIM, NO_BLOCK_APART = -1, 0
PAD = 64 << 20
DECIDED_BY = ("MALLOC_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let the process keep what it frees, unless the environment decides how memory is allocated. Without glibc nothing changes."""
    if sys.platform != "linux" or any(name.startswith(DECIDED_BY) for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, such as musl
        return
    for parameter, value in ((MMAP_MAX, NO_BLOCK_APART), (TRIM_THRESHOLD, NEVER_TRIM), (TOP_PAD, PAD)):
        mallopt(parameter, value)


def give_back_freed_memory() -> None:
    """Give the system what the process has freed, between two stages. Without glibc nothing happens."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
