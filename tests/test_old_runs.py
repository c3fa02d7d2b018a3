"""A run that an earlier version began ends with the weights that the earlier version would have given it.

tests/formats/N holds runs of format N, interrupted; tests/formats/draw.py says how they were made.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rootstock.launch import verbs
from rootstock.tests.formats.draw import CASES, SAVED_EVERY, STEPS, digest, processor

FORMATS = Path(__file__).with_name("formats")
VERSIONS = sorted(path.name for path in FORMATS.iterdir() if path.name.isdecimal())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_run_ends_as_it_would_have(
    version: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = FORMATS / version
    shutil.copytree(old / case, tmp_path / case)
    monkeypatch.chdir(tmp_path / case)
    verbs.execute(CASES[case][0], "config.yaml")
    assert f"resumed from step {SAVED_EVERY} of {STEPS}" in capsys.readouterr().err
    made = Path("run/backbone/backbone.safetensors")
    expected: dict[str, Any] = json.loads((old / "expected.json").read_text())
    assert expected["sha256"][case] == digest(old / case / made.name)  # the fixture itself is whole
    if (torch.__version__, processor(), os.environ.get("OMP_NUM_THREADS")) == (
        expected["torch"],
        expected["processor"],
        "1",
    ):
        assert digest(made) == expected["sha256"][case]
    # Another processor rounds otherwise, and sixteen steps amplify it.
    torch.testing.assert_close(load_file(made), load_file(old / case / made.name), rtol=1e-3, atol=1e-4)
