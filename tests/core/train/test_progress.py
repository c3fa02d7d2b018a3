"""How often a training says how far it is: alone, as a stage of a pipeline, and with -q and -v."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from rich.console import Console

from rootstock.core.loudness import Loudness, running_stages, speaking
from rootstock.core.run.speech import Speech
from rootstock.core.train import progress
from rootstock.core.train.progress import PLAIN_SECONDS, STAGE_SECONDS, Progress

STEPS, EACH = 20, 10.0  # seconds a step


class _Said(Speech):
    """A run that keeps what it says."""

    def __init__(self, silent: bool) -> None:
        self.main, self.silent, self.lines = True, silent, list[str]()
        self.console, self.verb, self.config, self.device = Console(quiet=True), "pretrain", {}, torch.device("cuda")

    def _print(self, message: str) -> None:
        self.lines.append(message)


def said(monkeypatch: pytest.MonkeyPatch, *, silent: bool, stage: bool, loud: Loudness = Loudness.NORMAL) -> list[int]:
    """The steps of which a line told, of twenty steps of ten seconds."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    run: Any = _Said(silent)
    with speaking(loud), running_stages() if stage else contextlib.nullcontext(), Progress(run, STEPS, 0) as shown:
        for done in range(1, STEPS + 1):
            clock[0] += EACH
            shown.advance(done, 4, 0.0)
            shown.show(done, {"loss": 1.0}, shown.rates())
    return [int(line.split("/")[0].removeprefix("step ")) for line in run.lines]


def test_a_stage_speaks_once_a_minute_and_says_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert EACH > PLAIN_SECONDS and STAGE_SECONDS == 60.0
    assert said(monkeypatch, silent=False, stage=False) == list(range(1, STEPS + 1))
    assert said(monkeypatch, silent=True, stage=True) == [6, 12, 18]
    assert said(monkeypatch, silent=True, stage=False) == []  # rs.pretrain(..., quiet=True)
    assert said(monkeypatch, silent=True, stage=True, loud=Loudness.QUIET) == []
    assert said(monkeypatch, silent=True, stage=True, loud=Loudness.VERBOSE) == list(range(1, STEPS + 1))
