"""Accuracies and confusions of a classifier by class and by domain, for the entry `by_class` of a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.evaluate.counts import Ints
from ..core.evaluate.diagnosis import class_accuracies, class_confusions
from ..core.images.images import Images

MOST_CONFUSED = 100  # of a confusion matrix that is written; accuracies are always


def errors_by_class(name: str, images: Images, predictions: Ints, outputs: Sequence[str]) -> dict[str, Any]:
    """{domain: {"images", "accuracy" by class, "confusion"}} of labelled images; a set of several domains has each as NAME/DOMAIN.

    predictions: int64 [N], indices into the outputs. A class without images has the accuracy None. confusion: row = class, column =
    prediction; left out for more than MOST_CONFUSED.
    """
    assert images.labels is not None
    several = len(images.domain_names) > 1
    domains = images.domains.numpy() if several else np.zeros(len(images), dtype=np.int64)
    names = [f"{name}/{domain}" for domain in images.domain_names] if several else [name]
    matrices = class_confusions(images.labels.numpy(), predictions, domains, len(outputs))
    found: dict[str, Any] = {}
    for domain, matrix, accuracies in zip(names, matrices, class_accuracies(matrices), strict=False):
        found[domain] = {"images": int(matrix.sum()), "accuracy": _by_output(accuracies, outputs)}
        if len(outputs) <= MOST_CONFUSED:
            found[domain]["confusion"] = matrix.tolist()
    return found


def _by_output(accuracies: NDArray[np.float64], outputs: Sequence[str]) -> dict[str, float | None]:
    return {name: None if np.isnan(one) else float(one) for name, one in zip(outputs, accuracies, strict=True)}
