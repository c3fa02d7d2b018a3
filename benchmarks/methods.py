"""Compares pretraining methods with random networks over several seeds: runs what is missing of a pipeline, and writes a table.

Command: python benchmarks/methods.py [configs/NAME.yaml] [key=value ...]   (configs/methods.yaml and seeds=3 by default; `run.dir=` as
for `rootstock run`). Writes benchmarks/NAME.md.

Each family has one protocol, named here before any run, by which its methods are judged: linear for joint embeddings, attentive for methods
that predict hidden patches, whose features are spread over the patches. A method has *learned* if it gains over a random network of the
same kind by that protocol, with the whole 95 % interval above 0, and if fine-tuning it is not worse than fine-tuning the random network by
more than LARGEST_LOSS, with the whole interval (where the pipeline fine-tunes). No other column counts, so none is chosen after the fact.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import page
import yaml
from demo import made, run_to_its_end, spread

from rootstock.launch.report.results import compare

HERE = Path(__file__).parent
PROTOCOLS = {
    "kNN": "kNN",
    "linear": "linear",
    "attentive": "attentive",
    "fine-tuned": "fine-tuned at 10 % of labels",
    "other parts": "kNN, other parts of the photographs",
}
# By the method's name: joint embeddings, and methods that predict hidden patches, or what a teacher makes of them. The test of this file
# holds that every method is in one of them.
FAMILIES = {
    "linear": ("simclr", "byol", "mocov3", "simsiam", "barlow", "vicreg", "swav", "dino", "lejepa"),
    "attentive": ("mae", "simmim", "ijepa", "ibot", "dinov2"),
}
# The bound of non-inferiority when fine-tuned, in parts of 1.
LARGEST_LOSS = 0.02
BASELINES = {"pixels": "raw pixels", "hog": "HOG"}  # by the name of their stage
PROBE, TUNED = "_probe", "_finetune"

Numbers = dict[str, dict[str, Any]]  # by protocol: label, seeds, values, mean, low, high


class Row(NamedTuple):
    """network: the backbone's name. numbers: by protocol. The rest is of pretraining: the method's name, images seen in a run, the
    seconds of the quickest one, and how often their logs warn of anything; None where nothing was pretrained."""

    label: str
    stage: str
    network: str
    numbers: Numbers
    method: str | None = None
    images: int | None = None
    seconds: float | None = None
    warnings: int | None = None


def rows(table: Mapping[str, Any], folder: Path) -> list[Row]:
    """Read from the pipeline's result.json and the folders of its stages."""
    found = []
    tuned = {row["stage"].removesuffix(TUNED): row for row in table["rows"] if row["stage"].endswith(TUNED)}
    for row in table["rows"]:
        if row["stage"].endswith(TUNED):
            continue
        stage = row["stage"].removesuffix(PROBE)
        measured = {"kNN": row, **{name.lower(): part for name, part in row.get("beside", {}).items()}}
        measured |= {"fine-tuned": tuned[stage]} if stage in tuned else {}
        numbers = {name: {"label": row["label"], "seeds": row["seeds"], **part} for name, part in measured.items()}
        trained = [folder / f"seed-{seed}" / stage for seed in row["seeds"]]
        if stage == row["stage"] or not trained[0].is_dir():  # handcrafted features, or a random network
            measuring = folder / f"seed-{row['seeds'][0]}" / row["stage"]
            found.append(Row(row["label"], stage, name_of_network(measuring), numbers))
            continue
        results = [json.loads((run / "result.json").read_text()) for run in trained]
        config = yaml.safe_load((trained[0] / "config.yaml").read_text())
        logged = [json.loads(line) for run in trained for line in (run / "metrics.jsonl").read_text().splitlines()]
        found.append(
            Row(
                row["label"], stage, name_of_network(trained[0]), numbers, str(config["method"]["name"]),
                images=max(result["images_seen"] for result in results),
                seconds=min(result["seconds"] for result in results),
                warnings=sum("warning" in line for line in logged),
            )
        )  # fmt: skip
    return found


def name_of_network(run: Path) -> str:
    return str(yaml.safe_load((run / "config.yaml").read_text())["backbone"].get("name"))


def gains(row: Row, every: Sequence[Row]) -> Numbers:
    """The differences from the random network of the same kind, paired by seed. Exits if there is no such row, or several."""
    starts = [other for other in every if other.network == row.network and other.method is None]
    if len(starts) != 1:
        sys.exit(
            f"{row.label} has {len(starts)} rows of a random {row.network} to be compared with; the pipeline needs one"
        )
    return {
        name: difference(part, starts[0].numbers[name], row.label)
        for name, part in row.numbers.items()
        if name in starts[0].numbers
    }


def difference(
    part: Mapping[str, Any], other: Mapping[str, Any], label: str, *, across: bool = False
) -> dict[str, Any]:
    """part - other, paired by seed. across: of two protocols. Exits if the two are not the same measurement, on the same seeds."""
    metrics = [one["metric"].split("/") for one in (part, other)]
    same = [[name for place, name in enumerate(one) if not across or place != 1] for one in metrics]
    if same[0] != same[1] or sorted(part["seeds"]) != sorted(other["seeds"]):
        sys.exit(
            f"{label}: {part['metric']} of seeds {part['seeds']} cannot be compared with {other['metric']} of seeds {other['seeds']}"
        )
    return compare(part, other, label)


class Verdict(NamedTuple):
    """protocol: of the method's family. gain, tuned: differences from the random network. above: differences from BASELINES' best protocol.

    learned: None for a single seed, which gives no interval.
    """

    protocol: str
    gain: dict[str, Any]
    tuned: dict[str, Any] | None
    above: dict[str, dict[str, Any]]
    learned: bool | None


def judge(row: Row, every: Sequence[Row]) -> Verdict:
    """Whether a method has learned (see this file's docstring). Handcrafted features count by the better of their protocols.

    Exits if a number is missing that the rule asks for: without it no method may pass.
    """
    protocol = next((name for name, methods in FAMILIES.items() if row.method in methods), None)
    if protocol is None:
        sys.exit(f"{row.label}: name the family of {row.method} in FAMILIES, before the run")
    gained = gains(row, every)
    needed = [protocol, *(["fine-tuned"] if any("fine-tuned" in other.numbers for other in every) else [])]
    if missing := [name for name in needed if name not in gained]:
        sys.exit(
            f"{row.label} or its random network has no number for {' and '.join(missing)}; add it to the pipeline's rows"
        )
    if (metric := row.numbers[protocol]["metric"]).split("/")[1:] != [protocol, "accuracy"]:
        sys.exit(f"{row.label}: the column {protocol} shows {metric}")
    gain, tuned = gained[protocol], gained.get("fine-tuned")
    above = dict[str, dict[str, Any]]()
    for other in every:
        if other.stage in BASELINES:
            best = max((other.numbers[name] for name in ("kNN", "linear") if name in other.numbers), key=mean_of)
            above[other.stage] = difference(row.numbers[protocol], best, row.label, across=True)
    learned = None
    if gain["low"] is not None:
        learned = gain["low"] > 0.0 and (tuned is None or tuned["low"] > -LARGEST_LOSS)
    return Verdict(protocol, gain, tuned, above, learned)


def mean_of(numbers: Mapping[str, Any]) -> float:
    return float(numbers["mean"])


def text(every: Sequence[Row], run: Mapping[str, Any], command: str, config: str, title: str) -> tuple[str, str]:
    """The tables as Markdown, with command, protocol, machine and versions; and one line that says how many methods have learned.

    config, title: file and title of the pipeline.
    """
    n = every[0].numbers["kNN"]["n"]
    shown = {name: words for name, words in PROTOCOLS.items() if any(name in row.numbers for row in every)}
    of_project = f"rootstock {run['versions']['rootstock']}, faiss-cpu {run['versions']['faiss-cpu']}"
    lines = [
        f"# {title}",
        "",
        f"Command: `{command}`, which `python benchmarks/methods.py {config}` runs. n = {n} seeds, none replaced; last iterates; mean "
        "and 95 % t-interval over seeds, in per cent of test images. Differences are paired over seeds. Each interval stands by itself, "
        f"without a correction for their number. Protocol, data and networks are in {config} and the configs that it names.",
        "",
        "Images: source images seen in a run, each by all its views. Seconds: the quickest pretraining run of a row, with one thread on "
        "a shared machine. Warnings: of collapse or anything else, in the logs of all of a row's pretraining runs.",
        "",
        f"{page.machine()[:-1]}, {of_project}.",
        "",
        f"| method | network | images | {' | '.join(shown.values())} | seconds | warnings |",
        f"|---|---|---|{'---|' * len(shown)}---|---|",
    ]
    for row in every:
        cells = [spread(row.numbers.get(name)) for name in shown]
        images = "–" if row.images is None else f"{row.images:,}"
        ends = ["–", "–"] if row.seconds is None else [f"{row.seconds:.0f}", str(row.warnings)]
        lines.append(page.row([row.label, row.network, images, *cells, *ends]))
    verdicts = {row.label: (judge(row, every), row) for row in every if row.method is not None}
    lines += ["", *rule_of(verdicts), "", *table_of(verdicts), "", summary(verdicts)]
    return "\n".join(lines) + "\n", summary(verdicts)


Verdicts = Mapping[str, tuple[Verdict, Row]]


def rule_of(verdicts: Verdicts) -> list[str]:
    """What "learned" means, in words."""
    tuned = any(found.tuned for found, _ in verdicts.values())
    also = (
        f", and if fine-tuning it loses less than {100 * LARGEST_LOSS:g} points, with the whole interval"
        if tuned
        else ""
    )
    return [
        "Points above a random network of the same kind, above raw pixels and above HOG, each by the one protocol of the method's family, "
        "which was named before the runs: linear for joint embeddings, attentive for methods that predict hidden patches. Raw pixels and "
        "HOG count by the better of kNN and linear. A method has learned if it gains over the random network, with the whole interval "
        f"above 0{also}.",
    ]


def table_of(verdicts: Verdicts) -> list[str]:
    """A row for each method."""
    tuned = any(found.tuned for found, _ in verdicts.values())
    baselines = [stage for stage in BASELINES if all(stage in found.above for found, _ in verdicts.values())]
    heads = ["method", "protocol", "above random", *(["fine-tuned, above random"] if tuned else [])]
    heads += [f"above {BASELINES[stage]}" for stage in baselines] + ["learned"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for label, (found, _) in verdicts.items():
        cells = [label, found.protocol, spread(found.gain, signed=True)]
        cells += [spread(found.tuned, signed=True)] if tuned else []
        cells += [spread(found.above[stage], signed=True) for stage in baselines]
        lines.append(page.row([*cells, {None: "one seed", True: "yes", False: "no"}[found.learned]]))
    return lines


def summary(verdicts: Verdicts) -> str:
    """How many methods have learned, how many are above the handcrafted features beyond the spread, and whose logs warn."""
    judged = [found for found, _ in verdicts.values()]
    count = len(judged)
    if any(found.learned is None for found in judged):
        return f"One seed gives no interval: none of {count} methods is judged."
    said = f"{sum(found.learned is True for found in judged)} of {count} methods have learned"
    for stage, name in BASELINES.items():
        if all(stage in found.above for found in judged):
            said += f"; {sum(found.above[stage]['low'] > 0.0 for found in judged)} of {count} are above {name}"
    warned = [label for label, (_, row) in verdicts.items() if row.warnings]
    return f"{said}. " + (f"Warnings in the logs of {', '.join(warned)}." if warned else "No log warns.")


def main(words: list[str]) -> int:
    config = words.pop(0) if words and words[0].endswith(".yaml") else "configs/methods.yaml"
    pipeline = yaml.safe_load((HERE.parent / config).read_text())
    folder, command = run_to_its_end(["run", config], pipeline["run"]["dir"], 3, words)
    table, run = made(folder)
    shown = " ".join(map(page.shown, command))
    written, said = text(rows(table, folder), run, shown, config, pipeline["report"]["title"])
    to = HERE / f"{Path(config).stem}.md"
    to.write_text(written)
    print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
