"""Pretraining and few labels against training from scratch at equal total compute: runs what is missing, and writes a table.

Command: python benchmarks/few_labels.py NAME [--tune]   (NAME: cifar10 or imagenette). Writes benchmarks/few_labels_NAME.md.

Compute is counted in passes: one forward and backward step of the network on one picture; SimCLR makes two for each image. For each part
of the labels, the pretraining, the tuning and the five trainings that are compared count, on both sides; the page has the ratio. Where
from scratch has fewer passes, the command says so after the page, and fails unless that is an added row. With --tune only the pretraining
and the sweeps run. What they chose must then stand in the pipeline's config, or nothing is compared.

A study may have more rows of SimCLR that were added after the first results: tuned over more choices, or pretrained longer. The page shows
them in a table of their own.

The label-efficiency factor is the number of labels with which training from scratch reaches the accuracy of pretraining with few labels,
over that number: on the line through from scratch's accuracies, by the logarithm of the labels.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import page
import yaml
from demo import made, run_to_its_end, spread
from few_labels_studies import SIDES, STUDIES, Study, part_of, stage_name

from rootstock.core.agree import flattened

HERE = Path(__file__).parent
VIEWS = 2  # of an image in SimCLR


def unlike(stage: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[str]:
    """What a stage of the pipeline sets otherwise than the sweep chose; empty if all is alike. Keys are dotted."""
    given = flattened(stage)
    return [
        f"{key} is {given.get(key)}, and the sweep chose {value}"
        for key, value in chosen.items()
        if given.get(key) != value
    ]


def passes(results: Sequence[Mapping[str, Any]]) -> int:
    """Forward and backward passes of finished runs, from their result.json."""
    return sum(one["images_seen"] * (VIEWS if one["task"] == "pretrain" else 1) for one in results)


def reached(points: Sequence[tuple[float, float]], height: float) -> tuple[str, float]:
    """Labels at which a curve of (labels, accuracy) reaches a height: ("=", labels), or the bound (">" or "<", labels) beyond its ends."""
    labels = sorted(points)
    if labels[0][1] >= height:
        return "<", labels[0][0]
    for (x0, y0), (x1, y1) in itertools.pairwise(labels):
        if y0 < height <= y1:
            return "=", math.exp(math.log(x0) + (math.log(x1) - math.log(x0)) * (height - y0) / (y1 - y0))
    return ">", labels[-1][0]


def factor(points: Sequence[tuple[float, float]], labels: float, height: float) -> str:
    """The label-efficiency factor in words."""
    sign, needed = reached(points, height)
    shown = f"{needed / labels:.2g}"
    return {"=": shown, ">": f"more than {shown}", "<": f"less than {shown}"}[sign]


class Compute(NamedTuple):
    """Passes of one side on one part of the labels; the pretraining counts in each part, as it would be needed for each alone."""

    pretraining: int
    tuning: int
    compared: int

    @property
    def total(self) -> int:
        return sum(self)


def text(
    study: Study,
    table: Mapping[str, Any],
    curve: Mapping[str, Any],
    compute: Mapping[str, Compute],
    sizes: Mapping[str, int],
    commands: Sequence[str],
) -> str:
    """The page as Markdown. table, curve: result.json of the two pipelines. sizes: labels by part in per cent, "100" among them."""
    parts = list(dict.fromkeys(part for _, part in study.sweeps))
    rows = {row["stage"]: row for row in table["rows"]}
    more = {row["stage"]: row for row in curve["rows"]}
    n = table["rows"][0]["n"]
    lines = [
        f"# {study.title}",
        "",
        f"Commands: {', '.join(f'`{one}`' for one in commands)}. n = {n} subsets of the labels, the same for both sides, none "
        "replaced; one pretraining (seed 0). Last iterates, all test images; mean and 95 % t-interval over subsets, in per cent; "
        "differences are paired by subset. Both sides are tuned on a sixth subset and scored there on training images that are in none "
        "of its trainings.",
        "",
        page.machine(),
        "",
        "| labels | SimCLR, fine-tuned | from scratch | difference | label-efficiency factor |",
        "|---|---|---|---|---|",
    ]
    points = [(float(sizes[part]), float(rows[stage_name("scratch", part)]["mean"])) for part in parts]
    points += [(float(sizes[part_of(stage)]), float(row["mean"])) for stage, row in more.items()]
    for part, difference in zip(parts, table["comparisons"][: len(parts)], strict=True):
        ours, scratch = (rows[stage_name(side, part)] for side in SIDES)
        efficient = factor(points, sizes[part], ours["mean"])
        shown = [spread(ours), spread(scratch), spread(difference, signed=True)]
        lines.append(page.row([_labels(part, sizes), *shown, efficient]))
    if study.added:
        lines += _added_lines(study, rows, table["comparisons"][len(parts) :], points, sizes)
    lines += ["", "From scratch on more labels, with the keys and as many updates as on the largest part above:"]
    lines += ["", "| labels | from scratch, one subset |", "|---|---|"]
    lines += [page.row([_labels(part_of(stage), sizes), spread(row)]) for stage, row in more.items()]
    lines += [
        "",
        "| passes, in millions | pretraining | tuning | compared trainings | in all | from scratch's, over these |",
        "|---|---|---|---|---|---|",
    ]
    for stage, spent in compute.items():
        label, pretraining, _ = study.stages[stage]
        counts = [f"{count / 1e6:.2f}" for count in (*spent, spent.total)]
        ratio = f"{over_these(compute, stage):.2f}" if pretraining else ""
        lines.append(page.row([f"{part_of(stage)} %, {label}", *counts, ratio]))
    return "\n".join(lines) + "\n"


def over_these(compute: Mapping[str, Compute], stage: str) -> float:
    """From scratch's passes over those of another stage on the same part of the labels."""
    return compute[stage_name("scratch", part_of(stage))].total / compute[stage].total


def _labels(part: str, sizes: Mapping[str, int]) -> str:
    """A part of the labels and its number, such as 10 % (5,000)."""
    return f"{part} % ({sizes[part]:,})"


def _added_lines(
    study: Study,
    rows: Mapping[str, Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    points: Sequence[tuple[float, float]],
    sizes: Mapping[str, int],
) -> list[str]:
    """The table of the rows that came later. differences: to from scratch on the same labels, in the rows' order. points: its curve."""
    lines = [
        "",
        "Added after these results, on the same subsets. Tuned again: the sweep has every choice that from scratch has.",
        "",
        "| labels | SimCLR | accuracy | minus from scratch | label-efficiency factor |",
        "|---|---|---|---|---|",
    ]
    for (stage, one), difference in zip(study.added.items(), differences, strict=True):
        part, ours = part_of(stage), rows[stage]
        efficient = factor(points, sizes[part], ours["mean"])
        shown = [one.label, spread(ours), spread(difference, signed=True)]
        lines.append(page.row([_labels(part, sizes), *shown, efficient]))
    return lines


def results(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """The result.json of runs below a folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{pattern}/result.json"))]


def spent(study: Study, folders: Mapping[str, Path]) -> dict[str, Compute]:
    """The passes of each compared stage; a failed trial's don't count. folders: of pretrainings, sweeps and the pipeline, by config."""
    compute = {}
    for stage, (_, pretraining, sweep) in study.stages.items():
        before = [json.loads((folders[pretraining] / "result.json").read_text())] if pretraining else []
        compared = results(folders[study.pipeline], f"seed-*/{stage}")
        compute[stage] = Compute(passes(before), passes(results(folders[sweep], "trial-*")), passes(compared))
    return compute


def not_as_chosen(study: Study, folders: Mapping[str, Path]) -> list[str]:
    """Where the pipeline's config differs from what the sweeps chose."""
    stages = yaml.safe_load((HERE.parent / study.pipeline).read_text())["stages"]
    wrong = []
    for name, (_, _, sweep) in study.stages.items():
        best = json.loads((folders[sweep] / "result.json").read_text())["best"]["params"]
        wrong += [f"{study.pipeline}, stage {name}: {why}" for why in unlike(stages[name]["set"], best)]
    return wrong


def sizes_of(*folders: Path) -> dict[str, int]:
    """Training images by the part of the labels, from the runs of seed 0."""
    runs = [path for folder in folders for path in folder.glob("seed-0/*/result.json")]
    return {part_of(path.parent.name): json.loads(path.read_text())["data"]["n"]["train"] for path in runs}


def _folder(config: str) -> Path:
    return Path(yaml.safe_load((HERE.parent / config).read_text())["run"]["dir"])


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=STUDIES)
    parser.add_argument("--tune", action="store_true", help="only the pretraining and the sweeps")
    asked = parser.parse_args(words)
    study = STUDIES[asked.name]
    pretrainings = dict.fromkeys(one.pretraining for one in study.stages.values() if one.pretraining)
    sweeps = dict.fromkeys(one.sweep for one in study.stages.values())
    for job in [*(["pretrain", one] for one in pretrainings), *(["sweep", one] for one in sweeps)]:
        subprocess.run([sys.executable, "-m", "rootstock", *job], check=True)
    if asked.tune:
        return 0
    folders = {config: _folder(config) for config in (*pretrainings, *sweeps, study.pipeline, study.curve)}
    if wrong := not_as_chosen(study, folders):
        sys.exit("\n".join(wrong))
    folder, command = run_to_its_end(["run", study.pipeline], str(folders[study.pipeline]), 5, [])
    beside, more = run_to_its_end(["run", study.curve], str(folders[study.curve]), 1, [])
    table, curve = made(folder)[0], made(beside)[0]
    compute = spent(study, folders)
    said = [" ".join(map(page.shown, words)) for words in (command, more)]
    commands = [f"python benchmarks/few_labels.py {asked.name}", *said]
    (HERE / f"few_labels_{asked.name}.md").write_text(
        text(study, table, curve, compute, sizes_of(folder, beside), commands)
    )
    short = [stage for stage in compute if over_these(compute, stage) < 1]
    for stage in short:
        print(
            f"{stage}: from scratch has {over_these(compute, stage):.2f} times its passes; give its sweeps more trials"
        )
    return int(any(stage not in study.added for stage in short))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
