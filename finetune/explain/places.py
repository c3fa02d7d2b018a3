"""The inner maps of a network that Grad-CAM can read: of its stages or blocks, and the last one before pooling.

A network is asked once, with one made-up image, what its stages give; nothing is told from its class or its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.evaluate.features import evaluating
from ...core.evaluate.taps import TapLayout, as_weights, layout_of
from ...core.model.classifier import Classifier

FINAL = "final"


class Place(NamedTuple):
    """A layer whose output is a map.

    module: the layer; None for what forward_features gives. axis: of the channels in its output, [N, ...]; 2 where these are tokens.
    prefix: tokens before those that stand for a place. grid: rows and columns.
    """

    name: str
    module: nn.Module | None
    axis: int
    prefix: int
    grid: tuple[int, int]

    def as_map(self, found: Tensor) -> Tensor:
        """The layer's output as [N, D, h, w]."""
        if found.ndim == 3:
            return found[:, self.prefix :].mT.unflatten(2, self.grid)
        return found if self.axis == 1 else found.movedim(3, 1)


def inner_places(classifier: Classifier) -> dict[str, Place]:
    """The layers by name: stage0, stage1, ... (of a ViT block0, ...), and `final` where the last map alone goes into the pooling."""
    backbone = classifier.backbone
    layout, model = layout_of(backbone), backbone.model
    modules = _stages(model)
    outputs = _outputs(classifier, list(modules.values()))
    found: dict[str, Place] = {}
    for number, (name, module) in enumerate(modules.items()):
        place = _place(f"{layout.level}{number}", module, outputs.get(name), layout, _width(model, number))
        if place is not None:
            found[place.name] = place
    if layout.final and layout.head and layout.grid is not None and layout.prefix is None:
        with evaluating(backbone), torch.no_grad():
            last: Tensor = model.forward_features(_noise(classifier))  # pyright: ignore[reportCallIssue]
        found[FINAL] = Place(FINAL, None, 3 if backbone.channels_are_last(last) else 1, 0, layout.grid)
    return found


def default_place(places: Mapping[str, Place], network: str) -> Place:
    """The last map before pooling; of a network of tokens the last block but one, after which tokens meet once more.

    (What a class token reads in the last block is no longer in that block's patches.) Where the last map has a single place, as of small
    pictures, it is the last that has several. Raises UserError where there is none.
    """
    found = list(places.values())
    wide = [place for place in (found if FINAL in places else found[:-1]) if place.grid != (1, 1)]
    if wide:
        return wide[-1]
    raise UserError(
        f"{network} has no inner map that Grad-CAM could read; take other methods, such as --method saliency"
    )


def chosen_place(classifier: Classifier, name: str | None) -> Place:
    """The place of that name, or the default. Raises UserError for a name that the network does not have."""
    places, network = inner_places(classifier), classifier.backbone.spec["name"]
    if name is None:
        return default_place(places, network)
    if name not in places:
        raise UserError(f"--layer: {network} has no layer called {name!r}; choose from {', '.join(places) or 'none'}")
    return places[name]


def _stages(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that timm names as the ends of stages, or the blocks of a network that names none."""
    info: Any = getattr(model, "feature_info", None)
    names = [entry["module"] for entry in info] if isinstance(info, list) else []
    own = dict(model.named_modules())
    if not names and isinstance(blocks := getattr(model, "blocks", None), nn.Sequential):
        names = [f"blocks.{number}" for number in range(len(blocks))]
    return {name: own[name] for name in names if name in own}


def _width(model: nn.Module, number: int) -> int | None:
    """The channels of a stage, as timm says them."""
    info: Any = getattr(model, "feature_info", None)
    return info[number]["num_chs"] if isinstance(info, list) else None


def _outputs(classifier: Classifier, modules: list[nn.Module]) -> dict[str, Tensor]:
    """What each module gave for one made-up image, by its name in the backbone's model; only single tensors."""
    names = {module: name for name, module in classifier.backbone.model.named_modules()}
    found: dict[str, Tensor] = {}

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found[names[module]] = output

    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        with evaluating(classifier), torch.no_grad():
            classifier(_noise(classifier))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _noise(classifier: Classifier) -> Tensor:
    backbone = classifier.backbone
    noise = torch.rand(1, backbone.channels, backbone.size, backbone.size, generator=torch.Generator().manual_seed(0))
    first = next(backbone.parameters())
    return as_weights(backbone, noise.to(first.device))


def _place(name: str, module: nn.Module, output: Tensor | None, layout: TapLayout, width: int | None) -> Place | None:
    """None where the output is no map."""
    if output is None:
        return None
    if output.ndim == 4:
        last = width is not None and output.shape[1] != width and output.shape[3] == width
        grid = output.shape[1:3] if last else output.shape[2:]
        return Place(name, module, 3 if last else 1, 0, (int(grid[0]), int(grid[1])))
    if output.ndim != 3 or layout.grid is None or layout.prefix is None:
        return None
    fits = output.shape[1] == layout.prefix + layout.grid[0] * layout.grid[1]
    return Place(name, module, 2, layout.prefix, layout.grid) if fits else None
