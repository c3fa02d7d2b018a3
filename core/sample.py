"""What travels: samples as the stream yields them, and batches as `prepare` makes them for a method.

Plain tuples, in a file of their own so that streams, views and methods may all name them without importing one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from .draws import Draws


class Sample(NamedTuple):
    """Raw images, as the stream yields them on the device."""

    images: Tensor  # uint8 or uint16 [N, C, H, W]; [N, V, C, h, w] where they were cropped to V views before
    positions: Tensor  # int64 [N]: global positions, the key of all randomness
    labels: Tensor  # int64 [N]; empty where there is none or it must not be seen
    extra: Mapping[str, Tensor] = {}  # what else was cropped before: "local", uint8 or uint16 [N, L, C, s, s]


class PairSample(NamedTuple):
    """A labelled source batch and a target batch whose labels are always empty."""

    source: Sample
    target: Sample


class Views(NamedTuple):
    """V augmented views of the same N images, and L local crops of them where the method asks for such."""

    images: Tensor  # float [V, N, C, h, w]
    draws: Draws
    local: Tensor | None = None  # float [L, N, C, s, s]


class Labelled(NamedTuple):
    """Augmented images with their labels."""

    images: Tensor  # float [N, C, h, w]
    labels: Tensor  # int64 [N]; float [N, K] where images were mixed, rows summing to 1
    draws: Draws


class Unlabelled(NamedTuple):
    """Augmented images without labels."""

    images: Tensor  # float [N, C, h, w]
    draws: Draws


class Pair(NamedTuple):
    """What an adaptation method sees: there is no field for a target label."""

    source: Labelled
    target: Unlabelled
