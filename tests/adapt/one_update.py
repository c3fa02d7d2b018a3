"""What the tests of methods with one loss and one update share: drawn tensors, small methods, and batches of two domains."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rootstock.adapt.parts.transfer import Joint, Transfer
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.core.draws import Draws
from rootstock.core.method import Domains, Labelled, Unlabelled
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.heads import Structure
from rootstock.launch.doctor.trial_steps import SIZE, backbone

CLASSES, IMAGES = 4, 6
NAMES = sorted(name for name, kind in ADAPT_METHODS.items() if issubclass(kind, Transfer))


# How far a value may be, relatively, from the one that a peer gave: draws are float32, and the vector instructions of the processor decide
# their last bit. On an AVX512 machine values are up to 4e-8 from those of an AVX2 machine.
PEERS = 1e-7


class Drawn(NamedTuple):
    """Tensors that are the same wherever a peer was measured on them: 12 images a domain, 7 features, 5 classes. float64, with gradient."""

    features: Tensor  # [2, 12, 7]
    logits: Tensor  # [2, 12, 5]
    adversary: Tensor  # [2, 12, 5]
    labels: Tensor  # [12]

    @property
    def joint(self) -> Joint:
        return Joint(self.features, self.logits, self.labels)


def drawn(n: int = 12, dim: int = 7, classes: int = 5) -> Drawn:
    draws = Draws(7, torch.arange(n))
    features = torch.stack([draws.normal("source", dim), 0.5 + 1.5 * draws.normal("target", dim)])
    logits = torch.stack([3.0 * draws.normal("source logits", classes), 2.0 * draws.normal("target logits", classes)])
    adversary = 2.0 * torch.stack(
        [draws.normal("source adversary", classes), draws.normal("target adversary", classes)]
    )
    leaves = [part.double().requires_grad_() for part in (features, logits, adversary)]
    return Drawn(leaves[0], leaves[1], leaves[2], draws.integers("labels", classes))


def scorer(dim: int) -> nn.Module:
    """A discriminator of one linear layer, [..., dim] -> [...], the same wherever a peer was measured with it; float64."""
    layer = nn.Linear(dim, 1).double()
    with torch.no_grad():
        layer.weight.copy_(Draws(7, torch.arange(dim)).normal("discriminator")[None])
        layer.bias.fill_(0.1)
    return nn.Sequential(layer, nn.Flatten(-2))


class Given(nn.Module):
    """Gives these rows, whatever it gets."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, _: Tensor) -> Tensor:
        return self.rows


def gradient_norms(loss: Tensor, *leaves: Tensor) -> list[float]:
    return [float(gradient.norm()) for gradient in torch.autograd.grad(loss, leaves)]


def small(name: str, classes: int = CLASSES, **keys: Any) -> Transfer:
    """The method by its name around a small convolutional network with BatchNorm, in float64."""
    torch.manual_seed(0)
    structure = Structure(extra=ADAPT_METHODS[name].extra_outputs)
    classifier = Classifier(backbone("conv"), [str(k) for k in range(classes)], structure=structure)
    nn.init.normal_(classifier.head.weight)
    made: Any = ADAPT_METHODS[name](classifier, None, **keys)
    return made.double()


def domains(n: int = IMAGES, shift: float = 1.0, seed: int = 0) -> Domains:
    """Images whose domains differ by `shift` in brightness, float64."""
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.randn(2, n, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    draws = [Draws(seed, torch.arange(n), prefix=f"{domain}/") for domain in ("source", "target")]
    return Domains.of(Labelled(source, labels, draws[0]), Unlabelled(target + shift, draws[1]))
