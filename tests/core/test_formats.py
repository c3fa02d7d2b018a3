"""What a later version reads of an earlier one: formats, renamed keys, renamed parameters, keys that are new."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rootstock.core import formats
from rootstock.core.config.resolve import validate
from rootstock.core.errors import UserError
from rootstock.core.run.compare import of_another_config
from rootstock.core.run.directory import Run
from rootstock.core.run.options import options
from rootstock.core.train import checkpoint


def recipe(run: Run, *, optim: dict[str, float], rate: float = 0.5, seed: int = 0) -> None:
    """A recipe to which `rate` has come."""


def begun(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"verb": "pretrain", **config}))
    (folder / "metrics.jsonl").write_text("")
    return folder


def refusal(folder: Path, **now: Any) -> str:
    given = {"optim": {"lr": 1.0}, "run": {"dir": str(folder)}, **now}
    complete = partial(validate, schema=recipe, extra={"run": options})
    return of_another_config(folder, "pretrain", complete(given), complete)


def test_a_new_key_with_its_default_changes_nothing(tmp_path: Path) -> None:
    folder = begun(tmp_path / "old", {"optim": {"lr": 1.0}, "seed": 0, "run": {"dir": "elsewhere"}})
    assert refusal(folder) == ""
    assert "rate: 0.5 there, 0.7 now" in refusal(folder, rate=0.7)
    assert "optim.lr: 1.0 there, 2.0 now" in refusal(folder, optim={"lr": 2.0})


def test_a_renamed_key_is_the_same_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begun(tmp_path / "old", {"optim": {"speed": 1.0}, "pace": 0.7, "gone": 3, "seed": 0})
    assert "pace" in refusal(folder, rate=0.7)
    monkeypatch.setattr(formats, "RENAMED_KEYS", {"optim.speed": "optim.lr", "pace": "rate", "gone": None})
    assert refusal(folder, rate=0.7) == ""
    assert "rate: 0.7 there, 0.5 now" in refusal(folder)


def test_a_key_moves_to_another_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "RENAMED_KEYS", {"optim.size": "data.views.size", "none.such": "x.y"})
    old = {"optim": {"size": 3, "lr": 1}, "data": {"views": {"name": "digits"}}}
    assert formats.current_keys(old) == {"optim": {"lr": 1}, "data": {"views": {"name": "digits", "size": 3}}}
    assert old["optim"] == {"size": 3, "lr": 1}  # the given mapping is left alone


def test_a_key_that_nobody_knows_is_named(tmp_path: Path) -> None:
    folder = begun(tmp_path / "old", {"optim": {"lr": 1.0}, "seed": 0, "unheard": 1})
    assert "unheard: 1 there, None now" in refusal(folder)


def test_renamed_parameters_are_found_in_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {
        "old_head.weight": torch.ones(2),
        "backbone.old_head.weight": torch.zeros(2),
        "gold_head.x": torch.ones(1),
    }
    moments = {"old_head.weight//exp_avg": torch.ones(2)}
    checkpoint.save(tmp_path, checkpoint.Checkpoint(3, tensors, moments, {"seed": 0}), keep=2)
    monkeypatch.setattr(formats, "RENAMED_TENSORS", {"old_head": "head"})
    found = checkpoint.latest(tmp_path, pytest.fail)
    assert found is not None and found.step == 3 and found.state == {"seed": 0}
    assert sorted(found.model) == ["backbone.head.weight", "gold_head.x", "head.weight"]
    assert sorted(found.optimizer) == ["head.weight//exp_avg"]


def test_a_later_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr(checkpoint, "FORMAT", 2)
        checkpoint.save(tmp_path, checkpoint.Checkpoint(3, {"x": torch.ones(1)}, {}, {}), keep=2)
    with pytest.raises(UserError, match=r"state\.json has format 2, .* reads formats up to 1; update Rootstock"):
        checkpoint.latest(tmp_path, pytest.fail)
