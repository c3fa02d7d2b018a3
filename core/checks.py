"""Checks of config values that several methods share. Each error names the key, what is expected and a usual value."""

from __future__ import annotations

from .errors import UserError


def check_positive(key: str, value: float, usual: str) -> None:
    """Raises UserError unless method.KEY is above 0."""
    if not value > 0.0:
        raise UserError(f"method.{key}: must be above 0, got {value}; {usual}")


def check_fraction(key: str, value: float, usual: str) -> None:
    """Raises UserError unless method.KEY lies from 0 to 1."""
    if not 0.0 <= value <= 1.0:
        raise UserError(f"method.{key}: expected a number from 0 to 1, got {value}; {usual}")


def check_vit_width(part: str, dim: int, heads: int) -> None:
    """Raises UserError unless method.PART_dim is a multiple of method.PART_heads and of 4, for 2-D sine-cosine positions."""
    if heads < 1 or dim < 4 or dim % heads or dim % 4:
        raise UserError(f"method.{part}_dim: {dim} must be a multiple of 4 and of {part}_heads ({heads})")
