"""How much a network would miss each of its units: the size of its weights, or the change of the loss without it, to first order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.evaluate.features import evaluating
from ...core.images.images import Images
from ...core.images.split import one_of_each
from ...core.model.classifier import Classifier
from ...core.numerics import wide
from ...core.views.view import Evaluation, stack_pictures
from .channels import READER, CoupledUnits, Member

Importance = Literal["magnitude", "taylor"]

TAYLOR_BATCH = 64  # pictures whose gradient is squared at once


def layers_to_score(classifier: Classifier) -> dict[str, nn.Module]:
    """The layers that members name: those of the backbone's model, and what reads its features."""
    reader = classifier.head if classifier.bottleneck is None else classifier.bottleneck[0]
    return {**dict(classifier.backbone.model.named_modules()), READER: reader}


def by_magnitude(layers: Mapping[str, nn.Module], groups: Sequence[CoupledUnits]) -> list[Tensor]:
    """float64 [count] of each group: the sum of squares of all weights of a unit, over the mean of its group.

    torch-pruning's GroupMagnitudeImportance: weights of convolutions, linear layers and BatchNorms, without biases.
    """
    squares = [_summed(group, lambda member: _by_channel(layers, member, _weight).square().sum(1)) for group in groups]
    return [_over_mean(found) for found in squares]


def by_taylor(
    classifier: Classifier, groups: Sequence[CoupledUnits], batches: Iterable[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """float64 [count] of each group: (sum over a unit's weights of gradient times weight)^2, over the mean of its group.

    Molchanov et al. 2019 (arXiv:1906.10771, eq. 8), averaged over batches. The unit's weights are all that go with it, biases included; the
    loss is the cross-entropy, the network in eval mode and float32. batches: (images [N, C, h, w], labels int64 [N]) on its device.
    """
    layers = layers_to_score(classifier)
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    totals = [torch.zeros(group.units, dtype=torch.float64) for group in groups]
    with evaluating(classifier), torch.enable_grad():
        for images, labels in batches:
            loss = F.cross_entropy(wide(classifier(images)), labels)
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            of = {p: torch.zeros_like(p) if g is None else g for p, g in zip(trained, gradients, strict=True)}

            def change(layer: Any, name: str, of: Mapping[Any, Tensor] = of) -> Tensor | None:
                parameter = getattr(layer, name, None)
                return None if parameter is None else parameter * of[parameter]

            for total, group in zip(totals, groups, strict=True):
                total += _summed(group, lambda member: _changes(layers, member, change)).square()
    return [_over_mean(total) for total in totals]


Read = Callable[[Any, str], Tensor | None]  # (layer, name of a parameter) -> its numbers


def _weight(layer: Any, name: str) -> Tensor | None:
    return getattr(layer, name, None)


def _by_channel(layers: Mapping[str, nn.Module], member: Member, read: Read) -> Tensor:
    """The numbers of a member's weight, float64 [width, rest] on the CPU."""
    found = read(layers[member.place], "weight")
    if found is None:  # a BatchNorm without parameters
        return torch.zeros(len(member.units), 1, dtype=torch.float64)
    numbers = found.detach().double().cpu()
    return (numbers if member.side == "out" else numbers.transpose(0, 1)).reshape(len(member.units), -1)


def _changes(layers: Mapping[str, nn.Module], member: Member, read: Read) -> Tensor:
    """Gradient times weight of each channel, float64 [width]; with the bias where that goes too."""
    found, bias = _by_channel(layers, member, read).sum(1), read(layers[member.place], "bias")
    return found if bias is None or member.side == "in" else found + bias.detach().double().cpu()


def _summed(group: CoupledUnits, of_channels: Callable[[Member], Tensor]) -> Tensor:
    """float64 [count]: the sum over all members and channels of each unit."""
    total = torch.zeros(group.units, dtype=torch.float64)
    for member in group.members:
        known = member.units >= 0
        total.index_add_(0, member.units[known], of_channels(member)[known])
    return total


def _over_mean(found: Tensor) -> Tensor:
    """Groups of layers of other sizes can be ranked together."""
    mean = found.mean()
    return found / mean if mean > 0 else found


def chosen_pictures(images: Images, count: int, seed: int) -> Images:
    """Labelled training images, drawn by a hash of content and seed: the same for any order and number of processes."""
    return images.select(one_of_each(images.keys(), seed, count))


def shown_batches(images: Images, view: Evaluation, device: torch.device) -> Iterable[tuple[Tensor, Tensor]]:
    """The images in evaluation's view with their labels, on the device."""
    assert images.labels is not None
    for rows in torch.arange(len(images)).split(TAYLOR_BATCH):
        pictures = stack_pictures([view.worker(images.read(row)) for row in rows.tolist()])
        yield view(pictures.to(device)), images.labels[rows].to(device)
