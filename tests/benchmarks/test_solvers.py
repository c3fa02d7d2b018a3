"""The page of solvers at toy size: what it says of few rounds, of an aim that was missed, and of the minimum. Nothing is timed here."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression


@pytest.fixture(scope="module")
def solvers(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("solvers")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The script computes with one thread; other tests with as many as they had."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_few_rounds_have_no_interval(solvers: ModuleType) -> None:
    assert solvers.spoken([2.0], [1.0]) == "2" and solvers.spoken([2.0, 4.0], [1.0, 1.0]) == "3"
    assert solvers.spoken([2.0, 3.0, 4.0], [1.0] * 3).startswith("3 [")
    assert min(solvers.FULL.rounds, solvers.SMALL.rounds, solvers.HEAD_ROUNDS) >= solvers.FEWEST_ROUNDS


def test_an_aim_that_was_missed_is_said(solvers: ModuleType) -> None:
    both = solvers.aimed({"full batch": 7.5, "minibatch": 4.0})
    assert both.endswith("Reached: minibatch (4, aim 4). Missed: full batch (7.5, aim 8).")
    assert "Missed" not in solvers.aimed({"one sweep": 3.5}) and "Reached" not in solvers.aimed({"one sweep": 3.4})


def test_the_page_says_how_far_above_the_minimum_our_ends_lie(
    solvers: ModuleType,
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "page.md"
    monkeypatch.setattr(script("solver_ends"), "MOST_STEPS", 40)
    assert solvers.main(["--toy", "--only", "C", "--markdown", str(out)]) == 0
    rows = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in out.read_text().splitlines()
    }
    assert rows["C"] == ["1e-03", "1e+01", "1e+03", "1e+05"]
    ours, theirs = ([float(cell.partition(",")[0]) for cell in rows[name]] for name in ("ours", "newton-cg from zeros"))
    assert all(0 <= value <= 1e-6 for value in ours) and all(value >= 0 for value in theirs)
    assert "[" not in "".join(rows["one by one, from zeros (mean of 12 values)"])
    assert "one sweep (" in capsys.readouterr().out


def test_an_end_above_the_minimum_is_found(solvers: ModuleType) -> None:
    """Also one that is above by little: newton-cg goes on from there."""
    x, y = solvers.features(solvers.TOY)
    minima = solvers.sweep(x, y)
    worse = minima._replace(weight=minima.weight * 1.01)
    line = next(row for row in solvers.exact(x, y, worse) if row.startswith("| ours"))
    assert all(float(cell) > 1e-6 for cell in line.strip("| ").split(" | ")[1:])


def test_what_did_not_converge_is_seen(solvers: ModuleType) -> None:
    x, y = np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % 3
    assert solvers.converged(LogisticRegression(max_iter=1000), x, y)
    assert not solvers.converged(LogisticRegression(max_iter=1), x, y)
