"""Accuracy of many-, medium- and few-shot classes, against a loop over classes; its interval covers what resampling gives."""

import pytest
import torch
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.evaluate.class_groups import add_class_groups, check_cuts, group_classes
from rootstock.core.evaluate.scores import Scored
from rootstock.core.images.open import open_images

COUNTS = [500, 101, 100, 20, 19, 3, 0]
NAMES = [str(k) for k in range(7)]


def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scored, torch.Tensor, torch.Tensor]:
    """Scores of 60 pictures of the first six classes."""
    folder = tmp_path_factory.mktemp("set")
    generator = torch.Generator().manual_seed(0)
    for k in range(60):
        (folder / NAMES[k % 6]).mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (k, 2 * k, 255 - k)).save(folder / NAMES[k % 6] / f"{k}.png")
    images = open_images(f"folder:{folder}")
    assert images.labels is not None
    scores = torch.randn(60, 7, generator=generator) + 1.5 * torch.eye(7)[images.labels]
    found = Scored(NAMES, seed=0)
    found.add("test/classifier", images, scores)
    return found, images.labels, scores


def test_groups_are_those_of_the_training_counts() -> None:
    assert group_classes(COUNTS, [20, 100]) == {
        "accuracy_many": [0, 1],
        "accuracy_medium": [2, 3],
        "accuracy_few": [4, 5, 6],
    }
    assert group_classes([30, 40], [20, 100]) == {"accuracy_medium": [0, 1]}
    with pytest.raises(UserError, match=r"data\.class_groups: .* the smaller one first, got \[100, 20\]"):
        check_cuts([100, 20])
    check_cuts([20, 20])


def test_against_a_loop(tmp_path_factory: pytest.TempPathFactory) -> None:
    found, labels, scores = scored(tmp_path_factory)
    before = dict(found.metrics)
    add_class_groups(found, COUNTS, None)
    assert found.metrics == before
    add_class_groups(found, COUNTS, [20, 100])
    assert {name: value for name, value in found.metrics.items() if name in before} == before
    for name, classes in (("accuracy_many", [0, 1]), ("accuracy_medium", [2, 3]), ("accuracy_few", [4, 5])):
        recalls = []
        for k in classes:  # the last class has no test image, so it has no recall
            mine = [i for i in range(60) if labels[i] == k]
            recalls.append(sum(int(scores[i].argmax()) == k for i in mine) / len(mine))
        mean = sum(recalls) / len(recalls)
        assert found.metrics[f"test/classifier/{name}"] == pytest.approx(mean)
        low, high = found.intervals[f"test/classifier/{name}"]
        assert 0 <= low <= mean <= high <= 1 and high - low < 0.6
    assert found.details["test/classifier"]["class_groups"]["accuracy_few"] == ["4", "5", "6"]
