"""timm's weights from its hub, without the minute of retries where there is no network."""

from __future__ import annotations

import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants

PATIENCE = 3.0  # seconds that the hub may take to answer at all


def reachable(address: str, seconds: float = PATIENCE) -> bool:
    """Whether a server, or the proxy that the environment names, answers within so many seconds, whatever it says."""
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except urllib.error.URLError as error:
            if isinstance(
                error.reason, ssl.SSLError
            ):  # it is there; whether it is trusted is for the hub's own client to say
                answered.set()
        except (OSError, ValueError):
            pass

    # In a thread, because looking up a name has a time limit of its own, which may be half a minute.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


@contextmanager
def without_retries() -> Iterator[None]:
    """Within it, the hub is asked only if it can be reached; else its files are taken from the cache, or are not there."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
