"""Retrieval on frozen features: how well the nearest images of a gallery have the class of a test image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from ...core.errors import UserError
from ...core.evaluate.approximate import approximate_neighbours
from ...core.evaluate.cosines import to_numpy
from ...core.evaluate.counts import Ints
from ...core.evaluate.measures import Measured
from ...core.evaluate.retrieval import (
    LabelledRows,
    Retrieved,
    candidate_counts,
    hits_at,
    labelled_rows,
    rank_gallery,
    relevant_counts,
    retrieval_metrics,
)
from .contract import Counts, Known, LabelledTest, Measuring


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Images of a gallery, ranked by their cosine to each test image; relevant are those of its class. Nothing is trained or chosen.

    A copy of the query (an image of the same identity, or the query itself) is no candidate. Equal cosines are ordered by the gallery's
    rows. Queries without a relevant image count in no mean; the details say how many. mAP is over the whole gallery, mAP@R over the first
    R, R being the number of relevant images (Musgrave et al. 2020, arXiv:2003.08505). Intervals hold the gallery fixed.

    gallery: What is searched: train (the training images without copies) or test (the other images of the test set).
    k: Ranks at which recall@k and precision@k are measured, 1 or more, or a list; values beyond the gallery are left out.
    index: flat is exact; ivf and hnsw are faiss's approximate indices, measured against exact search: the details have the part of the k
        nearest that was found, and both times. They rank only the nearest, so they give no mAP.
    taps: Features that are read, by name (`pooled`, `cls`, `mean`, `last4`, `block3`, ...; `layers` for each block or stage); each is
        measured on its own.
    """

    gallery: Literal["train", "test"] = "train"
    k: int | tuple[int, ...] = (1, 5, 10)
    index: Literal["flat", "ivf", "hnsw"] = "flat"
    taps: tuple[str, ...] = ("pooled",)

    @property
    def reads(self) -> tuple[str, ...]:
        """The tap."""
        return self.taps

    @property
    def ranks(self) -> list[int]:
        """The values of k, ascending."""
        return [self.k] if isinstance(self.k, int) else sorted(set(self.k))

    def requires(self, name: str, counts: Counts) -> None:
        """Raises UserError for k below 1, and for a gallery smaller than the smallest k."""
        if not self.ranks or self.ranks[0] < 1:
            raise UserError(f"evaluate.retrieval.k: expected one or more numbers of at least 1, got {self.ranks}")
        stored = None if self.gallery == "test" else to_numpy(counts.keys)
        left = {test: _fewest(to_numpy(keys), stored) for test, keys in counts.tests.items()}
        test = min(left, key=left.__getitem__, default="")
        if left and (least := left[test]) < self.ranks[0]:
            what = "other images of it" if stored is None else "training images"
            remedy = f"give k of at most {least}, or more images" if least else "give more images"
            raise UserError(
                f"evaluate.retrieval.k: a query of {test} has {least} {what} to retrieve from (copies left out), fewer than k = "
                f"{self.ranks[0]}; {remedy}"
            )

    def fit(self, train: Known) -> Measuring:
        """Keep the training images as the gallery, where they are."""
        facts = {"gallery": self.gallery, "index": self.index, "tap": self.taps[0]}
        stored: LabelledRows | None = None
        if self.gallery == "train":
            stored = labelled_rows(train.features[self.taps[0]], train.labels, train.keys, "training")

        def measure(test: LabelledTest) -> Measured:
            queries = labelled_rows(test.features[self.taps[0]], test.labels, test.keys, "test")
            gallery = queries if stored is None else stored
            return self._measured(queries, gallery, test.units, test.seed)

        return Measuring(measure, facts)

    def _measured(self, queries: LabelledRows, gallery: LabelledRows, units: Tensor, seed: int) -> Measured:
        """Metrics of one test set by the index."""
        told = {"gallery_images": len(gallery.keys)}
        if self.index == "flat":
            measured = retrieval_metrics(rank_gallery(queries, gallery, self.ranks), to_numpy(units), seed=seed)
            return measured._replace(details=told | measured.details)
        candidates = candidate_counts(queries.keys, gallery.keys)
        fitting = [k for k in self.ranks if k <= candidates.min(initial=len(gallery.keys))]
        near = approximate_neighbours(
            (queries.unit, queries.keys),
            (gallery.unit, gallery.keys),
            max(fitting, default=1),
            kind=self.index,
            seed=seed,
        )
        hits = (gallery.labels[near.rows] == queries.labels[:, None]) & (near.rows >= 0)
        values = hits_at(hits, fitting)
        # Those beyond the gallery are named among what is left out.
        values |= {
            f"{kind}@{k}": np.zeros(len(hits))
            for kind in ("recall", "precision")
            for k in self.ranks
            if k not in fitting
        }
        found = Retrieved(values, relevant_counts(queries, gallery), candidates)
        measured = retrieval_metrics(found, to_numpy(units), seed=seed)
        return measured._replace(details=told | near.facts | measured.details)


def _fewest(keys: Ints, stored: Ints | None) -> int:
    """The fewest gallery images that any query has; stored: the gallery's identities, None for the queries themselves."""
    gallery = keys if stored is None else stored
    return int(candidate_counts(keys, gallery).min(initial=len(gallery)))
