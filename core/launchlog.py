"""The log of the first process of `rootstock launch`, which leaves the console to it; needs no torch, as errors are told here too."""

import os

LOG = "ROOTSTOCK_LOG"  # the environment variable that names the file


def note(text: str) -> None:
    """Append to the log, where there is one. Raises OSError."""
    if path := os.environ.get(LOG):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{text}\n")
