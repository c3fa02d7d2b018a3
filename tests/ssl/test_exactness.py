"""1 process == 2 == 4, and chunked == whole: losses, gradients, running statistics and teachers of every method.

The bounds: 1e-10 of the gradient in float64, 1e-4 in float32; run with -rP to see the figures.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.model import norm
from rootstock.launch.doctor.trial_steps import distance
from rootstock.ssl.registry import PRETRAIN_METHODS
from rootstock.tests.conftest import Forks
from rootstock.tests.ssl.cases import CASES, method
from rootstock.tests.ssl.exact_steps import GROUP, Trial, run, trials

BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-4}
Results = dict[str, dict[str, Tensor]]


class Alone(Results):
    """The results of one process by the trial's key, each computed at its first use."""

    def __missing__(self, key: str) -> dict[str, Tensor]:
        (trial,) = (trial for trial in trials() if trial.key == key)
        self[key] = run(trial)
        return self[key]


@pytest.fixture(scope="module")
def alone() -> Results:
    return Alone()


# float64 shows that the mathematics is the same; float32, in the long tests, shows the effect of rounding.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param((2, "float64"), id="2"),
        pytest.param((2, "float32"), id="2-float32", marks=pytest.mark.slow),
        pytest.param((4, "float64"), id="4", marks=pytest.mark.slow),
    ],
)
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Results:
    """The same on several processes."""
    out = tmp_path_factory.mktemp("exact") / "out.safetensors"
    count, *dtypes = request.param
    forks.group(Path(__file__).with_name("exact_steps.py"), out, *dtypes, count=count)
    results: Results = {}
    for key, value in load_file(out).items():
        trial, _, name = key.partition("|")
        results.setdefault(trial, {})[name] = value
    return results


def check(trial: Trial, found: dict[str, Tensor], right: dict[str, Tensor], what: str) -> None:
    bound = BOUNDS[trial.dtype]
    errors = {part: distance(found, right, part) for part in ("loss.0", "loss.1", "grad.0", "grad.1", "state")}
    print(f"{what}, {trial.key}: relative error of the gradient {max(errors['grad.0'], errors['grad.1']):.1e}")
    assert all(error <= bound for error in errors.values()), (what, trial.key, errors)
    assert max(float(value.abs().max()) for name, value in right.items() if name.startswith("grad.")) > 1e-6


def test_every_method_has_a_case() -> None:
    assert CASES.keys() == PRETRAIN_METHODS.keys()


def test_several_processes_are_one(alone: Results, together: Results) -> None:
    compared = [trial for trial in trials() if trial.key in together]
    assert {trial.name for trial in compared} == PRETRAIN_METHODS.keys()
    for trial in compared:
        right = alone[trial.key]
        # safetensors sorts names
        check(trial, {name: together[trial.key][name] for name in right}, right, "processes")


def cut() -> list[Trial]:
    """The trials in which chunking does not change the gradient: all except BatchNorm over the whole batch in a chunked encoder."""
    return [
        trial
        for trial in trials()
        if PRETRAIN_METHODS[trial.name].couples_samples and not (trial.backbone == "conv" and trial.norm == "batch")  # pyright: ignore[reportFunctionMemberAccess]
    ]


@pytest.mark.parametrize(
    "trial",
    [
        pytest.param(trial, id=trial.key, marks=[pytest.mark.slow] if trial.dtype is torch.float32 else [])
        for trial in cut()
    ],
)
def test_chunks_are_the_whole_batch(trial: Trial, alone: Results) -> None:
    check(trial, run(trial, chunk=GROUP), alone[trial.key], "chunks")


@pytest.mark.parametrize("name", [name for name, (_, kinds) in CASES.items() if "conv" in kinds])
def test_a_divided_batch_refuses_batchnorm_of_the_whole(name: str) -> None:
    """Each layer would need the whole batch before the next one starts, which saves no memory."""
    built = method(name, "conv", 2)
    key = "chunk" if built.couples_samples else "accumulate"
    divided = {"accumulate": 1, "chunk": None, key: 2}
    with pytest.raises(UserError, match=rf"run\.{key}: divides the batch.*group:G"):
        norm.configure(built, "batch", **divided, log=print)
