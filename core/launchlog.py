"""Log file of rank 0 under `rootstock launch`. Imports no torch, so that early errors can be logged."""

import os

LOG_VARIABLE = "ROOTSTOCK_LOG"  # the environment variable that names the file


def append(text: str) -> None:
    """Append a line to the log file, if the environment names one. Raises OSError."""
    if path := os.environ.get(LOG_VARIABLE):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{text}\n")
