"""Random crops of a set: what each picture shows, and which features the cache keeps of them."""

from pathlib import Path

import pytest
import torch

from rootstock.core.draws import Draws
from rootstock.core.evaluate.augmented import RandomCrops
from rootstock.core.evaluate.feature_key import describe_view
from rootstock.core.images.open import open_images
from rootstock.core.views.augmentation import Augmentation
from rootstock.core.views.resample import Interpolation
from rootstock.core.views.view import Evaluation, View
from rootstock.tests.core.evaluate.test_frozen import Network, digits


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_picture_is_the_crop_that_training_draws_at_its_position(interpolation: Interpolation) -> None:
    images, view = digits(5, 24), Evaluation(16, interpolation=interpolation)
    crops = RandomCrops(images, view, seed=3, epoch=2)
    training = View(16, augmentation=Augmentation(scale=(0.08, 1.0), flip=0.5, interpolation=interpolation))
    pixels = images.resident()
    assert pixels is not None
    expected = training.crop(pixels, Draws(3, torch.arange(10, 15), "probe/"))
    assert torch.equal(torch.stack([crops.read(i) for i in range(5)]), expected)
    # The evaluation's view takes such a crop whole, and normalises it as training does.
    assert torch.equal(
        view(torch.stack([view.worker(crops.read(i)) for i in range(5)])),
        training.finish(expected, Draws(3, torch.arange(5))),
    )
    assert crops.uniform() is None and crops.rows(torch.arange(2)) is None
    assert crops.split_hash() == images.split_hash() and crops.name(1) == images.name(1)
    other = RandomCrops(images, view, seed=3, epoch=3), RandomCrops(images, view, seed=4, epoch=2)
    assert all(not torch.equal(one.read(0), crops.read(0)) for one in other)


def test_each_epoch_has_an_entry_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time eight rows are computed; another epoch, seed or interpolation is another entry, and so is the plain view."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network, images = Network(), digits()

    def seen(seed: int, epoch: int, interpolation: Interpolation = "bilinear") -> int:
        view = Evaluation(16, interpolation=interpolation)
        crops = RandomCrops(images, view, seed=seed, epoch=epoch)
        found = network(crops, view, described=crops.describe(view), batch_size=7)["pooled"]
        assert len(found) == 20
        return network.seen

    network(images, batch_size=7)
    assert network.seen == 20
    first = [seen(0, 0), seen(0, 1), seen(1, 0), seen(0, 0, "bicubic")]
    again = [seen(0, 0), seen(0, 1), seen(1, 0), seen(0, 0, "bicubic")]
    assert (first, again) == ([20] * 4, [8] * 4)
    crops = RandomCrops(images, Evaluation(16), seed=0, epoch=0)
    assert crops.describe(Evaluation(16)) != describe_view(Evaluation(16))


def test_crops_of_a_selection_keep_labels_and_places() -> None:
    images = open_images("sklearn:digits?size=16").select(torch.tensor([7, 3]))
    crops = RandomCrops(images, Evaluation(8), seed=0, epoch=0)
    assert crops.labels is not None and images.labels is not None and torch.equal(crops.labels, images.labels)
    assert crops.places() == images.places() and crops.read(1).shape == (3, 8, 8)
