"""A training that ends in the middle, in process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rootstock.core.train.loop import Loop


class CutOff(Exception):
    """What ends it."""


@contextmanager
def cut_off_at(step: int) -> Iterator[None]:
    """Within it a training has to reach this step, and ends there before it is made: only what was saved before is left."""
    straight = Loop.step

    def stepped(loop: Loop, wrapped: Any, micro: Any, prepare: Any, at: int, asked: Any) -> Any:
        if at == step:
            raise CutOff
        return straight(loop, wrapped, micro, prepare, at, asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "step", stepped)
        with pytest.raises(CutOff):
            yield
