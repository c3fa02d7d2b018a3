"""Stateless random numbers: every draw is a pure function of (seed, stream name, global position, index).

torch.Generator isn't used, since its numbers depend on the order of calls, on the device and on the number of processes, so a run
could neither resume nor be split over processes exactly. Here the bits come from the splitmix64 finaliser (Steele, Lea & Flood
2014, "Fast splittable pseudorandom number generators") in 64-bit integers, which overflow identically in numpy (used on the CPU,
where a call costs a quarter of torch's), in torch on CUDA and under torch.compile. A table in tests/core/test_draws.py pins the
values: a change would invalidate every committed result.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint64]

# Tries of the gamma sampler: each is accepted with probability 0.95 or more, so all fail once in 10^10.
GAMMA_TRIES = 8


def signed(value: int) -> int:
    """The int64 with the same 64 bits as the unsigned value."""
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >= 1 << 63 else value


GOLDEN = signed(0x9E3779B97F4A7C15)
MIX_FIRST = signed(0xBF58476D1CE4E5B9)
MIX_SECOND = signed(0x94D049BB133111EB)

# Arithmetic with an array of the same dtype is several times faster in numpy than with a Python integer.
_GOLDEN, _FIRST, _SECOND = (np.array(value).view(np.uint64) for value in (GOLDEN, MIX_FIRST, MIX_SECOND))
_SHIFTS = tuple(np.array(shift, dtype=np.uint64) for shift in (30, 27, 31))
_24_BITS, _32_BITS = np.array(40, dtype=np.uint64), np.array(32, dtype=np.uint64)


@functools.lru_cache(maxsize=4096)
def _hashed_name(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little", signed=True)


def stream_key(seed: int, name: str) -> int:
    """The 64-bit key of a named stream: the first eight bytes of sha256("seed/name"). torch.compile treats it as a constant."""
    return _hashed_name(seed, name)


# All that torch.compiler.assume_constant_result does, without its import of the whole compiler, which takes more than a second.
stream_key._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def splitmix64(x: Tensor) -> Tensor:
    """The splitmix64 finaliser, elementwise on int64: a bijection in which every input bit moves every output bit."""
    # torch shifts int64 arithmetically; the mask makes the shift logical.
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * MIX_FIRST
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * MIX_SECOND
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def splitmix64_words(x: Words) -> Words:
    """`splitmix64` of an array with at least one dimension, in place."""
    spare = np.right_shift(x, _SHIFTS[0])
    for shift, factor in zip(_SHIFTS[1:], (_FIRST, _SECOND), strict=True):
        np.bitwise_xor(x, spare, out=x)
        np.multiply(x, factor, out=x)
        np.right_shift(x, shift, out=spare)
    return np.bitwise_xor(x, spare, out=x)


def words_of(x: Tensor) -> Words:
    """An int64 tensor on the CPU as uint64 words that share its memory."""
    return x.numpy().view(np.uint64)


class Draws:
    """Random numbers keyed by global positions: row i of every result belongs to positions[i] alone.

    seed: the run's seed. positions: int64 [N]. prefix: precedes every stream name, e.g. "source/".
    Two calls with the same name give the same numbers, so each decision needs its own name ("crop", "flip", "mask"). Bits,
    uniforms, integers and permutations are bit-equal on every device and under torch.compile; normals, gammas and betas differ
    by the rounding of the device's logarithms.
    """

    def __init__(self, seed: int, positions: Tensor, prefix: str = "", *, hashed: Tensor | None = None) -> None:
        """hashed: splitmix64(positions * GOLDEN), int64 [N], if already known."""
        if positions.dtype != torch.int64 or positions.ndim != 1:
            raise ValueError(f"positions must be int64 [N], got {positions.dtype} {tuple(positions.shape)}")
        self.seed, self.positions, self.prefix = seed, positions, prefix
        if hashed is None:
            if self.on_host:
                hashed = torch.from_numpy(splitmix64_words(np.multiply(words_of(positions), _GOLDEN)).view(np.int64))
            else:
                hashed = splitmix64(positions * GOLDEN)
        self.hashed = hashed

    @property
    def on_host(self) -> bool:
        """Whether numpy draws: on the CPU, outside torch.compile."""
        return self.positions.is_cpu and not torch.compiler.is_compiling()

    def stream(self, name: str) -> Draws:
        """The same positions under a nested name: draws.stream("source").uniform("crop") is the stream "source/crop"."""
        return Draws(self.seed, self.positions, f"{self.prefix}{name}/", hashed=self.hashed)

    def words(self, name: str, shape: Sequence[int]) -> Words:
        """`bits` on the host, uint64 [N, *shape]."""
        key = stream_key(self.seed, self.prefix + name)
        row = splitmix64_words(np.bitwise_xor(words_of(self.hashed), np.array(key).view(np.uint64)))
        index = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * _GOLDEN
        return splitmix64_words(row[:, None] + index).reshape(len(row), *shape)

    def bits(self, name: str, *shape: int) -> Tensor:
        """64 random bits each, int64 [N, *shape]."""
        if self.on_host:
            return torch.from_numpy(self.words(name, shape).view(np.int64))
        row = splitmix64(self.hashed ^ stream_key(self.seed, self.prefix + name))
        # Inductor multiplies index symbols as unbounded integers and fails beyond 64 bits; the xor keeps it from treating these as symbols.
        index = torch.arange(1, math.prod(shape) + 1, device=self.positions.device) ^ 0
        return splitmix64(row[:, None] + index * GOLDEN).view(len(row), *shape)

    def uniform(self, name: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform on [low, high), float32 [N, *shape], from 24 bits, which float32 holds exactly.

        With bounds other than 0 and 1 the sum is rounded to float32, which can give `high` itself.
        """
        plain = (low, high) == (0.0, 1.0)
        # With bounds, the product is rounded from float64 before the sum: a compiler that fused both in float32 would change the
        # last bit.
        if self.on_host:
            whole = self.words(name, shape) >> _24_BITS
            if plain:
                unit = whole.astype(np.float32)
                unit *= np.float32(2.0**-24)
                return torch.from_numpy(unit)
            product = whole.astype(np.float64)
            product *= float(np.float32(high - low)) * 2.0**-24
            found = product.astype(np.float32)
            found += np.float32(low)
            return torch.from_numpy(found)
        unit = ((self.bits(name, *shape) >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24
        if plain:
            return unit
        span = torch.full((), high - low, dtype=torch.float32, device=unit.device).double()
        return low + (span * unit.double()).float()

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal, float32 [N, *shape], by Box & Muller (1958)."""
        unit = self.uniform(name, *shape, 2)
        # 1 - u lies in (0, 1], so the logarithm is finite.
        radius = torch.sqrt(-2.0 * torch.log1p(-unit[..., 0]))
        return radius * torch.cos(2.0 * math.pi * unit[..., 1])

    def gamma(self, name: str, a: float, *shape: int) -> Tensor:
        """Gamma of shape a and scale 1, float32 [N, *shape]. Raises ValueError unless a > 0."""
        return self.log_gamma(name, a, *shape).exp()

    def beta(self, name: str, a: float, b: float, *shape: int) -> Tensor:
        """Beta(a, b) on [0, 1], float32 [N, *shape]: G_a / (G_a + G_b) of two gammas. Raises ValueError unless a, b > 0."""
        # For small a both gammas can underflow; their logarithms don't.
        return torch.sigmoid(self.log_gamma(f"{name}/a", a, *shape) - self.log_gamma(f"{name}/b", b, *shape))

    def log_gamma(self, name: str, a: float, *shape: int) -> Tensor:
        """Log of `gamma`, never underflowing: Marsaglia & Tsang (2000), "A simple method for generating gamma variables".

        Takes the first accepted one of a fixed number of tries, so that shapes are static.
        """
        if not 0.0 < a < math.inf:
            raise ValueError(f"a gamma or beta distribution needs shapes above 0, got {a}")
        d = (a if a >= 1.0 else a + 1.0) - 1.0 / 3.0
        x = self.normal(f"{name}/normal", *shape, GAMMA_TRIES)
        accept = torch.log1p(-self.uniform(f"{name}/accept", *shape, GAMMA_TRIES))
        root = 1.0 + x / math.sqrt(9.0 * d)
        log_v = 3.0 * torch.log(root.clamp(min=1e-30))
        accepted = (root > 0.0) & (accept < 0.5 * x * x + d * (1.0 - root**3 + log_v))
        # Elementwise, from the last try to the first, since torch.compile's fused argmax and gather read out of bounds on the CPU.
        # If no try was accepted: v = 1, near the mode.
        chosen = torch.zeros_like(log_v[..., 0])
        for turn in reversed(range(GAMMA_TRIES)):
            chosen = torch.where(accepted[..., turn], log_v[..., turn], chosen)
        result = math.log(d) + chosen
        if a < 1.0:  # G_a = G_(a+1) U^(1/a), section 6
            result = result + torch.log1p(-self.uniform(f"{name}/boost", *shape)) / a
        return result

    def integers(self, name: str, high: int, *shape: int) -> Tensor:
        """Uniform integers in 0..high-1, int64 [N, *shape], by multiply and shift (bias below high / 2^32)."""
        if not 0 < high <= 1 << 31:
            raise ValueError(f"high must lie in 1..2^31, got {high}")
        if self.on_host:
            words = (self.words(name, shape) >> _32_BITS) * np.uint64(high)
            return torch.from_numpy((words >> _32_BITS).view(np.int64))
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


FEISTEL_ROUNDS = 8
# Rounds on halves of up to so many bits (sets of up to 2^24 images) are tabulated: at most 8 x 4096 words.
TABLE_BITS = 12
# For at most so many indices Python integers are faster than arrays.
FEW = 8

Indices = NDArray[np.int64]
Rounds = Sequence[Indices] | Sequence[int]  # each round as a table over all halves, or its key


def permute(seed: int, name: str, n: int, index: Tensor) -> Tensor:
    """Apply a keyed permutation of 0..n-1 to `index` (int64 on the CPU), in O(1) memory.

    A balanced Feistel network (Luby & Rackoff 1988) on the smallest even number of bits that holds n - 1, repeated until the value
    is below n (cycle walking, Black & Rogaway 2002): fewer than four passes on average.
    """
    return torch.from_numpy(permute_array(seed, name, n, index.numpy()))


def permute_array(seed: int, name: str, n: int, index: Indices) -> Indices:
    """`permute` of a numpy array."""
    if n < 1:
        raise ValueError(f"a permutation needs at least one element, got n={n}")
    half = max(1, math.ceil((n - 1).bit_length() / 2))
    rounds = _round_tables(seed, name, half) if half <= TABLE_BITS else _round_keys(seed, name)
    out = index.ravel().copy()
    outside = np.arange(out.size)  # the values that are not below n yet
    while len(outside) > FEW:
        again = _feistel(rounds, half, out[outside])
        out[outside] = again
        outside = outside[again >= n]
    for place in outside.tolist():
        out[place] = _walk(rounds, half, n, int(out[place]))
    return out.reshape(index.shape)


def _feistel(rounds: Rounds, half: int, x: Indices) -> Indices:
    """One pass of the network on numbers of 2 * half bits."""
    bits, mask = np.int64(half), np.int64((1 << half) - 1)
    left, right = x >> bits, x & mask
    for this in rounds:
        image = this[right] if isinstance(this, np.ndarray) else _round(right, np.array(this)) & mask
        np.bitwise_xor(left, image, out=left)
        left, right = right, left
    left <<= bits
    left |= right
    return left


def _walk(rounds: Rounds, half: int, n: int, value: int) -> int:
    """Passes of the network on one number until it is below n, in Python integers."""
    word, mask = 0xFFFFFFFFFFFFFFFF, (1 << half) - 1

    def mixed(x: int) -> int:
        x = ((x ^ (x >> 30)) * MIX_FIRST) & word
        x = ((x ^ (x >> 27)) * MIX_SECOND) & word
        return x ^ (x >> 31)

    while True:
        left, right = value >> half, value & mask
        for this in rounds:
            if isinstance(this, np.ndarray):
                image = int(this[right])
            else:
                image = mixed(mixed((right * GOLDEN) & word) ^ (this & word)) & mask
            left, right = right, left ^ image
        value = left << half | right
        if value < n:
            return value


def _round(right: Indices, keys: Indices) -> Indices:
    hashed = splitmix64_words(right.view(np.uint64) * _GOLDEN)
    return splitmix64_words(hashed ^ keys.view(np.uint64)).view(np.int64)


@functools.lru_cache(maxsize=64)
def _round_keys(seed: int, name: str) -> tuple[int, ...]:
    return tuple(stream_key(seed, f"{name}/round{i}") for i in range(FEISTEL_ROUNDS))


@functools.lru_cache(maxsize=16)
def _round_tables(seed: int, name: str, half: int) -> tuple[Indices, ...]:
    """Each round as a table over all halves, int64 [2^half]."""
    images = _round(np.arange(1 << half)[None], np.array(_round_keys(seed, name))[:, None])
    return tuple(images & ((1 << half) - 1))
