"""How accuracy grows with the length of pretraining, and where it crosses raw pixels and HOG: runs what is missing of a pipeline.

Command: python benchmarks/budget.py configs/budget_NAME.yaml [key=value ...]   (seeds=1 by default). Writes benchmarks/budget_NAME.md and
.png. The pipeline's rows are "METHOD, N epochs", each by the protocol of the method's family (benchmarks/methods.py).
"""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import page
import yaml
from demo import made, run_to_its_end, spread

from rootstock.launch.report.levels import Levels

HERE = Path(__file__).parent


class Curve(NamedTuple):
    """A method's rows by their number of epochs, ascending."""

    method: str
    rows: dict[int, Mapping[str, Any]]


def curves(table: Mapping[str, Any]) -> tuple[list[Curve], dict[str, Mapping[str, Any]]]:
    """The methods' curves, and the rows of handcrafted features by label."""
    found, fixed = dict[str, dict[int, Mapping[str, Any]]](), dict[str, Mapping[str, Any]]()
    for row in table["rows"]:
        named = re.fullmatch(r"(.+), (\d+) epochs", row["label"])
        if named:
            found.setdefault(named[1], {})[int(named[2])] = row
        else:
            fixed[row["label"]] = row
    return [Curve(method, dict(sorted(rows.items()))) for method, rows in found.items()], fixed


def level(row: Mapping[str, Any]) -> tuple[str, float]:
    """The better of the linear probe and kNN of handcrafted features, and its name."""
    every = {"linear": row["mean"], **{name: part["mean"] for name, part in row.get("beside", {}).items()}}
    name = max(every, key=lambda one: every[one])
    return name, float(every[name])


def crossing(curve: Curve, height: float) -> float | None:
    """Epochs at which the mean accuracy reaches a height, between two lengths by the logarithm of their epochs; None if it never does."""
    points = [(math.log(epochs), float(row["mean"])) for epochs, row in curve.rows.items()]
    if points[0][1] >= height:
        return math.exp(points[0][0])
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y0 < height <= y1:
            return math.exp(x0 + (x1 - x0) * (height - y0) / (y1 - y0))
    return None


def sentence(curve: Curve, fixed: Mapping[str, Mapping[str, Any]]) -> str:
    """Where a curve crosses each of the handcrafted features."""
    said = []
    for label, row in fixed.items():
        name, height = level(row)
        at = crossing(curve, height)
        first, last = next(iter(curve.rows)), max(curve.rows)
        best = max(float(one["mean"]) for one in curve.rows.values())
        shown = f"{label} ({name}, {100 * height:.1f})"
        if at is None:
            said.append(f"stays {100 * (height - best):.1f} points below {shown} up to {last} epochs")
        elif at <= first:
            said.append(f"is above {shown} from {first} epochs on")
        else:
            said.append(f"reaches {shown} at about {at:.0f} epochs")
    return f"{curve.method} {' and '.join(said)}."


def text(table: Mapping[str, Any], command: str, config: str, title: str) -> str:
    """The page as Markdown."""
    every, fixed = curves(table)
    lengths = sorted({epochs for curve in every for epochs in curve.rows})
    n = table["rows"][0]["n"]
    over = "mean and 95 % t-interval over seeds" if n > 1 else "no interval over seeds"
    lines = [
        f"# {title}",
        "",
        f"Command: `{command}`, which `python benchmarks/budget.py {config}` runs. n = {n} seed{'s' if n > 1 else ''}, none replaced; last "
        f'iterates; {over}, in per cent of test images. Each method by the protocol of its family. "At about" is on the line between two '
        "measured lengths, by the logarithm of their epochs; rates are those of shorter trainings. Protocol, data and networks are in "
        f"{config} and the configs that it names.",
        "",
        page.machine(),
        "",
        f"![Accuracy by epochs of pretraining]({Path(config).stem}.png)",
        "",
        f"| method | {' | '.join(f'{epochs} epochs' for epochs in lengths)} |",
        f"|---|{'---|' * len(lengths)}",
    ]
    lines += [page.row([curve.method, *(spread(curve.rows.get(epochs)) for epochs in lengths)]) for curve in every]
    lines += ["", "| handcrafted | better protocol | accuracy |", "|---|---|---|"]
    for label, row in fixed.items():
        name, _ = level(row)
        lines.append(page.row([label, name, spread(row if name == "linear" else row["beside"][name])]))
    return "\n".join([*lines, "", *(sentence(curve, fixed) for curve in every)]) + "\n"


def levels(table: Mapping[str, Any], folder: Path) -> list[tuple[str, float]]:
    """(name, fraction) of what costs no learning on the test images: chance, and always the most frequent class."""
    row = table["rows"][0]
    result = json.loads(min(folder.glob(f"seed-*/{row['stage']}/result.json")).read_text())
    confusion = result["details"][row["metric"].rpartition("/")[0]]["confusion"]
    sizes = [sum(counts) for counts in confusion]
    return Levels(1 / len(sizes), max(sizes) / sum(sizes)).lines()


def draw(table: Mapping[str, Any], free: Sequence[tuple[str, float]], title: str, to: Path) -> None:
    """The curves with their intervals, and lines for handcrafted features and for `free`, what `levels` gives."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    every, fixed = curves(table)
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for curve in every:
        x, rows = list(curve.rows), list(curve.rows.values())
        axes.plot(x, [100 * row["mean"] for row in rows], marker="o", label=curve.method)
        if all(row.get("low") is not None for row in rows):
            axes.fill_between(x, [100 * row["low"] for row in rows], [100 * row["high"] for row in rows], alpha=0.15)
    for (label, row), style in zip(fixed.items(), ("--", ":", "-."), strict=False):
        name, height = level(row)
        axes.axhline(100 * height, color="0.4", linestyle=style, label=f"{label} ({name})")
    for (name, height), style in zip(free, ("--", ":"), strict=False):
        axes.axhline(100 * height, color="0.7", linestyle=style, linewidth=1, label=f"{name}, {100 * height:.1f} %")
    axes.set(xscale="log", xlabel="epochs of pretraining", ylabel="accuracy on test images, %", title=title)
    lengths: Sequence[int] = sorted({epochs for curve in every for epochs in curve.rows})
    axes.set_xticks(lengths, [str(epochs) for epochs in lengths])
    axes.minorticks_off()
    axes.legend(fontsize="small")
    figure.savefig(to, dpi=120)
    plt.close(figure)


def main(words: list[str]) -> int:
    if not words or not words[0].endswith(".yaml"):
        sys.exit("usage: python benchmarks/budget.py configs/budget_NAME.yaml [key=value ...]")
    config = words.pop(0)
    pipeline = yaml.safe_load((HERE.parent / config).read_text())
    folder, command = run_to_its_end(["run", config], pipeline["run"]["dir"], 1, words)
    table, _ = made(folder)
    title, to = pipeline["report"]["title"], HERE / f"{Path(config).stem}.md"
    draw(table, levels(table, folder), title, to.with_suffix(".png"))
    to.write_text(text(table, " ".join(map(page.shown, command)), config, title))
    every, fixed = curves(table)
    print("\n".join(sentence(curve, fixed) for curve in every))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
