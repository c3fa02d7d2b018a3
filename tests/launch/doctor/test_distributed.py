"""`rootstock doctor --distributed`: it finds nothing wrong between healthy processes, and reports a fault in one sentence."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.testing._internal.distributed.fake_pg import FakeStore

from rootstock.launch.cluster import launcher, placement
from rootstock.launch.doctor import bandwidth, distributed, rendezvous, trial_steps
from rootstock.launch.doctor.bandwidth import BUS
from rootstock.launch.doctor.distributed import WRONG_FOUND, Participant, check_clocks, check_connection
from rootstock.launch.doctor.equality import CASES, equality
from rootstock.launch.doctor.link_rates import Links
from rootstock.launch.doctor.rendezvous import ProcessesMissing, ProcessInfo, compare_processes, exchange_info

Rootstock = Callable[..., subprocess.CompletedProcess[str]]
VERSIONS = {"python": "3.11.9", "rootstock": "0.1.0", "torch": "2.15.0", "commit": "abc"}


@pytest.fixture(autouse=True)
def own_log_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets this variable for its own processes; restore it here."""
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "FATAL")


def card(rank: int, host: str = "node1", device: str = "cpu", gpu: str | None = "", **versions: str) -> ProcessInfo:
    return ProcessInfo(rank, host, f"machine of {host}", device, gpu, {**VERSIONS, **versions}, Links())


def wrong(cards: list[ProcessInfo]) -> list[str]:
    return [finding.message for finding in compare_processes(cards) if finding.verdict == "wrong"]


@pytest.mark.slow
def test_two_processes_are_healthy(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "rootstock",
        "doctor",
        "--distributed",
        "--nproc",
        "2",
        "--device",
        "cpu",
        "--json",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == 0 and {finding["verdict"] for finding in found["findings"]} <= {"ok", "note"}
    (reachable,) = [finding for finding in found["findings"] if finding["subject"] == "reachable"]
    assert (reachable["processes"], reachable["backend"]) == (2, "gloo")
    rates = found["bandwidth"]
    assert {row["collective"] for row in rates if row["bytes"] == 2**20} == set(BUS)
    assert all(0 < row["low"] <= row["seconds"] <= row["high"] and row["bus_gb_per_s"] > 0 for row in rates)
    assert all(row["of_nominal"] > 0 for row in rates)  # of copying in memory
    equal = [finding for finding in found["findings"] if finding["subject"] == "N == 1"]
    assert [finding["trial"] for finding in equal] == [trial.name for trial in CASES]
    for finding in equal:
        errors = finding["relative_difference"]
        assert 0 <= errors["float64"] <= 1e-10 and 0 < errors["float32"] <= 1e-4
    assert not list(tmp_path.glob("rootstock-doctor-*"))


@contextmanager
def faulty(rank: int, processes: int) -> Iterator[None]:
    """One of several processes whose collectives move no data."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture
def nothing_moves(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        trial_steps, "_parallel", lambda method: method
    )  # DDP's own collective would wait for an answer
    with faulty(0, 2):
        yield


@pytest.mark.parametrize(("rank", "processes"), [(0, 2), (2, 3), (7, 8)])  # 8 bytes are two numbers
def test_collectives_of_any_number_of_processes_move_what_is_said(
    rank: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bandwidth, "SLOWEST", float("inf"))
    monkeypatch.setattr(bandwidth, "SIZES", (2**10, 2**12))
    with faulty(rank, processes):
        latency, *found = bandwidth.measure_collectives(torch.device("cpu"))
    assert (latency.collective, latency.bytes) == ("all_reduce", 8)
    sizes = [size // 4 // processes * processes * 4 for size in bandwidth.SIZES]
    assert [(row.collective, row.bytes) for row in found] == [(name, size) for name in BUS for size in sizes]


@pytest.mark.usefixtures("nothing_moves")
def test_collectives_that_lose_data_are_wrong() -> None:
    *found, remedy = equality(torch.device("cpu"))
    assert [finding.facts["trial"] for finding in found] == [trial.name for trial in CASES]
    assert {finding.verdict for finding in found} == {"wrong"}
    assert all("in float64 (at most 1e-10)" in finding.message for finding in found)
    assert "2 processes do not compute the same as one" in remedy.message
    (sums,) = check_connection("gloo", torch.device("cpu"))
    assert sums.verdict == "wrong" and "sum is 1, not 3" in sums.message


def test_processes_are_listed_by_host() -> None:
    cards = [card(0), card(1), card(2, "node2")]
    hosts = [finding.message for finding in compare_processes(cards) if finding.subject == "host"]
    assert hosts == ["node1: rank 0 on cpu, rank 1 on cpu", "node2: rank 2 on cpu"]
    assert not wrong(cards) and not wrong(
        [card(0, device="cuda:0", gpu="GPU-a"), card(1, device="cuda:1", gpu="GPU-b")]
    )


@pytest.mark.parametrize(
    ("cards", "sentence"),
    [
        (
            [card(0, device="cuda:0", gpu="GPU-a"), card(1, device="cuda:0", gpu="GPU-a")],
            "ranks 0 and 1 (node1) share one GPU, GPU-a; NCCL needs one for each process",
        ),
        (
            [card(0, device="cuda:0", gpu="GPU-a"), card(1, device="cuda:1", gpu=None)],
            "rank 1 (node1): cuda:1 does not exist; start one process per GPU, or use --device cpu",
        ),
        (
            [card(0, device="cuda:0", gpu="GPU-a"), card(1, "node2")],
            "cuda on rank 0 (node1), cpu on rank 1 (node2); give every process a GPU, or use --device cpu",
        ),
        (
            [card(0), card(1, "node2", torch="2.14.0"), card(2, "node2", torch="2.14.0")],
            "torch differs: 2.15.0 on rank 0 (node1), 2.14.0 on ranks 1 and 2 (node2); install the same version everywhere",
        ),
        (
            [card(0), card(1, commit="abd")],
            "commit differs: abc on rank 0 (node1), abd on rank 1 (node1); install the same version everywhere",
        ),
        (
            [card(0, nccl="2.30.7"), card(1, nccl="2.29.3")],
            "nccl differs: 2.30.7 on rank 0 (node1), 2.29.3 on rank 1 (node1)",
        ),
    ],
)
def test_processes_that_do_not_fit_are_wrong(cards: list[ProcessInfo], sentence: str) -> None:
    (said,) = wrong(cards)
    assert said.startswith(sentence)


def test_other_versions_may_differ() -> None:
    found = list(compare_processes([card(0), card(1, python="3.12.1")]))
    assert [(finding.verdict, finding.subject) for finding in found] == [("ok", "host"), ("note", "versions")]
    (same,) = [finding for finding in compare_processes([card(0), card(1)]) if finding.subject == "versions"]
    assert same.message == "the same on all processes (rootstock 0.1.0, torch 2.15.0, commit abc)"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """Rank 0 of two processes, as torchrun's agent starts it; the agent keeps the store."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in {
        **environment,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }.items():
        monkeypatch.setenv(name, value)
    return store


def test_information_is_exchanged_through_the_store(started: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    other = card(1, "node2", "cuda:0", "GPU-b")._replace(links=Links(450.0, 63.0, {"GPU-a": "NV18"}, None, "eth0"))
    started.set("rootstock-doctor/info/1", json.dumps(other))
    _, found = exchange_info(card(0), 30)
    assert found == [card(0), other]


@pytest.mark.usefixtures("started")
def test_missing_processes_are_named(monkeypatch: pytest.MonkeyPatch, rootstock: Rootstock) -> None:
    with pytest.raises(ProcessesMissing, match=r"rank 1 of 2 did not join at 127.0.0.1:\d+ within 0.1 s"):
        exchange_info(card(0), 0.1)
    done = rootstock("doctor", "--distributed", "--device", "cpu", "--timeout", "1")
    assert done.returncode == 1 and "WRONG reachable    rank 1 of 2 did not join" in done.stdout
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(distributed, "LATER", 0)
    monkeypatch.setattr(rendezvous, "rendezvous", lambda *_, **__: iter([(HashStore(), 1, 2)]))
    done = rootstock("doctor", "--distributed", "--device", "cpu", "--timeout", "1")
    assert done.returncode == 2 and done.stdout == ""  # torchrun's agent hears it of the others


def test_an_unreachable_store_is_one_sentence(started: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
        with pytest.raises(ProcessesMissing, match=r"not all processes reached 127.0.0.1:\d+ within 0.5 s"):
            exchange_info(card(0), 0.5)


def test_a_missing_answer_is_one_sentence(
    started: TCPStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, codes = threading.Event(), []
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), ended.set()))
    member = Participant("cpu", 1, as_json=False)
    member.timeout = 0
    with member._stage("connecting"):
        assert ended.wait(60)
    said = capsys.readouterr().out
    assert codes == [1] and "no answer within 1 s while connecting with gloo; check that GLOO_SOCKET_IFNAME" in said
    with (
        pytest.raises(
            distributed.ExaminationFailed, match=r"failed on rank 0 .*gloo says no.*; check that GLOO_SOCKET_IFNAME"
        ),
        member._stage("x"),
    ):
        raise RuntimeError("gloo says no")


def test_clocks_that_differ_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    store = HashStore()
    store.set("clock/1", "1000.0")
    (finding,) = check_clocks(store, 0, 2, now=lambda: 1007.5)
    assert finding.verdict == "note" and "7.5 s apart, rank 1's is behind" in finding.message
    store.set("clock/1", "1007.0")
    assert not list(check_clocks(store, 0, 2, now=lambda: 1007.5))


@pytest.mark.parametrize(
    ("code", "expected", "kept"),
    [(0, 0, False), (WRONG_FOUND, 1, False), (1, 1, True), (2, 1, False), (130, 130, False)],
)
def test_the_exit_code_is_what_the_processes_found(
    code: int, expected: int, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rootstock: Rootstock
) -> None:
    asked: list[Any] = []
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(
        distributed, "start_processes", lambda *words, **options: (asked.append((words, options)), code)[1]
    )
    monkeypatch.setattr(distributed.tempfile, "mkdtemp", lambda prefix: str(tmp_path / f"{prefix}x"))
    (tmp_path / "rootstock-doctor-x").mkdir()
    assert rootstock("doctor", "--distributed", "--device", "cpu", "--timeout", "9").returncode == expected
    (((arguments, where, _), options),) = asked
    assert arguments == ["doctor", "--distributed", "--device", "cpu", "--timeout", "9"]
    assert where == placement.Placement(2, 1, None, where.job) and options == {"answers": (WRONG_FOUND,), "timeout": 9}
    assert (tmp_path / "rootstock-doctor-x").exists() == kept


def test_an_answer_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failure = SimpleNamespace(exitcode=WRONG_FOUND, pid=1, message="", timestamp=0)
    ended = SimpleNamespace(failures={1: failure})
    assert launcher._ended(ended, tmp_path, (WRONG_FOUND,)) == WRONG_FOUND and capsys.readouterr().err == ""
    assert launcher._ended(ended, tmp_path, ()) == 1 and "failed with exit code 3" in capsys.readouterr().err


@pytest.mark.slow
def test_nodes_that_do_not_join_are_wrong(monkeypatch: pytest.MonkeyPatch, rootstock: Rootstock) -> None:
    # The number of a pod of a PyTorchJob: no process of torchrun's, which has a LOCAL_RANK.
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    options = ["--device", "cpu", "--nproc", "1", "--nodes", "2", "--rendezvous", place, "--timeout", "1"]
    done = rootstock("doctor", "--distributed", *options)
    assert done.returncode == 1
    assert f"WRONG rendezvous   --rendezvous {place}: not all of the 2 nodes joined" in done.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--device", "tpu"], "expected --device auto or cpu"),
        (["--timeout", "0"], "--timeout of 1 or more"),
        (["--nproc", "0"], "--nproc 0: expected 1 or more"),
        (["--nodes", "2"], "--nodes 2: add --rendezvous HOST:PORT"),
    ],
)
def test_a_mistake_is_one_sentence(
    options: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, rootstock: Rootstock
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    done = rootstock("doctor", "--distributed", *options)
    assert done.returncode == 2 and sentence in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.usefixtures("started")
def test_started_processes_start_no_others(rootstock: Rootstock) -> None:
    done = rootstock("doctor", "--distributed", "--nproc", "2")
    assert done.returncode == 2 and "started already" in done.stderr
