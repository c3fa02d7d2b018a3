"""Retrieval and verification as protocols: what they measure, refuse and cannot see; and a whole probe of nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.evaluate.retrieval import labelled_rows, rank_gallery, retrieval_metrics
from rootstock.core.evaluate.verification import verify_pairs
from rootstock.finetune import probe as module
from rootstock.finetune.protocols.contract import Counts, Known, LabelledTest, MeasuringProtocol, Tapped
from rootstock.finetune.protocols.registry import COMPARISONS, chosen_protocols
from rootstock.finetune.protocols.retrieval import Retrieval
from rootstock.finetune.protocols.verification import Verification
from rootstock.launch.report.page import write_report
from rootstock.launch.runs import find_runs, row_of
from rootstock.launch.verbs import execute

CLASSES = ("ant", "bee", "cat", "dog")
EVERY: dict[str, MeasuringProtocol] = {
    "train": Retrieval(),
    "test": Retrieval(gallery="test", k=3),
    "ivf": Retrieval(index="ivf", k=(1, 4)),
    "hnsw": Retrieval(index="hnsw", gallery="test"),
    "verification": Verification(far=0.05),
    "few pairs": Verification(pairs=500, far=(0.05,)),
}


def blobs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (n,), generator=generator)
    return 3 * torch.eye(4)[y] + torch.randn(n, 4, generator=generator), y


def known(n: int = 120, seed: int = 0) -> Known:
    x, y = blobs(n, seed)
    return Known({"pooled": x, "cls": -x}, y, torch.arange(n), CLASSES)


def shown(n: int = 50, seed: int = 1) -> LabelledTest:
    x, y = blobs(n, seed)
    return LabelledTest({"pooled": x, "cls": -x}, y, 1000 + torch.arange(n), 1000 + torch.arange(n), 7)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_outcome(name: str) -> None:
    """Metrics beyond chance, in JSON, the same again; labels of the test that mean nothing give chance."""
    fitted = EVERY[name].fit(known())
    test = shown()
    found = fitted.measure(test)
    json.dumps([found.metrics, found.intervals, found.details, dict(fitted.facts)], allow_nan=False)
    first = "eer" if isinstance(EVERY[name], Verification) else "map" if name in ("train", "test") else "recall@"
    assert next(iter(found.metrics)).startswith(first)
    again = EVERY[name].fit(known()).measure(test)
    assert again.metrics == found.metrics and again.intervals == found.intervals
    shuffled = test._replace(labels=test.labels[torch.randperm(50, generator=torch.Generator().manual_seed(0))])
    other, key = fitted.measure(shuffled), "pair_auroc" if first == "eer" else list(found.metrics)[-1]
    chance = 0.5 if first == "eer" else 0.25
    assert found.metrics[key] > chance + 0.2 and other.metrics[key] == pytest.approx(chance, abs=0.12)


def test_they_are_the_arithmetic_of_core() -> None:
    train, test = known(), shown()
    queries = labelled_rows(test.features["cls"], test.labels, test.keys, "test")
    gallery = labelled_rows(train.features["cls"], train.labels, train.keys, "training")
    expected = retrieval_metrics(rank_gallery(queries, gallery, (1, 5, 10)), queries.keys, seed=7)
    found = Retrieval(taps=("cls",)).fit(train).measure(test)
    assert (found.metrics, found.intervals) == expected[:2] and found.details["gallery_images"] == 120
    own = retrieval_metrics(rank_gallery(queries, queries, (2,)), queries.keys, seed=7)
    assert Retrieval(taps=("cls",), k=2, gallery="test").fit(train).measure(test).metrics == own.metrics
    pairs = verify_pairs(test.features["pooled"], test.labels, test.keys, pairs=300, far=(0.1,), seed=7)
    assert Verification(pairs=300, far=0.1).fit(train).measure(test) == pairs
    assert pairs.details["genuine"]["pairs"] == 150 and pairs.details["impostor"]["pairs"] == 150


@pytest.mark.parametrize("name", sorted(EVERY))
def test_units_are_drawn_as_a_whole_and_change_no_metric(name: str) -> None:
    """Five pictures of each of ten patients, that are copies of each other: not surer than ten pictures are."""
    fitted, test = EVERY[name].fit(known()), shown()
    patients = torch.arange(50) // 5
    grouped = test._replace(
        features={tap: rows[patients * 5] for tap, rows in test.features.items()}, labels=test.labels[patients * 5]
    )
    apart, together = fitted.measure(grouped), fitted.measure(grouped._replace(units=patients))
    assert apart.metrics == together.metrics
    wider = [
        (together.intervals[key][1] - together.intervals[key][0])
        / max(1e-9, apart.intervals[key][1] - apart.intervals[key][0])
        for key in apart.intervals.keys() & together.intervals.keys()
        if apart.intervals[key][1] - apart.intervals[key][0] > 0.05
    ]
    assert wider and min(wider) > 1.3, (apart.intervals, together.intervals)


def test_an_approximate_index_ranks_as_flat_where_it_finds_all() -> None:
    train, test = known(30), shown()
    flat, ivf = (Retrieval(index=kind, k=(1, 5, 99)).fit(train).measure(test) for kind in ("flat", "ivf"))
    assert ivf.metrics == {name: value for name, value in flat.metrics.items() if not name.startswith("map")}
    assert (
        ivf.details["left_out"]
        == flat.details["left_out"]
        == {f"{kind}@99": "a query has 30 images to retrieve from" for kind in ("recall", "precision")}
    )
    assert {"cells", "probed", "found_of_5_nearest", "seconds_a_query", "seconds_a_query_flat"} <= set(ivf.details)


def test_they_come_after_the_others_and_for_each_tap() -> None:
    chosen = chosen_protocols(
        {
            "retrieval": {"taps": ["pooled", "layers"], "k": [1, 2]},
            "verification": {},
            "knn": {},
            "presets": ["knn-dino"],
        },
        ("block0",),
    )
    assert list(chosen) == ["knn", "knn-dino", "retrieval", "retrieval@block0", "verification"]
    assert list(chosen_protocols({"retrieval": {}, "knn": None}, ())) == ["retrieval"]
    assert all(isinstance(make(), Tapped) for make in COMPARISONS.values())
    for taps, layers in (([], ("block0",)), (["layers"], ())):
        for name in ("knn", "ridge", "retrieval"):
            sentence = rf"evaluate.{name}.taps: expected the names of features, got .*; leave it out"
            with pytest.raises(UserError, match=sentence):
                chosen_protocols({name: {"taps": taps}}, layers)


@pytest.mark.parametrize(
    ("protocol", "sentence"),
    [
        (Retrieval(k=0), r"evaluate.retrieval.k: expected one or more numbers of at least 1, got \[0\]"),
        (Retrieval(k=()), r"evaluate.retrieval.k: expected one or more numbers of at least 1, got \[\]"),
        (Retrieval(k=(10, 7)), "a query of far has 6 training images .* fewer than k = 7; give k of at most 6"),
        (
            Retrieval(k=3, gallery="test"),
            "a query of far has 2 other images of it .* fewer than k = 3; give k of at most 2",
        ),
        (Verification(pairs=1), "evaluate.verification.pairs: expected 2 to 20,000,000, got 1"),
        (Verification(pairs=2**40), "evaluate.verification.pairs: expected 2 to 20,000,000, got 1099511627776"),
        (Verification(far=(0.1, 1.0)), "evaluate.verification.far: expected rates above 0 and below 1, got 1.0"),
        (Verification(far=0.0), "evaluate.verification.far: expected rates above 0 and below 1, got 0.0"),
    ],
)
def test_what_cannot_be_done_is_said_before_extraction(protocol: MeasuringProtocol, sentence: str) -> None:
    """`far` has two images of each of two identities, one of which is also among the seven of train."""
    keys = {"near": torch.arange(200, 230), "far": torch.tensor([100, 100, 5, 5])}
    counts = Counts(
        torch.zeros(7, dtype=torch.int64), torch.tensor([0, 1, 2, 3, 4, 5, 6]), CLASSES, {"pooled": (4,)}, tests=keys
    )
    with pytest.raises(UserError, match=sentence):
        protocol.requires("retrieval", counts)


def test_a_test_set_of_one_image_has_no_pair() -> None:
    counts = Counts(
        torch.zeros(7, dtype=torch.int64), torch.arange(7), CLASSES, {}, tests={"one": torch.tensor([3, 3])}
    )
    with pytest.raises(UserError, match="one has 1 image without its copies, so there is no pair to verify"):
        Verification().requires("verification", counts)
    Retrieval(k=6).requires("retrieval", counts)
    with pytest.raises(UserError, match=r"has 0 other images of it .*; give more images"):
        Retrieval(gallery="test").requires("retrieval", counts)


def probe(folder: Path, name: str, evaluate: dict[str, Any], test: str = "[80%:,seed=0]") -> dict[str, Any]:
    config = {
        "data": {"train": "sklearn:digits?size=8#[:60,seed=0]", "test": f"sklearn:digits?size=8#{test}", "size": 8},
        "backbone": {"name": "pixels"},
        "evaluate": evaluate,
        "run": {"dir": str(folder / name), "device": "cpu", "workers": 0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return execute("probe", str(folder / f"{name}.yaml"), quiet=True)


def test_a_probe_of_nothing_else_has_a_result_a_row_and_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside one with scores; what is left out is said."""
    found = probe(tmp_path, "alone", {"retrieval": {}, "verification": {"far": [0.01, 1e-6]}}, "[:40,seed=5]")
    assert list(found["metrics"])[:3] == ["test/retrieval/map", "test/retrieval/map@r", "test/retrieval/recall@1"]
    assert found["chosen"] == {} and found["selection"] == "last"
    assert "WARNING: test/verification/frr@1e-06 is left out: it needs 1e+07 impostor pairs" in capsys.readouterr().err
    assert not (tmp_path / "alone" / "predictions.safetensors").exists()
    probe(tmp_path, "both", {"knn": {}, "retrieval": {"gallery": "test"}}, "[:40,seed=5]")
    rows = {path.name: row_of(path, tmp_path) for path in find_runs(tmp_path)}
    assert (rows["alone"].metric, rows["both"].metric) == ("test/retrieval/map", "test/knn/accuracy")
    for runs in (["alone"], ["alone", "both"]):
        write_report([tmp_path / run for run in runs], tmp_path / "page.html", print)
        page = (tmp_path / "page.html").read_text()
        assert "retrieval: queries with a relevant image among the k nearest" in page
    assert "alone has no predictions.safetensors" in page


def test_a_probe_without_any_metric_has_a_row_and_a_page(tmp_path: Path) -> None:
    """Test images of one class have no impostors."""
    x = np.random.default_rng(0).integers(0, 255, (12, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=x, y=np.zeros(12, dtype=np.int64))
    config = {
        "data": {"train": f"npz:{tmp_path / 'x.npz'}", "size": 8},
        "backbone": {"name": "pixels"},
        "evaluate": {"verification": {}},
        "run": {"dir": str(tmp_path / "run"), "device": "cpu", "workers": 0},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    found = execute("probe", str(tmp_path / "run.yaml"), quiet=True)
    assert found["metrics"] == {} and set(found["details"]["test/verification"]["left_out"]) >= {"eer", "pair_auroc"}
    assert row_of(tmp_path / "run", tmp_path).metric is None
    write_report([tmp_path / "run"], tmp_path / "page.html", print)


def test_tokens_are_no_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for these nor for the other protocols that read one vector an image."""
    monkeypatch.setattr(module, "features_of", None)
    for name in ("retrieval", "verification", "knn", "linear", "fewshot", "ridge", "nearest_mean", "few_linear"):
        with pytest.raises(UserError, match=rf"evaluate.{name}.taps: tokens are several vectors for each image"):
            probe(tmp_path, "run", {name: {"taps": ["tokens"]}}, "[:40,seed=5]")
    for inputs in (["tokens"], ["pooled", "tokens"]):  # linear_sgd reads all of its inputs at once
        with pytest.raises(UserError, match=r"evaluate.linear_sgd.inputs: tokens are several vectors for each image"):
            probe(tmp_path, "run", {"linear_sgd": {"inputs": inputs, "augment": "none"}}, "[:40,seed=5]")
