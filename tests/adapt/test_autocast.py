"""Every method's loss around a network in half precision: computed in float32 from what the network gave, its gradient too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rootstock.adapt.adabn import AdaBN
from rootstock.adapt.cdan import CDAN, MultilinearMap
from rootstock.adapt.dann import DANN
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.core.draws import Draws
from rootstock.core.method import Domains, Labelled, Overview, Unlabelled
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.heads import Structure
from rootstock.launch.doctor.trial_steps import SIZE, backbone

IMAGES, OUTPUTS, TARGETS = 12, 5, 20
NAMES = [name for name, kind in ADAPT_METHODS.items() if not issubclass(kind, AdaBN)]
KEYS: dict[str, dict[str, Any]] = {
    "fixmatch": {"threshold": 0.6},
    "adamatch": {"threshold": 0.6, "interpolation": False},
    "afn": {"dropout": 0.0},
    "aad": {"neighbours": 3},
    "eata": {"margin": 2.0, "similar": 1.0, "fisher": "none"},
    "roid": {"consistency": False},
}


class Scores(nn.Module):
    """A network that autocast leaves in float32: so what differs is the loss. [..., D] -> [...], or [..., outputs]."""

    def __init__(self, outputs: int | None = None) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        ways = torch.linspace(-1.0, 1.0, x.shape[-1] * (self.outputs or 1)).view(-1, x.shape[-1]).sin()
        found = (x[..., None, :] * ways).sum(-1)
        return found if self.outputs else found[..., 0]


def rows(views: int, dtype: torch.dtype) -> Tensor:
    """What an encoder gives, [views, IMAGES, OUTPUTS]: numbers that bfloat16 holds exactly."""
    draws = Draws(3, torch.arange(IMAGES))
    found = torch.stack([2.0 * draws.normal(f"view {v}", OUTPUTS) + 0.3 * v for v in range(views)])
    return found.to(torch.bfloat16).to(dtype).requires_grad_()


def around(name: str, given: Tensor, *, sketch: bool = False) -> Any:
    """The method, whose encoder gives `given` and whose head hands them on: features are the logits."""
    torch.manual_seed(0)
    kind = ADAPT_METHODS[name]
    classes = [str(k) for k in range(OUTPUTS - kind.extra_outputs)]
    made: Any = kind(
        Classifier(backbone("conv"), classes, structure=Structure(extra=kind.extra_outputs)), None, **KEYS.get(name, {})
    )
    if name == "aad":
        made.bank_features = torch.empty(0, OUTPUTS)
    made.make_room(TARGETS)
    made.classifier.encode = lambda images, *_: given[: len(images)]
    made.classifier.head = nn.Identity()
    made.classifier.forward = lambda images: given[-1]
    if issubclass(kind, DANN):
        made.discriminator = Scores()
    if issubclass(kind, CDAN):
        made.map = MultilinearMap(OUTPUTS, OUTPUTS, 64 if sketch else None)
    if name == "mcd":
        made.second = Scores(OUTPUTS)
    if name == "mdd":
        made.adversary = Scores(OUTPUTS)
    if made.refresh_every is not None:
        draws = Draws(4, torch.arange(TARGETS))
        seen = Overview(torch.arange(TARGETS), draws.normal("features", OUTPUTS), 2.0 * draws.normal("logits", OUTPUTS))
        made.refresh(seen, 0.0)
    return made.train()


def losses(name: str, dtype: torch.dtype, **keys: Any) -> list[tuple[Tensor, Tensor]]:
    """Of each turn the loss and its gradient at what the encoder gave."""
    kind = ADAPT_METHODS[name]
    given = rows(len(kind.source_views) + len(kind.target_views) if not kind.online else 1, dtype)
    method = around(name, given, **keys)
    images, draws = torch.zeros(IMAGES, 3, SIZE, SIZE), Draws(0, torch.arange(IMAGES))
    labels = draws.integers("labels", OUTPUTS - 1)
    source = Labelled(images, labels, draws, (images,) * (len(kind.source_views) - 1))
    target = Unlabelled(images, draws, torch.arange(IMAGES), (images,) * (len(kind.target_views) - 1))
    found = []
    for turn in range(method.turns):
        several: Any = (turn,) if method.turns > 1 else ()
        loss = method(Domains(() if kind.online else (source,), (target,)), 0.5, *several).loss
        # In the turn of MCD's heads the features rest, and these heads have nothing to learn.
        (gradient,) = torch.autograd.grad(loss, given, allow_unused=True) if loss.requires_grad else (None,)
        found.append((loss.detach(), torch.zeros_like(given) if gradient is None else gradient))
    return found


@pytest.mark.parametrize("name", [*NAMES, "cdan, sketched"])
def test_the_loss_is_computed_in_float32(name: str) -> None:
    """In bfloat16, sums and products of matrices would be wrong by a part in 256; losses agree a thousand times better here.

    Gradients at the network's output are sums in its bfloat16, of what each use of it hands back.
    """
    name, _, sketched = name.partition(", ")
    keys = {"sketch": True} if sketched else {}
    plain = losses(name, torch.float32, **keys)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = losses(name, torch.bfloat16, **keys)
    assert any(gradient.any() for _, gradient in plain)
    for (loss, gradient), (ours, its_gradient) in zip(plain, mixed, strict=True):
        assert ours.dtype == torch.float32 and loss.dtype == torch.float32
        assert ours.item() == pytest.approx(loss.item(), rel=3e-6, abs=1e-6)
        torch.testing.assert_close(its_gradient.float(), gradient, rtol=2**-7, atol=2**-8 * float(gradient.abs().max()))
