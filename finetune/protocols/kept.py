"""What a probe keeps of its fitted protocols beside the scores: the linear classifier, and pictures of prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...core.evaluate.linear_head import save_head
from ...core.images.images import Images
from ...core.views.view import Evaluation
from .contract import Fitted


def keep_outcomes(
    run: Path,
    outcomes: Mapping[str, Fitted],
    train: Images,
    view: Evaluation,
    grid: tuple[int, int] | None,
    network: str,
) -> None:
    """Write the linear classifier, for `rootstock explain`, and the pictures that protocols draw.

    train: the training images that they saw; grid: rows and columns of the tap `patches`; network: sha256 of the network's weights.
    """
    linear = [one.linear for one in outcomes.values() if one.linear is not None]
    if linear:
        save_head(run, linear[0]._replace(network=network, channels=int(train.read(0).shape[0])))
    for name, one in outcomes.items():
        if one.draw is not None:
            one.draw(run, name, train, view, grid)
