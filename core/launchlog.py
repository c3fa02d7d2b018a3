"""The log of the first process of `rootstock launch`, which leaves the console to it; needs no torch, as errors are told here too."""

import os

LOG_VARIABLE = "ROOTSTOCK_LOG"  # the environment variable that names the file


def append(text: str) -> None:
    """Append to the log, where there is one. Raises OSError."""
    if path := os.environ.get(LOG_VARIABLE):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{text}\n")
