"""Prototypes: each class is the mean of its source features, and an image is of the class whose mean is nearest. Nothing is trained."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.model.classifier import Classifier
from ..core.model.heads import CosineHead, WeightNormHead
from ..core.numerics import wide
from .source_only import SourceOnly


class Prototypes(SourceOnly):
    """The class means of the source's features as a head; usually run for 0 steps, on weights that others trained. No target image is used.

    A linear head (or weightnorm, which then computes the same) has the weights 2 c and the bias -c.c of class mean c: by them it orders the
    classes as the Euclidean distance does (Snell et al. 2017, arXiv:1703.05175, section 2.4). A cosine head has the means of features of
    length 1 (Qi et al. 2018, arXiv:1712.07136, section 3.2). Features are those of the whole source in the view of evaluation, whatever the
    batches were. If steps are trained, they minimise the cross-entropy, and the head that they trained is replaced.

    label_smoothing: Label smoothing of the cross-entropy on the source, from 0 to below 1; it matters only if steps are trained.
    """

    def conclude_source(self, source: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set the head. Raises UserError for a class without a training image."""
        self.eval()
        set_prototypes(self.classifier, source)


@torch.no_grad()
def set_prototypes(classifier: Classifier, source: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Write the class means of the features into the head, for all outputs that are classes of the source.

    source: images float [n, C, h, w], or features of the backbone [n, D], and their labels int64 [n]. Sums are in float64, so they
    don't depend on the batches beyond rounding. Raises UserError for a class without an image.
    """
    head, k = classifier.head, len(classifier.classes)
    unit = isinstance(head, CosineHead)
    sums = torch.zeros(k, classifier.feature_dim, dtype=torch.float64)
    counts = torch.zeros(k, dtype=torch.int64)
    for images, labels in source:
        features = wide(classifier.features(images)).cpu().double()
        features = torch.nn.functional.normalize(features, dim=1) if unit else features
        sums.index_add_(0, labels.cpu(), features)
        counts += torch.bincount(labels.cpu(), minlength=k)
    if empty := [name for name, count in zip(classifier.classes, counts.tolist(), strict=True) if not count]:
        raise UserError(
            f"data.source: no training image is of the class {empty[0]}, so it has no prototype; give pictures of it, or drop it"
        )
    means = sums / counts[:, None]
    bias = -means.square().sum(1)
    if isinstance(head, CosineHead):
        head.weight[:k] = means.to(head.weight)
    elif isinstance(head, WeightNormHead):
        head.direction[:k] = means.to(head.direction)
        head.scale[:k] = 2 * head.direction[:k].norm(dim=1, keepdim=True)
        head.bias[:k] = bias.to(head.bias)
    else:
        head.weight[:k] = (2 * means).to(head.weight)
        head.bias[:k] = bias.to(head.bias)
