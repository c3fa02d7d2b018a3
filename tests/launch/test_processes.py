"""Pairs of processes that were given different things, or of which one is stopped, killed or asleep: named, and all end."""

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from rootstock.core.run import state
from rootstock.launch import processes
from rootstock.tests.conftest import Forks
from rootstock.tests.launch.cluster.test_launcher import CONFIG

LOST = 132
RANKS = Path(__file__).parents[1] / "ranks.py"


class Pair(NamedTuple):
    codes: list[int]
    said: list[str]
    run: Path

    def checkpoints(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.run.glob("checkpoints/step-*"))


@pytest.fixture
def pair(forks: Forks, tmp_path: Path) -> Callable[..., Pair]:
    def run(*of_rank_1: str, fault: str = "", who: int = 1, data: str = "", cwd: Sequence[Path] = ()) -> Pair:
        config = {**CONFIG, "evaluate": {"watch": None}}
        (tmp_path / "pair.yaml").write_text(yaml.safe_dump(config))
        folder = tmp_path / "run"
        argv = ["pretrain", str(tmp_path / "pair.yaml"), f"run.dir={folder}", "optim.duration=20"]
        argv += ["run.checkpoint.every=5", "run.timeout=3", *([f"data.train={data}"] if data else [])]
        jobs = [[json.dumps(words), fault, str(who)] for words in (argv, [*argv, *of_rank_1])]
        ended = forks(RANKS, jobs, forks.ranks(2), cwd or [tmp_path] * 2)
        return Pair([one.code for one in ended], [one.said for one in ended], folder)

    return run


CONFIGS = {
    "lr": ("optim.lr=0.1", "optim.lr: 0.0001 on rank 0, 0.1 on rank 1"),
    "duration": ("optim.duration=40", "optim.duration: 20 on rank 0, 40 on rank 1"),
    "seed": ("seed=3", "seed: 0 on rank 0, 3 on rank 1"),
    "batch": ("optim.batch_size=32", "optim.batch_size: 16 on rank 0, 32 on rank 1"),
    "run": ("run.log_every=7", "run.log_every: 1 on rank 0, 7 on rank 1"),
    "method": ("method.temperature=0.3", "method.temperature: 0.2 on rank 0, 0.3 on rank 1"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "lr" else [pytest.mark.slow]) for name in CONFIGS]
)
def test_another_config_is_named_on_every_process(pair: Callable[..., Pair], name: str) -> None:
    override, words = CONFIGS[name]
    found = pair(override)
    assert found.codes == [2, 2], found.said
    for said, rank in zip(found.said, ("", "rank 1: "), strict=True):
        assert said.startswith(f"{rank}error: the processes have different configs ({words}") and said.count("\n") == 1
    assert not (found.run / "config.yaml").exists()


def test_other_code_is_named(pair: Callable[..., Pair]) -> None:
    found = pair(fault="code")
    assert found.codes == [2, 2], found.said
    assert all("different code (core/train/loop.py: " in said and '"another" on rank 1' in said for said in found.said)


def test_another_picture_is_named(
    pair: Callable[..., Pair], tmp_path: Path, draw: Callable[[Path, Iterable[str]], Path]
) -> None:
    """The same path on two nodes, as it is without a shared disk; only the last picture differs."""
    places = [tmp_path / "node0", tmp_path / "node1"]
    names = [f"images/{i:02d}.png" for i in range(20)]
    draw(places[0], names)
    draw(places[1], names[-1:])
    for name in names[:-1]:
        (places[1] / name).write_bytes((places[0] / name).read_bytes())
    found = pair(data="folder:images", cwd=places)
    assert found.codes == [2, 2], found.said
    assert all(re.search(r"different data \(data\.train\.\w+: \"\w+\" on rank 0, ", said) for said in found.said)
    assert not (found.run / "metrics.jsonl").exists()


def test_what_may_differ_may_differ(pair: Callable[..., Pair]) -> None:
    found = pair("run.resident=off", "run.workers=1")
    assert found.codes == [0, 0], found.said
    assert found.checkpoints() == [15, 20] and not list(found.run.glob("logs/stacks*"))


@pytest.mark.parametrize("who", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_stopped_process_is_named_and_ended(pair: Callable[..., Pair], who: int) -> None:
    """Rank 0 also holds the store through which they beat."""
    found = pair(fault="stop", who=who)
    other = found.said[1 - who]
    assert found.codes[1 - who] == LOST and found.codes[who] in (-signal.SIGUSR2, LOST), found.said
    assert f"error: rank {who} gave no sign of life for" in other and "(stopped), " in other and " after step " in other
    for rank, file in ((who, "tests/ranks.py"), (1 - who, "core/distributed.py")):
        assert file in (found.run / "logs" / f"stacks-rank-{rank}.txt").read_text()
    assert found.checkpoints() == [5, 10] and state.read_state(found.run)["state"] == "failed"


@pytest.mark.parametrize("who", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_is_named(pair: Callable[..., Pair], who: int) -> None:
    found = pair(fault="kill", who=who)
    assert found.codes[who] == -signal.SIGKILL and found.codes[1 - who] == LOST, found.said
    assert f"error: rank {who} ended without a word: process " in found.said[1 - who]
    assert found.checkpoints() == [5, 10]


@pytest.mark.parametrize("who", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_one_that_ends_before_the_run_is_open_is_named(pair: Callable[..., Pair], who: int) -> None:
    found = pair(fault="early", who=who)
    assert found.codes[who] == -signal.SIGKILL and found.codes[1 - who] == LOST, found.said
    assert f"error: rank {who} ended without a word: " in found.said[1 - who], found.said
    assert "Traceback" not in found.said[1 - who] and not (found.run / "config.yaml").exists()


@pytest.mark.parametrize("fault", ["sleep", pytest.param("evaluate", marks=pytest.mark.slow)])
def test_one_that_does_not_come_to_a_collective_is_named(pair: Callable[..., Pair], fault: str) -> None:
    found = pair(fault=fault)
    assert found.codes == [LOST, LOST], found.said
    for said in found.said:
        assert "error: nothing went on for " in said and "rank 1 did not come: process " in said, found.said
        assert "after step 12" in said and "rank 0 came: process " in said, found.said
    assert "ranks.py" in (found.run / "logs" / "stacks-rank-1.txt").read_text() and found.checkpoints() == [5, 10]


def test_weights_that_have_come_apart_are_not_saved(pair: Callable[..., Pair]) -> None:
    found = pair(fault="flip")
    assert found.codes == [1, 1], found.said
    words = "error: after step 15 the weights of rank 1 differ from those of rank 0 in backbone."
    assert all(words in said for said in found.said) and found.checkpoints() == [5, 10]
    assert state.read_state(found.run)["state"] == "failed"


@pytest.mark.parametrize(
    ("fault", "codes", "words"),
    [
        ("mistake", [2, 2], "error: rank 1: b.png is damaged; delete it"),
        pytest.param(
            "error", [LOST, 1], "error: rank 1 failed after step 12, in its training: ValueError: a bug on one rank",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_an_error_of_one_reaches_the_others(
    pair: Callable[..., Pair], fault: str, codes: list[int], words: str
) -> None:
    found = pair(fault=fault)
    assert found.codes == codes and words in found.said[0], found.said


def test_one_process_alone_has_no_thread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rootstock: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    def none(*_: Any) -> None:
        raise AssertionError("nobody would read these beats")

    monkeypatch.setattr(processes, "Heartbeat", none)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**CONFIG, "evaluate": {"watch": None}}))
    done = rootstock("pretrain", str(tmp_path / "tiny.yaml"), f"run.dir={tmp_path / 'run'}", "optim.duration=2")
    assert done.returncode == 0, done.stderr
