"""Where solvers of logistic regression end: the objective, whether scikit-learn converged, and how far above the minimum."""

from __future__ import annotations

import warnings
from typing import Any

import page
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from rootstock.core.evaluate.logreg import C_GRID
from rootstock.core.evaluate.newton import Minima
from rootstock.core.evaluate.softmax_model import rotated

# Places in the grid where the minimum itself is sought, and steps of newton-cg.
EXACT, MOST_STEPS = (12, 28, 36, 44), 1000


def objective(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, c: float) -> float:
    """The plain formula in float64: sum of cross-entropies + |W|^2 / (2 C), precise also where losses are tiny."""
    logits = x.double() @ weight.double().T + bias.double()
    others = (logits - logits.gather(1, y[:, None])).scatter(1, y[:, None], -torch.inf)
    return float(torch.nn.functional.softplus(others.logsumexp(1)).sum() + weight.double().square().sum() / (2 * c))


def converged(model: LogisticRegression, x: Any, y: Any) -> bool:
    """Fit, and whether the model says that it has converged."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.fit(x, y)
    return not any(issubclass(one.category, ConvergenceWarning) for one in told)


def exact(x: Tensor, y: Tensor, minima: Minima) -> list[str]:
    """How far our ends lie above the minimum: scikit-learn's newton-cg goes on from them in float64, and once from zeros."""
    numbers, labels, basis = x.double().numpy(), y.numpy(), rotated(x.double()).basis
    rows: dict[str, list[str]] = {"C": [], "ours": [], "newton-cg from zeros": [], "its steps from our end": []}
    for i in EXACT:
        weight, bias, c = (minima.weight[i] @ basis.T).cpu(), minima.bias[i].cpu(), C_GRID[i]
        zeros = LogisticRegression(solver="newton-cg", C=c, tol=1e-9, max_iter=MOST_STEPS)
        further = LogisticRegression(solver="newton-cg", C=c, tol=1e-12, max_iter=MOST_STEPS, warm_start=True)
        further.coef_, further.intercept_ = weight.numpy().copy(), bias.numpy().copy()
        told = "" if converged(zeros, numbers, labels) else ", not converged"
        converged(further, numbers, labels)
        ends = [
            (weight, bias),
            *((torch.from_numpy(m.coef_), torch.from_numpy(m.intercept_)) for m in (zeros, further)),
        ]
        values = [objective(x, y, *end, c) for end in ends]
        above = [value / min(values) - 1 for value in values]
        cells = (f"{c:.0e}", f"{above[0]:.1e}", f"{above[1]:.1e}{told}", str(int(further.n_iter_.max())))
        for row, cell in zip(rows.values(), cells, strict=True):
            row.append(cell)
    head, *body = ([name, *cells] for name, cells in rows.items())
    return [
        "",
        "Objective above the lowest that is known, as a part of it. The lowest is where scikit-learn's newton-cg (float64, tol 1e-12) gets",
        f"from our end, if it gets lower. Beside it, newton-cg from zeros (tol 1e-9, at most {MOST_STEPS} steps).",
        "",
        page.row(head),
        page.row(["---"] * len(head)),
        *map(page.row, body),
    ]
