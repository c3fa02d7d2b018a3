"""Does Grad-CAM point at the defects of magnetic tiles? Makes benchmarks/magnetic_tile.md of finished runs.

    python benchmarks/magnetic_tile.py prepare                  unpacks data/magnetic_tile.tar, and writes data/magnetic_tile/tiles.csv
    python benchmarks/magnetic_tile.py page RUN RUN ...         explains the test pictures of each run, and writes the page

The runs are those of configs/finetune/magnetic_tile.yaml, one a seed.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from page import machine

from rootstock.core.documents import read_mapping
from rootstock.core.evaluate.intervals import mean_interval
from rootstock.core.evaluate.statistics import Interval, bootstrap_draws, of_sums, seeds_and_images_interval

ARCHIVE, FOLDER = Path("data/magnetic_tile.tar"), Path("data/magnetic_tile")
TABLE, PAGE = FOLDER / "tiles.csv", Path(__file__).with_name("magnetic_tile.md")
NAME = re.compile(r"exp(\d+)_num_(\d+)")
# Pictures of one tile under the next light have a number a little higher; where it jumps by more than this, another tile begins.
JUMP = 400
METHODS = ("grad-cam", "saliency", "smoothgrad")


def prepare() -> None:
    """Unpack the pictures, and write which of them show one tile: a csv of path, label and tile."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(FOLDER, filter="data")
    pictures = sorted((FOLDER / "images").glob("*/*.jpg"), key=_numbers)
    tile, rows, before = 0, list[tuple[str, str, int]](), (0, 0)
    for picture in pictures:
        number, light = _numbers(picture)
        tile += light <= before[1] or number - before[0] > JUMP
        rows.append((f"{picture.parent.name}/{picture.name}", picture.parent.name, tile))
        before = (number, light)
    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "label", "tile"), *rows])
    print(f"{TABLE}: {len(rows)} pictures of {tile} tiles")


def _numbers(picture: Path) -> tuple[int, int]:
    """(number, light) of a picture's name."""
    found = NAME.fullmatch(picture.stem)
    if found is None:
        raise SystemExit(f"{picture}: expected a name such as exp1_num_108719.jpg")
    return int(found[2]), int(found[1])


def explained(run: Path) -> dict[str, Any]:
    """result.json of `rootstock explain` on the run's test pictures."""
    config, out = read_mapping(run / "config.yaml"), run.with_name(f"{run.name}-explained")
    uri = config["data"]["test"].replace("{seed}", str(config["seed"]))
    words = ["explain", str(run), uri, "--out", str(out), "--class", "label", "--masks", str(FOLDER / "masks")]
    words += [word for name in METHODS for word in ("--method", name)]
    subprocess.run([sys.executable, "-m", "rootstock", *words], check=True)
    return json.loads((out / "result.json").read_text())


def differences(results: Sequence[dict[str, Any]], method: str, beside: str) -> Interval:
    """Hits minus `beside` (chance or centre): the mean over seeds with the interval over seeds and tiles.

    A tile that several seeds test is drawn with all its pictures in all of them.
    """
    tiles = {row["path"]: int(row["tile"]) for row in csv.DictReader(TABLE.open())}
    known = sorted(set(tiles.values()))
    place, values, sums = {tile: k for k, tile in enumerate(known)}, list[float](), list[np.ndarray]()
    for result in results:
        own = np.zeros((len(known), 2))
        for picture in result["pictures"]:
            if method in picture.get("pointing", {}):
                own[place[tiles[picture["name"]]]] += (picture["pointing"][method]["hit"] - float(picture[beside]), 1)
        sums.append(own)
        values.append(own[:, 0].sum() / own[:, 1].sum())
    seeds = len(results)

    def mean(drawn: np.ndarray) -> dict[str, np.ndarray]:
        parts = drawn.reshape(len(drawn), seeds, 2)
        with np.errstate(invalid="ignore"):
            return {"mean": (parts[..., 0] / parts[..., 1]).mean(1)}

    drawn = bootstrap_draws(of_sums(np.concatenate(sums, 1), mean), len(known), seed=0)["mean"]
    return seeds_and_images_interval(values, drawn, seed=0, span=(-1.0, 1.0))


def page(runs: Sequence[Path]) -> None:
    """Explain the test pictures of each run, and write the page."""
    results = [explained(run) for run in runs]
    tests = [json.loads((run / "result.json").read_text())["metrics"]["test/classifier/accuracy"] for run in runs]
    rows, verdicts = list[str](), list[str]()
    for method in METHODS:
        told = [result["methods"][method] for result in results]
        cells = [_over_seeds([one["pointing"][key]["mean"] for one in told]) for key in ("hits", "chance", "centre")]
        gains = [differences(results, method, beside) for beside in ("chance", "centre")]
        rows.append(f"| {method} | {' | '.join(cells)} | {' | '.join(map(_interval, gains))} |")
        if method == METHODS[0]:
            better = gains[0].low is not None and gains[0].low > 0
            verb = "points at the defects" if better else "is not shown to point at the defects"
            verdicts.append(f"**{method} {verb} better than chance.**\n")
        checked = [one["sanity"] for one in told if "sanity" in one]
        passed, refused = sum(one["passed"] for one in checked), [one["refused"] for one in checked if one["refused"]]
        none = f"; no verdict in {len(refused)}: {refused[0]}" if refused else ""
        verdicts.append(f"- {method}: sanity check by random weights passed in {passed} of {len(told)} seeds{none}.")
    counts = ", ".join(str(result["methods"][METHODS[0]]["pointing"]["hits"]["n"]) for result in results)
    seeds = ", ".join(str(read_mapping(run / "config.yaml")["seed"]) for run in runs)
    head = "| map | hits, % | chance, % | centre, % | hits - chance, points | hits - centre, points |"
    lines = [
        "# Grad-CAM on magnetic tiles",
        machine(),
        f"Made by `python benchmarks/magnetic_tile.py page {' '.join(map(str, runs))}`; the protocol stands in "
        "[configs/finetune/magnetic_tile.yaml](../configs/finetune/magnetic_tile.yaml).",
        f"Seeds {seeds}; test pictures with a defect: {counts}. Accuracy of the classifier on its test pictures: {_over_seeds(tests)} %.",
        "\n".join([head, "|---|---|---|---|---|---|", *rows]),
        "The first three columns are means over seeds, with 95 % t-intervals; differences are taken picture by picture, with 95 % "
        "intervals over seeds and tiles. Hits lie on the mask or within 3 % of the side.",
        "\n".join(verdicts),
    ]
    PAGE.write_text("\n\n".join(lines) + "\n")
    print(PAGE)


def _over_seeds(values: Sequence[float]) -> str:
    mean, low, high = mean_interval(values, span=(0.0, 1.0))
    return f"{100 * mean:.1f}" + ("" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]")


def _interval(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{100 * found.estimate:+.1f}"
    return f"{100 * found.estimate:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


if __name__ == "__main__":
    if sys.argv[1:] == ["prepare"]:
        prepare()
    elif len(sys.argv) > 2 and sys.argv[1] == "page":
        page([Path(word) for word in sys.argv[2:]])
    else:
        raise SystemExit(__doc__)
