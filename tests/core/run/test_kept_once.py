"""What a run finds out once is found once, read afterwards, and found anew where its file is damaged."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from rootstock.core.run.kept_once import kept_once


def test_it_is_found_once_and_anew_where_it_is_damaged(tmp_path: Path) -> None:
    logged: list[str] = []
    run: Any = SimpleNamespace(checkpoints=tmp_path / "checkpoints", main=True, log=logged.append)
    found: list[int] = []

    def find() -> dict[str, torch.Tensor]:
        found.append(len(found))
        return {"numbers": torch.arange(3)}

    for _ in range(3):
        assert kept_once(run, "numbers.safetensors", find, "they are counted again")["numbers"].tolist() == [0, 1, 2]
    assert found == [0] and logged == []
    path = tmp_path / "checkpoints" / "kept" / "numbers.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert kept_once(run, "numbers.safetensors", find, "they are counted again")["numbers"].tolist() == [0, 1, 2]
    assert found == [0, 1] and len(logged) == 1
    assert logged[0].startswith("WARNING: ") and logged[0].endswith("; they are counted again")
