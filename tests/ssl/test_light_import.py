"""Importing a method loads little of Rootstock, and no Accelerate, so that it takes about a second."""

from __future__ import annotations

import json
import subprocess
import sys

MOST = 25
# timm imports wandb where it is installed, and wandb pydantic.
SCRIPT = (
    "import json, sys; sys.modules['wandb'] = None; import rootstock.ssl.simclr; print(json.dumps(sorted(sys.modules)))"
)


def test_importing_a_method_loads_neither_the_loop_nor_accelerate() -> None:
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120)
    loaded = json.loads(found.stdout)
    ours = [name for name in loaded if name.startswith("rootstock.")]
    assert "rootstock.ssl.simclr" in ours
    assert len(ours) <= MOST, ours
    rooms = ("rootstock.core.train", "rootstock.core.run", "rootstock.core.stream", "rootstock.core.images")
    assert not [name for name in ours if name.startswith(rooms)]
    assert "accelerate" not in loaded and "pydantic" not in loaded
