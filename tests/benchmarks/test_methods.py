"""The measurement of every method's step at toy size: that it runs, that both do the same work, and what its gate says."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rootstock.ssl.registry import PRETRAIN_METHODS


@pytest.fixture(scope="module")
def speed(script: Callable[[str], ModuleType]) -> Iterator[ModuleType]:
    before = torch.get_num_threads()
    yield script("methods_speed")
    torch.set_num_threads(before)


def test_it_runs_at_toy_size(speed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.md"
    names = ["simclr", "mocov3", "mae"]
    assert speed.main(["--toy", "--trials", "1", "--only", ",".join(names), "--markdown", str(out)]) == 0
    page = out.read_text()
    assert page == capsys.readouterr().out and str(tmp_path) not in page and "Toy sizes" in page
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    measured = {row[0]: row[2:] for row in rows[1:]}
    assert list(measured) == names
    assert measured["mocov3"][1:3] == ["–", "–"] and measured["mocov3"][-1] == "–"
    assert all("–" not in cell for name in ("simclr", "mae") for cell in measured[name])


def test_every_method_is_measured(speed: ModuleType) -> None:
    for scale in (speed.FULL, speed.TOY):
        measured = {setting.method["name"] for setting in speed.settings(scale)}
        missing = {name for name, kind in PRETRAIN_METHODS.items() if not kind.takes_teacher} - measured
        assert not missing, f"add {', '.join(missing)} to benchmarks/method_settings.py"
        assert measured <= PRETRAIN_METHODS.keys()
        assert all(len(setting.augmentation().views) == setting.views for setting in speed.settings(scale))


def test_what_does_not_exist_is_said(speed: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        speed.main(["--only", "simclr,simsiamese"])
    assert end.value.code == 2 and "--only simsiamese: expected some of simclr, byol" in capsys.readouterr().err


def test_the_gate(speed: ModuleType) -> None:
    """A step may differ by noise; the whole way has to be at least as fast beyond it."""
    interval = speed.Interval
    for step, whole, passed in (
        ((0.99, 0.97, 1.01), (1.1, 1.0, 1.2), True),
        ((0.99, 0.97, 0.999), (1.1, 1.0, 1.2), False),
        ((1.1, 1.0, 1.2), (1.05, 0.99, 1.2), False),
    ):
        assert speed.holds(interval(*step), interval(*whole)) is passed
    assert speed.holds(None, None)


def learned(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", ["simclr", "byol", "simsiam", "barlow", "vicreg", "dino", "mae"])
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_both_learn_as_many_numbers(speed: ModuleType, name: str) -> None:
    """To a per cent: biases before BatchNorm and mask tokens differ."""
    (setting,) = (setting for setting in speed.settings(speed.FULL) if setting.method["name"] == name)
    theirs = speed.lightly_steps.METHODS[name][0](setting)
    assert learned(setting.objective()) == pytest.approx(learned(theirs), rel=0.01)
