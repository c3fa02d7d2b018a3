"""A table of adaptation methods over tasks: runs what is missing of a pipeline, and writes its table, also by task.

Command: python benchmarks/adaptation_table.py configs/NAME.yaml [key=value ...]   (seeds as in the file). Writes benchmarks/NAME.md.

A row is one stage, or the mean over several (`over`), one for each task. The first row over most tasks is the baseline, as source-only is.
Where tasks differ in their class priors (configs/pacs_dirichlet.yaml), the page also says at which distance of priors gains cross zero.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import page
import yaml
from demo import made, run_to_its_end
from numpy.typing import NDArray
from scipy.stats import spearmanr

from rootstock.core.evaluate.factorial import share_interval_of
from rootstock.core.evaluate.intervals import mean_interval
from rootstock.launch.report.claims import stages_shown
from rootstock.launch.report.markdown import markdown_table, pipeline_markdown

HERE = Path(__file__).parent
DRAWN_PRIORS = "dirichlet="  # in a config whose tasks are one pair of domains with several draws of class priors
Floats = NDArray[np.float64]
Results = Callable[[str], Sequence[Mapping[str, Any]]]
"""The results of a stage, one a seed."""


class Task(NamedTuple):
    """One task of a table. accuracies: by the label of the row, the mean over seeds, 0 to 1; estimated, true: distances of priors."""

    name: str
    accuracies: dict[str, float]
    estimated: float  # total variation by MLLS, from the baseline's runs, without a label of the target
    true: float  # of the test


def alike(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows over most tasks; others show single tasks, or what was trained before. rows: of result.json."""
    most = max(len(stages_shown(row)) for row in rows)
    return [row for row in rows if len(stages_shown(row)) == most]


def tasks(rows: Sequence[Mapping[str, Any]], results: Results) -> list[Task]:
    """The tasks of rows that all have the same ones in the same order."""
    found = []
    for number, stage in enumerate(stages_shown(rows[0])):
        base = results(stage)
        shift = [one["label_shift"] for one in base]
        true = [one["true"][rows[0]["metric"].partition("/")[0]]["total_variation"] for one in shift]
        means = {
            row["label"]: mean(one["metrics"][row["metric"]] for one in results(stages_shown(row)[number]))
            for row in rows
        }
        estimated = mean(one["mlls"]["total_variation"] for one in shift)
        found.append(Task(stage.partition("-")[0], means, estimated, mean(true)))
    return found


def mean(values: Any) -> float:
    return float(np.mean(list(values)))


def gains(found: Sequence[Task], label: str, baseline: str) -> list[float]:
    """A row's accuracy minus the baseline's, by task."""
    return [task.accuracies[label] - task.accuracies[baseline] for task in found]


def by_task(found: Sequence[Task], baseline: str) -> list[str]:
    """Two tables: accuracies by task beside the distances of priors, and how the gains go with these; [] of one task, the table's own."""
    if len(found) == 1:
        return []
    labels = list(found[0].accuracies)
    heads = ["task", "TV of priors, MLLS", "TV, true", *labels]
    cells = [
        [task.name, f"{task.estimated:.2f}", f"{task.true:.2f}", *(f"{100 * task.accuracies[k]:.1f}" for k in labels)]
        for task in found
    ]
    parts = ["## By task", markdown_table(heads, cells, right=range(1, len(heads)))]
    rows = []
    for label in labels:
        if label == baseline:
            continue
        gained = gains(found, label, baseline)
        lost = [task.name for task, gain in zip(found, gained, strict=True) if gain < 0]
        rank = rank_correlation([task.true for task in found], gained)
        rows.append([label, f"{100 * min(gained):+.1f}", f"{100 * max(gained):+.1f}", rank, ", ".join(lost) or "none"])
    heads = [f"minus {baseline}", "worst task", "best task", "Spearman with the true TV", "tasks with a loss"]
    return [*parts, "", markdown_table(heads, rows, right=(1, 2, 3))]


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> str:
    """Spearman's correlation, or "-" where one side has no ranks."""
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return "-"
    found: Any = spearmanr(a, b)
    return f"{found.statistic:+.2f}"


def crossing(distances: Floats, gains: Floats) -> str:
    """Where a gain crosses zero between the smallest and the largest distance of priors, [95 % interval]. Both [S, T]: seeds, tasks.

    Each seed has its least-squares line; the root is that of their mean, with Fieller's interval over seeds (`share_interval_of`).
    """
    slopes, levels = np.array([np.polyfit(d, g, 1) for d, g in zip(distances, gains, strict=True)]).T
    root, low, high = share_interval_of(list(-levels), list(slopes))
    least, most = float(distances.min()), float(distances.max())
    if root is None or not least <= root <= most:
        above = levels.mean() + slopes.mean() * (least + most) / 2 > 0
        return f"{'above' if above else 'below'} 0 all along"
    word = "rises through 0 at " if slopes.mean() > 0 else ""
    if low is None or high is None:
        return f"{word}{root:.2f}, no interval"
    ends = (
        f"{'under ' if low < least else ''}{max(low, least):.2f}, {'over ' if high > most else ''}{min(high, most):.2f}"
    )
    return f"{word}{root:.2f} [{ends}]"


def crossings(rows: Sequence[Mapping[str, Any]], results: Results) -> list[str]:
    """Where the gain of each row over the baseline, and over a row that is called control, crosses zero.

    For tasks that differ by drawn priors alone: between others a gain has more reasons to differ.
    """
    accuracy, distance = {}, {}
    for row in rows:
        each = [results(stage) for stage in stages_shown(row)]
        test = row["metric"].partition("/")[0]
        accuracy[row["label"]] = np.array([[one["metrics"][row["metric"]] for one in task] for task in each]).T
        truth = [[one["label_shift"]["true"][test]["total_variation"] for one in task] for task in each]
        distance[row["label"]] = np.array(truth).T
    base, *labels = accuracy
    against = [base, *(label for label in labels if label.partition(",")[0] == "control")][:2]
    if not labels:
        return []
    cells = [
        [label, *(crossing(distance[label], accuracy[label] - accuracy[b]) if label != b else "–" for b in against)]
        for label in labels
    ]
    heads = ["true TV of priors at which its gain falls to 0", *(f"over {label}" for label in against)]
    span = f"{distance[base].min():.2f} to {distance[base].max():.2f}"
    how = (
        f"On the least-squares line of a seed's gains over the distances of its tasks, {span}, the mean over seeds; "
        "95 % over seeds by Fieller's theorem, for these tasks. "
        '"No interval": the slope is not shown to differ from 0.'
    )
    return ["## Where gains cross zero", how, markdown_table(heads, cells)]


def validators(rows: Sequence[Mapping[str, Any]], results: Results) -> list[str]:
    """What each validator's pick costs against the best state of its training, over all runs; [] where runs kept one state."""
    costs: dict[str, dict[int, list[float]]] = {}
    for stage in dict.fromkeys(stage for row in rows for stage in stages_shown(row)):
        for seed, one in enumerate(results(stage)):
            regret = one.get("validators", {}).get("regret", {})
            for name, cost in next(iter(regret.values()), {"by": {}})["by"].items():
                costs.setdefault(name, {}).setdefault(seed, []).append(cost["regret"])
    if not costs:
        return []
    cells = []
    for name, seeds in costs.items():
        each = [mean(values) for values in seeds.values()]
        found, low, high = mean_interval(each, span=(0.0, 1.0)) if len(each) > 1 else (each[0], None, None)
        bounds = "" if low is None or high is None else f"[{100 * low:.2f}, {100 * high:.2f}]"
        cells.append((found, [name, f"{100 * found:.2f}", bounds, str(sum(map(len, seeds.values())))]))
    table = markdown_table(
        ["validator", "regret in points", "95 % over seeds", "runs"], [cell for _, cell in sorted(cells)], right=(1, 3)
    )
    return ["## Selection without target labels", table]


def splits(rows: Sequence[Mapping[str, Any]], results: Results) -> str:
    """The hashes of the tests' splits."""
    found = {}
    for stage in stages_shown(rows[0]):
        for name, digest in results(stage)[0]["data"]["split"].items():
            if name.startswith("test"):
                found[digest[:12]] = None
    return f"Tests by the hash of their split: {', '.join(found)}."


def text(name: str, config: str, table: Mapping[str, Any], results: Results, command: str) -> str:
    """The page as Markdown."""
    compared = alike(table["rows"])
    parts = [f"# {yaml.safe_load(Path(config).read_text())['report'].get('title', name)}", page.machine()]
    parts += [pipeline_markdown(table, command).strip(), splits(compared, results)]
    parts += [part for part in by_task(tasks(compared, results), compared[0]["label"]) if part]
    if DRAWN_PRIORS in Path(config).read_text():
        parts += crossings(compared, results)
    parts += validators(table["rows"], results)
    return "\n\n".join(parts) + "\n"


def main(words: list[str]) -> int:
    if not words:
        sys.exit(__doc__)
    config, *overrides = words
    content = yaml.safe_load(Path(config).read_text())
    name, seeds = Path(config).stem, content["seeds"]
    folder, command = run_to_its_end(["run", config], content["run"]["dir"], seeds, overrides)
    table = made(folder)[0]

    def results(stage: str) -> list[Mapping[str, Any]]:
        return [
            json.loads((folder / f"seed-{s}" / stage / "result.json").read_text()) for s in table["rows"][0]["seeds"]
        ]

    said = " ".join(map(page.shown, command))
    (HERE / f"{name}.md").write_text(text(name, config, table, results, said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
