"""The whole target as the classifier sees it while it trains: what a method's `refresh` reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..core.distributed import all_reduce_sum, rank, world
from ..core.method import Overview
from ..core.model.classifier import Classifier
from .sets import in_batches


@torch.no_grad()
def look_over(classifier: Classifier, count: int, read: Callable[[Sequence[Tensor]], Iterator[Tensor]]) -> Overview:
    """Features and logits of all `count` target images, in the mode in which the classifier is; called by all processes.

    read: (rows of each batch, int64 [n]) -> the batches, as `Classifier.features` takes them. Each batch is encoded by one process, and
    all get its rows. So the batches, and their numbers, are the same on any number of processes, also where BatchNorm's running
    statistics are each process's own.
    """
    parts = in_batches(count)[rank() :: world()]
    weights = next(classifier.head.parameters())
    features = weights.new_zeros(count, classifier.feature_dim)
    logits = weights.new_zeros(count, classifier.head.out_features)
    for rows, images in zip(parts, read(parts), strict=True):
        here = rows.to(weights.device)
        found = classifier.features(images)
        # Added to 0, as the others' rows are: -0.0 becomes 0.0 on one process too.
        features[here] += found
        logits[here] += classifier.head(found)
    return Overview(torch.arange(count, device=weights.device), all_reduce_sum(features), all_reduce_sum(logits))
