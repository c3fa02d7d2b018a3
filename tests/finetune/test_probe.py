"""What a probe chooses does not depend on copies, its result says how, and what it cannot do is said before features are extracted."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from rootstock.core.errors import UserError
from rootstock.core.evaluate.held_out import HOW_DRAWN
from rootstock.core.images.cache import cache_folder
from rootstock.core.images.open import open_images
from rootstock.finetune import probe as module
from rootstock.launch.verbs import execute


def noisy_digits(folder: Path, copies: int) -> str:
    """An .npz with `copies` copies of 60 digits at 16 px, one set of copies after the other; noisy, so that choices matter."""
    digits = open_images("sklearn:digits?size=16#[:6,seed=0,stratify]")
    pixels, labels = digits.resident(), digits.labels
    assert pixels is not None and labels is not None
    noise = np.random.default_rng(0).integers(-90, 90, pixels.shape)
    gray = np.clip(pixels.numpy() + noise, 0, 255).astype(np.uint8)[:, 0]
    np.savez(folder / f"{copies}.npz", x=np.tile(gray, (copies, 1, 1)), y=np.tile(labels.numpy(), copies))
    return f"npz:{folder / f'{copies}.npz'}"


def probe(folder: Path, name: str, train: str, **evaluate: Any) -> dict[str, Any]:
    """evaluate: the section, and `test` if it is not a twentieth of the digits, and `corrupt`."""
    test = evaluate.pop("test", "sklearn:digits?size=16#[95%:,seed=0]")
    config = {
        "data": {"train": train, "test": test, "size": 16, "corrupt": evaluate.pop("corrupt", None)},
        "backbone": {"name": "pixels" if "attentive" not in evaluate else "smallconv"},
        "evaluate": evaluate,
        "run": {"dir": str(folder / name), "device": "cpu", "workers": 0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return execute("probe", str(folder / f"{name}.yaml"), quiet=True)


def test_copies_of_all_images_change_no_choice_and_no_score(tmp_path: Path) -> None:
    asked = {
        "knn": {"k": [1, 3, 10, 30]},
        "linear": {"C": [1e-5, 1e-4, 1e-3, 1e-2, 1.0, 100.0]},
        "fewshot": {"shots": 2, "draws": 4},
        "ridge": {"shots": [1, 2]},
        "nearest_mean": {"scale": "cl2n"},
        "few_linear": {"fractions": [0.5], "draws": 2, "C": [0.1, 1.0]},
    }
    one, *others = (probe(tmp_path, str(n), noisy_digits(tmp_path, n), **asked) for n in (1, 2, 5, 10))
    assert one["chosen"].keys() == {"knn/k", "linear/C", "few_linear-0.5/C"} and one["selection"] == "train-split"
    assert one["held_out"]["drawn"] == HOW_DRAWN and one["held_out"]["of_images"] == 60
    assert [fit["C"] for fit in one["fits"]["linear"]["choice"]] == asked["linear"]["C"]
    assert "copies" not in one["data"]
    for n, other in zip((2, 5, 10), others, strict=True):
        for key in ("chosen", "held_out", "fits", "metrics", "details", "intervals"):
            assert json.dumps(other[key]) == json.dumps(one[key]), (n, key)
        assert other["data"]["copies"] == {"train": 60 * (n - 1)} and other["data"]["n"]["train"] == 60 * n


def test_copies_change_no_probe_that_is_trained_by_steps(tmp_path: Path) -> None:
    """Also on random crops, which are drawn by an image's place among those without copies."""
    asked = {
        "attentive": {"epochs": 2, "lr": [1e-3, 1e-2]},
        "linear_sgd": {"lr": [0.1, 1.0], "epochs": 3, "batch_size": 16},
        "attentive_capi": {
            "sources": ["patch"],
            "lr": [1e-2, 1e-3],
            "weight_decay": [0.0],
            "epochs": 2,
            "cached_epochs": 1,
        },
    }
    one, three = (probe(tmp_path, str(n), noisy_digits(tmp_path, n), **asked) for n in (1, 3))
    names = {"attentive": ("lr", "weight_decay")} | dict.fromkeys(
        ("linear_sgd", "attentive_capi-patch"), ("tap", "lr", "weight_decay")
    )
    assert one["chosen"].keys() == {f"{name}/{key}" for name, keys in names.items() for key in keys}
    for key in ("chosen", "candidates", "metrics"):
        assert json.dumps(one[key]) == json.dumps(three[key]), key
    told = one["details"]["test/linear_sgd"]["settings"]
    assert told["trained"] == {"steps": 12, "warmup_steps": 0, "batch_size": 16} and told["augment"] == "crops"
    assert "temperature" in one["details"]["test/linear_sgd"]


def test_labels_of_the_test_set_reach_no_choice_and_no_score(tmp_path: Path) -> None:
    """The labels of the test images are shuffled: every protocol chooses as before, and gives every image the same scores."""
    train, test = noisy_digits(tmp_path, 1), open_images("sklearn:digits?size=16#[90%:,seed=0]")
    pixels, labels = test.resident(), test.labels
    assert pixels is not None and labels is not None
    asked: dict[str, Any] = {
        "knn": {"k": [1, 5]},
        "linear": {"C": [0.01, 1.0]},
        "ridge": {"shots": [2]},
        "nearest_mean": {},
        "few_linear": {"fractions": [0.5], "draws": 2, "C": [0.1, 1.0]},
        "linear_sgd": {"lr": [0.1, 1.0], "epochs": 2},
    }
    found = []
    for name, order in (("plain", torch.arange(len(labels))), ("shuffled", torch.arange(len(labels)).flip(0))):
        np.savez(tmp_path / f"{name}.npz", x=pixels.numpy()[:, 0], y=labels[order].numpy())
        result = probe(tmp_path, name, train, test=f"npz:{tmp_path / f'{name}.npz'}", **asked)
        found.append((result, load_file(tmp_path / name / "predictions.safetensors")))
    (one, scores), (other, shuffled) = found
    for key in ("chosen", "candidates", "fits"):
        assert json.dumps(one[key]) == json.dumps(other[key])
    assert one["metrics"] != other["metrics"]
    kept = [name for name in scores if name.endswith("/scores")]
    assert len(kept) == len(asked) and all(torch.equal(scores[name], shuffled[name]) for name in kept)


def test_nothing_chosen_needs_no_slice(tmp_path: Path) -> None:
    found = probe(tmp_path, "run", "sklearn:digits?size=16#[:5%,seed=0]", knn={"k": 3}, linear={"C": [1.0]})
    assert found["chosen"] == {} and "held_out" not in found and found["selection"] == "last"
    assert found["fits"]["linear"]["choice"] == [] and found["fits"]["linear"]["refit"]["converged"]


@pytest.mark.parametrize(
    ("evaluate", "sentence"),
    [
        ({"knn": {"k": 0}}, "knn needs k of at least 1, got 0"),
        ({"knn": {"k": [5, -1]}}, "knn needs k of at least 1, got -1"),
        ({"knn": {"k": []}}, "knn needs at least one k"),
        (
            {"knn": {"k": [5, 61]}},
            "knn needs 61 different training images .* and there are 60; give evaluate.knn.k of at most 60",
        ),
        ({"presets": ["knn-lightly"]}, "knn-lightly needs 200 different training images"),
        ({"presets": ["knn-dino"]}, "knn-dino needs 200 different training images"),
        ({"knn": {"temperature": -0.1}}, "knn needs a temperature above 0"),
        ({"linear": {"C": [1.0, 0.0]}}, "evaluate.linear.C: expected one or more numbers from 1e-12 to"),
        ({"linear": {"C": []}}, "evaluate.linear.C: expected one or more numbers"),
        (
            {"fewshot": {"shots": 99}},
            "fewshot: class . has . different training images, fewer than shots = 99; give .* at most",
        ),
        (
            {"knn": {"taps": ["pooled", "cls"]}},
            r"knn@cls: pixels has no .* 'cls' \(it .*\); give evaluate.knn.taps others",
        ),
        ({"presets": ["linear-mae"]}, "linear-mae: pixels has no .* 'cls' .*; give evaluate.linear_sgd.inputs others"),
        (
            {"presets": ["attentive-capi"]},
            "attentive-capi-cls: pixels has .*; give evaluate.attentive_capi.sources others",
        ),
        ({"ridge": {"shots": [1, 99]}}, r"ridge-99shot: class . has .*; give evaluate.ridge.shots of at most \d, or"),
        ({"few_linear": {"list": "/no/list.txt"}}, r"evaluate.few_linear.list: /no/list.txt cannot be read .*; give a"),
        ({"linear_sgd": {"epochs": 2, "steps": 2}}, "evaluate.linear_sgd: epochs and steps are given"),
        ({"linear_sgd": {"augment": "none", "cached_epochs": 2}}, "evaluate.linear_sgd.cached_epochs: 2 is given, but"),
        ({"fewshot": {"draws": 0}}, "fewshot needs shots and draws of at least 1"),
        ({"fewshot": {"draws": 2**63 - 1}}, "fewshot: draws is 9223372036854775807, expected at most 10,000"),
    ],
)
def test_what_cannot_be_done_is_said_before_extraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluate: dict[str, Any], sentence: str
) -> None:
    monkeypatch.setattr(module, "features_of", None)
    with pytest.raises(UserError, match=sentence):
        probe(tmp_path, "run", noisy_digits(tmp_path, 2), **evaluate)


def test_a_single_k_beyond_the_training_set_is_said_and_the_result_has_the_k_that_was_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = probe(tmp_path, "run", noisy_digits(tmp_path, 2), knn={"k": 67})
    assert caplog.messages == ["kNN: k = 67 is more than the 60 training images; all of them vote"]
    assert found["details"]["test/knn"]["k"] == 60


def test_one_image_a_class_leaves_nothing_to_choose_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are no second image."""
    monkeypatch.setattr(module, "features_of", None)
    pixels = torch.arange(10 * 16, dtype=torch.uint8).view(10, 4, 4).numpy()
    np.savez(tmp_path / "x.npz", x=np.tile(pixels, (4, 1, 1)), y=np.tile(np.arange(10), 4))
    for evaluate in ({"knn": {"k": [1, 2]}}, {"attentive": {"lr": [1e-3, 1e-2]}}):
        with pytest.raises(UserError, match="no class has two different training images to choose"):
            probe(tmp_path, "run", f"npz:{tmp_path / 'x.npz'}", **evaluate)


def test_words_are_learned_of_the_training_images_alone(tmp_path: Path) -> None:
    """The same words, whatever the test."""
    train = noisy_digits(tmp_path, 1)
    told, found = [], []
    settings = {"backbone": {"name": "surf", "args": {"words": 12, "step": 4}}}
    for name, part, test in (
        ("a", train, "sklearn:digits?size=16#[95%:,seed=0]"),
        ("b", train, "sklearn:digits?size=16#[:9%,seed=3]"),
    ):
        config = {
            "data": {"train": part, "test": test, "size": 16},
            **settings,
            "evaluate": {"knn": {"k": 3}},
            "run": {"dir": str(tmp_path / name), "device": "cpu", "workers": 0},
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        result = execute("probe", str(tmp_path / f"{name}.yaml"), quiet=True)
        told.append(result["details"]["test/knn"]["settings"]["weights_sha256"])
        found.append(result["metrics"]["test/knn/accuracy"])
    assert told[0] == told[1] and min(found) > 0.3


def test_corruptions_are_further_tests_and_change_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clean test has the scores of a probe without them, copies have features of their own in the cache, training images stay."""
    kept, extracted = noisy_digits(tmp_path, 1), list[tuple[int, bool]]()
    plain = module.features_of

    def watched(taps: Any, images: Any, view: Any, **more: Any) -> Any:
        extracted.append((len(images), "corrupt" in type(images.stores[0]).__name__.lower()))
        return plain(taps, images, view, **more)

    monkeypatch.setattr(module, "features_of", watched)
    asked = {"names": ["gaussian_noise", "rotation"], "severities": [1, 5], "table": "imagenet"}
    evaluate = {"linear": {"C": [0.01]}}
    clean = probe(tmp_path, "clean", kept, **evaluate)
    found = probe(tmp_path, "corrupt", kept, corrupt=asked, **evaluate)
    names = [f"test-{name}{k}" for name in asked["names"] for k in asked["severities"]]
    assert list(dict.fromkeys(key.split("/")[0] for key in found["metrics"])) == ["test", *names]
    assert {key: value for key, value in found["metrics"].items() if key.startswith("test/")} == clean["metrics"]
    for key in ("data", "chosen", "seen_labelled", "seen_unlabelled"):
        assert found[key] == clean[key], key
    hard, easy = (found["metrics"][f"test-gaussian_noise{k}/linear/accuracy"] for k in (5, 1))
    assert hard < easy <= clean["metrics"]["test/linear/accuracy"]
    assert [corrupted for _, corrupted in extracted] == [False] * 4 + [True] * 4
    one = load_file(tmp_path / "corrupt" / "predictions.safetensors")
    assert torch.equal(one["test/keys"], one["test-rotation5/keys"])
    entries = [json.loads(file.read_text())["key"] for file in cache_folder("features").glob("*.json")]
    orders = {entry["images"]["order"] for entry in entries if entry["images"]["number"] == extracted[1][0]}
    assert len(orders) >= 5  # of the test and its four copies


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"corrupt": {"names": []}}, r"data\.corrupt\.names: expected one or more, each once, got \[\]"),
        (
            {"corrupt": {"names": ["scale"], "severities": [0]}},
            r"data\.corrupt\.severities: expected numbers from 1 to 5",
        ),
        (
            {"corrupt": {"names": ["scale"], "severities": [2, 2]}},
            r"data\.corrupt\.severities: expected one or more, each",
        ),
        ({"corrupt": {"names": ["snow"]}}, r"data\.corrupt\.names"),
        ({"corrupt": {"names": ["scale"], "size": 0}}, r"data\.corrupt\.size: expected at least 1 pixel, got 0"),
        ({"speed": {"batches": 3}}, r"evaluate\.speed\.batches: expected 4 to 10,000, got 3"),
        ({"speed": {"batch_size": 0}}, r"evaluate\.speed\.batch_size: expected 1 to 10,000, got 0"),
    ],
)
def test_wrong_corruptions_and_speeds_name_their_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], sentence: str
) -> None:
    monkeypatch.setattr(module, "features_of", None)
    with pytest.raises(UserError, match=sentence):
        probe(tmp_path, "run", noisy_digits(tmp_path, 1), **changed)


def of_classes(folder: Path, name: str, **counts: int) -> str:
    """An .npz of random pictures, so many of each class; a class is _ and its number."""
    y = np.repeat([int(label[1:]) for label in counts], list(counts.values()))
    pixels = np.random.default_rng(len(y)).integers(0, 255, (len(y), 8, 8), dtype=np.uint8)
    np.savez(folder / f"{name}.npz", x=pixels, y=y)
    return f"npz:{folder / f'{name}.npz'}"


def test_a_class_without_training_images_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every classifier has its image wrong, none has the NLL of the least float16, and retrieval says what it drops."""
    every = of_classes(tmp_path, "all", _0=6, _1=6, _2=1)
    parts = (f"{every}#[:8,seed={seed}]" for seed in range(50))
    part = next(uri for uri in parts if 2 not in open_images(uri).labels)  # pyright: ignore[reportOperatorIssue]
    found = probe(tmp_path, "absent", part, test=every, knn={}, linear={"C": [1.0]}, nearest_mean={}, retrieval={})
    said = capsys.readouterr()
    told = "1 of 13 images are of a class without any training image (2: 1); accuracy counts them as wrong"
    assert f"WARNING: test: {told}" in " ".join(said.err.split())
    assert "WARNING: test/retrieval: 1 of 13 queries has no relevant image in the gallery" in said.err
    assert "WARNING: test/linear/nll is left out: the classifier gives the true class of 1 of the images no" in said.err
    assert "test/linear/nll" not in found["metrics"] and found["metrics"]["test/linear/brier"] <= 2
    assert all(found["metrics"][f"test/{name}/accuracy"] < 1 for name in ("knn", "linear", "nearest_mean"))


def test_a_single_class_trains_no_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "features_of", None)
    train = of_classes(tmp_path, "one", _3=6)
    for evaluate in ({}, {"linear": {}}, {"nearest_mean": {}}, {"retrieval": {}, "linear_sgd": {"augment": "none"}}):
        with pytest.raises(
            UserError, match=r"data.train: all 6 training images .* class 3, and a classifier needs two"
        ):
            probe(tmp_path, "run", train, test=train, **evaluate)
