"""Commands that go on from a run, for copying."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ...core.config.yaml_file import plain_override_of
from ...core.run.folder import CONFIG
from .records import RunRecord, StageRuns

_VERBS = ("pretrain", "probe", "finetune", "adapt")


def commands_of(stage: StageRuns) -> list[tuple[str, str]]:
    """(what it does, command) for the first run of an experiment."""
    first = stage.first
    run, config = (shlex.quote(str(path)) for path in (first.path, first.path / CONFIG))
    weights, again = (
        shlex.quote(plain_override_of(key, str(path)))
        for key, path in (("backbone.weights", first.path), ("run.dir", _beside(stage)))
    )
    if first.verb not in _VERBS or not first.config:
        return []
    if not first.finished:
        return [("Go on with it", f"rootstock {first.verb} {config}")]
    found = [("Another seed", f"rootstock {first.verb} {config} seed={_next_seed(stage)} {again}")]
    if (first.path / "classifier").is_dir():
        found.append(("Label pictures", f"rootstock predict {run} folder:PICTURES --out labels.csv"))
    if first.verb == "pretrain":
        labelled = "data.train=folder:LABELLED run.dir=runs/probe"
        found.insert(0, ("What it was worth", f"rootstock probe small {weights} {labelled}"))
    if (first.path / "backbone").is_dir():
        found.append(("Features of pictures", f"rootstock embed {run} folder:PICTURES --out features.npz"))
        found.append(("For timm and the Hugging Face Hub", f"rootstock export {run} --to exported"))
    return found


def page_command(records: Sequence[RunRecord]) -> str:
    """The command that makes the page of these runs anew."""
    return f"rootstock report {' '.join(shlex.quote(str(record.path)) for record in records)}"


def _next_seed(stage: StageRuns) -> int:
    return max([record.seed for record in stage.records if isinstance(record.seed, int)], default=0) + 1


def _beside(stage: StageRuns) -> Path:
    return stage.first.path.with_name(f"{stage.first.path.name}-seed{_next_seed(stage)}")
