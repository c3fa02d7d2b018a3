"""Recipes built as for a training, and then not trained: for `launch --dry-run` and for the checks before a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..core.run.directory import Run
from ..core.run.folder import run_folder
from .settle import settle
from .verbs import BUILDERS


class DryRun(Run):
    """A run as a recipe needs it before training, which writes nothing."""

    dry = True

    def __init__(self, verb: str, config: dict[str, Any]) -> None:
        self.verb, self.config, self.options = verb, config, config["run"]
        self.dir, self.seed = run_folder(self.options["dir"]), config["seed"]
        self.device, self.main, self.silent, self.recorded, self.steps = torch.device("cpu"), True, True, {}, None
        self.messages: list[str] = []

    def log(self, message: str) -> None:
        self.messages.append(message)

    def detail(self, message: str) -> None:
        """A dry run has no details."""

    def record(self, watched: Mapping[str, Any] | None = None, **facts: Any) -> None:
        """A dry run leaves no record."""


def build_dry(
    verb: str, resolved: Mapping[str, Any], make: Callable[[str, dict[str, Any]], DryRun] = DryRun
) -> tuple[DryRun, Any]:
    """What the recipe builds before it trains or scores, and the run that it was built for. Raises UserError as the recipe would."""
    settled = settle(verb, resolved)
    run = make(verb, settled)
    return run, BUILDERS[verb](run, **{key: value for key, value in settled.items() if key != "run"})


def build_untrained(verb: str, resolved: Mapping[str, Any], export: Path | None) -> None:
    """Build a stage of a pipeline. export: folder for the backbone/ and classifier/ that it will have, untrained; None: not needed.

    Raises UserError as the recipe would.
    """
    _, built = build_dry(verb, resolved)
    if export is not None and verb != "probe":
        method = built.plan.method
        (method.backbone if verb == "pretrain" else method.classifier).export(export)
