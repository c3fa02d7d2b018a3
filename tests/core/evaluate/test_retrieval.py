"""Retrieval equals loops over queries and ranks, scikit-learn's average precision, and itself in any chunk."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from rootstock.core.errors import UserError
from rootstock.core.evaluate.approximate import ApproximateIndex, approximate_neighbours
from rootstock.core.evaluate.counts import Ints
from rootstock.core.evaluate.retrieval import (
    LabelledRows,
    candidate_counts,
    labelled_rows,
    rank_gallery,
    relevant_counts,
    retrieval_metrics,
)

K = (1, 3, 7)


def labelled(n: int, seed: int, *, classes: int = 4, copies: int = 1, whole: bool = False) -> LabelledRows:
    """Random images, `copies` rows in a row with one identity. whole: features of small integers, with many equal cosines."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-1, 2, (n, 3), generator=generator).float() if whole else torch.randn(n, 5, generator=generator)
    y = torch.randint(classes, (n,), generator=generator)
    return labelled_rows(x, y, 1000 * seed + torch.arange(n) // copies, "test")


def slow(queries: LabelledRows, gallery: LabelledRows) -> list[dict[str, float] | None]:
    """Each query's metrics by loops; None for one without a relevant image."""
    found: list[dict[str, float] | None] = []
    for unit, label, key in zip(*queries, strict=True):
        cosine = [sum(float(a) * float(b) for a, b in zip(unit, row, strict=True)) for row in gallery.unit]
        rows = [row for row in range(len(gallery.keys)) if gallery.keys[row] != key]
        rows.sort(key=lambda row: (-cosine[row], row))
        hits = [bool(gallery.labels[row] == label) for row in rows]
        total = sum(hits)
        if not total:
            found.append(None)
            continue
        at = [(rank, sum(hits[:rank]) / rank) for rank in range(1, len(hits) + 1) if hits[rank - 1]]
        values = {"map": sum(p for _, p in at) / total, "map@r": sum(p for rank, p in at if rank <= total) / total}
        values |= {f"recall@{k}": float(any(hits[:k])) for k in K}
        found.append(values | {f"precision@{k}": sum(hits[:k]) / k for k in K})
    return found


def check(queries: LabelledRows, gallery: LabelledRows) -> None:
    expected, found = slow(queries, gallery), rank_gallery(queries, gallery, K, chunk=50)
    assert [bool(r) for r in found.relevant] == [one is not None for one in expected]
    for row, one in enumerate(expected):
        for name, value in (one or {}).items():
            assert found.values[name][row] == pytest.approx(value, abs=1e-12), (row, name)
    right = [one for one in expected if one is not None]
    measured = retrieval_metrics(found, queries.keys, seed=0)
    assert measured.details["without_relevant"] == len(expected) - len(right)
    for name, value in measured.metrics.items():
        assert value == pytest.approx(np.mean([one[name] for one in right]), abs=1e-12)
        if name in measured.intervals:
            assert 0 <= measured.intervals[name][0] <= value <= measured.intervals[name][1] <= 1
    least = found.candidates.min()
    kept = {"map", "map@r"} | {f"{kind}@{k}" for kind in ("recall", "precision") for k in K if k <= least}
    assert set(measured.metrics) == (kept if right else set())


@pytest.mark.parametrize("n", range(1, 34))
def test_rankings_are_those_of_loops(n: int) -> None:
    """In a gallery of other images, with ties, and in the set itself, whose copies of the query are no candidates."""
    gallery = labelled(23, 100, whole=n % 2 == 0)
    check(labelled(n, n, classes=5, whole=n % 2 == 0), gallery)  # class 4 is not in the gallery
    own = labelled(n, n, copies=1 + n % 3)
    check(own, own)


def test_average_precision_is_scikit_learns() -> None:
    queries, gallery = labelled(20, 1), labelled(60, 2)
    found = rank_gallery(queries, gallery, K)
    for row in range(20):
        score = gallery.unit.astype(float) @ queries.unit[row].astype(float)
        expected = average_precision_score(gallery.labels == queries.labels[row], score)
        assert found.values["map"][row] == pytest.approx(expected, abs=1e-12)


def test_map_at_r_by_hand() -> None:
    """Musgrave et al. 2020, figure 3: of ten nearest with R = 10, the relevant ones are 1; 1 and 10; 1 and 2; all."""
    gallery = LabelledRows(np.zeros((20, 2), np.float32), np.zeros(20, np.int64), np.arange(20))
    gallery.unit[:, 0] = np.linspace(1, 0.1, 20)
    for places, value in (((0,), 0.1), ((0, 9), 0.12), ((0, 1), 0.2), (range(10), 1.0)):
        labels = np.ones(20, np.int64)
        rest = list(range(10, 20))[: 10 - len(places)]
        labels[[*places, *rest]] = 0
        query = LabelledRows(np.array([[1.0, 0.0]], np.float32), np.array([0]), np.array([99]))
        found = rank_gallery(query, gallery._replace(labels=labels), (1,))
        assert found.relevant.tolist() == [10] and found.values["map@r"][0] == pytest.approx(value)


def test_chunks_agree_exactly_and_take_the_stated_memory() -> None:
    queries, gallery = labelled(90, 1, whole=True), labelled(400, 2, whole=True)
    whole = rank_gallery(queries, gallery, K)
    for chunk in (1, 399, 1000, 17_000):
        part = rank_gallery(queries, gallery, K, chunk=chunk)
        assert all((part.values[name] == whole.values[name]).all() for name in whole.values)
    alike = queries._replace(labels=np.zeros(90, np.int64)), gallery._replace(labels=np.zeros(400, np.int64))
    tracemalloc.start()
    rank_gallery(*alike, K, chunk=40 * 400)  # where every image is relevant
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * 40 * 400 + 100_000


def test_counts_of_candidates_and_of_relevant_images() -> None:
    a, b = labelled(17, 1, copies=2), labelled(40, 2)
    b = b._replace(keys=np.concatenate([a.keys[:10], b.keys[10:]]), labels=np.concatenate([a.labels[:9], b.labels[9:]]))
    for queries, gallery in ((a, a), (a, b), (b, a)):
        others = [gallery.keys != key for key in queries.keys]
        assert candidate_counts(queries.keys, gallery.keys).tolist() == [one.sum() for one in others]
        right = [(one & (gallery.labels == y)).sum() for one, y in zip(others, queries.labels, strict=True)]
        assert relevant_counts(queries, gallery).tolist() == right
    assert candidate_counts(a.keys, b.keys[:0]).tolist() == [0] * 17


def test_what_cannot_be_measured_is_left_out_with_its_reason() -> None:
    queries, gallery = labelled(6, 1), labelled(5, 2)
    found = retrieval_metrics(rank_gallery(queries, gallery, K), queries.keys, seed=0)
    assert found.details["left_out"] == dict.fromkeys(
        ["recall@7", "precision@7"], "a query has 5 images to retrieve from"
    )
    other = gallery._replace(labels=gallery.labels + 9)
    none = retrieval_metrics(rank_gallery(queries, other, K), queries.keys, seed=0)
    assert none.metrics == {} and none.details["without_relevant"] == 6 and len(none.details["left_out"]) == 8
    with pytest.raises(UserError, match="no labelled images to score"):
        retrieval_metrics(rank_gallery(labelled(0, 1), gallery, K), queries.keys[:0], seed=0)


def test_intervals_draw_identities_and_are_wilsons_where_one_misses() -> None:
    """Copies of all queries leave every interval as it was."""
    queries, gallery = labelled(40, 1), labelled(60, 2)
    queries.unit[:], queries.labels[:] = gallery.unit[:40], gallery.labels[:40]
    one = retrieval_metrics(rank_gallery(queries, gallery, K), queries.keys, seed=0)
    twice = LabelledRows(np.tile(queries.unit, (2, 1)), np.tile(queries.labels, 2), np.tile(queries.keys, 2))
    two = retrieval_metrics(rank_gallery(twice, gallery, K), twice.keys, seed=0)
    assert {k: pytest.approx(v) for k, v in one.metrics.items()} == two.metrics
    assert {k: pytest.approx(v) for k, v in one.intervals.items()} == two.intervals
    assert one.metrics["recall@1"] == 1.0 and one.intervals["recall@1"] == [pytest.approx(0.912, abs=1e-3), 1.0]


def exact(queries: LabelledRows, gallery: LabelledRows, k: int) -> Ints:
    table: Any = queries.unit.astype(float) @ gallery.unit.astype(float).T
    table[queries.keys[:, None] == gallery.keys] = -np.inf
    return np.argsort(-table, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_says_what_it_finds(kind: ApproximateIndex) -> None:
    gallery = labelled(1500, 1, copies=2)
    queries = LabelledRows(gallery.unit[:203], gallery.labels[:203], gallery.keys[:203])
    near = approximate_neighbours((queries.unit, queries.keys), (gallery.unit, gallery.keys), 10, kind=kind, seed=3)
    right = exact(queries, gallery, 10)
    found = sum(len(set(a) & set(b)) for a, b in zip(near.rows.tolist(), right.tolist(), strict=True))
    assert near.facts["found_of_10_nearest"] == pytest.approx(found / (203 * 10)) and found > 1000
    assert not (gallery.keys[near.rows] == queries.keys[:, None]).any()
    assert near.facts["seconds_a_query"] > 0 and near.facts["times_as_fast_as_flat"] > 0
    again = approximate_neighbours((queries.unit, queries.keys), (gallery.unit, gallery.keys), 10, kind=kind, seed=3)
    assert (again.rows == near.rows).all()


@pytest.mark.parametrize("n", [1, 2, 9, 33])
@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_of_a_few_images_is_exact(kind: ApproximateIndex, n: int) -> None:
    """Also with ties, which go by the gallery's rows, and fewer images than are asked for."""
    gallery = labelled(n, n, whole=True)
    near = approximate_neighbours((gallery.unit, gallery.keys), (gallery.unit, gallery.keys), 12, kind=kind, seed=0)
    right = exact(gallery, gallery, n)[:, : min(12, n - 1)]
    if n - 1 <= 12:  # with more, equal ones at the twelfth place are any of them
        assert (near.rows[:, : n - 1] == right).all() and (near.rows[:, n - 1 :] == -1).all()
    assert near.facts["found_of_12_nearest"] == (None if n == 1 else 1.0)
