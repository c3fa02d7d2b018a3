"""For every test: a cache of its own, no network, and the load of the machine beside pytest's closing line."""

import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from rootstock.core.environment import usable_cores
from rootstock.tests import cheaper  # noqa: F401 - for what this process does

BEGAN = time.monotonic()
# huggingface_hub reads it once, at import: a test that would download weights fails instead.
os.environ["HF_HUB_OFFLINE"] = "1"
# torch.compile asks the processor alone which vector instructions it has: to compile and start a program for each takes seconds.
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"


# Temporary folders lie in memory where there is plenty: on a disk, a tenth of the time goes into making and deleting small files.
MEMORY, ENOUGH = Path("/dev/shm"), 4 << 30
if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


# The files that take longest come first. Each runs on one worker, so at the end they would leave the other idle.
LONG = (
    "test_resume.py",
    "test_processes.py",
    "test_configs.py",
    "test_soak.py",
    "test_sweep.py",
    "test_launcher.py",
    "test_fuzz.py",
    "test_document_commands.py",
    "test_walkthrough.py",
    "test_bad_input.py",
    "test_exactness.py",
    "test_communication.py",
    "test_input_equality.py",
    "test_colour.py",
    "test_draws_compiled.py",
    "test_compile.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_collection_finish() -> None:
    """What has been imported stays: looking through all of it takes half a second at each full collection of garbage."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or else extension modules complain at the interpreter's end


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Other work on the machine makes the tests take longer, so the load stands beside the time."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    minutes = (time.monotonic() - BEGAN) / 60.0
    terminalreporter.write_line(f"{minutes:.1f} minutes; load {load} (1, 5, 15 minutes) on {usable_cores()} cores")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hashes and unpacked archives are cached for this session only, here and in the commands that tests start."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


class Ended(NamedTuple):
    """A process that has ended: its exit code, and its output with its errors."""

    code: int
    said: str


class Forks:
    """Starts programs at once in processes that need no time to import, and waits for them: tests/forks.py."""

    def __init__(self, folder: Path, program: Path = Path(__file__).with_name("forks.py")) -> None:
        self.folder, self.program = folder, program
        self.server: Any = None

    def __call__(
        self,
        file: str | Path,
        argv: Sequence[Sequence[str | Path]],
        env: Sequence[dict[str, str]] = (),
        cwd: Sequence[Path] = (),
    ) -> list[Ended]:
        """Run a file once for each of `argv`, with `env` added to this environment, in `cwd`."""
        if self.server is None:
            program = [sys.executable, str(self.program)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.server = subprocess.Popen(program, env=environment, **pipes)
        count = range(len(argv))
        said = [self.folder / str(number) for number in count]
        job = {
            "file": str(file),
            "argv": [[str(word) for word in words] for words in argv],
            "env": [{**os.environ, "OMP_NUM_THREADS": "1", **(env[number] if env else {})} for number in count],
            "cwd": [str(cwd[number] if cwd else Path.cwd()) for number in count],
            "said": [str(path) for path in said],
        }
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        codes = json.loads(self.server.stdout.readline())
        return [Ended(code, path.read_text()) for code, path in zip(codes, said, strict=True)]

    def group(self, file: str | Path, *argv: str | Path, count: int = 2) -> None:
        """Run a file as torchrun would, in `count` processes. Fails the test unless all succeed."""
        group = self(file, [argv] * count, self.ranks(count))
        said = [f"rank {rank} ended with {ended.code}\n{ended.said[-6000:]}" for rank, ended in enumerate(group)]
        assert not any(ended.code for ended in group), "\n".join(said)  # of all: who fails first says why

    @staticmethod
    def ranks(count: int) -> list[dict[str, str]]:
        """The variables of each process of a group."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        own = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
        }
        return [{**own, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]

    def end(self) -> None:
        if self.server is not None:
            self.server.communicate()
            assert self.server.returncode == 0


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> Iterator[Forks]:
    server = Forks(tmp_path_factory.mktemp("forks"))
    yield server
    server.end()


@pytest.fixture(scope="session")
def draw() -> Callable[[Path, Iterable[str]], Path]:
    """draw(folder, names): a small picture under each name, drawn by the names of folder and picture alone, whatever was drawn before."""

    def pictures(folder: Path, names: Iterable[str]) -> Path:
        for name in names:
            generator = np.random.default_rng(zlib.crc32(f"{folder.name}/{name}".encode()))
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
