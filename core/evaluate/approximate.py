"""Approximate search of nearest neighbours by faiss, measured in the same run against exact search: what it misses, what it gains.

The indices are built by one thread, since several would insert into a graph in another order each time.
"""

from __future__ import annotations

import math
import time
from typing import Any, Literal, NamedTuple

import faiss
import numpy as np

from .cosines import UnitRows, pair_cosines
from .counts import Floats, Ints

ApproximateIndex = Literal["ivf", "hnsw"]
ITERATIONS, PROBED = 10, 16  # of k-means; cells that a query looks into
LINKS, BUILD_WIDTH, SEARCH_WIDTH = (
    32,
    200,
    64,
)  # of HNSW: M, efConstruction, efSearch (Malkov & Yashunin 2016, arXiv:1603.09320)
POINTS_PER_CELL = 39  # faiss warns of fewer
ROUNDS = 8  # both searches take turns, each time with an eighth of the queries


class Nearest(NamedTuple):
    """rows: int64 [M, k] of the gallery, by falling cosine, then by row; -1 where fewer were found. facts: for the details of a result."""

    rows: Ints
    facts: dict[str, Any]


def approximate_neighbours(
    queries: tuple[UnitRows, Ints], gallery: tuple[UnitRows, Ints], k: int, *, kind: ApproximateIndex, seed: int
) -> Nearest:
    """The k nearest gallery rows of each query by an approximate index, without copies of the query.

    queries, gallery: rows of `unit_rows`, [M, D] and [N, D], and identities, int64; copies have the query's. As many more rows are searched
    for as a query has copies. The facts say which part of the k nearest was found (a row as near as the k-th counts, since exact search
    chooses freely among equal ones), and the time of both searches in this process, in turns, on as many threads as faiss takes. The two
    indices hold a copy of the gallery each; HNSW's has 260 bytes more for each row.
    """
    (rows, keys), (stored, stored_keys) = queries, gallery
    most = np.unique(stored_keys[np.isin(stored_keys, keys)], return_counts=True)[1].max(initial=0)
    depth = min(k + int(most), len(stored))
    index, settings = _built(stored, kind, depth, seed)
    # Any: faiss's Python signatures are swig's, which type checkers misread.
    exact: Any = faiss.IndexFlatIP(stored.shape[1])
    exact.add(stored)
    result, found, wanted, seconds = np.full((len(rows), k), -1, dtype=np.int64), 0, 0, {False: 0.0, True: 0.0}
    step = max(1, -(-len(rows) // ROUNDS))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        near: dict[bool, Floats] = {}
        for flat in (True, False) if start // step % 2 else (False, True):
            begun = time.perf_counter()
            answer = (exact if flat else index).search(rows[part], depth)[1]
            seconds[flat] += time.perf_counter() - begun
            answer, near[flat] = _ordered(rows[part], stored, answer, keys[part, None] == stored_keys[answer], k)
            if not flat:
                result[part, : answer.shape[1]] = answer
        there = np.isfinite(near[True])
        furthest = np.where(there, near[True], np.inf).min(axis=1, initial=np.inf)
        found += int(np.minimum((near[False] >= furthest[:, None]).sum(axis=1), there.sum(axis=1)).sum())
        wanted += int(there.sum())
    each = {flat: total / max(1, len(rows)) for flat, total in seconds.items()}
    facts = {**settings, f"found_of_{k}_nearest": found / wanted if wanted else None}
    facts |= {"seconds_a_query": each[False], "seconds_a_query_flat": each[True]}
    facts |= {"times_as_fast_as_flat": each[True] / max(each[False], 1e-12), "threads": faiss.omp_get_max_threads()}
    return Nearest(result, facts)


def _built(gallery: UnitRows, kind: ApproximateIndex, depth: int, seed: int) -> tuple[Any, dict[str, int]]:
    """The filled index and its settings; the same for the same rows and seed."""
    n, width = gallery.shape
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index: Any
        if kind == "ivf":
            cells = max(1, min(int(4 * math.sqrt(n)), n // POINTS_PER_CELL))
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
            index.cp.seed, index.cp.niter, index.cp.min_points_per_centroid = seed % 2**31, ITERATIONS, 1
            index.train(gallery)
            index.nprobe = min(PROBED, cells)
            settings = {"cells": cells, "probed": index.nprobe}
        else:
            index = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction, index.hnsw.efSearch = BUILD_WIDTH, max(SEARCH_WIDTH, 2 * depth)
            settings = {"links": LINKS, "build_width": BUILD_WIDTH, "search_width": index.hnsw.efSearch}
        index.add(gallery)
    finally:
        faiss.omp_set_num_threads(threads)
    return index, settings


def _ordered(queries: UnitRows, gallery: UnitRows, rows: Ints, copies: Any, k: int) -> tuple[Ints, Floats]:
    """The first k of found rows [m, j] by exact cosine, then by row, and these cosines; -1 and -inf for copies and what wasn't found."""
    query = np.repeat(np.arange(len(queries)), rows.shape[1])
    near = pair_cosines(queries, gallery, query, rows.ravel()).reshape(rows.shape)
    near[copies | (rows < 0)] = -np.inf
    order = np.lexsort((rows, -near), axis=1)[:, :k]
    near = np.take_along_axis(near, order, axis=1)
    return np.where(np.isfinite(near), np.take_along_axis(rows, order, axis=1), -1), near
