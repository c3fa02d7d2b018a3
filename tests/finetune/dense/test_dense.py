"""The dense probe as a recipe: colours are told apart, copies and test masks change no choice, and mistakes are said before extraction."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.evaluate.patch_probe import sliced_images
from rootstock.core.evaluate.segmentation import draw_patches
from rootstock.finetune import probe as module
from rootstock.finetune.dense.dense import Dense, _check_slice
from rootstock.finetune.dense.pictures import class_colours
from rootstock.launch.verbs import execute

COLOURS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]])


def draw(folder: Path, train: int = 10, test: int = 4, noise: float = 20.0) -> Path:
    """Pictures of 64 x 64 px in stripes of three colours, which are the classes, in folder/train and folder/test; masks in folder/masks."""
    random = np.random.default_rng(0)
    for number in range(train + test):
        stripes = np.repeat(random.permutation([0, 1, 2, 1]), 16)
        mask = np.tile(stripes, (64, 1)) if number % 2 else np.tile(stripes[:, None], (1, 64))
        pixels = (COLOURS[mask] + random.normal(0, noise, (64, 64, 3))).clip(0, 255).astype(np.uint8)
        place = folder / ("train" if number < train else "test")
        for into in (place, folder / "masks"):
            into.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
        mask = mask.astype(np.uint8)
        mask[:3, :5] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


def probe(
    folder: Path,
    name: str = "run",
    data: dict[str, Any] | None = None,
    backbone: dict[str, Any] | None = None,
    **dense: Any,
) -> dict[str, Any]:
    config = {
        "data": {"train": f"folder:{folder}/train", "test": f"folder:{folder}/test", "size": 64, **(data or {})},
        "backbone": {"name": "smallconv", **(backbone or {})},
        "evaluate": {"dense": {"masks": f"{folder}/masks", "C": [1e-3, 1.0], **dense}},
        "run": {"dir": str(folder / name), "device": "cpu", "workers": 0, "feature_cache": 0},
    }
    config["evaluate"] |= config["evaluate"]["dense"].pop("also", {})
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return execute("probe", str(folder / f"{name}.yaml"), quiet=True)


def test_classes_that_differ_in_colour_are_told_apart(tmp_path: Path) -> None:
    found = probe(draw(tmp_path, train=20))
    assert found["metrics"].keys() == {"test/dense/miou", "test/dense/pixel_accuracy"}
    assert found["metrics"]["test/dense/miou"] > 0.95
    low, high = found["intervals"]["test/dense/miou"]
    assert 0 <= low <= found["metrics"]["test/dense/miou"] <= high <= 1
    details = found["details"]["test/dense"]
    assert details["classes"] == ["0", "1", "2"] and details["grid"] == [8, 8] and details["resolution"] == 64
    assert (details["ignore"], details["patches"], details["of_patches"]) == (255, 1280, 1280)
    assert np.sum(details["confusion"]) == 4 * (64 * 64 - 15)  # the ignored corner counts nowhere
    assert found["chosen"] == {"dense/C": details["C"]} and found["selection"] == "train-split"
    assert [one["C"] for one in found["candidates"]["dense"]] == [1e-3, 1.0]
    assert found["fits"]["dense"]["held_out"]["images"] == 4 and found["fits"]["dense"]["refit"]["converged"]
    with Image.open(tmp_path / "run/pictures/dense_test.png") as picture:
        pixels = np.asarray(picture)
    assert "dense_test.png" in json.loads((tmp_path / "run/pictures/captions.json").read_text())
    for colour in class_colours(3).tolist():
        assert (pixels == colour).all(2).any()


def test_copies_of_all_images_change_no_choice_and_no_score(tmp_path: Path) -> None:
    draw(tmp_path, noise=90.0)
    one = probe(tmp_path, "one")
    for place in ("train", "masks"):
        for number in range(10):
            shutil.copy(tmp_path / place / f"{number}.png", tmp_path / place / f"{number}z.png")
    two = probe(tmp_path, "two")
    assert two["data"]["copies"] == {"train": 10}
    for key in ("chosen", "candidates", "fits", "metrics", "intervals", "details"):
        assert json.dumps(two[key]) == json.dumps(one[key])


def test_other_test_masks_change_no_choice(tmp_path: Path) -> None:
    draw(tmp_path, noise=90.0)
    one = probe(tmp_path, "one")
    masks = [tmp_path / "masks" / f"{number}.png" for number in range(10, 14)]
    contents = [path.read_bytes() for path in masks]
    for path, content in zip(masks, [*contents[1:], contents[0]], strict=True):
        path.write_bytes(content)
    two = probe(tmp_path, "two")
    for key in ("chosen", "candidates", "fits"):
        assert two[key] == one[key]
    assert two["metrics"] != one["metrics"]
    predicted = [
        {name: entry["predicted"] for name, entry in run["details"]["test/dense"]["per_class"].items()}
        for run in (one, two)
    ]
    assert sum(predicted[0].values()) == sum(predicted[1].values())


def test_names_other_protocols_and_a_held_out_test_set_go_together(tmp_path: Path) -> None:
    """With kNN beside it, on layers alone, labels are needed; without a test set, one is held out."""
    draw(tmp_path)
    for number in range(10):
        for place in ("train", "masks"):
            name = tmp_path / place / "ab"[number % 2]
            name.mkdir(exist_ok=True)
            (tmp_path / place / f"{number}.png").rename(name / f"{number}.png")
    found = probe(
        tmp_path, data={"test": None}, also={"knn": {"k": 1, "taps": ["layers"]}}, classes=["red", "green", "blue", "none"],
        resolution=32, patches=100, C=[1.0],
    )  # fmt: skip
    assert {"test/knn@stage1/accuracy", "test/dense/miou"} <= found["metrics"].keys() and found["chosen"] == {}
    details = found["details"]["test/dense"]
    assert details["never_predicted"] == ["none"] and details["per_class"]["none"]["iou"] is None
    assert (details["resolution"], details["patches"]) == (32, 100)
    assert np.sum(details["confusion"]) <= 32 * 32 * found["data"]["n"]["test"]


def spoil_size(folder: Path) -> None:
    Image.new("L", (64, 63)).save(folder / "masks/3.png")


def spoil_value(folder: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[5, 5] = 9
    Image.fromarray(mask).save(folder / "masks/11.png")


def spoil_colour(folder: Path) -> None:
    Image.new("RGB", (64, 64)).save(folder / "masks/12.png")


def spoil_one_class(folder: Path) -> None:
    for number in range(14):
        mask = np.zeros((64, 64), np.uint8)
        mask[:, 30:] = 255
        Image.fromarray(mask).save(folder / f"masks/{number}.png")


def spoil_test(folder: Path) -> None:
    for number in range(10, 14):
        Image.new("L", (64, 64), 255).save(folder / f"masks/{number}.png")


def keep(folder: Path) -> None:
    pass


MISTAKES: list[tuple[Any, dict[str, Any], str]] = [
    (lambda folder: (folder / "masks/13.png").unlink(), {}, r"13\.png has no mask .*masks/13\.png; add it"),
    (spoil_size, {}, r"masks/3\.png: the mask has 64 x 63 px, and its picture 3\.png 64 x 64; give a mask of the picture's size"),
    (spoil_value, {}, r"masks/11\.png: the mask has the number 9, which no training mask has; give evaluate\.dense\.classes"),
    (spoil_value, {"classes": 3}, r"masks/11\.png: the mask has the number 9, but evaluate\.dense\.classes numbers 3 classes 0\.\.2"),
    (keep, {"classes": ["a", "b"]}, "has the number 2, but evaluate.dense.classes numbers 2 classes"),
    (spoil_colour, {}, r"masks/12\.png: the mask has several numbers a pixel \(RGB\)"),
    (spoil_one_class, {}, "hold the single class 0 beside 255, .*; if that is a class, set evaluate.dense.ignore=null"),
    (spoil_test, {}, "no pixel of the masks of test counts: all are 255"),
    (keep, {"resolution": 7}, "evaluate.dense.resolution: 7 px are given; expected 8"),
    (keep, {"patches": 0}, "evaluate.dense.patches: 0 is given"),
    (keep, {"ignore": 70000}, "evaluate.dense.ignore: 70000 is given; expected a number of the masks, 0 to 65535, or null"),
    (keep, {"classes": 1}, "evaluate.dense.classes: 1 classes are given; expected 2 to 10,000"),
    (keep, {"classes": ["a", "b", "a"]}, "evaluate.dense.classes: two names are equal"),
    (keep, {"C": []}, "evaluate.dense.C: expected one or more numbers from 1e-12"),
    (keep, {"C": [1.0, -1.0]}, "evaluate.dense.C: expected one or more numbers from 1e-12"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "dense", "sentence"), MISTAKES)
def test_mistakes_are_said_before_extraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, dense: dict[str, Any], sentence: str
) -> None:
    monkeypatch.setattr(module, "features_of", None)
    spoil(draw(tmp_path))
    with pytest.raises(UserError, match=sentence):
        probe(tmp_path, **dense)


def test_drawn_patches_that_are_all_held_out_are_refused() -> None:
    """The draw is known before extraction: with one patch of six images it depends on the seed where it lies."""
    labels, keys, refused = torch.zeros(6, 4, dtype=torch.int64), torch.arange(6), []
    for seed in range(12):
        drawn = int(draw_patches(labels, keys, 1, seed)[0]) // 4
        refused.append(bool(sliced_images(keys, seed)[drawn]))
        settings = Dense(masks="x", patches=1, C=(0.1, 1.0))
        if refused[-1]:
            with pytest.raises(
                UserError, match=r"evaluate\.dense\.patches: 1 is given, and all .* give a larger number"
            ):
                _check_slice(settings, labels, keys, seed)
            _check_slice(replace(settings, C=(1.0,)), labels, keys, seed)
            _check_slice(replace(settings, patches=24), labels, keys, seed)
        else:
            _check_slice(settings, labels, keys, seed)
    assert 0 < sum(refused) < 12


def test_no_mask_is_read_for_a_probe_that_another_protocol_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path)
    for number in range(10):
        folder = tmp_path / "train" / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        (tmp_path / "train" / f"{number}.png").rename(folder / f"{number}.png")
    monkeypatch.setattr(module, "prepare", None)
    with pytest.raises(UserError, match="knn needs k of at least 1"):
        probe(tmp_path, data={"test": None}, also={"knn": {"k": 0}})


def test_one_picture_leaves_nothing_to_choose_C_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, train=1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "features_of", None)
        with pytest.raises(
            UserError, match=r"too few different training images .*; give evaluate\.dense\.C a single value"
        ):
            probe(tmp_path)
    assert probe(tmp_path, "single", C=[1.0])["chosen"] == {}
