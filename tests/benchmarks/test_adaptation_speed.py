"""The measurement of adaptation steps at toy size: that ours runs, and what a peer that is not there is answered with."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch


def test_a_table_has_a_row_a_method(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    speed, threads = script("adaptation_speed"), torch.get_num_threads()
    to = tmp_path / "table.md"
    try:
        code = speed.main(["--toy", "--trials", "1", "--only", "dann,mdd,dan", "--markdown", str(to), "--gate"])
    finally:
        torch.set_num_threads(threads)
    rows = [line for line in to.read_text().splitlines() if line.startswith("| d") or line.startswith("| mdd")]
    assert [row.split(" | ")[0] for row in rows] == ["| dann", "| mdd", "| dan"] and code == 0
    assert all(float(row.split(" | ")[1]) > 0.0 and row.endswith("| yes |") for row in rows)
    assert "Toy sizes: the numbers say nothing." in to.read_text()


def test_a_peer_that_is_not_there_is_refused_in_a_sentence(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        script("adaptation_speed").options(["--toy", "--tllib", str(tmp_path)])
    assert end.value.code == 2
    assert f"--tllib: {tmp_path} holds no tllib" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script("adaptation_speed").options(["--only", "bnm"])
    assert "--only bnm: expected some of dann, cdan, mcc, mdd, dan, jan" in capsys.readouterr().err
