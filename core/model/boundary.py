"""The boundary above the frozen first layers of a network: one map for each image, and the layers above it on such maps.

Maps of frozen layers never change, so they can be computed once; a step then costs what lies above the boundary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

# What a dropout of torch or timm calls the probability with which it draws.
PROBABILITIES = ("p", "drop_prob", "prob")


class _Given(nn.Module):
    """Stands in the place of a layer whose output is known: nothing depends on its input but the number of images."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        """shape: of the output for one image."""
        super().__init__()
        self.shape, self.dtype = tuple(shape), dtype
        self.value: Tensor | None = None

    def forward(self, x: Tensor, *further: object, **named: object) -> Tensor:
        """The value; without one zeros, which take no memory."""
        if self.value is not None:
            return self.value
        return torch.zeros((), dtype=self.dtype, device=x.device).expand(len(x), *self.shape)


class Boundary:
    """Where the frozen layers of a network end, and the network above.

    name: of the last layer below, in `model.named_modules()`. place: that layer. shape: of the map of one image.
    below: the names of the parameters and buffers on which the map may depend.

    The network above is the network itself in copies of the modules that contain the last layer: these hold the same parameters and
    the very modules that learn, but in the place of every layer that has ended before stand-ins, of which the last one gives the map.
    So whatever else the network's own `forward` does happens as always. What it computes from the stand-ins' zeros reaches no feature if
    all goes through the map, which `core.evaluate.maps.find_boundary` checks.
    """

    def __init__(self, model: nn.Module, calls: Calls, place: nn.Module, image: Sequence[int]) -> None:
        """calls: of one forward of the model. image: the shape of one image."""
        names = {module: name for name, module in model.named_modules()}
        output = calls.outputs[place]
        self.name, self.place, self.shape = names[place], place, tuple(output.shape[1:])
        self.image = tuple(image)
        self.copied = False  # whether the layers above write into their input
        self._last = _Given(self.shape, output.dtype)
        self._calls, self._ancestors = calls, list[tuple[nn.Module, nn.Module]]()
        self._above = self._copy(model)
        above = tuple(f"{name}." for module, name in names.items() if name and calls.later(module, place))
        state = (*model.state_dict(), *(name for name, _ in model.named_buffers()))
        self.below = tuple(dict.fromkeys(name for name in state if not name.startswith(above)))
        del self._calls

    def _copy(self, module: nn.Module) -> nn.Module:
        """A module that contains the last layer, with stand-ins in it; parameters, buffers and hooks are the module's own."""
        made = copy.copy(module)
        made._modules = dict(module._modules)
        self._ancestors.append((module, made))
        for name, child in module._modules.items():
            if child is self.place:
                made._modules[name] = self._last
            elif child is not None and self.place in set(child.modules()):
                made._modules[name] = self._copy(child)
            elif child is not None and self._calls.earlier(child, self.place):
                output = self._calls.outputs[child]
                made._modules[name] = _Given(output.shape[1:], output.dtype)
        return made

    @contextmanager
    def above(self, maps: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
        """Within it: the network above for these maps, [N, *shape], and what it takes as its images."""
        for module, made in self._ancestors:
            made.training = module.training
        self._last.value = maps.clone() if self.copied else maps
        try:
            yield self._above, torch.zeros((), dtype=maps.dtype, device=maps.device).expand(len(maps), *self.image)
        finally:
            self._last.value = None


@dataclass
class Calls:
    """When each module of a network was called in one forward: numbers of events, ascending. outputs: the last tensor of each."""

    images: int
    begun: dict[nn.Module, list[int]] = field(default_factory=dict)
    ended: dict[nn.Module, list[int]] = field(default_factory=dict)
    outputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    clock: int = 0

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Within it, forwards of the model are noted."""

        def begin(module: nn.Module, inputs: object) -> None:
            self.clock += 1
            self.begun.setdefault(module, []).append(self.clock)

        def end(module: nn.Module, inputs: object, output: object) -> None:
            self.clock += 1
            self.ended.setdefault(module, []).append(self.clock)
            if isinstance(output, Tensor) and output.ndim > 1 and len(output) == self.images:
                self.outputs[module] = output.detach().clone()

        handles = [module.register_forward_pre_hook(begin) for module in model.modules()]
        handles += [module.register_forward_hook(end) for module in model.modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def earlier(self, module: nn.Module, place: nn.Module) -> bool:
        """Whether a module was called only before the end of another, and gave one tensor."""
        return module in self.outputs and self.ended[module][-1] < self.ended[place][0]

    def later(self, module: nn.Module, place: nn.Module) -> bool:
        """Whether a module was called only after the end of another, or never."""
        inside = any(child is place for child in module.modules())
        return not inside and (module not in self.begun or self.begun[module][0] > self.ended[place][0])

    def last_frozen(self, model: nn.Module) -> nn.Module | None:
        """The module that ends last, and has one tensor as its output, before the first module that learns begins; None without any."""
        learning = [m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
        first = min((self.begun[module][0] for module in learning if module in self.begun), default=0)
        done = [m for m in self.outputs if len(self.ended[m]) == 1 and self.ended[m][0] < first]
        return max(done, key=lambda module: self.ended[module][0], default=None)


def drawing(modules: Sequence[nn.Module], still: Sequence[nn.Module]) -> str:
    """The kind of a dropout among these modules that draws in training, outside the parts that are `still`; "" if there is none."""
    quiet = {part for module in still for part in module.modules()}
    for module in modules:
        for part in module.modules():
            if part not in quiet and any(getattr(part, key, 0) for key in PROBABILITIES):
                return type(part).__name__
    return ""
