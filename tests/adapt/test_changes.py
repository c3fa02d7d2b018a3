"""What a training changed, and errors by class and domain: by hand, and of a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import rootstock.adapt.examine as examine
from rootstock.adapt.by_class import errors_by_class
from rootstock.adapt.changes import NEAREST_MEAN, nearest_means
from rootstock.core.evaluate.predictions import read_predictions
from rootstock.core.images.open import open_images
from rootstock.launch.report.answers import read_answers
from rootstock.launch.report.maps import right_of_points
from rootstock.launch.report.records import read_run
from rootstock.tests.adapt.test_examine import DATA, start


def test_the_nearest_mean_against_a_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    features, others = torch.randn(20, 3, generator=draw), torch.randn(7, 3, generator=draw)
    labels = torch.randint(3, (20,), generator=draw) + 1  # class 0 has no row
    means = {k: features[labels == k].double().mean(0) for k in (1, 2, 3)}
    slow = [min(means, key=lambda k: float((row.double() - means[k]).square().sum())) for row in others]
    assert nearest_means(features, labels, others, 4).tolist() == slow
    assert nearest_means(features, labels, torch.zeros(1, 3), 4).item() != 0


def test_errors_by_class_and_by_domain() -> None:
    images = open_images("sklearn:digits#[:40,seed=0]")
    assert images.labels is not None
    labels = images.labels.numpy()
    predictions = np.where(np.arange(40) % 4 == 0, (labels + 1) % 10, labels)
    outputs = [str(k) for k in range(10)] + ["unknown"]
    found = errors_by_class("target", images, predictions, outputs)["target"]
    assert found["images"] == 40 and sum(map(sum, found["confusion"])) == 40
    for k in range(10):
        mine = labels == k
        assert found["accuracy"][str(k)] == pytest.approx((predictions[mine] == k).mean())
        assert found["confusion"][k][(k + 1) % 10] == int((mine & (predictions != labels)).sum())
    assert found["accuracy"]["unknown"] is None  # without an image
    images.domains, images.domain_names = torch.arange(40) % 2, ("even", "odd")
    apart = errors_by_class("target", images, predictions, outputs)
    assert list(apart) == ["target/even", "target/odd"]
    assert [sum(map(sum, part["confusion"])) for part in apart.values()] == [20, 20]
    wrong = [part["images"] - int(np.trace(part["confusion"])) for part in apart.values()]
    assert wrong == [10, 0]  # every fourth is even


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, torch.Tensor]]:
    """A run of source and target, and the guesses before its training."""
    where, kept = tmp_path_factory.mktemp("changes"), dict[str, torch.Tensor]()
    original = examine.Examination.began

    def began(self: examine.Examination) -> Any:
        found = original(self)
        assert found is not None
        kept.update(found.guesses)
        show: Any = self.show
        assert all(images.labels is None for images in show.args[3].values())  # sealed until the final test
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(examine.Examination, "began", began)
        optim = {"lr": 1e-2, "batch_size": 16, "duration": 40}
        result = start(where, "default", optim=optim, method={"name": "source_only"})
    return where / "run", result, kept


def test_what_became_right_or_wrong_is_counted_and_shown(
    ran: tuple[Path, dict[str, Any], dict[str, torch.Tensor]],
) -> None:
    run, result, guesses = ran
    test = open_images(DATA["test"]["target"])
    stored = load_file(run / "candidates.safetensors")
    after = stored["target/classifier/logits"].float().argmax(1)
    was, now = guesses["target"] == test.labels, after == test.labels
    to_right, to_wrong = int((~was & now).sum()), int((was & ~now).sum())
    assert result["changes"] == {
        "before": NEAREST_MEAN,
        "tests": {"target": {"images": 30, "to_right": to_right, "to_wrong": to_wrong}},
    }
    captions = json.loads((run / "pictures" / "captions.json").read_text())
    for kind, count in (("wrong_to_right", to_right), ("right_to_wrong", to_wrong)):
        path = run / "pictures" / f"{kind}.png"
        assert path.exists() == (count > 0)
        if count:
            shown = min(count, 12)
            assert f"{shown} of {count} such images among 30 of target" in captions[path.name]
            assert captions[path.name].count("taken for") == shown
            with Image.open(path) as sheet:
                # Whole pictures, at least 64 pixels wide, in rows of six, each with a border.
                assert sheet.width % (72 + 4) == 0 and sheet.height % (72 + 4) == 0
    assert to_right > 0


def test_the_map_holds_source_and_target_before_and_after(
    ran: tuple[Path, dict[str, Any], dict[str, torch.Tensor]],
) -> None:
    drawn = json.loads((ran[0] / "map.json").read_text())
    assert drawn["domains"] == ["source", "target"] and drawn["domain"] == [0] * 30 + [1] * 30
    assert len(drawn["before"]["x"]) == len(drawn["x"]) == 60 and drawn["before"]["x"] != drawn["x"]
    assert min(drawn["label"]) >= 0
    # The page asks the predictions whether a point is right: by its place in the test, where its identity has to stand.
    kept = read_predictions(ran[0])
    assert kept is not None
    images, scores = kept.tests["target"], kept.scores["target/classifier"].scores
    assert drawn["row"][:30] == [-1] * 30 and images.keys[drawn["row"][30:]].tolist() == drawn["key"][30:]
    shown = right_of_points(drawn, read_answers(read_run(ran[0])))
    right = scores.argmax(1) == images.labels
    assert shown[1] == [-1] * 30 + right[drawn["row"][30:]].astype(int).tolist() and shown[0] == "target/classifier"


def test_accuracies_of_both_domains_are_in_the_result(
    ran: tuple[Path, dict[str, Any], dict[str, torch.Tensor]],
) -> None:
    result = ran[1]
    found = result["by_class"]
    assert list(found) == ["source", "target"] and found["source"]["measured_on"] == "training source"
    assert found["source"]["images"] == 120 and found["target"]["images"] == 30
    details = result["details"]["target/classifier"]
    assert found["target"]["confusion"] == details["confusion"]
    right = sum(found["target"]["confusion"][k][k] for k in range(10))
    assert right / 30 == pytest.approx(result["metrics"]["target/classifier/accuracy"])
