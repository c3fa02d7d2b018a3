"""Stateless random numbers: every draw is a pure function of (seed, stream name, global position, index).

Why not torch.Generator: its numbers depend on the order of calls, on the device and on the number of processes, so a run could
neither resume nor be split over processes exactly. Here the bits come from the splitmix64 finaliser (Steele, Lea & Flood 2014,
"Fast splittable pseudorandom number generators") in int64 arithmetic, which wraps identically on CPU, on CUDA and under
torch.compile. The values are pinned by a table in tests/core/test_draws.py: a change would re-run every committed number.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

FEISTEL_ROUNDS = 8


def signed(value: int) -> int:
    """The int64 with the same 64 bits as the unsigned value."""
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >= 1 << 63 else value


GOLDEN = signed(0x9E3779B97F4A7C15)
MIX_FIRST = signed(0xBF58476D1CE4E5B9)
MIX_SECOND = signed(0x94D049BB133111EB)


def stream_key(seed: int, name: str) -> int:
    """The 64-bit key of a named stream: the first eight bytes of sha256("seed/name")."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little", signed=True)


def mix(x: Tensor) -> Tensor:
    """The splitmix64 finaliser, elementwise on int64: a bijection in which every input bit moves every output bit."""
    # torch shifts int64 arithmetically; the mask makes the shift logical.
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * MIX_FIRST
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * MIX_SECOND
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


class Draws:
    """Random numbers keyed by global positions: row i of every result belongs to positions[i] alone.

    seed: the run's seed. positions: int64 [N]. prefix: the stream that all names are under, e.g. "source/".
    Two calls with the same name give the same numbers; name each decision once ("crop", "flip", "mask").
    """

    def __init__(self, seed: int, positions: Tensor, prefix: str = "") -> None:
        if positions.dtype != torch.int64 or positions.ndim != 1:
            raise ValueError(f"positions must be int64 [N], got {positions.dtype} {tuple(positions.shape)}")
        self.seed, self.positions, self.prefix = seed, positions, prefix

    def stream(self, name: str) -> Draws:
        """The same positions under a nested name: draws.stream("source").uniform("crop") is the stream "source/crop"."""
        return Draws(self.seed, self.positions, f"{self.prefix}{name}/")

    def bits(self, name: str, *shape: int) -> Tensor:
        """64 random bits each, int64 [N, *shape]."""
        key = stream_key(self.seed, self.prefix + name)
        row = mix(mix(self.positions * GOLDEN) ^ key)
        index = torch.arange(1, math.prod(shape) + 1, device=self.positions.device)
        return mix(row[:, None] + index * GOLDEN).view(len(row), *shape)

    def uniform(self, name: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform on [low, high), float32 [N, *shape]: 24 bits, so that each of them is exact in float32.

        With other bounds than 0 and 1 the sum is rounded to float32, which may give `high` itself.
        """
        unit = ((self.bits(name, *shape) >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24
        if (low, high) == (0.0, 1.0):
            return unit
        # Rounded apart, through float64: a compiler that fused product and sum would change the last bit.
        span = torch.tensor(high - low, dtype=torch.float32, device=unit.device).double()
        return low + (span * unit.double()).float()

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal, float32 [N, *shape], by Box & Muller (1958)."""
        pair = self.bits(name, *shape, 2)
        # 1 - u lies in (0, 1], so the logarithm is finite.
        unit = ((pair >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24
        radius = torch.sqrt(-2.0 * torch.log1p(-unit[..., 0]))
        return radius * torch.cos(2.0 * math.pi * unit[..., 1])

    def integers(self, name: str, high: int, *shape: int) -> Tensor:
        """Uniform integers in 0..high-1, int64 [N, *shape], by multiply and shift (bias below high / 2^32)."""
        if not 0 < high <= 1 << 31:
            raise ValueError(f"high must lie in 1..2^31, got {high}")
        return (((self.bits(name, *shape) >> 32) & 0xFFFFFFFF) * high) >> 32

    def bernoulli(self, name: str, p: float, *shape: int) -> Tensor:
        """True with probability p, bool [N, *shape]."""
        return self.uniform(name, *shape) < p

    def permutation(self, name: str, n: int) -> Tensor:
        """A uniform permutation of 0..n-1 for each position, int64 [N, n]."""
        return self.bits(name, n).argsort(dim=1, stable=True)

    def choice(self, name: str, n: int, k: int) -> Tensor:
        """k of 0..n-1 without replacement, in random order, int64 [N, k]."""
        if not 0 <= k <= n:
            raise ValueError(f"cannot choose {k} of {n} without replacement")
        return self.permutation(name, n)[:, :k]


def permute(seed: int, name: str, n: int, index: Tensor) -> Tensor:
    """The images of `index` (int64, values in 0..n-1) under a keyed bijection of 0..n-1, in O(1) memory.

    A balanced Feistel network (Luby & Rackoff 1988) on the smallest even number of bits that holds n, walked until it
    lands below n again (Black & Rogaway 2002): fewer than four rounds of walking on average.
    """
    if n < 1:
        raise ValueError(f"a permutation needs at least one element, got n={n}")
    half = max(1, math.ceil((n - 1).bit_length() / 2))
    mask = (1 << half) - 1
    keys = [stream_key(seed, f"{name}/round{i}") for i in range(FEISTEL_ROUNDS)]

    def feistel(x: Tensor) -> Tensor:
        left, right = x >> half, x & mask
        for key in keys:
            left, right = right, left ^ (mix(mix(right * GOLDEN) ^ key) & mask)
        return (left << half) | right

    out = feistel(index.to(torch.int64))
    while bool((outside := out >= n).any()):
        out = torch.where(outside, feistel(out), out)
    return out
