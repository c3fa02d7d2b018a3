"""A probe of images that may have several classes, from the table to the report; and what refuses such images."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, f1_score

from rootstock.core.errors import UserError
from rootstock.core.evaluate.feature_key import images_key
from rootstock.core.images.open import open_images
from rootstock.finetune import probe as module
from rootstock.finetune.protocols.registry import OF_SEVERAL, PRESETS, SECTIONS
from rootstock.launch.report.page import write_report
from rootstock.launch.verbs import execute

CLASSES = ("left", "right", "top", "never")
ASKED: dict[str, Any] = {"knn": {"k": [3, 5]}, "linear": {"C": [1e-3, 0.1, 10.0]}}


def draw(folder: Path) -> None:
    """32 pictures of 8 px with bright sides, by which they are called, in three tables: train, test, and a test of other labels."""
    random, rows = np.random.default_rng(0), list[tuple[str, str]]()
    for k in range(50):
        x, there = random.integers(0, 200, (8, 8)), random.random(3) < 0.4
        for side, part in zip(there, (x[:, :3], x[:, 5:], x[:3]), strict=True):
            part += 45 * side
        Image.fromarray(x.astype(np.uint8)).save(folder / f"{k}.png")
        rows.append((f"{k}.png", ";".join(name for name, side in zip(CLASSES, there, strict=False) if side)))
    rows[0] = (rows[0][0], "never")
    labels = [label for _, label in rows]
    write(folder / "train.csv", rows[:32])
    write(folder / "twice.csv", rows[:32] * 2)
    write(folder / "test.csv", rows[32:])
    write(folder / "shuffled.csv", [(name, label) for (name, _), label in zip(rows[32:], labels[:31:-1], strict=True)])


def write(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])


def start(folder: Path, name: str, train: str = "train", test: str | None = "test", **more: Any) -> dict[str, Any]:
    """more: the keys of `evaluate`; `verb` and its `method` for another command than probe."""
    uri = "csv:{}/{}.csv?several=semicolon".format
    config = {
        "data": {"train": uri(folder, train), "test": test and uri(folder, test), "size": 8},
        "backbone": {"name": "pixels"},
        "evaluate": more or ASKED,
        "run": {"dir": str(folder / name), "device": "cpu", "workers": 0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return execute("probe", str(folder / f"{name}.yaml"), quiet=True)


def test_from_the_table_to_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path)
    found = start(tmp_path, "one")
    assert "WARNING: test/knn: 1 class has no test image (never), so no AP" in capsys.readouterr().err
    kept = load_file(tmp_path / "one" / "predictions.safetensors")
    labels, names = kept["test/labels"].numpy(), found["details"]["test/linear"]["classes"]
    assert labels.dtype == np.uint8 and labels.shape == (18, 4) and names == sorted(CLASSES)
    for protocol in ("knn", "linear"):
        scores, details = kept[f"test/{protocol}/scores"].float().numpy(), found["details"][f"test/{protocol}"]
        there = [k for k in range(4) if labels[:, k].any()]
        metrics = {
            key: found["metrics"][f"test/{protocol}/{key}"] for key in ("average_precision", "f1_macro", "f1_micro")
        }
        assert metrics["average_precision"] == pytest.approx(
            average_precision_score(labels[:, there], scores[:, there])
        )
        thresholds = np.array([np.inf if t is None else t for t in details["thresholds"]])
        for average in ("macro", "micro"):
            expected = f1_score(labels, scores >= thresholds, average=average, zero_division=0)  # pyright: ignore[reportArgumentType]
            assert metrics[f"f1_{average}"] == pytest.approx(expected)
        assert details["classes_without_images"] == ["never"] and f"test/{protocol}/f1_macro" in found["intervals"]
    assert next(iter(found["metrics"])) == "test/knn/average_precision" and found["selection"] == "train-split"
    assert found["held_out"]["drawn"] == "over content keys, stratified by the rarest of a key's classes"
    write_report([tmp_path / "one"], tmp_path / "page.html", print)
    assert "average_precision_micro" in (tmp_path / "page.html").read_text()
    assert "damaged" not in capsys.readouterr().err


def test_labels_of_the_test_set_and_copies_change_nothing(tmp_path: Path) -> None:
    """Shuffled labels of the test images, or all training images twice: the same choices, and the same scores."""
    draw(tmp_path)
    one, *others = (
        start(tmp_path, f"{a}-{b}", a, b) for a, b in (("train", "test"), ("train", "shuffled"), ("twice", "test"))
    )
    assert one["chosen"].keys() == {"knn/k", "linear/C"}
    scores = load_file(tmp_path / "train-test" / "predictions.safetensors")
    for name, other in zip(("train-shuffled", "twice-test"), others, strict=True):
        assert json.dumps([one[key] for key in ("chosen", "candidates", "fits")]) == json.dumps(
            [other[key] for key in ("chosen", "candidates", "fits")]
        )
        kept = load_file(tmp_path / name / "predictions.safetensors")
        assert all(torch.equal(scores[f"test/{key}/scores"], kept[f"test/{key}/scores"]) for key in ("knn", "linear"))
    assert others[0]["metrics"] != one["metrics"] == others[1]["metrics"]


def test_a_changed_cell_changes_the_fit_and_no_feature(tmp_path: Path) -> None:
    draw(tmp_path)
    uri, found = f"csv:{tmp_path}/train.csv?several=semicolon", list[tuple[Any, ...]]()
    for name in ("before", "after"):
        result = start(tmp_path, name)
        scores = load_file(tmp_path / name / "predictions.safetensors")["test/linear/scores"]
        found.append((scores, images_key(open_images(uri)), result["data"]["fingerprint"]))
        _, *rows = csv.reader((tmp_path / "train.csv").read_text().splitlines())
        write(tmp_path / "train.csv", [(row[0], "left;top" if k < 3 else row[1]) for k, row in enumerate(rows)])
    (scores, key, fingerprint), (new_scores, new_key, new_fingerprint) = found
    assert key == images_key(open_images(uri)) == new_key, "the cache of features is found by this"
    assert fingerprint != new_fingerprint and not torch.equal(scores, new_scores)


def test_held_out_by_seed_and_without_a_choice(tmp_path: Path) -> None:
    """A single k and C leave only thresholds to choose."""
    draw(tmp_path)
    found = start(tmp_path, "run", test=None, knn={"k": 3}, linear={"C": [1.0]})
    assert found["chosen"] == {} and found["selection"] == "train-split" and "candidates" not in found
    for protocol in ("knn", "linear"):
        assert "thresholds" in found["details"][f"test/{protocol}"] and f"test/{protocol}/f1_micro" in found["metrics"]
        assert found["details"][f"test/{protocol}"]["settings"]["chosen"].startswith("thresholds of F1")


OTHERS = [*(name for name in SECTIONS if name not in OF_SEVERAL), "retrieval", "verification"]


def test_other_protocols_refuse_such_images_before_extraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path)
    monkeypatch.setattr(module, "features_of", None)
    (tmp_path / "list.txt").write_text("")
    more = {"few_linear": {"fractions": [0.5]}, "attentive": {}}
    for name in OTHERS:
        end = "" if name in ("retrieval", "verification") else ".*"
        if name in ("attentive", "attentive_capi", "prototypes"):
            continue  # they need tokens or patches, which pixels have not
        with pytest.raises(
            UserError,
            match=f"{name}{end}: it needs one class an image, .*; knn and linear can use them .* leave evaluate.{name} out",
        ):
            start(tmp_path, "run", **{name: more.get(name, {})})
    with pytest.raises(
        UserError, match=r"linear-simclr-cifar: it needs one class .*take linear-simclr-cifar out of evaluate.presets"
    ):
        start(tmp_path, "run", presets=["linear-simclr-cifar"])
    assert {name for name in PRESETS if name in ("knn-dino", "knn-lightly", "logreg")} == {
        "knn-dino",
        "knn-lightly",
        "logreg",
    }


@pytest.mark.parametrize("verb", ["finetune", "adapt"])
def test_trainings_refuse_such_images(verb: str, tmp_path: Path) -> None:
    draw(tmp_path)
    uri = f"csv:{tmp_path}/train.csv?several=semicolon"
    data = {"train": uri, "test": uri} if verb == "finetune" else {"source": uri, "target": uri}
    config = {
        "data": {**data, "size": 8, "views": "digits"},
        "backbone": {"name": "smallconv"},
        "method": {} if verb == "finetune" else {"name": "source_only"},
        "optim": {"name": "sgd", "lr": 0.1, "batch_size": 4, "duration": 1},
        "run": {"dir": str(tmp_path / "run"), "device": "cpu", "workers": 0},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"data\.(train|source): .* may have several classes an image \(\?several=\)"):
        execute(verb, str(tmp_path / "run.yaml"), quiet=True)
