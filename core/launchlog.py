"""Log file of rank 0 under `rootstock launch`, and warnings of what has no run at hand.

Imports no torch, so that early errors can be logged.
"""

import contextlib
import os
import sys

LOG_VARIABLE = "ROOTSTOCK_LOG"  # the environment variable that names the file
_said: set[str] = set()


def append(text: str) -> None:
    """Append a line to the log file, if the environment names one. Raises OSError."""
    if path := os.environ.get(LOG_VARIABLE):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{text}\n")


def warn(sentence: str) -> None:
    """Print a warning on stderr and append it to the log, once a process; rank 0 alone says it."""
    if sentence in _said or os.environ.get("RANK", "0") != "0":
        return
    _said.add(sentence)
    print(sentence, file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        append(sentence)
