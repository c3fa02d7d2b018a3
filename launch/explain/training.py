"""The training pictures of a run, opened again as its config says, and their features from the cache."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ...adapt.sets import training_source
from ...core.errors import UserError
from ...core.evaluate.frozen import features_of
from ...core.evaluate.held_out import distinct_rows
from ...core.evaluate.taps import POOLED, Taps
from ...core.evaluate.trained import TrainedRun
from ...core.images.images import Images
from ...core.images.limits import size_of
from ...core.images.open import open_images
from ...core.images.sets import train_and_tests
from ...core.run.options import options
from ...finetune.training.evaluation import hold_out
from ...finetune.training.label_noise import with_label_noise
from ..aloud import say


def training_pictures(trained: TrainedRun, given: Sequence[str]) -> Images:
    """The labelled pictures that the run was trained on, without copies and without those that it held out; of an adaptation those of its
    source.

    given: URIs that replace the run's own. Raises UserError where the run names none, or they cannot be opened.
    """
    data, seed = trained.config.get("data"), int(trained.config.get("seed", 0))
    evaluate = trained.config.get("evaluate") or {}
    held_out = {"held_out": evaluate.get("held_out") or 0.0}
    if given:
        images = open_images(list(given), seed=seed)
    elif not isinstance(data, dict) or not (data.get("train") or data.get("source")):
        raise UserError(f"{trained.folder} does not say what it was trained on; give --train URI, or --neighbours 0")
    elif data.get("train"):
        images = train_and_tests(data["train"], data.get("test"), seed, labels=False)[0]
        if data.get("label_noise"):
            images = with_label_noise(images, data["label_noise"], seed).images
        images = hold_out(images, held_out, seed)[0]
    else:
        images = training_source({"test": None, **data}, held_out["held_out"], seed)
    return images.select(distinct_rows(images))


def pooled_features(trained: TrainedRun, images: Images, device: torch.device, workers: int, batch: int) -> Tensor:
    """Float32 [N, D] of the backbone, from the cache of features if they are there. Raises UserError."""
    taps = Taps(trained.backbone.to(device))
    room = size_of(signature(options).parameters["feature_cache"].default, "run.feature_cache")
    how: dict[str, Any] = {"device": device, "workers": workers, "batch_size": batch, "cache": room, "log": say}
    return features_of(taps, images, trained.view, **how)[POOLED]
