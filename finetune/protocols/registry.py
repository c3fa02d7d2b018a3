"""Evaluation protocols on frozen features by the names that configs use; published ones are presets.

Adding one costs a file with a dataclass on the contract (contract.py) and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any, TypeVar, cast

from ...core.errors import UserError
from .attentive import Attentive
from .attentive_capi import AttentiveCAPI
from .contract import AnyProtocol, Counts, MeasuringProtocol, ProbeProtocol, for_each
from .few_linear import FewLinear
from .fewshot import FewShot
from .knn import KNN
from .linear import Linear, dinov2_regression
from .linear_sgd import LINEAR_PRESETS, LinearSGD
from .nearest_mean import NearestMean
from .prototypes import PrototypeClassifier
from .retrieval import Retrieval
from .ridge import FewShotRidge
from .verification import Verification

Built = TypeVar("Built")

# The sections whose protocols can use images of several classes each; the others refuse them.
OF_SEVERAL = ("knn", "linear")

# By the name of their section; its keys are the fields.
SECTIONS: Mapping[str, Callable[..., ProbeProtocol]] = {
    "knn": KNN,
    "linear": Linear,
    "attentive": Attentive,
    "fewshot": FewShot,
    "ridge": FewShotRidge,
    "nearest_mean": NearestMean,
    "few_linear": FewLinear,
    "linear_sgd": LinearSGD,
    "attentive_capi": AttentiveCAPI,
    "prototypes": PrototypeClassifier,
}

# Those that compare images with each other. They come after the others, so that the first metric of a result is an accuracy if it has one.
COMPARISONS: Mapping[str, Callable[..., MeasuringProtocol]] = {"retrieval": Retrieval, "verification": Verification}


def lightly_knn() -> KNN:
    """lightly's benchmark kNN: k = 200, T = 0.1. Its tables show the maximum over epochs; this is one model's score."""
    return KNN(k=200, temperature=0.1)


def dino_knn() -> KNN:
    """DINO's kNN (Caron et al. 2021, arXiv:2104.14294): T = 0.07, k of 10, 20, 100, 200 chosen on the held-out slice."""
    return KNN(k=(10, 20, 100, 200), temperature=0.07)


# Published settings. Those of linear_sgd and attentive_capi are changed by the keys of these sections.
PRESETS: Mapping[str, Callable[[], ProbeProtocol]] = {
    "knn-lightly": lightly_knn,
    "knn-dino": dino_knn,
    "logreg": dinov2_regression,
    "ridge-bigvision": FewShotRidge,
    **LINEAR_PRESETS,
    "attentive-capi": AttentiveCAPI,
}

_IMAGENET = "pictures resized to 256 and cropped to 224 px"
# What the settings of presets say besides, where their sections don't know of them: the pictures, and what the publication does otherwise.
PUBLISHED: Mapping[str, Mapping[str, str]] = {
    "knn-lightly": {"expects": f"{_IMAGENET}, bilinear", "published": "the maximum over epochs on the test images"},
    "knn-dino": {
        "expects": f"{_IMAGENET}, bicubic",
        "published": "each k; the paper takes the best on the test images",
    },
    "logreg": {
        "expects": "pictures resized and cropped to 224 px, bicubic",
        "published": "the class token as it is, L-BFGS, C chosen on a random 10 % of the training images",
    },
    "ridge-bigvision": {"expects": f"{_IMAGENET}, bilinear", "published": "draws by other random numbers"},
}


def preset_of(name: str) -> str | None:
    """The preset that a protocol's name stands for: ridge-bigvision of ridge-bigvision-5shot; None for that of a section."""
    found = [preset for preset in PRESETS if f"{name}-".startswith(f"{preset}-")]
    return max(found, key=len, default=None)


def published(name: str) -> Mapping[str, str]:
    """What `PUBLISHED` says of the preset that a protocol's name stands for; nothing of others."""
    return PUBLISHED.get(preset_of(name) or "", {})


@contextmanager
def naming_preset(name: str, protocol: AnyProtocol) -> Iterator[None]:
    """While a protocol is asked or fitted: an error that names a key of the section also says, of a preset, that its numbers are fixed."""
    try:
        yield
    except UserError as error:
        preset = preset_of(name)
        if preset is None or type(error) is not UserError or "evaluate." not in str(error):
            raise
        section, given = section_of(protocol), f"preset: {preset}, ..." if preset in LINEAR_PRESETS else "..."
        raise UserError(
            f"{error} ({preset} is a preset, whose numbers are fixed: take it out of evaluate.presets, and give "
            f"evaluate.{section}={{{given}}})"
        ) from None


def section_of(protocol: AnyProtocol) -> str:
    """The section of a config that a protocol belongs to."""
    every: dict[str, Callable[..., AnyProtocol]] = {**SECTIONS, **COMPARISONS}
    return next(section for section, made in every.items() if isinstance(protocol, cast("type", made)))


def chosen_protocols(evaluate: Mapping[str, Any], layers: tuple[str, ...]) -> dict[str, AnyProtocol]:
    """The protocols that the `evaluate` section asks for, by name and in its order; kNN where it asks for nothing. Raises UserError.

    layers: the taps that the tap `layers` stands for.
    """
    chosen: dict[str, AnyProtocol] = {
        name: built(SECTIONS[name], evaluate[name]) for name in SECTIONS if evaluate.get(name) is not None
    }
    for name in evaluate.get("presets", ()):
        if name not in PRESETS:
            raise UserError(f"evaluate.presets: unknown preset {name!r} (known: {', '.join(sorted(PRESETS))})")
        chosen[name] = PRESETS[name]()
    for name, make in COMPARISONS.items():
        if evaluate.get(name) is not None:
            chosen[name] = built(make, evaluate[name])
    named: dict[str, AnyProtocol] = chosen or ({} if evaluate.get("dense") is not None else {"knn": KNN()})
    return {one: made for name, protocol in named.items() for one, made in for_each(name, protocol, layers).items()}


def other_views(protocols: Mapping[str, AnyProtocol], shown: str) -> list[str]:
    """A sentence for the presets whose publications show images otherwise. shown: as `Evaluation.in_words` says it."""
    expected: dict[str, list[str]] = {}
    for name, one in protocols.items():
        own = one.expects if isinstance(one, LinearSGD | AttentiveCAPI) else published(name).get("expects", "")
        if not shown.startswith(own):
            expected.setdefault(own, []).append(name)
    return [
        f"{', '.join(names)}: published with {expects}; here {shown} (data.size, data.resize and data.interpolation)"
        for expects, names in expected.items()
    ]


def check_one_class(name: str, protocol: AnyProtocol, counts: Counts) -> None:
    """Raises UserError for a protocol that needs one class an image, where the training images may have several."""
    section = section_of(protocol)
    if counts.labels.ndim == 1 or section in OF_SEVERAL:
        return
    presets = [preset for preset, make in PRESETS.items() if section_of(make()) in OF_SEVERAL]
    remedy = f"take {preset_of(name)} out of evaluate.presets" if preset_of(name) else f"leave evaluate.{section} out"
    raise UserError(
        f"{name}: it needs one class an image, and the training images may have several; {' and '.join(OF_SEVERAL)} can use them (also "
        f"the presets {', '.join(presets)}), so {remedy}"
    )


def gives_scores(protocol: AnyProtocol) -> bool:
    """Whether it is a classifier, and not a comparison of images with each other."""
    return section_of(protocol) in SECTIONS


def check_taps(protocols: Mapping[str, AnyProtocol], offered: tuple[str, ...], network: str) -> None:
    """Raises UserError for a protocol that reads features which the network doesn't offer, naming the key that says what it reads."""
    every: dict[str, Callable[..., AnyProtocol]] = {**SECTIONS, **COMPARISONS}
    for name, protocol in protocols.items():
        for tap in protocol.reads:
            if tap not in offered:
                kind = section_of(protocol)
                key = next(
                    (key for key in ("taps", "inputs", "sources") if key in signature(every[kind]).parameters), None
                )
                remedy = f"give evaluate.{kind}.{key} others" if key else f"leave evaluate.{kind} out"
                with naming_preset(name, protocol):
                    raise UserError(
                        f"{name}: {network} has no features called {tap!r} (it has {', '.join(offered)}); {remedy}"
                    )


def built(make: Callable[..., Built], section: Mapping[str, Any]) -> Built:
    """A protocol of a section; lists, as a config has them, become tuples."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}
    return make(**fields)
