"""Runs in folders of their own, and two gloo processes for tests of what processes do together."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from rootstock.core.config.resolve import validate
from rootstock.core.run.directory import Run
from rootstock.core.run.options import options
from rootstock.tests.conftest import Forks

TwoProcesses = Callable[[str], list[dict[str, Tensor]]]


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> TwoProcesses:
    """Runs a file as `python FILE RANK FOLDER` twice at once; returns the tensors that each left in FOLDER/RANK.safetensors."""

    def run(file: str) -> list[dict[str, Tensor]]:
        folder = tmp_path_factory.mktemp(Path(file).stem)
        for ended in forks(file, [[str(rank), folder] for rank in range(2)]):
            assert ended.code == 0, ended.said
        return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]

    return run


def no_section(run: Run, *, seed: int = 0) -> None:
    """The smallest recipe: all that its config has is a seed and `run`."""


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Opens runs in tmp_path/NAME with the given options of the `run` section, and closes them."""
    runs: list[Run] = []

    def open_run(name: str = "run", **given: Any) -> Run:
        config = validate({"run": {"dir": str(tmp_path / name), **given}}, no_section, {"run": options})
        runs.append(Run("pretrain", config, quiet=True).open())
        return runs[-1]

    yield open_run
    for run in runs:
        run.close()
