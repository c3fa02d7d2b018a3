"""Workers of a sweep for its tests, some of which are killed; and claims that are freed at the end."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rootstock.launch.sweep.study import Claim
from rootstock.tests.conftest import Forks

Run = Callable[..., list[int]]


@pytest.fixture
def run(forks: Forks, tmp_path: Path) -> Run:
    """run(fault, ...): one worker for each fault (None: no fault), in parallel; returns their exit codes. Logs are 0.log, ..."""

    def workers(*faults: dict[str, Any] | None, more: tuple[str, ...] = ()) -> list[int]:
        argv = ["sweep", str(tmp_path / "sweep.yaml"), f"run.dir={tmp_path / 'sweep'}", *more]
        jobs = [{"argv": argv, "log": str(tmp_path / f"{i}.log"), "fault": fault} for i, fault in enumerate(faults)]
        return [
            ended.code for ended in forks(Path(__file__).with_name("driver.py"), [[json.dumps(job)] for job in jobs])
        ]

    return workers


@pytest.fixture
def claims() -> Iterator[list[Claim]]:
    """Collects the claims made by `take`, and frees them at the end."""
    taken: list[Claim] = []
    yield taken
    for claim in taken:
        claim.free()
