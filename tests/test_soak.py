"""Runs killed at random steps, again and again, end with the weights of straight ones: a case for each feature of the loop."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rootstock.tests import test_resume
from rootstock.tests.ssl import cases
from rootstock.tests.test_resume import CASES, CommandLine, checkpoints, rows, weights, write

STEPS, EVERY, KILLS = 60, 4, 12
# What each method brings into the loop.
METHODS = {
    "swav": "a queue and local crops",
    "dino": "a teacher, local crops, prototypes that rest at first",
    "dinov2": "masks, two heads, a centre",
    "byol": "LARS, and a teacher whose momentum rises",
    "simsiam": "a predictor of constant rate",
    "barlow": "statistics of the whole batch",
}
# Evaluations meanwhile, LARS, clipping, accumulation with mixed images, two domains.
FEATURES = {**dict.fromkeys(CASES, ""), **METHODS}


@pytest.fixture(scope="module")
def rootstock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    line = CommandLine(tmp_path_factory.mktemp("driver") / "log")
    yield line
    line.process.communicate()


def config(name: str) -> tuple[str, dict[str, Any]]:
    """The verb and the config of a case, longer than in test_resume.py."""
    if name in CASES:
        verb, tree = CASES[name]
        return verb, {**tree, "optim": {**tree["optim"], "duration": STEPS}}
    kind = cases.CASES[name][1][0]
    tree = cases.config(name, kind, f"{test_resume.DATA}#[:100]", 0.1, lr=0.003, batch_size=16, duration=STEPS)
    return "pretrain", {**tree, "run": test_resume.RUN}


@pytest.mark.soak
@pytest.mark.parametrize("name", FEATURES)
def test_kills_at_random_change_nothing(name: str, rootstock: CommandLine, tmp_path: Path) -> None:
    """Some kills come in the middle of writing a checkpoint. The seed is new each time, and stands in the failure."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    verb, tree = config(name)
    path = write(tmp_path, tree)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert rootstock(verb, path, f"run.dir={straight}").code == 0
    for _ in range(KILLS):
        begun = max(checkpoints(killed), default=0)
        if begun + EVERY >= STEPS - 1:
            break
        save = draw.random() < 0.3
        # A checkpoint further at most, so that all kills find a run that is not finished.
        at = begun + EVERY if save else draw.randrange(begun, begun + EVERY + 2)
        outcome = rootstock(verb, path, f"run.dir={killed}", at=at, save=save)
        assert outcome.code == -9, (seed, at, save, outcome.output)
    outcome = rootstock(verb, path, f"run.dir={killed}")
    assert outcome.code == 0, (seed, outcome.output)
    assert weights(killed) == weights(straight), seed
    assert rows(killed) == rows(straight), seed
