"""`import rootstock.api as rs`: what it costs to import, what it returns, and verbs that are called twice in one process."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rootstock.api as rs
from rootstock.core.model.backbone import Backbone
from rootstock.core.model.classifier import Classifier
from rootstock.launch.outputs.predict import predict_pictures

SETS = {"source": "sklearn:digits#[:120]", "target": "sklearn:digits-m?region=train#[120:240]"}
RUN = {"device": "cpu", "workers": 0, "log_every": 1}
NET = {"name": "smallconv", "args": {"widths": [4, 4, 8, 8]}}
OPTIM = {"name": "adamw", "lr": 1e-3, "batch_size": 16, "duration": 2}


def config(verb: str, folder: Path, **sections: Any) -> dict[str, Any]:
    data = {
        "pretrain": {"train": SETS["source"]},
        "probe": {"train": SETS["source"]},
        "finetune": {"train": SETS["source"]},
        "adapt": dict(SETS),
    }[verb]
    made = {"data": {**data, "size": 16}, "backbone": NET, "seed": 0, "run": {**RUN, "dir": str(folder)}}
    if verb != "probe":
        made["optim"] = OPTIM
    return {**made, **sections}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each verb twice in this process, where every method's module is imported."""
    folder = tmp_path_factory.mktemp("runs")
    for verb, classes in rs.METHODS.items():
        for made in classes.values():
            importlib.import_module(made.__module__)
        assert verb in ("pretrain", "adapt")
    found = {}
    for number in range(2):
        place = {verb: folder / f"{verb}{number}" for verb in ("pretrain", "probe", "finetune", "adapt")}
        weights = {"weights": str(place["pretrain"])}
        simclr = {"name": "simclr", "projection": [8, 8]}
        rs.pretrain(config("pretrain", place["pretrain"], method=simclr, evaluate={"watch": None}), quiet=True)
        rs.probe(config("probe", place["probe"], backbone=weights, evaluate={"knn": {"k": 3}}), quiet=True)
        rs.finetune(config("finetune", place["finetune"], backbone=weights), quiet=True)
        mcc = {"name": "mcc", "bottleneck": 4}
        rs.adapt(config("adapt", place["adapt"], method=mcc, evaluate={"images": 50, "held_out": 0.2}), quiet=True)
        found |= {f"{verb}{number}": path for verb, path in place.items()}
    return found


def test_verbs_return_the_result_and_say_the_same_twice(runs: dict[str, Path]) -> None:
    for verb in ("pretrain", "probe", "finetune", "adapt"):
        first, second = (json.loads((runs[f"{verb}{number}"] / "result.json").read_text()) for number in range(2))
        assert first["task"] == verb and first["metrics"] == second["metrics"]
    again = rs.finetune(config("finetune", runs["finetune0"], backbone={"weights": str(runs["pretrain0"])}), quiet=True)
    assert again == json.loads((runs["finetune0"] / "result.json").read_text())


def test_a_run_is_loaded_extracted_and_asked(runs: dict[str, Path], tmp_path: Path) -> None:
    assert isinstance(rs.load(runs["pretrain0"]), Backbone)
    classifier = rs.load(runs["adapt0"])
    assert isinstance(classifier, Classifier) and not classifier.training
    images = rs.open_images("sklearn:digits#[240:300]")
    assert images.labels is not None and rs.open_images("sklearn:digits#[240:300]", labels=False).labels is None
    taken = rs.extract(runs["adapt0"], "sklearn:digits#[240:300]", ("pooled", "bottleneck"), device="cpu")
    assert taken["pooled"].shape == (60, 8) and taken["bottleneck"].shape == (60, 4)
    assert torch.equal(taken["keys"], images.keys())
    said = rs.predict(runs["adapt0"], "sklearn:digits#[240:300]", top=3, device="cpu")
    with torch.no_grad():
        expected = classifier.head(taken["bottleneck"]).argmax(1)  # pyright: ignore[reportCallIssue]
    assert torch.equal(said.order[:, 0], expected) and said.temperature is not None
    assert said.confidence.shape == (60, 3) and bool((said.confidence.diff(dim=1) <= 0).all())
    assert said.labels == [said.classes[k] for k in expected.tolist()] and len(said.names) == 60
    predict_pictures(runs["adapt0"], ["sklearn:digits#[240:300]"], tmp_path / "labels.csv", device="cpu", workers=0)
    rows = (tmp_path / "labels.csv").read_text().splitlines()[1:]
    assert [row.split(",")[:2] for row in rows] == [list(pair) for pair in zip(said.names, said.labels, strict=True)]


def test_overrides_are_a_mapping_or_words(runs: dict[str, Path], tmp_path: Path) -> None:
    given = config("probe", tmp_path / "probe", backbone=NET, evaluate={"knn": {"k": 3}})
    keys = {"evaluate.knn.k": 5, "backbone": {"weights": str(runs["pretrain0"])}, "run.dir": tmp_path / "mapped"}
    first = rs.probe(given, keys, quiet=True)
    words = ["evaluate.knn.k=5", f"backbone.weights={runs['pretrain0']}", f"run.dir={tmp_path / 'words'}"]
    assert rs.probe(given, words, quiet=True)["metrics"] == first["metrics"]
    assert given["run"]["dir"] == str(tmp_path / "probe") and not (tmp_path / "probe").exists()
    based = {
        "extends": "probe/small.yaml",
        "data": {"train": SETS["source"]},
        "run": {**RUN, "dir": str(tmp_path / "b")},
    }
    assert (
        "test/linear/accuracy" in rs.probe(based, {"backbone.weights": str(runs["pretrain0"])}, quiet=True)["metrics"]
    )


def test_mistakes_are_sentences(runs: dict[str, Path], tmp_path: Path) -> None:
    given = config("probe", tmp_path / "probe", evaluate={"knn": {"k": 3}})
    with pytest.raises(rs.UserError, match=r"evaluate.knn.kk: unknown key; did you mean"):
        rs.probe(given, {"evaluate.knn.kk": 5})
    with pytest.raises(rs.UserError, match=r"overrides: .*set.*; give numbers, texts, lists and mappings"):
        rs.probe(given, {"evaluate.knn.k": {1, 2}})
    with pytest.raises(rs.UserError, match=r"extends: .*no_such"):
        rs.probe({**given, "extends": "no_such.yaml"})
    with pytest.raises(rs.UserError, match=r"a network and no classifier"):
        rs.predict(runs["pretrain0"], "sklearn:digits")
    with pytest.raises(rs.UserError, match=r"--top: expected 1 to 10"):
        rs.predict(runs["adapt0"], "sklearn:digits", top=11, device="cpu")
    place = tmp_path / "100%#1"
    place.mkdir()
    (place / "set.tar").touch()
    for ask in (
        rs.open_images,
        lambda uri: rs.extract(runs["pretrain0"], uri, device="cpu"),
        lambda uri: rs.predict(runs["adapt0"], uri, device="cpu"),
    ):
        for named, path, advice in (
            (place, place, f"folder:{tmp_path}/100%25%231"),
            (["sklearn:digits", place / "set.tar"], place / "set.tar", f"tar:{tmp_path}/100%25%231/set.tar"),
        ):
            with pytest.raises(rs.UserError) as caught:
                ask(named)  # pyright: ignore[reportArgumentType]
            assert str(caught.value) == f"{path} is a path, and no image URI; open it as {advice}"
    with pytest.raises(rs.UserError, match="no folder 😀; check the path"):  # as one character, not as a pair
        rs.probe(given, {"data.train": "folder:😀"})
    with pytest.raises(AttributeError, match="no attribute 'no_such'"):
        _ = rs.no_such  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_is_cheap() -> None:
    code = (
        "import sys, rootstock, rootstock.api as rs\n"
        "heavy = {'torch', 'numpy', 'timm', 'pydantic', 'yaml', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert set(rs.__all__) <= {*dir(rs), 'METHODS'}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
