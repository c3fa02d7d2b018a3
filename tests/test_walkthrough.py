"""README's "Adding a method", done in a copy of the checkout: on one and on two processes the methods get the same weights."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- test: (file|line) (\S+)(?: ([^\n]*?))? -->\n```\w+\n(.*?)```", re.DOTALL)
# SGD, because the first steps of AdamW divide rounding errors by gradients that are nearly zero.
FAST = [
    "optim.name=sgd",
    "optim.lr=1e-3",
    "optim.batch_size=16",
    "run.device=cpu",
    "run.workers=0",
    "backbone.norm=batch",
]
CLASSES = {"ssl": ("uniform", "Uniform"), "adapt": ("mean_matching", "MeanMatching")}


def follow(copy: Path) -> list[Path]:
    """Do what the section says; returns the files that were written."""
    section = (ROOT / "README.md").read_text().partition("## Adding a method")[2]
    written = []
    for kind, path, anchor, text in BLOCK.findall(section):
        target = copy / path
        if kind == "file":
            assert not target.exists(), f"{path} is part of the project now; the walk-through needs another name"
            target.write_text(text)
            written.append(target)
            continue
        lines = target.read_text().splitlines(keepends=True)
        (at,) = (i for i, line in enumerate(lines) if line.strip() == anchor)
        lines.insert(at + 1, text)
        if target.name == "registry.py":
            module, name = CLASSES[target.parent.name]
            first = next(i for i, line in enumerate(lines) if line.startswith("from ."))
            lines.insert(first, f"from .{module} import {name}\n")
        target.write_text("".join(lines))
    return written


# Several at once, in one interpreter of the copy.
ITS_TESTS = """
import sys, pytest
code = pytest.main(sys.argv[1:])
from rootstock.tests.ssl.cases import method
print(method("uniform", "conv"))
sys.exit(code)
"""
COMMANDS = """
import json, sys
from rootstock.launch.cli import app

for sys.argv in json.loads(sys.argv[1]):
    if code := app(standalone_mode=False):
        sys.exit(code)
"""


def execute(copy: Path, *arguments: str) -> None:
    """Python with these arguments, which imports the copy and fails the test if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(copy.parent), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=copy.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copied = tmp_path_factory.mktemp("walkthrough") / "rootstock"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "runs", "__pycache__", "tests", "benchmarks", "*.egg-info", "build"
    )
    shutil.copytree(ROOT, copied, ignore=ignored)
    for folder in ("ssl", "adapt"):
        (copied / "tests" / folder).mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "ssl" / "cases.py", copied / "tests" / "ssl")
    written = {path.relative_to(copied).as_posix() for path in follow(copied)}
    assert written == {
        "ssl/uniform.py",
        "configs/pretrain/uniform.yaml",
        "tests/ssl/test_uniform.py",
        "adapt/mean_matching.py",
        "configs/adapt/digits_mean_matching.yaml",
        "tests/adapt/test_mean_matching.py",
    }
    return copied


def test_its_tests_pass(copy: Path) -> None:
    execute(copy, "-c", ITS_TESTS, "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "rootstock/tests")


@pytest.mark.parametrize(
    ("verb", "config"),
    [
        ("pretrain", "pretrain/uniform"),
        pytest.param("adapt", "adapt/digits_mean_matching", marks=pytest.mark.slow),
    ],
)
def test_the_methods_train_alike_on_one_and_two_processes(copy: Path, verb: str, config: str) -> None:
    (commands,) = re.findall(r"<!-- test: method -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    start = [
        shlex.split(line.replace("pretrain pretrain/uniform", f"{verb} {config}")) for line in commands.splitlines()
    ]
    assert [line[:2] for line in start] == [["rootstock", verb], ["rootstock", "launch"]]

    def command(name: str, processes: int, steps: int) -> list[str]:
        return [*start[processes - 1], *FAST, f"optim.duration={steps}", f"run.dir={copy.parent / name}"]

    def weights(name: str) -> Tensor:
        tensors = load_file(copy.parent / name / "backbone" / "backbone.safetensors")
        return torch.cat(
            [t.flatten().double() for name, t in sorted(tensors.items()) if name.endswith(("weight", "bias"))]
        )

    alone = [command(f"{verb}-0", 1, 0), command(f"{verb}-1", 1, 2)]
    execute(copy, "-c", COMMANDS, json.dumps(alone))
    execute(copy, "-m", *command(f"{verb}-2", 2, 2))
    initial, one, two = (weights(f"{verb}-{name}") for name in range(3))
    assert (one - initial).norm() > 0
    # Rounding flips a few ReLUs; a mean over the wrong number of images would be off by its half.
    assert (two - one).norm() < 0.02 * (one - initial).norm()
