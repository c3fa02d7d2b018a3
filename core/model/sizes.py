"""What is said of an input size that a network does not suit."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UserError
from ..launchlog import warn


def say_size(model: nn.Module, name: str, size: int, trained: int | None) -> None:
    """Warn of a size, in pixels, that leaves a border unseen, or at which the weights were not trained. trained: None for new weights.

    Raises UserError for a size below that of a patch.
    """
    patches: Any = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    side = patches[0] if isinstance(patches, tuple | list) else patches
    if isinstance(side, int) and size < side:
        raise UserError(
            f"data.size: {name} cuts pictures into patches of {side} px, so {size} px hold none; take {side} or more"
        )
    if isinstance(side, int) and size % side:
        fitting = [n * side for n in (size // side, size // side + 1)]
        warn(
            f"WARNING: data.size: {name} cuts pictures into patches of {side} px, so of {size} px a border of {size % side} px is not "
            f"seen; take {' or '.join(map(str, fitting))}"
        )
    if trained is not None and trained != size:
        warn(
            f"WARNING: data.size: {size} px are shown to a network that was trained at {trained} px, where objects have other sizes; "
            f"data.size={trained} shows it what it knows"
        )
