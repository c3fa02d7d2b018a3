"""For every test: a cache of its own, no network, and the load of the machine beside pytest's closing line."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rootstock.core.environment import usable_cores

BEGAN = time.monotonic()
# huggingface_hub reads it once, at import: a test that would download weights fails instead.
os.environ["HF_HUB_OFFLINE"] = "1"


# The files that take longest come first. Each runs on one worker, so at the end they would leave the other idle.
LONG = (
    "test_resume.py",
    "test_configs.py",
    "test_processes.py",
    "test_launcher.py",
    "test_sweep.py",
    "test_compile.py",
    "test_readme.py",
    "test_communication.py",
    "test_loader.py",
    "test_exactness.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Other work on the machine makes the tests take longer, so the load stands beside the time."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    minutes = (time.monotonic() - BEGAN) / 60.0
    terminalreporter.write_line(f"{minutes:.1f} minutes; load {load} (1, 5, 15 minutes) on {usable_cores()} cores")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hashes and unpacked archives are cached for this session only, here and in the commands that tests start."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def draw() -> Callable[[Path, Iterable[str]], Path]:
    """draw(folder, names): a small picture under each name, all of different sizes and contents; returns the folder."""
    generator = np.random.default_rng(0)

    def pictures(folder: Path, names: Iterable[str]) -> Path:
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            height, width = generator.integers(20, 40, 2)
            Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        return folder

    return pictures


@pytest.fixture
def rootstock(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """rootstock(*arguments): the command in this process, which has to import torch only once; an unexpected exception is raised here."""

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        from rootstock.launch.cli import main

        monkeypatch.setattr(sys, "argv", ["rootstock", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return subprocess.CompletedProcess(arguments, end.value.code, said.out, said.err)

    return command
