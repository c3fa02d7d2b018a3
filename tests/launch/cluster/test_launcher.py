"""`rootstock launch`: same numbers as one process; all processes save when one is asked to stop; none survives the launcher."""

import json
import platform
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousConnectionError
from torch.distributed.launcher import api as elastic

from rootstock.core.errors import UserError
from rootstock.core.run import state
from rootstock.core.train import checkpoint
from rootstock.launch import exits
from rootstock.launch.cluster import launcher, placement
from rootstock.launch.cluster.placement import Placement, RendezvousFailed, read_placement
from rootstock.tests.conftest import Ended, Forks

Rootstock = Callable[..., subprocess.CompletedProcess[str]]
STEPS, ENDLESS = 60, "optim.duration=1000000"
CONFIG: dict[str, Any] = {
    "data": {"train": "sklearn:digits?size=16#[:64]", "size": 16, "views": "digits"},
    "backbone": {"name": "smallconv", "args": {"widths": [4, 4, 8, 8]}},
    "method": {"name": "simclr", "projection": [16, 8]},
    "optim": {"name": "adamw", "lr": 1e-4, "batch_size": 16, "duration": STEPS},
    "run": {"log_every": 1, "workers": 0, "checkpoint": {"every": "100%"}},
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return str(path)


def command(nproc: int, config: str, run: Path, *more: str) -> list[str]:
    start = [sys.executable, "-m", "rootstock", "launch", "--nproc", str(nproc)]
    return [*start, "pretrain", config, f"run.dir={run}", *more]


def launched(nproc: int, config: str, run: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(nproc, config, run, *more), capture_output=True, text=True, check=False)


def losses(run: Path) -> dict[int, float]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def processes(run: Path) -> list[psutil.Process]:
    """The processes of a run, found by their command; without zombies."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if f"run.dir={run}" in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def trained_some(started: subprocess.Popen[str], run: Path) -> None:
    """Wait until a run has three rows; fails if it ends before."""
    while len(losses(run)) < 3:
        with suppress(subprocess.TimeoutExpired):
            started.wait(0.05)
            raise AssertionError(started.communicate())


@contextmanager
def going(config: str, run: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A launch of two processes that has trained some steps."""
    started = subprocess.Popen(command(2, config, run, *more), stderr=subprocess.PIPE, text=True)
    try:
        trained_some(started, run)
        yield started
    finally:
        for process in processes(run):
            process.kill()
        started.wait()
        assert started.stderr is not None
        started.stderr.close()


def workers(launcher: int) -> dict[int, psutil.Process]:
    """By rank."""
    return {int(child.environ()["RANK"]): child for child in psutil.Process(launcher).children()}


def probed(run: Path, config: str, rootstock: Rootstock) -> dict[str, Any]:
    """The metrics of a probe on the backbone that a run exported."""
    probe, path = run / "probe", Path(config).with_name("probe.yaml")
    digits = "sklearn:digits?size=16#"
    data = {"train": f"{digits}[:400]", "test": f"{digits}[400:800]", "size": 16}
    path.write_text(yaml.safe_dump({"data": data, "backbone": {}, "evaluate": {"knn": {}, "linear": {}}}))
    done = rootstock("probe", str(path), f"backbone.weights={run}", f"run.dir={probe}")
    assert done.returncode == 0, done.stderr
    return json.loads((probe / "result.json").read_text())["metrics"]


def what_workers_wrote(run: Path) -> str:
    """What the workers of a launch left on stderr, for a test that fails."""
    return "\n".join(f"{path}: {path.read_text()}" for path in run.glob("logs/**/stderr.log"))


def pending(process: psutil.Process, number: signal.Signals) -> bool:
    """Whether a signal waits for a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return any(int(line.split()[1], 16) >> number - 1 & 1 for line in status.splitlines() if line.startswith("ShdPnd"))


@pytest.mark.slow
def test_a_launch_is_one_run_on_any_number_of_processes(config: str, tmp_path: Path, rootstock: Rootstock) -> None:
    """A request to one rank stops both, after saving; the run resumes on four processes. Its losses equal those of one process throughout,
    and so do the probe's numbers of the exported network: what counts right answers to the last digit, the rest but for rounding.
    """
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert rootstock("pretrain", config, f"run.dir={straight}").returncode == 0
    with going(config, run) as started:
        workers(started.pid)[1].send_signal(signal.SIGUSR1)
        _, said = started.communicate()
    assert started.returncode == 130, said
    assert "interrupted; saved at step" in said and not processes(run)
    done = max(losses(run))
    assert done < STEPS and (run / "checkpoints" / f"step-{done:08d}").is_dir()
    assert json.loads((run / "state.json").read_text())["state"] == "preempted"
    further = launched(4, config, run)
    assert further.returncode == 0, further.stderr
    history = json.loads((run / "run.json").read_text())["history"]
    assert [part["processes"] for part in history] == [2, 4]
    assert all(part["threads"] == 1 and part["processor"] for part in history)
    assert losses(run) == pytest.approx(losses(straight), rel=1e-5)
    first, second = probed(straight, config, rootstock), probed(run, config, rootstock)
    # Right answers are counts; probabilities and orders of scores move with the rounding of the weights.
    counts = [
        name
        for name in first
        if name.rpartition("/")[2] in ("accuracy", "top5", "precision", "recall", "f1", "kappa", "mcc")
    ]
    assert len(counts) >= 10 and {name: first[name] for name in counts} == {name: second[name] for name in counts}
    assert first == pytest.approx(second, rel=1e-3)
    logs = run / "logs"
    assert (
        "interrupted; saved" in (logs / "rank-0.log").read_text()
        and f"step {STEPS}" in (logs / "rank-0.log").read_text()
    )
    assert {path.parent.name for path in logs.rglob("stderr.log")} >= {"1", "2", "3"}


# The launcher, with something else in Python's place when it starts its workers.
LAUNCHER = """
import sys
from rootstock.launch.cli import main

sys.executable = sys.argv.pop(1)
main()
"""
# A worker that is `rootstock`, of which rank 1 asks the launcher to stop at the step of ranks.py.
ASKING = """
import json, sys
from rootstock.tests import ranks

ranks.main(json.dumps(sys.argv[3:]), "ask", "1")
"""
# Workers without the seconds of torch's import. Both wait for what rank 1 asks the launcher once rank 0 is there.
WAITING = """
import os, signal, sys, time
from pathlib import Path

here, rank = Path(sys.argv[0]).parent, os.environ["RANK"]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
(here / f"rank-{rank}").touch()
if rank == "1":
    while not (here / "rank-0").exists():
        time.sleep(0.01)
    os.kill(os.getppid(), signal.SIGTERM)
(here / f"rank-{rank}").write_text(signal.sigwait([signal.SIGTERM]).name)
sys.exit(130)
"""
# Rank 1 is killed once rank 0 is there, which waits to be told to end.
DYING = """
import os, signal, sys, time
from pathlib import Path

here = Path(sys.argv[0]).with_name("here")
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
if os.environ["RANK"] == "0":
    here.touch()
    signal.sigwait([signal.SIGTERM])
    sys.exit(1)
while not here.exists():
    time.sleep(0.01)
print(f"I am process {os.getpid()}", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def launching(config: str, tmp_path: Path, forks: Forks) -> Callable[..., Ended]:
    """launching(worker, ...): a launch of two processes that run the program `worker` in place of `python`; returns how it ended."""

    def run(worker: str, *more: str) -> Ended:
        python, program, launcher = tmp_path / "python", tmp_path / "worker.py", tmp_path / "launcher.py"
        program.write_text(worker)
        launcher.write_text(LAUNCHER)
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(program))} "$@"\n')
        python.chmod(0o755)
        words = ["launch", "--nproc", "2", "pretrain", config, f"run.dir={tmp_path / 'run'}", *more]
        (ended,) = forks(launcher, [[python, *words]])
        assert not processes(tmp_path / "run")
        return ended

    return run


def test_a_request_to_the_launcher_reaches_all(launching: Callable[..., Ended], tmp_path: Path) -> None:
    ended = launching(WAITING)
    assert ended.code == 130, ended.said
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in range(2)] == ["SIGTERM"] * 2


@pytest.mark.slow
def test_a_request_to_the_launcher_saves_once(launching: Callable[..., Ended], tmp_path: Path) -> None:
    ended = launching(ASKING, ENDLESS)
    assert ended.code == 130 and ended.said.count("saved at step") == 1, ended.said + what_workers_wrote(
        tmp_path / "run"
    )


@pytest.mark.slow
def test_a_second_ctrl_c_kills_even_a_hanging_rank(config: str, tmp_path: Path) -> None:
    """One rank is frozen, so the other hangs in a collective, where signals are not handled; all checkpoints are complete."""
    run = tmp_path / "run"
    with going(config, run, ENDLESS, "run.checkpoint.every=1") as started:
        frozen = workers(started.pid)[1]
        frozen.suspend()
        while frozen.status() != psutil.STATUS_STOPPED:  # until then it may hear what comes after
            assert started.poll() is None
        started.send_signal(signal.SIGINT)
        while not pending(frozen, signal.SIGINT):  # the launcher has passed it on
            assert started.poll() is None
        started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=60)
        assert not processes(run)
    assert started.returncode == 130, said
    assert "killed the processes that still ran 3 s after the second Ctrl-C" in said
    assert checkpoint.latest(run / "checkpoints", pytest.fail) is not None
    assert state.read_state(run)["state"] in ("killed", "preempted")


def test_the_first_failure_is_reported_and_the_others_end(launching: Callable[..., Ended], tmp_path: Path) -> None:
    """Of workers that do nothing else; the next test has those that train."""
    ended = launching(DYING)
    (said,) = (path.read_text() for path in tmp_path.glob("run/logs/**/1/stdout.log"))
    first = said.split()[-1]
    assert ended.code == 1, ended.said
    assert f"error: rank 1 (process {first}) was killed by SIGKILL before any other" in ended.said


@pytest.mark.slow
def test_a_killed_rank_is_reported_and_the_other_ends(config: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with going(config, run, ENDLESS) as started:
        first = workers(started.pid)[1]
        first.kill()
        _, said = started.communicate()
        assert not processes(run)
    assert started.returncode == 1
    assert f"error: rank 1 (process {first.pid}) was killed by SIGKILL before any other" in said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_ends_the_launch(config: str, tmp_path: Path, rank: int) -> None:
    run = tmp_path / "run"
    with going(config, run, ENDLESS, "run.timeout=3") as started:
        workers(started.pid)[rank].suspend()
        _, said = started.communicate()
        assert not processes(run)
    assert started.returncode == 132, said
    assert (
        said.count(f"error: rank {rank} gave no sign of life for") == 1
        and "(stopped), " in said
        and " after step " in said
    )
    assert state.read_state(run)["state"] == "failed"
    assert (run / "logs" / f"stacks-rank-{rank}.txt").stat().st_size


def failure(code: int, at: int, message: Any = "") -> SimpleNamespace:
    return SimpleNamespace(exitcode=code, timestamp=at, pid=7, message=message)


def test_errors_of_other_ranks_are_printed_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From launch/exits.py through the file that torch reads."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file := tmp_path / "error.json"))

    def fails(error: Exception) -> Callable[[], None]:
        def work() -> None:
            raise error

        return work

    def ended() -> SimpleNamespace:
        code = 2 if "key" in file.read_text() else 1
        return SimpleNamespace(failures={1: ProcessFailure(local_rank=1, pid=7, exitcode=code, error_file=str(file))})

    assert exits.answer(fails(UserError("key: wrong\nin two lines"))) == 2
    assert launcher._ended(ended(), tmp_path, ()) == 2
    assert capsys.readouterr().err == "error: key: wrong\nin two lines\n"
    assert exits.answer(fails(ZeroDivisionError("no one foresaw it"))) == 1
    capsys.readouterr()
    assert launcher._ended(ended(), tmp_path, ()) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):\n") and "\nerror: rank 1 (process 7) failed with" in said


@pytest.mark.parametrize(
    ("failures", "first"),
    [
        ({0: failure(1, 20), 1: failure(1, 10)}, 1),
        ({0: failure(1, 10), 1: failure(-9, 11)}, 1),  # its peer noticed within a second, and before the agent
        ({0: failure(1, 10), 1: failure(-15, 10)}, 0),  # by the agent, for rank 0 had failed
        ({0: failure(1, 10), 1: failure(-9, 40)}, 0),  # by the agent, for it did not end
    ],
)
def test_a_killed_worker_counts_as_the_first_failure(failures: dict[int, Any], first: int) -> None:
    assert launcher._first(failures)[0] == first


@pytest.mark.parametrize(
    ("failures", "code", "words"),
    [
        ({0: failure(132, 10, "error: rank 1 is lost")}, 132, ""),  # rank 0 has printed it
        ({1: failure(132, 10, "error: rank 0 is lost")}, 132, "error: rank 0 is lost"),
        ({1: failure(-12, 10)}, 132, ""),
        ({0: failure(-12, 10)}, 132, "error: what rank 1 said"),
        ({1: failure(-12, 10), 0: failure(132, 11)}, 132, ""),
        ({1: failure(-9, 10), 0: failure(132, 10)}, 1, "rank 1 (process 7) was killed by SIGKILL before any other"),
    ],
)
def test_a_worker_that_others_ended_counts_as_lost(
    failures: dict[int, Any], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "error.json").write_text('{"message": {"message": "error: what rank 1 said"}}')
    assert launcher._ended(SimpleNamespace(failures=failures), tmp_path, ()) == code
    said = capsys.readouterr().err
    assert (words in said) if words else said == ""


@pytest.mark.parametrize(
    ("began", "asked", "code"), [(True, False, launcher.LOST), (True, True, 130), (False, False, None)]
)
def test_a_lost_first_node_is_no_mistake_of_the_user(
    began: bool,
    asked: bool,
    code: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After processes were started the run can be resumed. Before that, an option is probably wrong."""

    def launching(*_: object) -> Callable[..., None]:
        def run(*_: object) -> None:
            if began:
                (tmp_path / "node" / "job_x" / "attempt_0").mkdir(parents=True)
            if asked:
                signal.raise_signal(signal.SIGTERM)
            raise RendezvousConnectionError("the connection to the C10d store has failed")

        return run

    monkeypatch.setattr(elastic, "elastic_launch", launching)
    monkeypatch.setattr(launcher, "_workers", lambda: [10**9])  # nobody has that number
    where = Placement(1, 2, "localhost:29400")
    if code is None:
        with pytest.raises(RendezvousFailed, match="not all of the 2 nodes joined"):
            launcher.start_processes([], where, tmp_path)
        return
    assert launcher.start_processes([], where, tmp_path) == code
    assert ("lost the node at localhost:29400" in capsys.readouterr().err) == (code == launcher.LOST)


def test_the_first_node_is_waited_for_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    placement.await_first_node(Placement(1, 2, f"{platform.node()}:1"), 0.0)  # which is here
    monkeypatch.setattr(placement, "_is_here", lambda host: False)
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        placement.await_first_node(Placement(1, 2, f"127.0.0.1:{port}"), 0.0)
    with pytest.raises(RendezvousFailed, match=f"127.0.0.1:{port}: not all of the 2 nodes joined .*refused"):
        placement.await_first_node(Placement(1, 2, f"127.0.0.1:{port}"), 0.0)


@pytest.mark.slow
def test_no_process_outlives_the_launcher(config: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with going(config, run, ENDLESS) as started:
        left = list(workers(started.pid).values())
        started.kill()
        started.wait()
        _, alive = psutil.wait_procs(left, timeout=60)
        assert not alive
    assert json.loads((run / "state.json").read_text())["state"] == "preempted"


def test_a_mistake_is_one_sentence_before_anything_starts(config: str, tmp_path: Path, rootstock: Rootstock) -> None:
    done = rootstock("launch", "--nproc", "2", "pretrain", config, "optim.lrr=1", f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 2 and "optim.lrr" in done.stderr and not (tmp_path / "run").exists()
    done = rootstock("launch", "demo", config)
    assert done.returncode == 2 and "launch demo: expected one of pretrain" in done.stderr


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ((0, 1, None, None), "--nproc 0: expected 1 or more"),
        ((1, 0, None, None), "--nodes 0: expected 1 or more"),
        ((1, 2, None, None), "--nodes 2: add --rendezvous HOST:PORT"),
        ((1, 2, "node1", None), "--rendezvous node1: expected HOST:PORT"),
    ],
)
def test_impossible_placements_are_refused(asked: tuple[Any, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_placement(*asked)


def test_a_placement_is_one_node_by_default_and_takes_the_scheduler_s_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert read_placement(2, 1, None, None) == Placement(2, 1, None, "rootstock")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert read_placement(2, 2, "node1:29400", None) == Placement(2, 2, "node1:29400", "77")
    assert read_placement(2, 2, "node1:29400", "mine").job == "mine"
