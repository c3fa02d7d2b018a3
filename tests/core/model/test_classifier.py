"""The classifier's export and head, its scores against counts, and the pictures that a run leaves."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import one_hot

from rootstock.core.errors import UserError
from rootstock.core.evaluate import pictures
from rootstock.core.evaluate.pictures import denormalise, save_map, save_sheet, spread
from rootstock.core.evaluate.scores import Scored, score
from rootstock.core.images.open import Images, open_images
from rootstock.core.model.backbone import Backbone, create
from rootstock.core.model.classifier import Classifier
from rootstock.core.views.view import Evaluation, normalise
from rootstock.tests.cheaper import FEWEST_OF_TSNE

RESNET = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}


def backbone() -> Backbone:
    return create(16, name="resnet10t", args=RESNET)


def classifier(classes: tuple[str, ...] = ("a", "b", "c"), dropout: float = 0.0) -> Classifier:
    return Classifier(backbone(), classes, dropout)


def digits(n: int = 40) -> Images:
    return open_images("sklearn:digits").select(torch.arange(n))


def test_logits_are_the_head_on_the_features_with_dropout_in_training_only() -> None:
    torch.manual_seed(0)
    made = classifier(dropout=0.9).eval()
    x = torch.randn(4, 3, 16, 16)
    expected = made.backbone(x) @ made.head.weight.T + made.head.bias
    torch.testing.assert_close(made(x), expected)
    made.dropout.train()
    assert not torch.allclose(made(x), expected)


def test_export_and_load_head_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = classifier()
    nn.init.normal_(made.head.bias)
    made.export(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backbone", "classifier"]
    for where in (tmp_path, tmp_path / "classifier", tmp_path / "backbone"):
        again = Classifier(create(16, weights=str(where)), ["a", "b", "c"])
        again.load_head(str(where))
        x = torch.randn(4, 3, 16, 16)
        assert torch.equal(again.eval()(x), made.eval()(x))


def test_a_moved_classifier_folder_is_its_own_not_a_neighbours(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made, other = classifier(), classifier()
    made.export(tmp_path / "a")
    other.export(tmp_path)
    (tmp_path / "a" / "classifier").rename(tmp_path / "kept")
    loaded = classifier()
    loaded.load_head(str(tmp_path / "kept"))
    assert torch.equal(loaded.head.weight, made.head.weight)


def test_heads_that_cannot_be_taken_over_are_one_sentence(tmp_path: Path) -> None:
    made = classifier()
    for weights in ("none", "timm", "w.safetensors"):
        with pytest.raises(UserError, match=rf"backbone.weights: {weights} holds no classifier; give the folder of a"):
            made.load_head(weights)
    made.backbone.export(tmp_path / "pretrained")
    with pytest.raises(UserError, match=r"pretrained holds no classifier/"):
        made.load_head(str(tmp_path / "pretrained"))
    made.export(tmp_path / "run")
    with pytest.raises(UserError, match=r"has the classes \['a', 'b', 'c'\], the data has \['a', 'c', 'b'\]"):
        classifier(("a", "c", "b")).load_head(str(tmp_path / "run"))
    (tmp_path / "run" / "classifier" / "head.safetensors").write_text("no tensors in this file at all")
    with pytest.raises(UserError, match=r"classifier/head.safetensors is damaged \(its sha256 differs"):
        made.load_head(str(tmp_path / "run"))
    (tmp_path / "run" / "classifier" / "MANIFEST.json").unlink()  # as an earlier version left it
    with pytest.raises(UserError, match=r"classifier is damaged"):
        made.load_head(str(tmp_path / "run"))


class ByHand(nn.Module):
    """Says class (mean brightness in thirds); a stand-in whose answers a loop can repeat."""

    def forward(self, images: Tensor) -> Tensor:
        brightness = images.mean((1, 2, 3))
        return nn.functional.one_hot((brightness * 40).long().clamp(0, 9), 10).float()


def test_scores_equal_counts_by_hand() -> None:
    images = digits()
    assert images.classes is not None and images.labels is not None
    view = Evaluation(8, mean=(0.0,), std=(1.0,))
    scores = score(ByHand(), {"test": images}, view, images.classes, torch.device("cpu"), 0)
    guesses = [int((images.read(i).double().mean() / 255 * 40).long().clamp(0, 9)) for i in range(len(images))]
    right = sum(guess == label for guess, label in zip(guesses, images.labels.tolist(), strict=True))
    assert scores.metrics["test/classifier/accuracy"] == pytest.approx(right / len(images))
    assert list(scores.metrics)[:4] == [f"test/classifier/{m}" for m in ("accuracy", "precision", "recall", "f1")]
    low, high = scores.intervals["test/classifier/accuracy"]
    assert 0.0 <= low <= right / len(images) <= high <= 1.0
    details = scores.details["test/classifier"]
    assert details["classes"] == list(images.classes)
    assert sum(sum(row) for row in details["confusion"]) == len(images)
    json.dumps(scores.as_result(), allow_nan=False)


def test_intervals_resample_pictures_not_their_copies() -> None:
    one = digits(10)
    eight = one.select(torch.arange(10).repeat_interleave(8))

    def width(images: Images) -> float:
        assert images.labels is not None and images.classes is not None
        scores = Scored(images.classes, 0)
        scores.add("test/x", images, one_hot(torch.where(images.labels < 5, images.labels, 0), 10).float())
        low, high = scores.intervals["test/x/accuracy"]
        return high - low

    assert width(eight) == pytest.approx(width(one), abs=0.11)
    assert width(eight) > 0.3


def test_one_picture_has_no_interval() -> None:
    images = digits(1)
    assert images.labels is not None and images.classes is not None
    scores = Scored(images.classes, 0)
    scores.add("test/x", images, one_hot(images.labels, 10).float())
    assert scores.metrics["test/x/accuracy"] == 1.0


def test_denormalise_undoes_normalise() -> None:
    x = torch.rand(2, 3, 5, 4, 4)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    there = torch.stack([normalise(row, mean, std) for row in x])
    torch.testing.assert_close(denormalise(there, mean, std), x)


@pytest.mark.parametrize(("channels", "size"), [(3, 8), (1, 48), (5, 80)])
def test_sheets_hold_their_pictures_in_rows(channels: int, size: int, tmp_path: Path) -> None:
    rows = torch.rand(2, 3, channels, size, size)
    save_sheet(tmp_path, "views", rows, "One.")
    save_sheet(tmp_path, "others", rows, "Two.")
    captions = json.loads((tmp_path / "pictures" / "captions.json").read_text())
    assert captions == {"views.png": "One.", "others.png": "Two."}
    with Image.open(tmp_path / "pictures" / "views.png") as sheet:
        pixels = torch.tensor(list(sheet.convert("RGB").tobytes())).view(sheet.height, sheet.width, 3)
    factor = math.ceil(64 / size)
    cell = size * factor + 4
    assert pixels.shape == (2 * cell, 3 * cell, 3) and size * factor >= 64
    for row in range(2):
        for column in range(3):
            shown = pixels[
                row * cell + 2 : (row + 1) * cell - 2 : factor, column * cell + 2 : (column + 1) * cell - 2 : factor
            ]
            expected = (rows[row, column] * 255).round()[[0, 1, 2] if channels >= 3 else [0, 0, 0]]
            assert torch.equal(shown.permute(2, 0, 1), expected.long())


def test_spread_takes_each_index_once_and_evenly() -> None:
    for n, most in [(1, 5), (5, 5), (7, 3), (1000, 600), (600, 600), (0, 3)]:
        chosen = spread(n, most).tolist()
        assert len(set(chosen)) == len(chosen) == min(n, most)
        assert all(0 <= i < n for i in chosen)
        gaps = {b - a for a, b in pairwise(chosen)}
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_the_map_holds_every_set_by_class_and_domain(tmp_path: Path) -> None:
    first, second = digits(12), digits(9).unlabelled()
    generator = torch.Generator().manual_seed(0)
    features = {"a": torch.randn(12, 5, generator=generator), "b": torch.randn(9, 5, generator=generator)}
    save_map(tmp_path, features, {"a": first, "b": second}, 0)
    drawn = json.loads((tmp_path / "map.json").read_text())
    assert first.labels is not None
    assert drawn["label"] == [*first.labels.tolist(), *[-1] * 9]
    assert drawn["domain"] == [0] * 12 + [1] * 9 and drawn["domains"] == ["a", "b"]
    assert len(drawn["x"]) == len(drawn["y"]) == 21 and all(map(math.isfinite, drawn["x"]))


def test_two_maps_are_of_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "FEWEST_OF_TSNE", FEWEST_OF_TSNE)
    first, second = digits(230), digits(120)
    features = {"a": torch.randn(230, 5), "b": torch.randn(120, 5) + 3.0}
    before = {name: rows @ torch.randn(5, 7) for name, rows in features.items()}
    save_map(tmp_path, features, {"a": first, "b": second}, 0, before)
    drawn = json.loads((tmp_path / "map.json").read_text())
    assert {len(drawn[axis]) for axis in "xy"} == {len(drawn["before"][axis]) for axis in "xy"} == {270}
    assert len(drawn["label"]) == 270 and drawn["domain"] == [0] * 150 + [1] * 120 and "t-SNE" in drawn["method"]
    assert first.labels is not None and drawn["label"][:150] == first.labels[torch.arange(150) * 230 // 150].tolist()
    save_map(tmp_path, {"a": features["a"][:60]}, {"a": first}, 0)
    few = json.loads((tmp_path / "map.json").read_text())
    x = torch.nn.functional.normalize(features["a"][:60].double(), dim=1)
    _, _, axes = torch.linalg.svd(x - x.mean(0))
    expected = ((x - x.mean(0)) @ axes[0]).abs()
    torch.testing.assert_close(torch.tensor(few["x"], dtype=torch.float64).abs(), expected, atol=1e-3, rtol=0.0)
    assert "principal components of 60" in few["method"] and "before" not in few


def test_features_without_a_map_leave_the_run_alone(tmp_path: Path) -> None:
    images = digits(10)
    for features in ({}, {"a": torch.randn(5, 3)}, {"a": torch.full((10, 3), math.nan)}, {"a": torch.zeros(10, 3)}):
        save_map(tmp_path, features, dict.fromkeys(features, images), 0)
    assert list(tmp_path.iterdir()) == []
