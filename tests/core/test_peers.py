"""Where a thread is, and what becomes of a process that was stopped."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest

from rootstock.core.peers import condition, end_processes, identity, numbered, running, whereabouts


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        assert process.poll() is None


def test_a_thread_is_found_where_it_is() -> None:
    begun, end = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        end.wait()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    assert thread.ident is not None
    found = whereabouts(thread.ident)
    end.set()
    thread.join()
    assert found.place.startswith("tests/core/test_peers.py:") and " in work" in found.place and not found.waits
    assert whereabouts(0).place == ""


def test_this_process_is_known_by_its_number_and_its_start() -> None:
    own = identity()
    assert running(own) == psutil.Process(os.getpid())
    assert running({**own, "born": own["born"] - 60}) is None  # the number has another process now
    assert condition({**own, "pid": 2**22 + 1}) == "ended"


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere the start of a process is told by the clock"
)
def test_a_step_of_the_clock_ends_no_process(sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil's time of creation is that of the machine's start by today's clock, which jumps where the clock is set."""
    before, known = psutil.Process(sleeper.pid).create_time(), numbered(sleeper.pid)
    begun = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: begun + 3600.0)
    assert psutil.Process(sleeper.pid).create_time() == pytest.approx(before + 3600.0)
    assert condition(known) in ("sleeping", "running")  # it may still be starting


def test_a_stopped_process_is_seen_and_ended(sleeper: subprocess.Popen[bytes]) -> None:
    stop(sleeper)
    known = numbered(sleeper.pid)
    assert condition(known) == "stopped"
    end_processes([known])
    assert sleeper.wait() == -signal.SIGUSR2 and condition(known) == "ended"


def test_a_process_that_ignores_the_request_is_killed() -> None:
    command = ["sh", "-c", "trap '' USR2; echo ready; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout is not None and deaf.stdout.readline() == b"ready\n"
        end_processes([numbered(deaf.pid)])
        assert deaf.wait() == -signal.SIGKILL
