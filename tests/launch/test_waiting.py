"""Waiting threads spin briefly: set before torch's OpenMP reads it, unless the user has decided."""

import os
import re
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from rootstock.launch import cli

def work(prog_name):
    assert "torch" not in sys.modules
    import torch

cli.app = work
cli.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's OpenMP isn't libgomp")
@pytest.mark.parametrize(
    ("variables", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_openmp_reads_it(variables: dict[str, str], spins: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    environment = {**kept, **variables, "OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)) == {spins}, done.stderr
