"""SimSiam with and without its stop-gradient: without it, collapse is reported within a tenth of the steps; with it, never."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from rootstock.core.run.directory import Interrupted
from rootstock.core.train import loop
from rootstock.launch.verbs import execute

STEPS = 400
ENOUGH = STEPS // 8  # where the quick case is stopped


@pytest.mark.parametrize(
    ("stop_gradient", "whole"),
    [
        pytest.param(True, True, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
        (False, False),
    ],
)
def test_a_collapse_is_named_before_a_tenth_of_the_steps(
    stop_gradient: bool,
    whole: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    straight = loop.Loop.step

    def stepping(self: loop.Loop, wrapped: Any, micro: Any, prepare: Any, step: int, asked: list[int]) -> Any:
        if step == ENOUGH:
            signal.raise_signal(signal.SIGTERM)
        return straight(self, wrapped, micro, prepare, step, asked)

    tree = {
        "data": {"train": "sklearn:digits-m?region=train&size=16#[:40%]", "size": 16, "views": "mocov3"},
        "backbone": {"name": "smallconv", "args": {"widths": [8, 16, 16, 32]}},
        "method": {
            "name": "simsiam",
            "projection": [32, 32, 32],
            "prediction": [8, 32],
            "stop_gradient": stop_gradient,
        },
        "optim": {"name": "adamw", "lr": 0.01, "batch_size": 64, "duration": STEPS, "warmup": 10},
        "evaluate": {"every": None, "watch": None},
        "run": {"log_every": 5, "workers": 0, "dir": str(tmp_path / "run")},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    if whole:
        execute("pretrain", str(path), [], quiet=True)
    else:
        monkeypatch.setattr(loop.Loop, "step", stepping)
        with pytest.raises(Interrupted):
            execute("pretrain", str(path), [], quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    warned = [row["step"] for row in rows if "warning" in row]
    said = capsys.readouterr().err
    if stop_gradient:
        assert not warned and "collapsed" not in said
    else:
        assert len(warned) == 1 and warned[0] < STEPS / 10
        assert "WARNING: the representation has collapsed" in said
