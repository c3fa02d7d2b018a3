"""Checks of config values that several methods share. Each error names the key, what is expected and a usual value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .errors import UserError

LARGEST_RATE = 1e30
"""The largest learning rate and weight decay; float32, in which optimizers compute, ends at 3e38."""

SMALLEST_RATE = 1e-30
"""The smallest learning rate of candidates that are trained at once: in float32 a smaller one soon is 0."""

MOST_LAYERS, MOST_ITERATIONS = 1_000, 10_000  # of a network's part, and of Sinkhorn-Knopp
MOST_UNITS = 1_000_000  # of a layer
_TOO_LARGE = re.compile(r"overflow|can't allocate memory|out of memory", re.IGNORECASE)  # what torch says


def check_positive(key: str, value: float, usual: str) -> None:
    """Raises UserError unless method.KEY is above 0 and finite."""
    if not 0.0 < value < math.inf:
        raise UserError(f"method.{key}: must be above 0{_finite(value)}, got {value}; {usual}")


def check_not_negative(key: str, value: float, usual: str) -> None:
    """Raises UserError unless method.KEY is 0 or more and finite."""
    if not 0.0 <= value < math.inf:
        raise UserError(f"method.{key}: must be 0 or more{_finite(value)}, got {value}; {usual}")


def _finite(value: float) -> str:
    return " and finite" if value == math.inf else ""


def check_fraction(key: str, value: float, usual: str) -> None:
    """Raises UserError unless method.KEY lies from 0 to 1."""
    if not 0.0 <= value <= 1.0:
        raise UserError(f"method.{key}: expected a number from 0 to 1, got {value}; {usual}")


def check_share(key: str, value: float) -> None:
    """Raises UserError unless method.KEY is 0 or more and less than 1, as label smoothing and dropout are."""
    if not 0.0 <= value < 1.0:
        raise UserError(f"method.{key}: expected 0 or more and less than 1, got {value}")


def check_count(key: str, value: int, least: int, most: int, usual: str = "") -> None:
    """Raises UserError unless method.KEY lies from `least` to `most`: more would only fill the memory, or never end."""
    if not least <= value <= most:
        raise UserError(f"method.{key}: expected {least} to {most:,}, got {value}{usual and '; '}{usual}")


@contextmanager
def sizes_fit(section: str, given: Mapping[str, Any]) -> Iterator[None]:
    """While networks are built from a section of a config: where one fits in no memory, name the key with the largest number.

    Raises UserError instead of the errors of torch.
    """
    try:
        yield
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        if not (isinstance(error, OverflowError | MemoryError) or _TOO_LARGE.search(str(error))):
            raise
        key, value = max(_whole_numbers(given), key=lambda one: one[1], default=("", 0))
        if not key:
            raise
        raise UserError(
            f"{section}.{key}: with {value}, the network needs more memory than can be had; lower it"
        ) from None


def _whole_numbers(given: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in given.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        yield from ((key, number) for number in numbers if type(number) is int)


def check_vit_width(part: str, dim: int, heads: int) -> None:
    """Raises UserError unless method.PART_dim is a multiple of method.PART_heads and of 4, for 2-D sine-cosine positions."""
    if heads < 1 or dim < 4 or dim % heads or dim % 4:
        raise UserError(f"method.{part}_dim: {dim} must be a multiple of 4 and of {part}_heads ({heads})")
