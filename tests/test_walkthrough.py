"""The pages that say how to add a method, done in a copy of the checkout: on one and on two processes the methods get the same weights."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rootstock.tests.conftest import Forks
from rootstock.tests.documents import commands, of_kind

ROOT = Path(__file__).parents[1]
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
    """Do what the pages say; returns the files that were written."""
    written = []
    for block in [*of_kind("file"), *of_kind("line")]:
        _, path, *anchors = block.mark.split(" ", 2)
        target, text = copy / path, block.body
        if block.kind == "file":
            assert not target.exists(), f"{path} is part of the project now; the walk-through needs another name"
            target.write_text(text)
            written.append(target)
            continue
        (anchor,) = anchors
        lines = target.read_text().splitlines(keepends=True)
        (at,) = (i for i, line in enumerate(lines) if line.strip() == anchor)
        lines.insert(at + 1, text)
        if target.name == "registry.py":
            module, name = CLASSES[target.parent.name]
            first = next(i for i, line in enumerate(lines) if line.startswith("from ."))
            lines.insert(first, f"from .{module} import {name}\n")
        target.write_text("".join(lines))
    return written


# Programs of the copy, each forked from one interpreter that has imported the copy (tests/forks.py).
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


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copied = tmp_path_factory.mktemp("walkthrough") / "rootstock"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "tests", "benchmarks", "*.egg-info", "build", "docs")
    shutil.copytree(ROOT, copied, ignore=ignored)
    for folder in ("ssl", "adapt"):
        (copied / "tests" / folder).mkdir(parents=True)
    for name in ("forks.py", "driver.py", "warm.py", "cheaper.py", "ssl/cases.py"):
        shutil.copy(ROOT / "tests" / name, copied / "tests" / name)
    written = {path.relative_to(copied).as_posix() for path in follow(copied)}
    assert written == {
        "ssl/uniform.py",
        "configs/pretrain/uniform.yaml",
        "tests/ssl/test_uniform.py",
        "adapt/mean_matching.py",
        "configs/adapt/digits_mean_matching.yaml",
        "tests/adapt/test_mean_matching.py",
    }
    for name, text in (("its_tests.py", ITS_TESTS), ("commands.py", COMMANDS)):
        (copied.parent / name).write_text(text)
    return copied


@pytest.fixture(scope="module")
def forks(copy: Path) -> Iterator[Forks]:
    """Starts processes that import the copy."""
    (copy.parent / "said").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(copy.parent))
        server = Forks(copy.parent / "said", copy / "tests" / "forks.py")
        yield server
        server.end()


def test_the_files_of_the_page_are_modules(copy: Path) -> None:
    """Written where the page says (`copy`); that they train is for `make test-all`."""
    for name in (
        "ssl/uniform.py",
        "adapt/mean_matching.py",
        "tests/ssl/test_uniform.py",
        "tests/adapt/test_mean_matching.py",
    ):
        compile((copy / name).read_text(), name, "exec")


@pytest.mark.slow  # the page's tests of its own method; below, the method itself
def test_its_tests_pass(copy: Path, forks: Forks) -> None:
    argv = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "rootstock/tests"]
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins would warn of what is imported by now
    (ended,) = forks(copy.parent / "its_tests.py", [argv], [alone], [copy.parent])
    assert ended.code == 0 and "2 passed" in ended.said, ended.said


@pytest.mark.parametrize(
    ("verb", "config", "launched"),
    [
        # Of two processes as `launch` starts them; tests/launch/cluster/test_launcher.py has the launcher itself.
        pytest.param("pretrain", "pretrain/uniform", False, marks=pytest.mark.slow),
        pytest.param("pretrain", "pretrain/uniform", True, marks=pytest.mark.slow),
        pytest.param("adapt", "adapt/digits_mean_matching", True, marks=pytest.mark.slow),
    ],
)
def test_the_methods_train_alike_on_one_and_two_processes(
    copy: Path, forks: Forks, verb: str, config: str, launched: bool
) -> None:
    start = [
        shlex.split(shlex.join(words).replace("pretrain pretrain/uniform", f"{verb} {config}"))
        for words in commands("method")
    ]
    assert [line[:2] for line in start] == [["rootstock", verb], ["rootstock", "launch"]]
    assert start[1][2:5] == ["--nproc", "2", verb]
    folder = copy.parent / f"{verb}-{launched}"
    quick = ["evaluate=null"] if verb == "pretrain" else []

    def command(name: str, processes: int, steps: int) -> list[str]:
        return [*start[processes - 1], *FAST, *quick, f"optim.duration={steps}", f"run.dir={folder / name}"]

    def weights(name: str) -> Tensor:
        tensors = load_file(folder / name / "backbone" / "backbone.safetensors")
        return torch.cat(
            [t.flatten().double() for name, t in sorted(tensors.items()) if name.endswith(("weight", "bias"))]
        )

    program = copy.parent / "commands.py"
    (ended,) = forks(program, [[json.dumps([command("0", 1, 0), command("1", 1, 2)])]], cwd=[copy.parent])
    assert ended.code == 0, ended.said
    if launched:
        done = subprocess.run(
            [sys.executable, "-m", *command("2", 2, 2)], cwd=copy.parent, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        rank = ["rootstock", *command("2", 2, 2)[4:]]
        forks.group(program, json.dumps([rank]))
    assert json.loads((folder / "2" / "run.json").read_text())["processes"] == 2
    initial, one, two = (weights(name) for name in "012")
    assert (one - initial).norm() > 0
    # Rounding flips a few ReLUs; a mean over the wrong number of images would be off by its half.
    assert (two - one).norm() < 0.02 * (one - initial).norm()
