"""k-means by scikit-learn, which is imported when it is used."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def k_means_labels(rows: NDArray[Any], clusters: int, starts: int) -> NDArray[np.int32]:
    """[N]: the cluster of each row, by the best of `starts` runs of k-means with a fixed seed. rows: [N, D]."""
    from sklearn.cluster import KMeans

    # scikit-learn's stubs know only the text "auto".
    return KMeans(clusters, n_init=starts, random_state=0).fit_predict(rows)  # pyright: ignore[reportArgumentType]


def adjusted_mutual_information(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Of two clusterings [N]: 1 if they are the same, about 0 by chance (scikit-learn's `adjusted_mutual_info_score`)."""
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(a, b))
