"""The ways to explain a classifier by the names that `rootstock explain` uses: from pictures to one number for each place.

Adding one costs its function and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import interpolate

from ...core.errors import UserError
from ...core.model.classifier import Classifier
from .attention import AttentionOfTokens, attention_of, attention_rollout, gradient_attention
from .cam import grad_cam
from .gradients import (
    COMPLETE_TOLERANCE,
    FIRST_STEPS,
    MOST_STEPS,
    Integrated,
    integrated_gradients,
    saliency,
    smooth_gradient,
)
from .places import Place, chosen_place


class PicturesSeen(NamedTuple):
    """Pictures as a network sees them, and what is explained of each."""

    images: Tensor  # float [N, C, H, W], normalised
    target: Tensor  # int64 [N], numbers of outputs
    keys: Tensor  # int64 [N], identities, on the CPU
    units: Tensor  # int64 [N], on the CPU: what intervals draw as a whole: groups, such as patients, or copies
    black: Tensor  # [C, 1, 1], black as the network sees it

    def rows(self, which: slice | list[int]) -> PicturesSeen:
        """Some of the pictures."""
        return PicturesSeen(self.images[which], self.target[which], self.keys[which], self.units[which], self.black)


@dataclass(frozen=True)
class MapSettings:
    """What methods are told beside the pictures.

    layer: of Grad-CAM, a name of `inner_places`; None: the default. draws, noise: of SmoothGrad. first_steps, most_steps, tolerance: of
    integrated gradients.
    """

    seed: int = 0
    layer: str | None = None
    draws: int = 32
    noise: float = 0.15
    first_steps: int = FIRST_STEPS
    most_steps: int = MOST_STEPS
    tolerance: float = COMPLETE_TOLERANCE


@dataclass
class Explainer:
    """A method for one classifier. Raises UserError, at once, where the classifier has no such map.

    place: of Grad-CAM. attention: of maps of tokens. completed: of integrated gradients, as `completeness` has it.
    """

    name: str
    classifier: Classifier
    settings: MapSettings = MapSettings()
    place: Place | None = None
    attention: AttentionOfTokens | None = None
    completed: dict[int, tuple[float, float, int, bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise UserError(f"--method: {self.name!r} is unknown; choose from {', '.join(METHODS)}")
        if self.name == GRAD_CAM:
            self.place = chosen_place(self.classifier, self.settings.layer)
        elif self.name in OF_TOKENS:
            self.attention = attention_of(self.classifier)

    def __call__(self, shown: PicturesSeen) -> Tensor:
        """The maps, float32 [N, h, w] on the CPU; larger numbers speak for the class."""
        return METHODS[self.name](self, shown).float().cpu()

    @property
    def signed(self) -> bool:
        """Whether numbers below 0 speak against the class."""
        return self.name == INTEGRATED

    def describe(self) -> dict[str, object]:
        """The settings that count for this method, as JSON."""
        own: Mapping[str, tuple[str, ...]] = {
            SMOOTH: ("draws", "noise", "seed"),
            INTEGRATED: ("first_steps", "most_steps", "tolerance"),
        }
        told = {key: getattr(self.settings, key) for key in own.get(self.name, ())}
        return {**({"layer": self.place.name, "grid": list(self.place.grid)} if self.place else {}), **told}


GRAD_CAM, SMOOTH, INTEGRATED = "grad-cam", "smoothgrad", "integrated-gradients"
OF_TOKENS = ("attention-rollout", "gradient-attention")


def _cam(own: Explainer, shown: PicturesSeen) -> Tensor:
    assert own.place is not None
    return grad_cam(own.classifier, shown.images, shown.target, own.place)


def _saliency(own: Explainer, shown: PicturesSeen) -> Tensor:
    return saliency(own.classifier, shown.images, shown.target).amax(1)


def _smooth(own: Explainer, shown: PicturesSeen) -> Tensor:
    given, settings = own.classifier, own.settings
    found = smooth_gradient(
        given, shown.images, shown.target, shown.keys, settings.seed, draws=settings.draws, noise=settings.noise
    )
    return found.abs().amax(1)


def _integrated(own: Explainer, shown: PicturesSeen) -> Tensor:
    settings = own.settings
    found = integrated_gradients(
        own.classifier,
        shown.images,
        shown.target,
        shown.black,
        first=settings.first_steps,
        most=settings.most_steps,
        tolerance=settings.tolerance,
    )
    own.completed |= completeness(found, shown.keys)
    return found.attributions.sum(1)


def completeness(found: Integrated, keys: Tensor) -> dict[int, tuple[float, float, int, bool]]:
    """By the picture's identity: difference of the logits, error of the sum, points on the path, and whether the error is allowed."""
    columns = (found.difference.tolist(), found.error.tolist(), found.steps.tolist(), found.complete.tolist())
    return dict(zip(keys.tolist(), zip(*columns, strict=True), strict=True))


def _rollout(own: Explainer, shown: PicturesSeen) -> Tensor:
    assert own.attention is not None
    return attention_rollout(own.classifier, shown.images, own.attention)


def _attention(own: Explainer, shown: PicturesSeen) -> Tensor:
    assert own.attention is not None
    return gradient_attention(own.classifier, shown.images, shown.target, own.attention)


METHODS: Mapping[str, Callable[[Explainer, PicturesSeen], Tensor]] = {
    GRAD_CAM: _cam,
    "saliency": _saliency,
    SMOOTH: _smooth,
    INTEGRATED: _integrated,
    "attention-rollout": _rollout,
    "gradient-attention": _attention,
}

METHOD_SOURCES: Mapping[str, str] = {
    GRAD_CAM: "Grad-CAM (arXiv:1610.02391): channels of an inner map, weighted by the mean gradient of the class's logit",
    "saliency": "Saliency (arXiv:1312.6034): the gradient of the class's logit, its largest absolute value over channels",
    SMOOTH: "SmoothGrad (arXiv:1706.03825): the mean gradient over noisy copies, its largest absolute value over channels",
    INTEGRATED: "Integrated gradients (arXiv:1703.01365) from black, summed over channels",
    "attention-rollout": "Attention rollout (arXiv:2005.00928): attention multiplied over blocks; the same for every class",
    "gradient-attention": "Gradient-weighted attention (arXiv:2103.15679): attention that raises the class's logit, over blocks",
}


def at_side(maps: Tensor, side: int) -> Tensor:
    """Maps [N, h, w] enlarged bilinearly to [N, side, side]."""
    if maps.shape[1:] == (side, side):
        return maps
    return interpolate(maps[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]


def is_constant(maps: Tensor) -> Tensor:
    """bool [N]: the maps without any difference between places, or with a number that is not finite."""
    flat = maps.flatten(1)
    return (flat.amax(1) == flat.amin(1)) | ~flat.isfinite().all(1)


def check_methods(
    names: tuple[str, ...], classifier: Classifier, settings: MapSettings
) -> tuple[list[Explainer], list[str]]:
    """Those of `names` that the classifier has, or all that it has where none is named; and a sentence for each that it lacks.

    Raises UserError for a named one that it lacks.
    """
    made, lacking = list[Explainer](), list[str]()
    for name in dict.fromkeys(names or METHODS):
        try:
            made.append(Explainer(name, classifier, settings))
        except UserError as error:
            if names or (name == GRAD_CAM and settings.layer is not None):
                raise
            lacking.append(f"{name}: {error}")
    return made, lacking
