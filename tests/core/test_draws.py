"""Draws: pinned values, distributions, independence, and the keyed permutation."""

import math

import pytest
import torch

from rootstock.core.draws import GOLDEN, Draws, mix, permute, stream_key

# A change of any of these re-runs every committed number: they are the order and the augmentation of all experiments.
PINNED_BITS = {
    (0, "view0/crop/area", 0): None,
}


def scalar_mix(x: int) -> int:
    """splitmix64's finaliser on Python integers, modulo 2^64."""
    m = (1 << 64) - 1
    x &= m
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & m
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & m
    return x ^ (x >> 31)
