"""How a run ends in words: one sentence with what was measured, against what it has to beat, and the command that usually comes next.

Both are read off the run's own files, so a finished run that is started again ends with the same words.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.documents import Unreadable, read_yaml
from ..core.errors import UserError
from ..core.run.directory import Run
from ..core.run.folder import CONFIG, RESULT, read_result
from .following import following
from .report.answers import Seeds, read_answers
from .report.negative import CONTROL, baselines_of
from .report.pairs import compare_images
from .report.records import read_run

PROTOCOLS = {
    "knn": "kNN",
    "linear": "linear probe",
    "classifier": "",
    "classifier-raw": "weights not averaged",
    "online": "while adapting",
}
MOST_SIBLINGS = 200  # folders beside a run among which its control is looked for
PROTOCOLS_SHOWN = 3  # protocols
NO_GAIN = "no difference that these images can show"
HEADLINES = ("hos", "accuracy")


def say_ending(run: Run, result: Mapping[str, Any]) -> None:
    """Print the verdict, and unless -q was given the next command."""
    if not run.concludes:
        return
    gain, controlled = gain_in_words(run, result) if run.verb == "adapt" else ("", False)
    run.conclude(f"{sentence(run.verb, run.config, result, run.rows())}{gain}; in {run.dir}")
    run.advise(f"next: {following(run.verb, run.config, result, controlled)}")


def sentence(verb: str, config: Mapping[str, Any], result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """What a finished run found. rows: of metrics.jsonl."""
    what = config["method"]["name"] if verb in ("pretrain", "adapt") else config["backbone"]["name"]
    what = f"{verb} {what}" if what else verb
    losses = [row["loss"] for row in rows if isinstance(row.get("loss"), int | float)]
    parts = []
    if verb != "probe":
        change = f"loss {losses[0]:.3g} -> {losses[-1]:.3g}" if losses else "nothing was trained"
        parts.append(f"{change} in {result['steps']:,} steps" if losses else change)
    found = list(headlines(result))
    parts += _scores(result, found[:PROTOCOLS_SHOWN])
    if not found and result.get("metrics"):
        key, value = next(iter(result["metrics"].items()))
        parts.append(f"{key} {value:.4g}")
    if len(found) > PROTOCOLS_SHOWN:
        parts.append(f"and {len(found) - PROTOCOLS_SHOWN} more in {RESULT}")
    return f"{what}: {', '.join(parts)}" if parts else f"{what}: done"


def _scores(result: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """The scores in words; after those of the first test, what they have to beat."""
    told = [scores_in_words(result, key) for key in keys]
    if reference := to_beat(result, keys):
        test = keys[0].split("/")[:-2]
        told[max(i for i, key in enumerate(keys) if key.split("/")[:-2] == test)] += f" ({reference})"
    return told


def headlines(result: Mapping[str, Any]) -> Iterator[str]:
    """The keys of a result that say how good it is, of each test and protocol one; of an adaptation, those of the target first."""
    metrics = result.get("metrics") or {}
    said = set[str]()
    for key in sorted(
        metrics,
        key=lambda key: (key.startswith("source/"), HEADLINES.index(_last(key)) if _last(key) in HEADLINES else 9),
    ):
        if _last(key) in HEADLINES and key.rpartition("/")[0] not in said:
            said.add(key.rpartition("/")[0])
            yield key


def scores_in_words(result: Mapping[str, Any], key: str) -> str:
    """ "linear probe on test 78.3 % [75.1, 81.0]"."""
    where, _, metric = key.rpartition("/")
    test, _, protocol = where.rpartition("/")
    low, high = (result.get("intervals") or {}).get(key) or (None, None)
    bounds = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    name = PROTOCOLS.get(protocol, protocol.replace("_", " "))
    name = " ".join(filter(None, ["HOS" if metric == "hos" else "", name]))
    return f"{f'{name} on ' if name else ''}{test.removeprefix('eval/')} {100 * result['metrics'][key]:.1f} %{bounds}"


def to_beat(result: Mapping[str, Any], keys: Sequence[str]) -> str:
    """ "chance 14.3, the commonest class 20.1": what an accuracy of the first key's test has to beat, and what brackets behind it are.

    "" where it is not known.
    """
    if not keys or _last(keys[0]) != "accuracy":
        return ""
    details = (result.get("details") or {}).get(keys[0].rpartition("/")[0], {})
    classes = len(details.get("classes") or ()) or result["data"].get("classes")
    if not classes:
        return ""
    told = [f"chance {100 / classes:.1f}"]
    rows = details.get("confusion")
    if rows and (total := sum(map(sum, rows))):
        told.append(f"the commonest class {100 * max(map(sum, rows)) / total:.1f}")
    within = "; brackets: 95 % over test images" if (result.get("intervals") or {}).get(keys[0]) else ""
    return ", ".join(told) + within


def gain_in_words(run: Run, result: Mapping[str, Any]) -> tuple[str, bool]:
    """What an adaptation adds to its control, or to source-only, if a finished run beside it is one; and whether the control was found."""
    metric = next(headlines(result), None)
    if metric is None:
        return "", False
    found, told = _baselines(run), list[str]()
    for kind, folder in found.items():
        other = read_result(folder, lambda _: None) or {}
        if metric not in (other.get("metrics") or {}):
            continue
        mean, low, high = _difference(run, folder, metric, result["metrics"][metric] - other["metrics"][metric])
        told.append(f"{gained(mean, low, high)} over {kind} in {folder}")
    return (f"; {'; '.join(told)}" if told else ""), CONTROL in found


def gained(mean: float, low: float | None, high: float | None) -> str:
    """ "+5.2 points [+2.1, +8.3]", with what that means where there is an interval."""
    points = f"{100 * mean:+.1f} points"
    if low is None or high is None:
        return points
    judged = "gain" if low > 0 else "negative transfer" if high < 0 else NO_GAIN
    return f"{judged}: {points} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _difference(run: Run, folder: Path, metric: str, plain: float) -> tuple[float, float | None, float | None]:
    """run - folder, with its interval over test images where both keep predictions of the same ones."""
    key, _, name = metric.rpartition("/")
    if name != "accuracy":
        return plain, None, None
    try:
        ours: Seeds = {run.seed: read_answers(read_run(run.dir))}
        theirs: Seeds = {run.seed: read_answers(read_run(folder))}
        found = compare_images(("other", theirs), ("own", ours), (key, key))
    except UserError:
        return plain, None, None
    if isinstance(found, str):
        return plain, None, None
    return found[0].mean, found[0].low, found[0].high


def _baselines(run: Run) -> dict[str, Path]:
    """The finished runs beside this one, of its seed, that are its control or source-only, by kind."""
    configs: dict[str, Mapping[str, Any]] = {str(run.dir): run.config}
    own = run.dir.absolute()
    with contextlib.suppress(OSError):  # a folder that may not be listed
        for folder in sorted(own.parent.iterdir())[:MOST_SIBLINGS]:
            if folder != own and os.path.isfile(folder / RESULT):
                config = _config_of(folder)
                if config.get("seed") == run.seed:
                    configs[str(run.dir.parent / folder.name)] = config
    found = baselines_of(configs).get(str(run.dir), {})
    return {kind: Path(name) for name, kind in sorted(found.items(), key=lambda item: item[1])}


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def _config_of(folder: Path) -> Mapping[str, Any]:
    """The config of a run; empty if it cannot be read."""
    try:
        config = read_yaml(folder / CONFIG)
    except (Unreadable, OSError):
        return {}
    return config if isinstance(config, dict) else {}
