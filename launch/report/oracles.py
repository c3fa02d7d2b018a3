"""Rows that saw the target's labels, found by the images that their runs trained on: no config has to admit it, no table can hide it.

Sets are compared whole, by the hashes of their images that result.json has: these tell whether two sets are equal, not whether one holds
a part of the other, so a row that was trained on *some* of a target's labels is not found here. Where these images are of the test itself,
`seen_labelled` counts them one by one and the row's kind is `labelled`; of others, the keys lie in the runs' backbone/seen.safetensors,
which a table made from results alone does not open.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .claims import stages_shown

ORACLE = "oracle"  # of a row: an upper bound, not a result
DIAGNOSTIC = "diagnostic"  # of a row: labels of the target ordered what its runs met
Results = Mapping[str, Sequence[Mapping[str, Any]]]  # of each stage


def mark_oracles(rows: Sequence[dict[str, Any]], results: Results, inputs: Mapping[str, Collection[str]] = {}) -> None:
    """Give each row that was trained on a target's labels the kind `oracle`, and `oracle`, the reason in words.

    results: of all stages of the table. inputs: the stages that each one starts from.
    """
    for row in rows:
        for stage in stages_shown(row):
            if other := whose_target(stage, row["metric"], results, inputs):
                trained = f"trained on the labels of the images that {other} adapts to without them"
                row |= {"kind": ORACLE, "oracle": trained}


def whose_target(stage: str, metric: str, results: Results, inputs: Mapping[str, Collection[str]] = {}) -> str:
    """The adaptation whose target is the labelled training set of a stage, or of one that it starts from; "" if there is none.

    Sets are equal if their images are, by content. Both stages must have been tested on the metric's test set, and the adaptation not as
    its source: of two tasks whose domains are swapped, each trains on the other's target, and neither is an oracle on its own.
    """
    tested = {_split(result).get(_test_key(result, metric)) for result in results.get(stage, ())} - {None}
    labelled = {_labelled(result) for name in _from(stage, inputs) for result in results.get(name, ())} - {None}
    for other, found in results.items():
        for result in found:
            split = _split(result)
            tests = {split[key] for key in split if key.startswith("test.") and key != "test.source"}
            if other != stage and split.get("target") in labelled and tests & tested:
                return other
    return ""


def is_ordered_by_labels(result: Mapping[str, Any]) -> bool:
    """Whether a run met the target's images sorted by class (`data.order: sorted`)."""
    return str((result.get("data") or {}).get("order") or "").startswith("sorted")


def is_chosen_by_labels(selection: Sequence[str]) -> bool:
    """Whether a row's selection admits it. selection: of its results; that of a mean over tasks may name several."""
    return any(ORACLE in text.split(" and ") for text in selection)


def _split(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The hash of each set of a result, {} where none was recorded."""
    split = (result.get("data") or {}).get("split") or {}
    return split if isinstance(split, Mapping) else {}


def _labelled(result: Mapping[str, Any]) -> Any:
    """The hash of the images that a run was trained on with labels; None for pretraining."""
    key = {"adapt": "source", "finetune": "train", "probe": "train"}.get(str(result.get("task")))
    return _split(result).get(key or "")


def _test_key(result: Mapping[str, Any], metric: str) -> str:
    test = metric.rsplit("/", 2)[0]
    return f"test.{test}" if result.get("task") == "adapt" or test == "train" else test


def _from(stage: str, inputs: Mapping[str, Collection[str]]) -> set[str]:
    """The stage and all those that it starts from."""
    found, waiting = set[str](), [stage]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += inputs.get(name, ())
    return found
