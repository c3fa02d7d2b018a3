"""Class means as a head: against the distances that they stand for, and a run of no steps on a frozen network."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from rootstock.adapt.prototypes import set_prototypes
from rootstock.adapt.sets import replaced_silently, whole, with_labels
from rootstock.core.errors import UserError
from rootstock.core.images.open import open_images
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.heads import Structure
from rootstock.core.views.view import Evaluation
from rootstock.tests.adapt.digits import sets
from rootstock.tests.adapt.test_objective import start

CLASSES = ("a", "b", "c")
NET: dict[str, Any] = {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}}


def classifier(**structure: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(create(16, **NET), CLASSES, structure=Structure(**structure)).eval()


def features(seed: int = 0, n: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 8, generator=generator) * 2 + 1, torch.arange(n) % 3


@pytest.mark.parametrize("head", ["linear", "weightnorm", "cosine"])
def test_the_nearest_class_mean_wins(head: str) -> None:
    """By Euclidean distance, or by the angle to the mean direction; against a loop in float64."""
    made, (x, labels) = classifier(head=head), features()
    set_prototypes(made, [(x[:7], labels[:7]), (x[7:], labels[7:])])
    asked = features(seed=1)[0]
    with torch.no_grad():
        found = made(asked)
    rows = x.double()
    expected = torch.zeros(len(asked), 3, dtype=torch.float64)
    for k in range(3):
        own = [rows[i] for i in range(len(rows)) if labels[i] == k]
        if head == "cosine":
            mean = torch.stack([row / row.norm() for row in own]).mean(0)
            expected[:, k] = (
                torch.stack([row.double() @ mean / (row.double().norm() * mean.norm()) for row in asked]) / 0.05
            )
        else:
            mean = torch.stack(own).mean(0)
            expected[:, k] = -(asked.double() - mean).square().sum(1)
    if head != "cosine":  # the length of the image's own features is in no class's favour
        expected += asked.double().square().sum(1, keepdim=True)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_other_outputs_and_the_bottleneck_stay() -> None:
    made = classifier(bottleneck=5, extra=1)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    images = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    set_prototypes(made, [(images, torch.arange(12) % 3)])
    after = made.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"head.weight", "head.bias"}
    assert torch.equal(before["head.weight"][3], after["head.weight"][3]) and made.head.in_features == 5


def test_a_class_without_an_image_is_named() -> None:
    x, labels = features()
    with pytest.raises(UserError, match=r"data\.source: no training image is of the class c, so it has no prototype"):
        set_prototypes(classifier(), [(x, labels.clamp(max=1))])


def test_blends_of_one_digit_have_their_own_features(tmp_path: Path) -> None:
    """A run of 0 steps on a frozen network, of a source in which four images share an identity: the head is that of a plain loop."""
    blends = "sklearn:digits-m?blends=4"
    data = {"source": f"{blends}#[:40]", "target": sets(16)["target"], "test": sets(16)["test"], "size": 32}
    method = {"name": "prototypes", "head": "cosine"}
    frozen = {**NET, "freeze": "all"}
    start(tmp_path / "a", method, "optim.duration=0", data={**data, "views": "none"}, backbone=frozen, evaluate=None)
    start(tmp_path / "b", method, "optim.duration=0", data={**data, "views": "digits"}, backbone=frozen, evaluate=None)
    found = [load_file(tmp_path / run / "run" / "classifier" / "head.safetensors")["weight"] for run in "ab"]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)  # features once, and of every image
    images = open_images(data["source"])
    assert images.labels is not None and len(images) == 160 and len(images.keys().unique()) == 40
    torch.manual_seed(0)
    again = Classifier(create(32, **NET), images.classes or (), structure=Structure(head="cosine")).eval()
    weights = load_file(tmp_path / "a" / "run" / "classifier" / "backbone.safetensors")
    again.backbone.model.load_state_dict(weights)
    pixels = torch.stack([images.read(i) for i in range(160)]).float() / 255
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (again.backbone.mean, again.backbone.std))
    set_prototypes(again, [((pixels - mean) / std, images.labels)])
    torch.testing.assert_close(found[0], again.head.weight.detach(), rtol=1e-3, atol=1e-4)


def test_a_damaged_picture_has_the_label_of_the_neighbour_that_is_shown(tmp_path: Path) -> None:
    digits = open_images("sklearn:digits?size=12")
    for i, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        for j in range(3):
            pixels = digits.read(3 * i + j).permute(1, 2, 0).contiguous().numpy()
            Image.fromarray(pixels).save(tmp_path / name / f"{j}.png")
    broken = tmp_path / "b" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    images = open_images(f"folder:{tmp_path}")
    read = partial(whole, view=Evaluation(12), device=torch.device("cpu"), workers=1, damage=replaced_silently())
    ((batch, labels),) = with_labels(images, read)
    assert images.labels is not None and images.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2] and torch.equal(batch[5], batch[6])
