"""Retrieval: each query ranks the images of a gallery by cosine, and the relevant ones, which have its class, should come first.

A gallery image with the query's identity is the query itself or a copy of it, and no finding: it is left out. Equal cosines are ordered by
the gallery's rows. Queries without a relevant image count in no mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..errors import UserError
from .cosines import UnitRows, cosine_table, to_numpy, unit_rows
from .counts import Bools, Floats, Ints
from .measures import Measured
from .statistics import Interval, bootstrap_intervals, cluster_numbers, few_errors, of_sums, wilson

PAIRS_AT_ONCE = 1 << 20
"""Pairs of a query and a gallery image that are ranked at a time."""


class LabelledRows(NamedTuple):
    """Images that are queries or a gallery. unit: of `unit_rows`, [N, D]; labels, keys: int64 [N]."""

    unit: UnitRows
    labels: Ints
    keys: Ints


class Retrieved(NamedTuple):
    """What each of M queries finds. values: [M] by metric; those of queries without a relevant image mean nothing.

    relevant: [M], the relevant gallery images of each. candidates: [M], those that are no copy of it.
    """

    values: dict[str, Floats]
    relevant: Ints
    candidates: Ints


def labelled_rows(x: Tensor, labels: Tensor, keys: Tensor, name: str) -> LabelledRows:
    """Queries or a gallery. x: [N, D], any scale; name: what the images are, for errors. Raises UserError if x isn't finite."""
    return LabelledRows(unit_rows(x, name), to_numpy(labels), to_numpy(keys))


def candidate_counts(query_keys: Ints, gallery_keys: Ints) -> Ints:
    """How many gallery images are neither the query nor a copy of it, [M]."""
    return len(gallery_keys) - _occurrences(query_keys, gallery_keys)


def relevant_counts(queries: LabelledRows, gallery: LabelledRows) -> Ints:
    """How many gallery images have the query's class and are no copy of it, [M]."""
    numbers = int(np.concatenate([queries.labels, gallery.labels, [0]]).max()) + 1
    known = np.unique(gallery.keys)

    def both(rows: LabelledRows) -> Ints:
        at = np.searchsorted(known, rows.keys).clip(max=max(0, len(known) - 1))
        same = known[at] == rows.keys if len(known) else np.zeros(len(rows.keys), dtype=bool)
        return np.where(same, at * numbers + rows.labels, -1)

    return _occurrences(queries.labels, gallery.labels) - _occurrences(both(queries), both(gallery))


def rank_gallery(
    queries: LabelledRows, gallery: LabelledRows, k: Sequence[int], *, chunk: int = PAIRS_AT_ONCE
) -> Retrieved:
    """Exact ranking of the whole gallery for each query: `map`, `map@r`, `recall@K` and `precision@K` for each K of k.

    AP is the mean of P(r) over the ranks r of the R relevant images; AP@R is the sum of P(r) over those r of at most R, divided by R
    (Musgrave et al. 2020, arXiv:2003.08505, section 3.2). The numbers are the same for any chunk.

    Peak of memory beside the features: 80 bytes for each of `chunk` pairs (of one query's, if the gallery is larger), 84 MB by default,
    and what `cosine_table` takes.
    """
    relevant = relevant_counts(queries, gallery)
    ks = sorted(set(k))
    names = ["map", "map@r", *(f"{kind}@{one}" for kind in ("recall", "precision") for one in ks)]
    values = {name: np.zeros(len(queries.keys)) for name in names}
    step = max(1, chunk // max(1, len(gallery.keys)))
    for start in range(0, len(queries.keys), step):
        part = slice(start, start + step)
        hits = _ranked_hits(LabelledRows(queries.unit[part], queries.labels[part], queries.keys[part]), gallery)
        row, rank = np.nonzero(hits)
        rank += 1
        number = np.arange(1, len(row) + 1) - np.searchsorted(row, np.arange(len(hits)))[row]
        own = relevant[part]
        for name, terms in (("map", number / rank), ("map@r", number / rank * (rank <= own[row]))):
            values[name][part] = np.bincount(row, terms, minlength=len(hits)) / np.maximum(own, 1)
        for name, found in hits_at(hits, ks).items():
            values[name][part] = found
    return Retrieved(values, relevant, candidate_counts(queries.keys, gallery.keys))


def hits_at(hits: Bools, k: Sequence[int]) -> dict[str, Floats]:
    """`recall@K`: whether one of the first K is relevant; `precision@K`: the part of the first K that is. hits: [M, at least K], ranked."""
    counts = {one: hits[:, :one].sum(axis=1) for one in k}
    recall = {f"recall@{one}": (count > 0).astype(np.float64) for one, count in counts.items()}
    return recall | {f"precision@{one}": count / one for one, count in counts.items()}


def retrieval_metrics(found: Retrieved, units: Ints, *, seed: int) -> Measured:
    """Means over the queries with a relevant image, with intervals. units: [M], what of the queries the bootstrap draws as a whole.

    The gallery is held fixed. `recall@K`, a share of queries, has Wilson's interval where at most one unit misses, or finds. Values of
    K beyond the gallery are left out, and so is everything where no query has a relevant image; `left_out` of the details says why.
    Raises UserError for a set without images.
    """
    if len(units) == 0:
        raise UserError("there are no labelled images to score; give a test set with at least one")
    asked, least = found.relevant > 0, int(found.candidates.min())
    details: dict[str, Any] = {"queries": len(units), "without_relevant": int((~asked).sum())}
    left_out: dict[str, str] = {}
    for name in found.values:
        kind, _, number = name.partition("@")
        if not asked.any():
            left_out[name] = "no query has a relevant image in the gallery"
        elif kind != "map" and int(number) > least:
            left_out[name] = f"a query has {least} images to retrieve from"
    values = {name: value[asked] for name, value in found.values.items() if name not in left_out}
    if left_out:
        details["left_out"] = left_out
    if not values:
        return Measured({}, {}, details)
    intervals, details["interval"] = _intervals(values, units[asked], seed)
    return Measured({name: float(value.mean()) for name, value in values.items()}, intervals, details)


def _intervals(values: Mapping[str, Floats], units: Ints, seed: int) -> tuple[dict[str, list[float]], str]:
    """Of 95 %, by name, and how that of the first metric was made."""
    member, clusters = cluster_numbers(units)
    columns = [np.bincount(member, value, minlength=clusters) for value in values.values()]
    sums = np.stack([*columns, np.bincount(member, minlength=clusters)], axis=1)

    def means(drawn: Floats) -> dict[str, Floats]:
        return {name: drawn[:, i] / drawn[:, -1] for i, name in enumerate(values)}

    found = bootstrap_intervals(of_sums(sums, means), clusters, seed=seed)
    for name, value in values.items():
        share_of_queries = name.startswith("recall@") or name == "precision@1"
        if share_of_queries and few_errors(value > 0, member, clusters):
            share = found[name].estimate
            found[name] = Interval(share, *wilson(share, clusters), "wilson")
    known = {name: [i.low, i.high] for name, i in found.items() if i.low is not None and i.high is not None}
    return known, next(iter(found.values())).method


def _ranked_hits(queries: LabelledRows, gallery: LabelledRows) -> Bools:
    """Whether each gallery image is relevant, in the order of falling cosine, [q, G]; copies of the query come last, as irrelevant."""
    copies = queries.keys[:, None] == gallery.keys
    distance = cosine_table(queries.unit, gallery.unit)
    np.negative(distance, out=distance)
    distance[copies] = np.inf
    order = np.argsort(distance, axis=1, kind="stable")
    return np.take_along_axis((queries.labels[:, None] == gallery.labels) & ~copies, order, axis=1)


def _occurrences(values: Ints, among: Ints) -> Ints:
    """How often each value is in `among`, [M]."""
    known, counts = np.unique(among, return_counts=True)
    if not len(known):
        return np.zeros(len(values), dtype=np.int64)
    at = np.searchsorted(known, values).clip(max=len(known) - 1)
    return np.where(known[at] == values, counts[at], 0)
