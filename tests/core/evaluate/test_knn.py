import logging
import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.evaluate import knn
from rootstock.core.evaluate.cosines import cosine_table, unit_rows
from rootstock.core.evaluate.knn import knn_predict, neighbours, vote


def clusters(n: int, seed: int, classes: int = 5, dim: int = 8) -> tuple[Tensor, Tensor]:
    """Overlapping blobs, n points: features [n, dim] of very different lengths, labels [n]."""
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    x = centres[y] + torch.randn(n, dim, generator=generator)
    return x * (0.1 + 10 * torch.rand(n, 1, generator=generator)), y


def slow_knn(train_x: Tensor, train_y: Tensor, test_x: Tensor, classes: int, k: int, t: float | None) -> list[int]:
    """Every cosine by hand, a full sort, votes one by one."""
    train, test = train_x.double().numpy(), test_x.double().numpy()
    predictions = []
    for x in test:
        cosines = [float(x @ z) / math.sqrt(float(x @ x) * float(z @ z)) for z in train]
        votes = np.zeros(classes)
        for i in sorted(range(len(train)), key=lambda i: -cosines[i])[:k]:
            votes[int(train_y[i])] += 1.0 if t is None else math.exp(cosines[i] / t)
        predictions.append(int(votes.argmax()))
    return predictions


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("temperature", [0.07, 0.5, None])
def test_against_a_slow_version(k: int, temperature: float | None) -> None:
    train_x, train_y = clusters(80, seed=0)
    test_x, _ = clusters(60, seed=1)
    found = knn_predict(train_x, train_y, test_x, 5, k=k, temperature=temperature)
    assert found.dtype == torch.int64
    assert found.tolist() == slow_knn(train_x, train_y, test_x, 5, k, temperature)


def test_equal_votes_are_scikit_learns_majority() -> None:
    train_x, train_y = clusters(200, seed=2)
    test_x, _ = clusters(100, seed=3)
    theirs = KNeighborsClassifier(7, metric="cosine").fit(train_x, train_y).predict(test_x)
    assert knn_predict(train_x, train_y, test_x, 5, k=7, temperature=None).tolist() == theirs.tolist()


def test_limits_of_the_temperature() -> None:
    """T -> 0 is the nearest neighbour (and must not overflow), T -> infinity the majority."""
    train_x, train_y = clusters(80, seed=0)
    test_x, _ = clusters(60, seed=1)
    nearest = knn_predict(train_x, train_y, test_x, 5, k=1)
    majority = knn_predict(train_x, train_y, test_x, 5, k=9, temperature=None)
    assert torch.equal(knn_predict(train_x, train_y, test_x, 5, k=9, temperature=1e-7), nearest)
    # Near-equal weights still break the majority's ties by similarity, so only clear majorities are compared.
    _, rows = neighbours(train_x, test_x, 9)
    top = torch.nn.functional.one_hot(train_y[rows], 5).sum(1).topk(2, dim=1).values
    clear = top[:, 0] > top[:, 1]
    assert int(clear.sum()) > 30
    assert torch.equal(knn_predict(train_x, train_y, test_x, 5, k=9, temperature=1e6)[clear], majority[clear])


def test_neighbours_come_nearest_first() -> None:
    train_x, _ = clusters(50, seed=0)
    test_x, _ = clusters(10, seed=1)
    similarity, rows = neighbours(train_x, test_x, 50)
    cosine = torch.nn.functional.cosine_similarity(test_x[:, None], train_x[None], dim=2)
    torch.testing.assert_close(similarity, cosine.sort(dim=1, descending=True).values)
    assert torch.equal(rows, cosine.argsort(dim=1, descending=True))


@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1e-30, 1e-13, 1e13, 1e20, 3e37, 1e300])
def test_the_scale_of_features_is_no_matter(scale: float) -> None:
    """Powers beside a power of two round; so float64 goes in. Numbers beyond float32 too."""
    generator = torch.Generator().manual_seed(3)
    x, test, y = torch.rand(40, 8, generator=generator), torch.rand(9, 8, generator=generator), torch.arange(40) % 5
    near, rows = neighbours(x, test, 7)
    found, same = neighbours(x.double() * scale, test.double() * scale, 7)
    assert torch.equal(rows, same)
    torch.testing.assert_close(found, near)
    assert torch.equal(knn_predict(x, y, test, 5), knn_predict(x.double() * scale, y, test, 5))


@pytest.mark.parametrize("at_once", [1, 1 << 23])
def test_of_equally_near_rows_the_lower_are_neighbours(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stable sort of exact cosines; so a smaller k takes the first of a larger one's neighbours."""
    monkeypatch.setattr(knn, "TIED_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(5)
    different = torch.randn(40, 33, generator=generator)
    x, test = different[torch.randint(40, (301,), generator=generator)], torch.randn(25, 33, generator=generator)
    x[7:30] = 0.0
    exact = cosine_table(unit_rows(test, "test"), unit_rows(x, "train"))
    order = torch.from_numpy(np.argsort(-exact, axis=1, kind="stable"))
    for k in (1, 2, 20, 150, 300, 301):
        similarity, rows = neighbours(x, test, k)
        assert torch.equal(rows, order[:, :k]), k
        torch.testing.assert_close(similarity, torch.from_numpy(exact).float().gather(1, rows))
    _, rows = neighbours(torch.ones(50, 4), torch.ones(3, 4), 5)  # a collapsed network
    assert rows.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_ties_go_to_the_lower_class() -> None:
    similarity = torch.ones(1, 4)
    assert vote(similarity, torch.tensor([[3, 1, 3, 1]]), 5, None).argmax(1).tolist() == [1]


def test_k_beyond_the_training_set_is_clipped_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    train_x, train_y = clusters(13, seed=0)
    test_x, _ = clusters(10, seed=1)
    with caplog.at_level(logging.WARNING):
        found = [knn_predict(train_x, train_y, test_x, 5, k=1000) for _ in range(2)][1]
    assert caplog.messages == ["kNN: k = 1000 is more than the 13 training images; all of them vote"]
    assert torch.equal(found, knn_predict(train_x, train_y, test_x, 5, k=13))


def test_bad_input_is_named() -> None:
    x, y = clusters(10, seed=0)
    broken = x.clone()
    broken[3, 1] = math.nan
    with pytest.raises(UserError, match="1 of 10 training features are not finite"):
        knn_predict(broken, y, x, 5, k=3)
    with pytest.raises(UserError, match="1 of 10 test features are not finite"):
        knn_predict(x, y, broken, 5, k=3)
    with pytest.raises(UserError, match="k of at least 1, got 0"):
        knn_predict(x, y, x, 5, k=0)
    with pytest.raises(UserError, match="temperature above 0"):
        knn_predict(x, y, x, 5, k=3, temperature=0.0)
    with pytest.raises(UserError, match=r"lie in -1\.\."):
        knn_predict(x, y - y.min() - 1, x, 5, k=3)
    with pytest.raises(UserError, match="at least one training image"):
        knn_predict(x[:0], y[:0], x, 5)
    with pytest.raises(ValueError, match="as many labels"):
        knn_predict(x, y[:4], x, 5, k=3)
    with pytest.raises(ValueError, match="8 numbers an image, test features 7"):
        knn_predict(x, y, x[:, :7], 5, k=3)


@pytest.mark.parametrize("temperature", [0.1, None])
def test_shares_of_several_classes_against_a_slow_version(
    temperature: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number of test rows at a time gives the same bits; a class that all neighbours have has 1, one that none has 0."""
    (train_x, _), (test_x, _) = clusters(40, 0), clusters(15, 1)
    labels = (torch.rand(40, 4, generator=torch.Generator().manual_seed(2)) < 0.4).to(torch.uint8)
    labels[:, 2], labels[:, 3] = 1, 0
    found = knn.knn_scores(train_x, labels, test_x, 4, k=7, temperature=temperature)
    similarity, rows = neighbours(train_x, test_x, 7)
    for i in range(15):
        weights = [1.0 if temperature is None else math.exp(s / temperature) for s in similarity[i].tolist()]
        for c in range(4):
            share = sum(w for w, row in zip(weights, rows[i].tolist(), strict=True) if labels[row, c]) / sum(weights)
            assert float(found[i, c]) == pytest.approx(share, abs=1e-3)
    assert bool((found[:, 2] == 1).all()) and not found[:, 3].any()
    monkeypatch.setattr(knn, "VOTE_ROWS", 2)
    assert torch.equal(knn.knn_scores(train_x, labels, test_x, 4, k=7, temperature=temperature), found)
    with pytest.raises(ValueError, match=r"expected labels \[40, 4\]"):
        knn.knn_scores(train_x, labels[:, :3], test_x, 4)


def test_an_empty_test_set_gives_no_predictions() -> None:
    x, y = clusters(10, seed=0)
    assert knn_predict(x, y, x[:0], 5, k=3).tolist() == []
