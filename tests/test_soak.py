"""200 kills by seed over everything that writes, half of them between two changes of the disk: nothing is lost.

Every life is a forked child (tests/driver.py), killed at a step or right before a change of the disk: a file opened for
writing, renamed or removed, a folder made. ROOTSTOCK_SOAK_SEED gives other kills.
"""

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from safetensors.torch import load_file

from rootstock.core.ledger import read_ledger
from rootstock.core.run.rows import LOOKS
from rootstock.tests import test_resume
from rootstock.tests.conftest import Forks
from rootstock.tests.ssl import cases
from rootstock.tests.test_resume import CASES, CommandLine, adaptation, checkpoints, rows, weights, write

STEPS, EVERY, KILLS = 60, 4, 29  # seven kinds of work, 203 kills
FEW_STEPS, FEW = 16, 3  # in `make test`: 21 kills
SEED = int(os.environ.get("ROOTSTOCK_SOAK_SEED", "0"))
# What each method brings into the loop.
METHODS = {
    "swav": "a queue and local crops",
    "dino": "a teacher, local crops, prototypes that rest at first",
    "dinov2": "masks, two heads, a centre",
    "byol": "LARS, and a teacher whose momentum rises",
    "simsiam": "a predictor of constant rate",
    "barlow": "statistics of the whole batch",
}
# What each adaptation method brings into the loop; DANN is one of the kinds of work below.
ADAPTATION = {
    "mcc": "two domains, one loss and one update",
    "fixmatch": "a further view of the target",
    "shot": "a refresh over the whole target at each of its epochs",
    "mcd": "three turns a step",
    "osbp": "an output for the unknown class",
    "tent": "one pass in order, with the predictions kept",
}
TARGETS = 96  # six steps an epoch: the target's second refresh comes before step 6, a step that starts no interval of checkpoints


class Work(NamedTuple):
    """Something that is killed and begun again."""

    argv: Callable[[Path], list[str]]  # the command, of the folder that it writes
    outcome: Callable[[Path], Any]  # what must not depend on kills
    steps: int = 0  # of its training
    tail: float = 1.0  # part of its changes of the disk, the last ones, in which it is killed
    first: int | None = None  # the step that the first kill comes right before; else by seed


@pytest.fixture(scope="module")
def rootstock(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> CommandLine:
    return CommandLine(tmp_path_factory.mktemp("driver") / "log", forks)


def trained(run: Path) -> Any:
    for folder in (run / "checkpoints").iterdir():
        assert not folder.name.startswith("."), "an unfinished checkpoint is left"
        load_file(folder / "model.safetensors")
    return weights(run), rows(run)


def adapted(run: Path) -> Any:
    """What a run of `adapt` leaves; its labels were looked at once, however often it was killed."""
    ledger = read_ledger(run / LOOKS)
    assert ledger is not None and len(ledger.entries) == 1
    return (
        trained(run),
        hashlib.sha256((run / "candidates.safetensors").read_bytes()).hexdigest(),
        ledger.entries[0]["candidates"],
    )


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def config(name: str, steps: int) -> tuple[str, dict[str, Any]]:
    """The verb and the config of a case or method."""
    if name in CASES:
        verb, tree = CASES[name]
        return verb, {**tree, "optim": {**tree["optim"], "duration": steps}}
    kind = cases.CASES[name][1][0]
    tree = cases.config(name, kind, f"{test_resume.DATA}#[:100]", 0.1, lr=0.003, batch_size=16, duration=steps)
    return "pretrain", {**tree, "run": test_resume.RUN}


def training(name: str, folder: Path, steps: int, tail: float = 1.0) -> Work:
    verb, tree = config(name, steps)
    path = write(folder, tree)
    return Work(lambda run: [verb, path, f"run.dir={run}"], trained, steps, tail)


def export(name: str, folder: Path, steps: int) -> Work:
    """The end of a run: its last checkpoint, its export, ledger and result."""
    work = training(name, folder, steps, tail=0.3)
    return work._replace(outcome=lambda run: (weights(run), digests(run / "backbone").keys()), steps=0)


def pack(_: str, folder: Path, steps: int) -> Work:
    uri = f"{test_resume.DATA}#[:{20 * steps}]"
    return Work(lambda out: ["data", uri, "--pack", str(out)], digests)


def sweep(name: str, folder: Path, steps: int) -> Work:
    verb, tree = config(name, 4)
    tree["evaluate"] = {"knn": {"k": 5}, "watch": None, "every": None}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    study = {
        "verb": verb,
        "config": "tiny.yaml",
        "search": {"optim.lr": {"log": [1e-4, 1e-2]}},
        "trials": 3,
        "objective": "test/knn/accuracy",
        "run": {"dir": "sweep"},
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(study))

    def outcome(run: Path) -> Any:
        found = sorted(path.parent for path in run.glob("**/result.json") if path.parent != run)
        assert len(found) == 3, "each trial is there once"
        return [weights(trial) for trial in found]

    return Work(lambda run: ["sweep", str(path), f"run.dir={run}"], outcome)


KINDS: dict[str, tuple[Callable[[str, Path, int], Work], str]] = {
    "simclr": (training, "simclr-adamw"),
    "mae": (training, "mae"),
    "finetune": (training, "finetune-sgd"),
    "dann": (training, "dann"),
    "export": (export, "finetune-sgd"),
    "pack": (pack, ""),
    "sweep": (sweep, "simclr-adamw"),
}


def kill_and_compare(rootstock: CommandLine, work: Work, folder: Path, kills: int, name: str) -> int:
    """Do the work once straight and once killed again and again; returns how many kills there were."""
    draw = random.Random(f"{SEED}/{name}")
    straight, killed = folder / "straight", folder / "killed"
    outcome = rootstock(*work.argv(straight), under=straight)
    assert outcome.code == 0, outcome.output
    changes, done = rootstock.changes(), 0
    assert changes > 3, "this work changes nothing that is watched"
    for number in range(kills):
        begun = max(checkpoints(killed), default=0)
        if number % 2 == 0 and begun < work.steps:
            at = draw.randrange(begun, min(begun + EVERY + 2, work.steps))
            at = work.first if work.first is not None and number == 0 else at
            outcome = rootstock(*work.argv(killed), at=at, under=killed)
        else:
            left = changes * (work.steps - begun) // work.steps if work.steps else changes
            event = draw.randrange(max(1, round((1.0 - work.tail) * left)), max(2, left) + 1)
            # The first third of what is left, mostly: else few kills reach the end.
            event = event if work.tail < 1.0 or draw.random() < 0.2 else max(1, event // 3)
            outcome = rootstock(*work.argv(killed), event=event, under=killed)
        if outcome.code == 0:  # it ended before its kill: once more from the start, with the kills that are left
            assert work.outcome(killed) == work.outcome(straight), (name, SEED, number)
            killed = folder / f"killed-{number}"
            continue
        assert outcome.code == -9, (name, SEED, number, outcome.output)
        done += 1
    outcome = rootstock(*work.argv(killed))
    assert outcome.code == 0, (name, SEED, outcome.output)
    assert work.outcome(killed) == work.outcome(straight), (name, SEED)
    return done


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_kills_lose_nothing(kind: str, rootstock: CommandLine, tmp_path: Path) -> None:
    make, name = KINDS[kind]
    assert kill_and_compare(rootstock, make(name, tmp_path, FEW_STEPS), tmp_path, FEW, kind) >= 1


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_many_kills_lose_nothing(kind: str, rootstock: CommandLine, tmp_path: Path) -> None:
    make, name = KINDS[kind]
    done = kill_and_compare(rootstock, make(name, tmp_path, STEPS), tmp_path, KILLS, kind)
    print(f"{kind}: {done} kills of {KILLS}")


@pytest.mark.soak
@pytest.mark.parametrize("name", METHODS)
def test_kills_of_every_feature_of_the_loop(name: str, rootstock: CommandLine, tmp_path: Path) -> None:
    kill_and_compare(rootstock, training(name, tmp_path, STEPS), tmp_path, 12, name)


@pytest.mark.soak
@pytest.mark.parametrize("name", ADAPTATION)
def test_kills_of_every_feature_of_an_adaptation(name: str, rootstock: CommandLine, tmp_path: Path) -> None:
    """SHOT's first kill comes between a refresh and the update of its step."""
    tree = adaptation(name, STEPS, tmp_path, rootstock)
    if name == "shot":
        tree["data"] = {**tree["data"], "target": f"{test_resume.DATA}#[80:{80 + TARGETS}]"}
    path = write(tmp_path, tree)
    first = TARGETS // tree["optim"]["batch_size"] if name == "shot" else None
    work = Work(lambda run: ["adapt", path, f"run.dir={run}"], adapted, STEPS, first=first)
    done = kill_and_compare(rootstock, work, tmp_path, 12, name)
    print(f"{name}: {done} kills of 12")
