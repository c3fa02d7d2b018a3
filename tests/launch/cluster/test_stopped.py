"""A worker that was stopped is ended by the launcher of its node."""

import signal
import subprocess

import pytest

from rootstock.launch.cluster.stopped import stopped_workers_end


def test_the_launcher_ends_a_worker_that_was_stopped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where no other process of this machine would; one that runs is left alone."""
    with subprocess.Popen(["sleep", "1000"]) as running_on, subprocess.Popen(["sleep", "1000"]) as sleeper:
        with stopped_workers_end(0.1, lambda: [sleeper.pid, running_on.pid]):
            sleeper.send_signal(signal.SIGSTOP)
            assert sleeper.wait() == -signal.SIGUSR2
        assert f"process {sleeper.pid} was stopped for more than 0.1 s" in capsys.readouterr().err
        assert running_on.poll() is None
        running_on.kill()
