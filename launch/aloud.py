"""Lines on stderr of the verbs that have no run of their own."""

import sys

from ..core.distributed import rank
from ..core.loudness import Loudness, loudness
from ..core.printable import printable_lines


def say(line: str, least: Loudness = Loudness.NORMAL) -> None:
    """Print one plain line, on the first process, if the command is at least so loud. Warnings are always printed."""
    if rank() == 0 and (loudness() >= least or line.startswith("WARNING")):
        print(printable_lines(line), file=sys.stderr, flush=True)


def conclude(verdict: str, following: str) -> None:
    """Print the verdict, which -q prints too, and the next command."""
    say(verdict, Loudness.QUIET)
    say(f"next: {following}")
