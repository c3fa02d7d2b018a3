"""`rootstock embed`: the features of pictures, each once and in the order of the set; on any number of processes the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.distributed import barrier, rank
from ...core.errors import UserError
from ...core.evaluate.feature_key import weights_digest
from ...core.evaluate.features import evaluating
from ...core.evaluate.frozen import features_of
from ...core.evaluate.taps import POOLED, Taps, available_taps
from ...core.evaluate.trained import TrainedRun, load_trained
from ..aloud import conclude, say
from ..following import LABELS, command, exporting
from .pictures import damage_with_remedy, names_of, open_pictures, watched_together
from .tables import PARQUET, check_parquet, write_npz, write_parquet

BOTTLENECK = "bottleneck"  # the tap of what a classifier's head sees, where layers lie between backbone and head
OWN_COLUMNS = ("name", "key")


def embed_pictures(
    run: Path,
    uris: Sequence[str],
    out: Path,
    taps: Sequence[str] = (),
    *,
    device: str = "auto",
    batch_size: int = 256,
    workers: int = 8,
    skip_damaged: bool = False,
) -> int:
    """Write names, keys and features of all pictures to `out`, .npz or .parquet. Returns the exit code 0. Raises UserError.

    taps: names of `Taps`, `pooled` by default, or `bottleneck`: the features that the head of a classifier sees.
    """
    check_parquet(out)
    with watched_together(device) as place:
        trained = load_trained(run)
        names = tuple(dict.fromkeys(taps)) or (POOLED,)
        check_tap_names(trained, names)
        images = open_pictures(uris, trained, skip_damaged)
        say(f"embed {trained.title}: {', '.join(names)} of {len(images)} {trained.view.in_words()}, on {place}")
        found = features(trained, images, names, device=place, batch_size=batch_size, workers=workers)
        if rank() == 0:
            about = {
                "run": str(trained.folder),
                "network": trained.backbone.spec,
                "weights": weights_digest(trained.backbone),
                "view": trained.view.describe(),
                "data": {"uri": images.uri, "images": len(images), "split": images.split_hash()},
            }
            columns = {**dict(zip(OWN_COLUMNS, (names_of(images), images.keys()), strict=True)), **found}
            (write_parquet if out.suffix.lower() == PARQUET else write_npz)(out, columns, about)
            print(out)
            shapes = ", ".join(f"{name} {list(found[name].shape)}" for name in names)
            labels = command("predict", str(run), *uris, "--out", LABELS)
            following = exporting(run) if trained.classifier is None else labels
            conclude(f"embed: {shapes} of {len(images)} pictures", following)
        barrier()
    return 0


def check_tap_names(trained: TrainedRun, names: Sequence[str]) -> None:
    """Raises UserError for features that the network does not have."""
    narrowed = trained.classifier is not None and trained.classifier.bottleneck is not None
    offered = (*available_taps(trained.backbone), *((BOTTLENECK,) if narrowed else ()))
    if odd := [name for name in names if name not in offered]:
        why = " (only classifiers with a bottleneck have)" if odd[0] == BOTTLENECK else ""
        raise UserError(
            f"--tap: {trained.title} has no features called {odd[0]!r}{why}; choose from {', '.join(offered)}"
        )


def features(
    trained: TrainedRun,
    images: Any,
    names: Sequence[str] = (POOLED,),
    *,
    device: torch.device,
    batch_size: int = 256,
    workers: int = 0,
) -> dict[str, Tensor]:
    """The features of all images by tap, [N, D] or [N, L, D] on the CPU, row i for image i, complete on every process."""
    if batch_size < 1:
        raise UserError(f"--batch-size: expected 1 or more, got {batch_size}")
    of_backbone = [POOLED if name == BOTTLENECK else name for name in names]
    taps = Taps(trained.backbone.to(device), of_backbone, key="--tap")
    with damage_with_remedy():
        found = features_of(taps, images, trained.view, device=device, workers=workers, batch_size=batch_size, log=say)
    if BOTTLENECK in names:
        assert trained.classifier is not None and trained.classifier.bottleneck is not None
        found[BOTTLENECK] = _narrowed(trained.classifier.bottleneck, found[POOLED], device, batch_size)
    return {name: found[name] for name in names}


def _narrowed(bottleneck: nn.Module, pooled: Tensor, device: torch.device, batch_size: int) -> Tensor:
    """In the batches of the backbone, so that they are the features that the head sees when it predicts, bit for bit."""
    bottleneck = bottleneck.to(device)
    with evaluating(bottleneck), torch.no_grad():
        return torch.cat([bottleneck(part.to(device)).cpu() for part in pooled.split(batch_size)])
