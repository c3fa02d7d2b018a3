"""The contract between a probe and its protocols: what a protocol is asked before features are extracted, what it gets, and what it gives.

A protocol is a frozen dataclass whose fields are its section of a config. It never sees a test label: the recipe compares its scores with
them. What it chooses (k, C, a rate) it chooses on a held-out slice of the *training* images, drawn over identities so that copies stay
together, and then it is fitted on all of them.

Retrieval and verification compare images with each other, and have no score for each class. Such a protocol gives a `Measuring` instead, to
which the recipe hands each labelled test when everything is fitted: it can report, but it has no place for a choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.evaluate.linear_head import LinearHead
from ...core.evaluate.measures import Measured
from ...core.images.images import Images
from ...core.views.view import Evaluation

Features = Mapping[str, Tensor]  # features by tap: [N, D], or [N, L, D] for tokens
# The features of all training images as random crops, (epoch, taps, kept) -> Features. kept: whether the cache on the disk keeps them.
Epoch = Callable[[int, Sequence[str], bool], Features]
Drawing = Callable[[Path, str, Images, Evaluation, tuple[int, int] | None], None]
# What scores are. Only logits become probabilities (by softmax); votes sum to 1 over the classes; similarities (cosines) are only ranked.
ScoreKind = Literal["logits", "votes", "similarities"]


class Counts(NamedTuple):
    """What is known of a training set before its features are extracted."""

    labels: Tensor  # int64 [N], indices into classes; or uint8 [N, K] where an image may have several
    keys: Tensor  # int64 [N], identities: copies and blends of one picture share one
    classes: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]] = {}  # of one image's features, by tap
    names: Callable[[], Sequence[tuple[str, int]]] = (
        list  # (name, row) of every training image; a copy has the row of its first
    )
    tests: Mapping[str, Tensor] = {}  # identities of the images of each labelled test, int64 [M]; never their labels
    grouped: Tensor | None = None  # as of Known

    @property
    def units(self) -> Tensor:
        """int64 [N]: what a slice to choose on keeps together, by default identities."""
        return self.keys if self.grouped is None else self.grouped


class Known(NamedTuple):
    """The training images, without copies, as a protocol sees them."""

    features: Features
    labels: Tensor  # int64 [N], or uint8 [N, K] where an image may have several classes, on the CPU
    keys: Tensor  # int64 [N], on the CPU
    classes: tuple[str, ...]
    seed: int = 0
    device: torch.device = torch.device("cpu")  # where a protocol that trains does so
    names: Callable[[], Sequence[tuple[str, int]]] = list  # as of Counts
    epoch: Epoch | None = None  # features of augmented images, where they can be had
    grouped: Tensor | None = None  # int64 [N], `Images.units` where the set has groups

    @property
    def units(self) -> Tensor:
        """int64 [N]: what a slice to choose on keeps together, by default identities."""
        return self.keys if self.grouped is None else self.grouped

    def rows(self, which: Tensor) -> Known:
        """The images at `which`, int64 [M]."""
        features = {name: found[which] for name, found in self.features.items()}
        grouped = None if self.grouped is None else self.grouped[which]
        return self._replace(features=features, labels=self.labels[which], keys=self.keys[which], grouped=grouped)


class Fitted(NamedTuple):
    """A protocol after training.

    scores: features of M test images -> [M, K], or [draws, M, K] where the protocol repeats; the largest is the prediction, of equals the
    first. Where an image may have several classes, [M, K], each compared with its class's threshold. chosen: what was chosen on the slice,
    by key. candidates: all that was tried, with its score on the slice. fit: how the solver
    ended. facts: what the details of each test say beside the scores; their entry `settings` is the whole protocol, which is also printed.
    held_out: scores [H, K] on the slice before the refit, by what was chosen, and its labels [H] or [H, K]; a temperature is fitted on
    them, or thresholds.
    own_slices: whether it chose on slices of its own draws, not on the slice of all training images that the result describes.
    linear: the classifier itself, where it is linear in the pooled features. draw: writes pictures of what was fitted, from the run's
    folder, the protocol's name, the training images, the view, and rows and columns of `patches`.
    """

    scores: Callable[[Features], Tensor]
    kind: ScoreKind
    chosen: Mapping[str, Any] = {}
    candidates: tuple[Mapping[str, Any], ...] = ()
    fit: Mapping[str, Any] = {}
    facts: Mapping[str, Any] = {}
    held_out: tuple[Tensor, Tensor] | None = None
    own_slices: bool = False
    linear: LinearHead | None = None
    draw: Drawing | None = None


class LabelledTest(NamedTuple):
    """A test set as `Measuring` gets it."""

    features: Features
    labels: Tensor  # int64 [M], on the CPU, indices into the training set's classes
    keys: Tensor  # int64 [M], on the CPU: copies share one
    units: Tensor  # int64 [M], on the CPU: what the bootstrap draws as a whole: groups, such as patients, or copies
    seed: int = 0  # of the bootstrap, and of what is drawn of too many pairs


class Measuring(NamedTuple):
    """A protocol that compares images with each other, after `fit`.

    measure: a labelled test -> its metrics (named in `core.evaluate.definitions`), intervals and details. The entry `left_out` of the
    details, {metric: reason}, is also said to the user. facts: what the details of each test say besides.
    """

    measure: Callable[[LabelledTest], Measured]
    facts: Mapping[str, Any] = {}


@runtime_checkable
class ProbeProtocol(Protocol):
    """What every protocol has that gives scores."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The taps whose features it reads (`core.evaluate.taps`)."""
        ...

    def requires(self, name: str, counts: Counts) -> None:
        """Asked before features are extracted. name: as the config calls it. Raises UserError for what it cannot do on such a set."""
        ...

    def fit(self, train: Known) -> Fitted:
        """Train, and choose on a slice of the training images where there is something to choose."""
        ...


class MeasuringProtocol(Protocol):
    """What every protocol has that compares images with each other; `reads` and `requires` as of `ProbeProtocol`."""

    @property
    def reads(self) -> tuple[str, ...]: ...

    def requires(self, name: str, counts: Counts) -> None: ...

    def fit(self, train: Known) -> Measuring:
        """Keep what the measurement needs of the training images."""
        ...


AnyProtocol = ProbeProtocol | MeasuringProtocol


@runtime_checkable
class Tapped(Protocol):
    """A protocol that reads one tap, and is run once for each of several."""

    taps: tuple[str, ...]


def check_vectors(key: str, taps: Sequence[str], counts: Counts) -> None:
    """Raises UserError for a tap that gives several vectors an image, as tokens do. key: the config's, which names the taps."""
    for tap in taps:
        if len(counts.shapes.get(tap, (0,))) != 1:
            raise UserError(
                f"{key}: {tap} are several vectors for each image, and one is needed; take pooled, cls, mean or a block"
            )


@runtime_checkable
class Augmented(ProbeProtocol, Protocol):
    """A protocol that may be trained on random crops; then it calls `Known.epoch` for the taps that it reads."""

    @property
    def augment(self) -> str:
        """`crops` if it is."""
        ...


@runtime_checkable
class Several(Protocol):
    """A section that stands for several protocols, each scored on its own: one for each number of shots."""

    def each(self) -> Mapping[str, ProbeProtocol]:
        """The protocols, by what follows the section's name: `5shot`."""
        ...


def for_each(name: str, protocol: AnyProtocol, layers: tuple[str, ...]) -> dict[str, AnyProtocol]:
    """{name: protocol}, one for each that the protocol stands for (NAME-5shot), and of that one for each tap.

    layers: what the tap `layers` stands for.
    """
    if not isinstance(protocol, Several):
        return for_each_tap(name, protocol, layers)
    several = {f"{name}-{end}": one for end, one in protocol.each().items()}
    return {key: made for end, one in several.items() for key, made in for_each_tap(end, one, layers).items()}


def for_each_tap(name: str, protocol: AnyProtocol, layers: tuple[str, ...]) -> dict[str, AnyProtocol]:
    """{name: protocol}, one for each of its taps: NAME for the pooled features, else NAME@TAP. layers: what the tap `layers` stands for.

    Raises UserError if there is none.
    """
    if not isinstance(protocol, Tapped):
        return {name: protocol}
    taps = [tap for given in protocol.taps for tap in (layers if given == "layers" else (given,))]
    if not taps:
        given = (
            "an empty list"
            if not protocol.taps
            else "layers, and this network has no blocks or stages that can be read"
        )
        raise UserError(
            f"evaluate.{section_in(name)}.taps: expected the names of features, got {given}; leave it out for pooled"
        )
    return {name if tap == "pooled" else f"{name}@{tap}": replace(protocol, taps=(tap,)) for tap in taps}  # pyright: ignore[reportArgumentType, reportReturnType]


def section_in(name: str) -> str:
    """The section of a protocol's name: `ridge` of ridge-5shot@cls."""
    return re.split("[-@]", name)[0]
