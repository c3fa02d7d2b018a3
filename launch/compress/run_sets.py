"""The pictures that a run's own config names: those of its training, and its test."""

from __future__ import annotations

from ...core.errors import UserError
from ...core.evaluate.trained import TrainedRun
from ..following import uris


def uris_of_training(trained: TrainedRun) -> list[str]:
    """The pictures that the run was trained on. Raises UserError where its config names none."""
    data = trained.config.get("data") or {}
    given = data.get("target") or data.get("train")
    if not given:
        raise UserError(f"{trained.folder} names no training pictures; give some with --calibrate URI")
    return uris(given, int(trained.config.get("seed", 0)))


def uris_of_test(trained: TrainedRun) -> list[str]:
    """The test that the run's config names, of several the first; none where it names none."""
    given = (trained.config.get("data") or {}).get("test")
    return uris(given, int(trained.config.get("seed", 0))) if given else []
