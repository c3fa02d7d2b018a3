"""Processes that come together: one that waits says so, and whoever has come says nothing."""

import threading

import pytest
from torch.distributed import DistError

from rootstock.core.errors import UserError
from rootstock.core.run import join


class Heard:
    """Stands for stderr: `said` is set when something is written."""

    def __init__(self) -> None:
        self.text, self.said = "", threading.Event()

    def write(self, text: str) -> int:
        self.text += text
        if text.endswith("\n"):
            self.said.set()
        return len(text)

    def flush(self) -> None:
        pass


def test_who_waits_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    monkeypatch.setattr(join, "WAITING_SAID_EVERY", 0.01)
    monkeypatch.setattr("sys.stderr", heard)
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with join.joining():
        assert heard.said.wait(60)
    assert (
        "rank 1 waits at node0:29500 until all 4 processes are there (0 of 600 s); another may have ended" in heard.text
    )
    with pytest.raises(UserError, match="not all 4 processes came together at node0:29500"), join.joining():
        raise DistError("time-out")
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("(say)") and not thread.daemon]


def test_one_process_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    before = threading.active_count()
    with join.joining():
        assert threading.active_count() == before
