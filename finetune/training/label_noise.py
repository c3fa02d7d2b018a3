"""Wrong labels on purpose (`data.label_noise`): how far a network learns them by heart, and what keeps it from that."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.draws import Draws
from ...core.errors import UserError
from ...core.evaluate.features import extract
from ...core.images.images import Images
from ...core.model.classifier import Classifier
from ...core.run.directory import Run
from ...core.views.view import Evaluation

WRONG_LABELS = "wrong_labels/classifier"
"""The part of a metric's name before `memorised` and `recovered`."""


class NoisyLabels(NamedTuple):
    """images: with the labels that training sees. true: int64 [N], the labels before. replaced: bool [N]."""

    images: Images
    true: Tensor
    replaced: Tensor


def check_label_noise(share: float) -> None:
    """Raises UserError for a share out of range."""
    if not 0.0 <= share < 1.0:
        raise UserError(
            f"data.label_noise: expected a share of the training images, 0 or more and less than 1, got {share}"
        )


def with_label_noise(images: Images, share: float, seed: int) -> NoisyLabels:
    """The images with symmetric label noise: `share` of them have another class than their own, each of the others equally likely.

    Exactly round(share U) of the U different images; which, and what they become, is a function of content and seed, so copies of an
    image have one label, and an image keeps its wrong one whatever else the set holds. A larger share replaces those of a smaller one, too.
    Zhang et al. 2017 (arXiv:1611.03530) draw from all classes: their share p is p (K - 1) / K here, with K classes.
    """
    assert images.labels is not None and images.classes is not None
    if len(images.classes) < 2:  # refused by whoever trains on it
        return NoisyLabels(images, images.labels, torch.zeros(len(images), dtype=torch.bool))
    keys, first = np.unique(images.keys().numpy(), return_index=True)
    drawn = Draws(seed, torch.from_numpy(keys))
    order = np.lexsort((keys, drawn.uniform("label_noise/which", 1)[:, 0].numpy()))
    chosen = order[: round(share * len(keys))]
    others = len(images.classes) - 1
    place = drawn.integers("label_noise/class", others, 1)[:, 0].numpy()
    true = images.labels
    own = true.numpy()[first]
    wrong = dict(zip(keys[chosen].tolist(), (place + (place >= own))[chosen].tolist(), strict=True))
    # Copies of one image under two classes keep what they have if the drawn class happens to be theirs.
    labels = torch.tensor(
        [wrong.get(key, label) for key, label in zip(images.keys().tolist(), true.tolist(), strict=True)]
    )
    noisy = copy.copy(images)
    noisy.labels = labels.long()
    return NoisyLabels(noisy, true, labels != true)


def fitted_noise(
    noisy: NoisyLabels, used: Images, classifier: Classifier, view: Evaluation, run: Run
) -> dict[str, Any]:
    """What the classifier says of the images with a wrong label that it was trained on, without augmentation; called on all processes.

    {"replaced": of all images, "trained": of those trained on, "memorised": share that gets the wrong label of its training,
    "recovered": share that gets its own}, the shares None where there are no such images. used: what was trained on.
    """
    count = int(noisy.replaced.sum())
    mine = noisy.replaced & torch.isin(noisy.images.keys(), used.keys())
    rows = mine.nonzero()[:, 0]
    if not len(rows):
        return {"replaced": count, "trained": 0, "memorised": None, "recovered": None}
    shown = noisy.images.select(rows)
    assert shown.labels is not None
    found = extract(classifier, shown, view, device=run.device, workers=run.options["workers"]).argmax(1).cpu()
    memorised, recovered = ((found == labels).double().mean().item() for labels in (shown.labels, noisy.true[rows]))
    return {"replaced": count, "trained": len(rows), "memorised": memorised, "recovered": recovered}


def noise_in_result(found: dict[str, Any], metrics: dict[str, float]) -> dict[str, Any]:
    """The entries of result.json with what `fitted_noise` found, also as metrics, behind those of the tests."""
    shares = {f"{WRONG_LABELS}/{key}": found[key] for key in ("memorised", "recovered") if found[key] is not None}
    return {"label_noise": found, "metrics": {**metrics, **shares}}
