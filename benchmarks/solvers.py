"""Compares the solvers of linear classifiers with the same work done one by one, and with scikit-learn and plain torch.

    python benchmarks/solvers.py [--full] [--markdown benchmarks/solvers.md] [--gate]

One thread, CPU time, ways interleaved: logistic regression for 45 values of C in one sweep, and 52 linear heads trained by SGD at once.
`--full` takes 50,000 images of 512 features instead of 10,000, and some hours; `--toy` only checks that everything runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import page
import sklearn
import torch
from sklearn.linear_model import LogisticRegression
from solver_ends import converged, exact, objective
from timing import Interval
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rootstock.core.evaluate.logreg import C_GRID
from rootstock.core.evaluate.newton import Minima, minimise, path_along_C
from rootstock.core.evaluate.sgd_heads import Head, HeadTraining, in_memory, train_heads
from rootstock.core.evaluate.softmax_model import rotated

CLASSES, HEADS, BATCH = 10, 52, 256
# Of the values of C one by one, so many are timed, evenly spread in log C; the time of all 45 is their mean times 45.
ALONE = 12
HEAD_ROUNDS = 5
TOLERANCE = 1e-6  # relative to the objective: equal
# An interval needs so many rounds; of fewer, the bootstrap would draw the same ones again and again.
FEWEST_ROUNDS = 3
# How many times as fast together, against the same code one after another: what was aimed at, and the least that is let through.
AIMS = {"one sweep": 3.5, "minibatch": 4.0, "full batch": 8.0}
FLOORS = {"C": 3.5, "minibatch": 4.0, "full batch": 1.5}
LIMIT = (
    "A full batch alone is a product with few columns, which waits for memory at about a quarter of the processor's peak rate; together, "
    "the heads run at about four fifths of the peak. So the ratio to the same code cannot be above about four there. Weights as x @ W are "
    "the layout that a product with few columns suffers from most."
)


class Size(NamedTuple):
    n: int
    width: int
    steps: int  # of minibatches
    full_steps: int  # of the whole set
    rounds: int


SMALL, FULL, TOY = Size(10_000, 512, 80, 4, 5), Size(50_000, 512, 195, 2, 3), Size(300, 16, 3, 2, 1)


def features(size: Size, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float32 [n, width], centred and over one scale, and labels: classes that overlap, with variances that fall as 1 / rank, rotated."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (size.n,), generator=generator)
    basis = torch.linalg.qr(torch.randn(size.width, size.width, generator=generator)).Q
    scale = torch.arange(1, size.width + 1).float().rsqrt()
    means = 0.3 * torch.randn(CLASSES, size.width, generator=generator) * scale
    x = (means[y] + torch.randn(size.n, size.width, generator=generator) * scale) @ basis
    x -= x.mean(0)
    return x / x.square().mean().sqrt(), y


def spent(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def sweep(x: Tensor, y: Tensor) -> Minima:
    return path_along_C(rotated(x.double()), y, C_GRID, CLASSES)


def one_by_one(x: Tensor, y: Tensor, values: list[float]) -> None:
    rows = rotated(x.double())
    for c in values:
        start = rows.x.new_zeros(1, CLASSES, rows.x.shape[1])
        minimise(rows, y, rows.x.new_tensor([c]), start, start[:, :, 0])


class Theirs(NamedTuple):
    """What scikit-learn found for each C: the objective, and those where it warned that it had not converged."""

    objective: dict[float, float]
    unconverged: set[float]


def scikit_learn(x: Tensor, y: Tensor, tol: float, found: Theirs) -> float:
    """CPU seconds of lbfgs along C, each from the one before."""
    model = LogisticRegression(solver="lbfgs", warm_start=True, tol=tol, max_iter=10_000)
    numbers, labels, seconds = x.numpy(), y.numpy(), 0.0
    found.unconverged.clear()
    for c in C_GRID:
        told: list[bool] = []
        seconds += spent(lambda c=c, told=told: told.append(converged(model.set_params(C=c), numbers, labels)))
        found.unconverged.update([] if told[0] else [c])
        found.objective[c] = objective(x, y, torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_), c)
    return seconds


class Columns(nn.Module):
    """A linear layer whose weight lies as [D, K], as in x @ W."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(width, CLASSES)), nn.Parameter(torch.zeros(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def plain_torch(layer: nn.Module, x: Tensor, y: Tensor, training: HeadTraining) -> None:
    """One head by torch's own autograd, loss and optimizer, with a shuffled index as the order."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=training.momentum)
    order = torch.randperm(len(x)).repeat(2)
    for step in range(training.steps):
        if training.batch_size is None:
            some, own = x, y
        else:
            rows = order[step * training.batch_size % len(x) :][: training.batch_size]
            some, own = x[rows], y[rows]
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * training.rate(step)
        optimizer.zero_grad()
        cross_entropy(layer(some), own).backward()
        optimizer.step()


def rounds(ways: Mapping[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """CPU seconds of each way, which it returns, in each round; each round has another order."""
    seen: dict[str, list[float]] = {name: [] for name in ways}
    names, shuffled = list(ways), np.random.default_rng(0)
    for _ in range(count):
        for k in shuffled.permutation(len(names)):
            seen[names[k]].append(ways[names[k]]())
    return seen


def ratio(above: list[float], below: list[float], times: float = 1.0) -> Interval:
    return Interval.of_median([times * a / b for a, b in zip(above, below, strict=True)])


def spoken(above: list[float], below: list[float], times: float = 1.0) -> str:
    """The median ratio with its interval, or alone where the rounds are too few for one."""
    found = ratio(above, below, times)
    return page.spoken(found) if len(above) >= FEWEST_ROUNDS else f"{found.median:.3g}"


def aimed(found: Mapping[str, float]) -> str:
    """Which of the ratios reached their aims, and which missed them."""
    parts = {
        word: ", ".join(
            f"{name} ({value:.3g}, aim {AIMS[name]:g})"
            for name, value in found.items()
            if (value >= AIMS[name]) == reached
        )
        for word, reached in (("Reached", True), ("Missed", False))
    }
    said = " ".join(f"{word}: {names}." for word, names in parts.items() if names)
    return f"How many times as fast together as the same code one by one. {said}"


def logistic_regression(size: Size) -> tuple[list[str], bool]:
    """The section of logistic regression, and whether its floor holds."""
    x, y = features(size)
    places = np.linspace(0, len(C_GRID) - 1, ALONE).round().astype(int).tolist()
    values = [C_GRID[i] for i in places]
    theirs = {tol: Theirs({}, set()) for tol in ("1e-4", "1e-6")}
    ways: dict[str, Callable[[], float]] = {
        "sweep": lambda: spent(lambda: sweep(x, y)),
        "alone": lambda: spent(lambda: one_by_one(x, y, values)),
    }
    for tol, found in theirs.items():
        ways[tol] = lambda tol=tol, found=found: scikit_learn(x, y, float(tol), found)
    seen = rounds(ways, size.rounds)
    minima = sweep(x, y)
    best = {c: float(value) for c, value in zip(C_GRID, minima.objective, strict=True)}
    alone = ratio(seen["alone"], seen["sweep"], len(C_GRID) / ALONE)
    lines = [
        f"All {len(C_GRID)} minima converged: {'yes' if bool(minima.converged.all()) else 'no'}. Steps of Newton's method: at most "
        f"{int(minima.iterations.max())}, {float(minima.iterations.double().mean()):.1f} in the mean.",
        "",
        aimed({"one sweep": alone.median}),
        "",
        "| way | CPU time, times the sweep's | values of C within 1e-6 of the lowest objective |",
        "|---|---|---|",
        page.row(["one sweep", "1", f"{within(best, best)} of {len(C_GRID)}"]),
        page.row(
            [
                f"one by one, from zeros (mean of {ALONE} values)",
                spoken(seen["alone"], seen["sweep"], len(C_GRID) / ALONE),
                "the same",
            ]
        ),
    ]
    for tol, found in theirs.items():
        left = f"; {len(found.unconverged)} not converged, as it says" if found.unconverged else ""
        equal = f"{within(found.objective, best)} of {len(C_GRID)}{left}"
        lines.append(page.row([f"scikit-learn's lbfgs, tol {tol}", spoken(seen[tol], seen["sweep"]), equal]))
    return lines + exact(x, y, minima), alone.median >= FLOORS["C"]


def within(found: Mapping[float, float], best: Mapping[float, float]) -> int:
    return sum(value <= best[c] * (1 + TOLERANCE) for c, value in found.items())


def heads(size: Size, name: str) -> tuple[str, float]:
    """The row of minibatches or of the full batch, and its ratio to the same code one by one."""
    x, y = features(size)
    whole = name == "full batch"
    training = HeadTraining(steps=size.full_steps if whole else size.steps, batch_size=None if whole else BATCH)
    every = [Head("x", float(lr)) for lr in np.logspace(-5, -1, HEADS)]
    batch = in_memory({"x": x})

    def train(some: list[Head]) -> float:
        return spent(lambda: train_heads(batch, y, CLASSES, some, training, seed=0))

    plain_torch(
        Columns(size.width), x[:BATCH], y[:BATCH], HeadTraining(steps=2)
    )  # what torch loads at its first optimizer is not counted
    seen = rounds(
        {
            "together": lambda: train(every),
            "alone": lambda: train(every[-1:]),
            "linear": lambda: spent(lambda: plain_torch(nn.Linear(size.width, CLASSES), x, y, training)),
            "columns": lambda: spent(lambda: plain_torch(Columns(size.width), x, y, training)),
        },
        HEAD_ROUNDS,
    )
    found = [ratio(seen[way], seen["together"], HEADS) for way in ("alone", "linear", "columns")]
    return page.row([name, *map(page.spoken, found), f"{FLOORS[name]:g}"]), found[0].median


def options(arguments: list[str]) -> argparse.Namespace:
    """Exits with 2 and one sentence if the options cannot be met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the tables there as well")
    parser.add_argument("--full", action="store_true", help="50,000 images")
    parser.add_argument("--only", choices=["C", "heads"], help="one of the two parts")
    parser.add_argument("--trials", type=int, help="interleaved rounds of logistic regression")
    parser.add_argument("--gate", action="store_true", help="exit with 1 below a floor")
    parser.add_argument("--toy", action="store_true", help="tiny sizes: tells only whether everything runs")
    asked = parser.parse_args(arguments)
    page.check_options(parser, asked)
    return asked


def main(arguments: list[str]) -> int:
    asked = options(arguments)
    size = TOY if asked.toy else FULL if asked.full else SMALL
    size = size._replace(rounds=asked.trials or size.rounds)
    torch.set_num_threads(1)
    before, held = os.getloadavg()[0], True
    lines = [
        "# Solvers of linear classifiers",
        "",
        f"Command: `python benchmarks/solvers.py {' '.join(page.shown(word) for word in arguments)}`, "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}. {size.n:,} images of {size.width} features, {CLASSES} classes, one thread, CPU time, "
        "ways interleaved in another order each round. Ratios are medians of the rounds' own, with a 95 % bootstrap interval of "
        f"{FEWEST_ROUNDS} rounds or more.",
        *(["", "Toy sizes: the numbers say nothing."] if asked.toy else []),
        "",
        f"{page.machine()} scikit-learn {sklearn.__version__}.",
    ]
    if asked.only != "heads":
        found, holds = logistic_regression(size)
        lines += ["", f"## Logistic regression, {len(C_GRID)} values of C from 1e-6 to 1e5", "", *found]
        held = held and holds
    if asked.only != "C":
        lines += ["", f"## {HEADS} linear heads by SGD with momentum, {HEADS} times one alone over all together", ""]
        lines += [LIMIT, ""]
        each = {name: heads(size, name) for name in ("minibatch", "full batch")}
        lines += [aimed({name: reached for name, (_, reached) in each.items()}), ""]
        lines += ["| batch | the same code | torch's nn.Linear | torch's x @ W | floor |", "|---|---|---|---|---|"]
        lines += [row for row, _ in each.values()]
        held = held and all(reached >= FLOORS[name] for name, (_, reached) in each.items())
    lines += ["", f"Load average {before:.1f} before, {os.getloadavg()[0]:.1f} after."]
    print("\n".join(lines))
    if asked.markdown:
        asked.markdown.write_text("\n".join(lines) + "\n")
    return 1 if asked.gate and not held else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
