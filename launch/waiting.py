"""How the threads of torch wait for each other.

libgomp, torch's OpenMP, lets a thread that waits spin for a long time before it sleeps. Where other programs run, a thread that spins
keeps the core from the one that it waits for, and training slows down many times. benchmarks/threads.md measures several limits.
"""

import os

SPINS = "10000"
DECIDE = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spin_briefly() -> None:
    """Let waiting threads spin at most SPINS times, unless the environment decides. libgomp reads it when torch is imported."""
    if not any(name in os.environ for name in DECIDE):
        os.environ["GOMP_SPINCOUNT"] = SPINS
