"""One S3 server for the tests of objects, a clock that doesn't wait, and no other credentials."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rootstock.core.images.remote.client import Clock, Retrying
from rootstock.tests.objectstore import ObjectStore, needs_objects


class Waits:
    """A clock that moves on only by pauses. pauses: seconds of each."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def now(self) -> float:
        return sum(self.pauses)

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


@pytest.fixture(scope="session")
def started() -> Iterator[ObjectStore]:
    needs_objects()
    store = ObjectStore()
    store.make_bucket()
    yield store
    store.stop()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    waits = Waits()
    monkeypatch.setattr(Retrying, "clock", Clock(waits.now, waits.pause))
    return waits


@pytest.fixture
def store(started: ObjectStore, waits: Waits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ObjectStore:
    """The server, without faults, and a cache of this test's own."""
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in started.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own cache"))
    started.fault = lambda method, path: None
    if not started.running:  # a test that stopped it has failed
        started.start()
    started.gets.clear()
    return started
