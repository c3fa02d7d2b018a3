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

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- test: (file|line) (\S+)(?: (.*?))? -->\n```\w+\n(.*?)```", re.DOTALL)
FAST = ["optim.batch_size=16", "optim.duration=2", "run.device=cpu", "run.workers=0", "run.checkpoint.every=100"]
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
    (copied / "tests" / "ssl").mkdir(parents=True)
    written = {path.relative_to(copied).as_posix() for path in follow(copied)}
    assert written == {
        "ssl/uniform.py",
        "configs/pretrain/digits_uniform.yaml",
        "tests/ssl/test_uniform.py",
        "adapt/mean_matching.py",
    }
    return copied


def test_its_test_passes(copy: Path) -> None:
    run(
        copy, "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "rootstock/tests/ssl/test_uniform.py"
    )


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("pretrain", ["pretrain/digits_uniform.yaml"]),
        ("adapt", ["adapt/digits_dann.yaml", "method={name: mean_matching, trade_off: 0.5}", "backbone.weights=none"]),
    ],
)
def test_the_methods_train_alike_on_one_and_two_processes(copy: Path, verb: str, arguments: list[str]) -> None:
    one, two = copy.parent / f"{verb}-one", copy.parent / f"{verb}-two"
    run(copy, "rootstock", verb, *arguments, *FAST, f"run.dir={one}", "backbone.norm=batch")
    run(copy, "rootstock", "launch", "--nproc", "2", verb, *arguments, *FAST, f"run.dir={two}", "backbone.norm=batch")
    weights = [load_file(folder / "backbone" / "backbone.safetensors") for folder in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    initial = copy.parent / f"{verb}-initial"
    run(copy, "rootstock", verb, *arguments, *FAST, "optim.duration=0", f"run.dir={initial}", "backbone.norm=batch")
    before = load_file(initial / "backbone" / "backbone.safetensors")
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights[0].items())
