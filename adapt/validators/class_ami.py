"""ClassAMI: whether clusters of features are the predicted classes."""

from __future__ import annotations

import numpy as np

from ...core.evaluate.clustering import adjusted_mutual_information, k_means_labels
from .candidate import CandidateModel, by_content
from .contract import Validator

STARTS = 10  # random starts of k-means, of which the tightest counts


class ClassAMI(Validator):
    """Adjusted mutual information of k-means clusters of the target's features and its predicted classes (Musgrave et al. 2022,
    arXiv:2208.07360).

    k = the number of classes, on the features as they are; pytorch-adapt first reduces them to 64 principal components. k-means starts from
    rows in the order of the images' content with a fixed seed, so the order of rows doesn't matter. A model that predicts a single class
    scores 0: scikit-learn would give 1 where the features have collapsed as well.
    """

    name = "class_ami"
    blind_to = "a permutation of the classes, and clusters that are right in themselves but have wrong names"

    def score(self, candidate: CandidateModel) -> float:
        """At most 1; about 0 by chance."""
        target = candidate.target
        order = by_content(target.keys, target.features)
        features: np.ndarray = target.features[order].double().cpu().numpy()
        predicted: np.ndarray = target.logits[order].argmax(1).cpu().numpy()
        clusters = min(candidate.classes, len(np.unique(features, axis=0)))
        if len(np.unique(predicted)) < 2 or clusters < 2:
            return 0.0
        return adjusted_mutual_information(predicted, k_means_labels(features, clusters, STARTS))
