"""Maps of the frozen first layers of a network as features of images, and the check that the layers above need nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..model.backbone import Backbone
from ..model.boundary import Boundary, Calls, drawing
from ..numerics import wide
from .feature_key import state_digest
from .features import evaluating
from .taps import TapLayout, Taps, as_weights

TOLERANCE = 1e-5
"""By how much of its largest number a feature of the layers above may differ from that of the whole network: by rounding."""


class BoundaryMaps(Taps):
    """One tap: the map of each image at the backbone's boundary, [N, *shape], in eval mode and without gradient.

    What follows the boundary is not computed.
    """

    def __init__(self, backbone: Backbone) -> None:
        nn.Module.__init__(self)
        assert backbone.boundary is not None
        self.backbone, self.boundary = backbone, backbone.boundary
        self.names, self.layout = (f"map after {self.boundary.name}",), TapLayout()

    def axes(self, name: str) -> int:
        """Axes of one image's map."""
        return len(self.boundary.shape)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """float [N, C, H, W] -> the maps by the name of the tap."""
        with evaluating(self.backbone), torch.no_grad():
            maps = _map_of(self.backbone, self.boundary.place, as_weights(self.backbone, images))
        return dict.fromkeys(self.names, maps)

    def digest(self) -> str:
        """sha256 (hex) of all that a map depends on, as it is now: what lies above may learn."""
        model = self.backbone.model
        state = {**model.state_dict(), **dict(model.named_buffers())}
        return state_digest({name: state[name] for name in self.boundary.below})


class _Reached(Exception):
    """The forward has reached the boundary."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def _map_of(backbone: Backbone, place: nn.Module, images: Tensor) -> Tensor:
    def stop(module: nn.Module, inputs: object, output: Tensor) -> None:
        raise _Reached(output)

    handle = place.register_forward_hook(stop)
    try:
        backbone.model(images)
    except _Reached as reached:
        return reached.output
    finally:
        handle.remove()
    raise RuntimeError("a forward of the network did not reach the boundary of its frozen layers")


def find_boundary(backbone: Backbone, images: Tensor) -> str:
    """Set `backbone.boundary`, or say in words why steps need images; then it stays None.

    images: some real ones as the network takes them, float [N, C, H, W]. On them the features of the layers above must be those of the
    whole network in eval mode: the same numbers, up to TOLERANCE. So nothing is told from the class or the name of a network.
    """
    backbone.boundary = None
    try:
        with evaluating(backbone), torch.no_grad():
            return _find(backbone, as_weights(backbone, images))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a network raises that was not made for this
        backbone.boundary = None
        told = " ".join(str(error).split())[:200] or type(error).__name__
        return f"the layers above the frozen ones do not run alone ({told})"


def _find(backbone: Backbone, images: Tensor) -> str:
    calls = Calls(len(images))
    with calls.watching(backbone.model):
        whole = backbone(images)
    place = calls.last_frozen(backbone.model)
    if place is None:
        return "none of the frozen layers ends before the first one that learns begins"
    frozen = [module for module in calls.ended if calls.ended[module][-1] <= calls.ended[place][0]]
    if kind := drawing(frozen, backbone.still):
        return f"a {kind} among the frozen layers draws anew at every step"
    maps, found = calls.outputs[place], Boundary(backbone.model, calls, place, images.shape[1:])
    if len(found.shape) == 3 and found.shape[0] == backbone.channels:
        return f"maps of {found.shape[0]} channels look like images"
    if len(found.shape) == 1:
        return "what passes from them has the shape of features, one axis for each image"
    backbone.boundary = found
    above = backbone(maps)
    if maps._version:  # the count of writes
        found.copied, maps = True, _map_of(backbone, place, images)
        above = backbone(maps)
    apart = float((wide(above) - wide(whole)).abs().max() / wide(whole).abs().max().clamp(min=1e-30))
    if not apart <= TOLERANCE:
        backbone.boundary = None
        return f"more than one map passes from the frozen layers to those above (features differ by {apart:.0e} without it)"
    return ""


def in_words(shape: Sequence[int]) -> str:
    """A shape as `192 x 4 x 4`."""
    return " x ".join(map(str, shape))
