"""The CIFAR ResNets: the published layers and parameters, shortcuts without parameters, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.model.backbone import Backbone, create

SMALL = {"depth": 14, "widths": [4, 8, 8]}


def small(**args: object) -> Backbone:
    torch.manual_seed(0)
    return create(16, name="cifar_resnet", args={**SMALL, **args}).eval()


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_has_the_published_number_of_layers_and_parameters(depth: int, millions: float) -> None:
    """Table 6 of the paper; its classifier has 64 x 10 + 10 parameters."""
    model = create(32, name="cifar_resnet", args={"depth": depth})
    assert sum(isinstance(layer, nn.Conv2d) for layer in model.modules()) + 1 == depth
    digits = 1 if depth == 110 else 2
    assert round((sum(p.numel() for p in model.parameters()) + 650) / 1e6, digits) == millions
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 64)


def by_hand(model: Backbone, image: Tensor, shortcut: bool) -> Tensor:
    """The features of one image [3, 16, 16], block by block from the weights alone, with shortcuts pixel by pixel."""
    state = model.state_dict()

    def normed(x: Tensor, name: str) -> Tensor:
        mean, variance, scale, shift = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        unit = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return unit * scale[:, None, None] + shift[:, None, None]

    head = next(name for name in state if name.endswith("blocks.0.0.weight")).removesuffix("0.0.weight")
    x = normed(F.conv2d(image[None], state[f"{head}0.0.weight"], padding=1)[0], f"{head}0.1").clamp(min=0)
    for number in range(1, 7):
        stride = 2 if number in (3, 5) else 1
        own = f"{head}{number}."
        f = F.conv2d(x[None], state[f"{own}conv1.weight"], stride=stride, padding=1)[0]
        f = F.conv2d(normed(f, f"{own}bn1").clamp(min=0)[None], state[f"{own}conv2.weight"], padding=1)[0]
        f = normed(f, f"{own}bn2")
        if shortcut:
            for channel in range(x.shape[0]):  # new channels get zeros
                for row in range(f.shape[1]):
                    for column in range(f.shape[2]):
                        f[channel, row, column] += x[channel, row * stride, column * stride]
        x = f.clamp(min=0)
    return x.mean((1, 2))


@pytest.mark.parametrize("shortcut", [True, False])
def test_equals_a_version_by_hand(shortcut: bool) -> None:
    model = small(shortcut=shortcut)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = torch.stack([by_hand(model, image, shortcut) for image in images])
        torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-6)


def test_only_the_shortcuts_differ() -> None:
    residual, plain = small().state_dict(), small(shortcut=False).state_dict()
    assert residual.keys() == plain.keys() and all(torch.equal(residual[name], plain[name]) for name in plain)


def test_a_block_is_a_layer() -> None:
    scales = small().layer_scales(0.5)
    assert [next(v for k, v in scales.items() if f"blocks.{i}." in k) for i in range(7)] == [
        0.5 ** (7 - i) for i in range(7)
    ]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"depth": 18}, r"a depth of 6n \+ 2, such as 20 or 56, got 18"),
        ({"depth": 2}, r"a depth of 6n \+ 2"),
        ({"widths": [8, 4, 4]}, "none below the one before"),
        ({"widths": [8, 8]}, "three widths"),
        ({"widths": [0, 8, 8]}, "at least 1"),
    ],
)
def test_what_cannot_be_built_is_refused(args: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=rf"{said}.*; change one of them"):
        small(**args)
