"""Waiting threads spin briefly: set before torch's OpenMP reads it, unless the user has decided."""

import os
import re
import subprocess
import sys

import pytest

# As `import torch` does, in a moment: it loads the OpenMP that lies beside it. Whole torch, where there is none.
SCRIPT = """
import ctypes, sys
from importlib.util import find_spec
from pathlib import Path
from rootstock.launch import cli

def work(prog_name):
    assert "torch" not in sys.modules
    beside = sorted((Path(find_spec("torch").origin).parent / "lib").glob("libgomp*.so*"))
    if sys.argv[1:] == ["whole"] or not beside:
        import torch
    else:
        ctypes.CDLL(str(beside[0]))

cli.app = work
cli.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's OpenMP isn't libgomp")
@pytest.mark.parametrize(
    ("variables", "spins", "more"),
    [({}, "10000", ["whole"]), ({"GOMP_SPINCOUNT": "77"}, "77", []), ({"OMP_WAIT_POLICY": "passive"}, "0", [])],
)
def test_openmp_reads_it(variables: dict[str, str], spins: str, more: list[str]) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    environment = {**kept, **variables, "OMP_DISPLAY_ENV": "verbose"}
    command = [sys.executable, "-c", SCRIPT, *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)) == {spins}, done.stderr
