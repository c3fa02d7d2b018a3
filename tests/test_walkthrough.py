"""README's "Adding a method", done in a copy of the checkout: on one and on two processes the methods get the same weights."""

import os
import re
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
        registry, (module, name) = target.read_text(), CLASSES[target.parent.name]
        lines = registry.splitlines(keepends=True)
        (at,) = (i for i, line in enumerate(lines) if line.strip() == anchor)
        first = next(i for i, line in enumerate(lines) if line.startswith("from ."))
        target.write_text(
            "".join([*lines[:first], f"from .{module} import {name}\n", *lines[first : at + 1], text, *lines[at + 1 :]])
        )
    return written


def run(copy: Path, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(copy.parent), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *arguments]
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
    run(copy, "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "rootstock/tests")


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("pretrain", ["pretrain/uniform.yaml"]),
        pytest.param("adapt", ["adapt/digits_mean_matching.yaml"], marks=pytest.mark.slow),
    ],
)
def test_the_methods_train_alike_on_one_and_two_processes(copy: Path, verb: str, arguments: list[str]) -> None:
    def weights(processes: int = 1, steps: int = 2) -> Tensor:
        folder = copy.parent / f"{verb}-{processes}-{steps}"
        start = [] if processes == 1 else ["launch", "--nproc", str(processes)]
        run(copy, "rootstock", *start, verb, *arguments, *FAST, f"optim.duration={steps}", f"run.dir={folder}")
        tensors = load_file(folder / "backbone" / "backbone.safetensors")
        return torch.cat(
            [t.flatten().double() for name, t in sorted(tensors.items()) if name.endswith(("weight", "bias"))]
        )

    initial, one, two = weights(steps=0), weights(), weights(processes=2)
    assert (one - initial).norm() > 0
    # Rounding flips a few ReLUs; a mean over the wrong number of images would be off by its half.
    assert (two - one).norm() < 0.02 * (one - initial).norm()
