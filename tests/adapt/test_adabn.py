"""AdaBN's statistics against a slow forward over the whole target."""

import copy

import pytest
import torch
from torch import Tensor, nn

from rootstock.adapt.adabn import AdaBN
from rootstock.core.errors import UserError
from rootstock.core.model import norm
from rootstock.core.model.backbone import Backbone, create
from rootstock.core.model.classifier import Classifier

HALF = (0.5, 0.5, 0.5)


class Net(nn.Module):
    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean((2, 3))


def adabn(mode: str = "local") -> AdaBN:
    torch.manual_seed(0)
    spec = {"name": "net", "args": {}, "size": 8, "stem": "default", "pooling": None}
    classifier = Classifier(Backbone(Net(), spec, HALF, HALF), ["a", "b"], dropout=0.5)
    classifier(torch.randn(4, 3, 8, 8))
    method = AdaBN(classifier)
    norm.configure(method, mode, accumulate=1, chunk=None, log=print)
    return method


def target(n: int = 10) -> Tensor:
    return 2.0 * torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.5


def batchnorms(method: AdaBN) -> list[nn.BatchNorm2d]:
    return [m for m in method.modules() if isinstance(m, norm.PositionBatchNorm)]  # pyright: ignore[reportReturnType]


def slow(method: AdaBN, batches: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Mean and unbiased variance of each BatchNorm's inputs over all images, each batch normalised by itself."""
    net = copy.deepcopy(method.backbone.model)
    assert isinstance(net, Net)
    net.layers.double()
    xs = [batch.double() for batch in batches]
    found = []
    for layer in net.layers:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            values = torch.cat([x.transpose(0, 1).flatten(1) for x in xs], 1)
            found.append((values.mean(1), values.var(1)))
            shape = (1, -1, 1, 1)
            xs = [
                (x - x.mean((0, 2, 3)).view(shape)) / (x.var((0, 2, 3), correction=0).view(shape) + layer.eps).sqrt()
                for x in xs
            ]
        else:
            xs = [layer(x) for x in xs]
    return found


@pytest.mark.parametrize("cuts", [[10], [5, 5], [4, 3, 3], [7, 2, 1]])
def test_statistics_equal_a_slow_forward_over_all_target_images(cuts: list[int]) -> None:
    method = adabn()
    batches = list(target().split(cuts))
    expected = slow(method, batches)
    method.conclude(batches)
    for layer, (mean, variance) in zip(batchnorms(method), expected, strict=True):
        torch.testing.assert_close(layer.running_mean, mean.float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_var, variance.float(), rtol=1e-4, atol=1e-5)


def test_the_first_layer_sees_the_whole_target_however_it_is_cut() -> None:
    method, images = adabn(), target()
    net = method.backbone.model
    assert isinstance(net, Net)
    inputs = net.layers[0](images).detach()
    method.conclude(images.split([3, 6, 1]))
    first = batchnorms(method)[0]
    torch.testing.assert_close(first.running_mean, inputs.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.running_var, inputs.transpose(0, 1).flatten(1).var(1), rtol=1e-4, atol=1e-5)


def test_in_one_batch_evaluation_then_normalises_like_training_on_the_target() -> None:
    method, images = adabn(), target()
    trained = copy.deepcopy(method).train()
    trained.classifier.dropout.eval()
    method.conclude([images])
    # Evaluation divides by the unbiased variance, training by the biased one: 360 and 160 values a channel.
    torch.testing.assert_close(method.classifier(images), trained.classifier(images), rtol=2e-2, atol=2e-3)


def test_everything_but_the_statistics_stays() -> None:
    method = adabn()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.conclude(target().split(4))
    changed = [name for name, value in method.state_dict().items() if not torch.equal(value, before[name])]
    assert [name.rsplit(".", 1)[1] for name in changed] == ["running_mean", "running_var"] * 2
    assert not any(m.training for m in method.modules())
    assert all(not layer.pending for layer in method.modules() if isinstance(layer, norm.PositionBatchNorm))
    once = {name: value.clone() for name, value in method.state_dict().items()}
    method.conclude(target().split(4))
    assert all(torch.equal(value, once[name]) for name, value in method.state_dict().items())


def test_groups_do_not_limit_the_size_of_batches() -> None:
    grouped, local = adabn("group:4"), adabn()
    grouped.conclude(target().split([7, 3]))
    local.conclude(target().split([7, 3]))
    for a, b in zip(batchnorms(grouped), batchnorms(local), strict=True):
        torch.testing.assert_close(a.running_var, b.running_var)
    assert all(m.mode == "group" for m in grouped.modules() if isinstance(m, norm.PositionBatchNorm))


def test_networks_without_batchnorm_are_refused_before_any_work() -> None:
    args = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    vit = create(8, name="vit_tiny_patch16_224", args=args)
    with pytest.raises(
        UserError, match=r"method: adabn needs a backbone with BatchNorm, vit_tiny_patch16_224 has none"
    ):
        AdaBN(Classifier(vit, ["a", "b"]))
