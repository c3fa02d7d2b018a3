"""Draws at scale: serial and cross-stream correlation, avalanche, collisions, and the gamma and beta distributions."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from rootstock.core import draws as module
from rootstock.core.draws import Draws, permute, splitmix64, splitmix64_words, words_of


def positions(n: int, start: int = 0) -> Tensor:
    return torch.arange(start, start + n)


def test_no_two_of_ten_million_draws_are_equal() -> None:
    """Ten streams, a thousand positions, a thousand indices: at 64 bits a collision has a chance of 3e-6."""
    draws = Draws(0, positions(1000, 10**9))
    bits = np.sort(np.concatenate([draws.bits(f"view{i}/x", 1000).numpy().ravel() for i in range(10)]))
    assert len(bits) == 10**7 and (bits[1:] != bits[:-1]).all()


@pytest.mark.parametrize("axis", ["positions", "indices"])
@pytest.mark.parametrize("lag", [1, 2, 3, 7, 8, 64, 196, 256, 1024])
def test_no_serial_correlation(axis: str, lag: int) -> None:
    n = 100_000
    draws = Draws(1, positions(n)) if axis == "positions" else Draws(1, positions(1))
    unit = draws.uniform("x").double() if axis == "positions" else draws.uniform("x", n)[0].double()
    first, second = unit[:-lag], unit[lag:]
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) * math.sqrt(n - lag) < 4
    cells = torch.bincount((first * 8).long() * 8 + (second * 8).long(), minlength=64)
    assert stats.chisquare(cells.numpy()).pvalue > 1e-4
    order = (first < second).double().mean()  # a rising and a falling pair are equally likely
    assert abs(order - 0.5) < 5 * 0.5 / math.sqrt(n / 3)


def test_no_correlation_across_streams_seeds_and_views() -> None:
    """All pairs of forty streams with similar names and seeds."""
    n, where = 20_000, positions(20_000)
    names = [f"{prefix}view{view}/{name}" for prefix in ("", "source/") for view in (0, 1) for name in "abcde"]
    unit = torch.stack([Draws(seed, where).uniform(name).double() for seed in (0, 1) for name in names])
    correlation = torch.corrcoef(unit).fill_diagonal_(0).abs() * math.sqrt(n)
    assert correlation.max() < 4.9  # 780 pairs
    pairs = stats.kstest(
        (torch.atanh(correlation / math.sqrt(n)) * math.sqrt(n)).triu(1)[correlation.triu(1) > 0], "halfnorm"
    )
    assert pairs.pvalue > 1e-3


@pytest.mark.parametrize("shift", [0, 8, 16, 32, 48])
def test_pairs_of_bytes_are_independent(shift: int) -> None:
    """A byte of one position and the same byte of the next: all 65,536 pairs are equally frequent."""
    byte = (Draws(2, positions(400_001)).bits("x") >> shift) & 255
    counts = torch.bincount(byte[:-1] * 256 + byte[1:], minlength=65_536)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("what", ["seed", "name"])
def test_avalanche_of_the_key(what: str) -> None:
    """Adding 1 to the seed, or changing one letter of the name, flips each of the 64 bits half of the time."""
    where = positions(2_000)
    other = Draws(1, where).bits("x") if what == "seed" else Draws(0, where).bits("y")
    changed = Draws(0, where).bits("x") ^ other
    flips = torch.stack([(changed >> k) & 1 for k in range(64)]).double()
    assert abs(flips.mean() - 0.5) < 0.01 and ((flips.mean(1) - 0.5).abs() < 5 * 0.5 / math.sqrt(2_000)).all()


def test_every_bit_of_the_position_moves_every_bit_of_the_result() -> None:
    """The full 64 x 64 matrix of the strict avalanche criterion, each cell over a thousand positions."""
    n = 1_000
    where = splitmix64(positions(n))
    before = Draws(0, where).bits("x")
    for bit in range(64):
        changed = before ^ Draws(0, where ^ module.signed(1 << bit)).bits("x")
        flips = torch.stack([(changed >> k) & 1 for k in range(64)]).double().mean(1)
        assert ((flips - 0.5).abs() < 5.5 * 0.5 / math.sqrt(n)).all()


def test_the_permutation_has_no_serial_correlation() -> None:
    n = 50_000
    images = permute(0, "/order/1", n, torch.arange(n)).double()
    for lag in (1, 2, 16, 256):
        assert abs(torch.corrcoef(torch.stack([images[:-lag], images[lag:]]))[0, 1]) * math.sqrt(n - lag) < 4
    assert stats.kstest((images[:4096] / n).numpy(), "uniform").pvalue > 0.001
    following = permute(0, "/order/2", n, torch.arange(n)).double()
    assert abs(torch.corrcoef(torch.stack([images, following]))[0, 1]) * math.sqrt(n) < 4


@pytest.mark.parametrize("a", [0.3, 0.8, 1.0, 1.5, 4.0, 100.0])
def test_gamma_against_scipy(a: float) -> None:
    found = Draws(4, positions(100_000)).gamma("g", a)
    assert found.dtype == torch.float32 and stats.kstest(found.numpy(), stats.gamma(a).cdf).pvalue > 0.001


@pytest.mark.parametrize(("a", "b"), [(0.4, 0.4), (0.8, 0.8), (1.0, 1.0), (0.5, 3.0), (2.0, 5.0), (30.0, 10.0)])
def test_beta_against_scipy(a: float, b: float) -> None:
    found = Draws(4, positions(100_000)).beta("lambda", a, b)
    assert stats.kstest(found.numpy(), stats.beta(a, b).cdf).pvalue > 0.001
    two = Draws(4, positions(5_000)).beta("lambda", a, b, 2)
    assert abs(torch.corrcoef(two.T)[0, 1]) * math.sqrt(5_000) < 4


@pytest.mark.parametrize("a", [0.01, 0.1, 0.2])
def test_beta_of_small_shapes_is_finite_and_right(a: float) -> None:
    """Near 0 and 1 float32 is coarser than the distribution, so tenths are counted; both gammas may underflow."""
    found = Draws(5, positions(20_000)).beta("lambda", a, a)
    assert found.isfinite().all() and found.min() >= 0 and found.max() <= 1
    edges = np.linspace(0, 1, 11)
    edges[[0, -1]] = -np.inf, np.inf
    counts = np.histogram(found.numpy(), np.linspace(0, 1, 11))[0]
    assert stats.chisquare(counts, 20_000 * np.diff(stats.beta(a, a).cdf(edges))).pvalue > 0.001


def test_gamma_takes_the_first_accepted_of_its_tries() -> None:
    """Compared with a loop over positions and tries, as in Marsaglia & Tsang's figure."""
    a, draws = 1.2, Draws(6, positions(300))
    d, found = a - 1 / 3, draws.gamma("g", a)
    x, u = draws.normal("g/normal", module.GAMMA_TRIES), 1 - draws.uniform("g/accept", module.GAMMA_TRIES)
    late = turn = 0
    for n in range(300):
        for turn in range(module.GAMMA_TRIES):
            z = float(x[n, turn])
            v = (1 + z / math.sqrt(9 * d)) ** 3
            if v > 0 and math.log(u[n, turn]) < z * z / 2 + d - d * v + d * math.log(v):
                break
        else:
            v = 1.0
        late += turn > 0
        assert found[n].item() == pytest.approx(d * v, rel=1e-5)
    assert late > 3


def test_where_every_try_fails_gamma_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GAMMA_TRIES", 1)
    found = Draws(6, positions(3_000)).gamma("g", 1.0)
    assert (found - (1 - 1 / 3)).abs().lt(1e-6).sum() > 30 and found.isfinite().all()


def test_gamma_and_beta_belong_to_their_position_alone() -> None:
    many, one = Draws(0, positions(50)), Draws(0, torch.tensor([37]))
    assert torch.equal(many.gamma("g", 0.7, 2)[37], one.gamma("g", 0.7, 2)[0])
    assert torch.equal(many.beta("b", 0.8, 0.8)[37], one.beta("b", 0.8, 0.8)[0])
    assert many.stream("s").beta("b", 0.8, 0.8).shape == (50,)


PINNED_BETA = [0.870135307, 0.156226203, 0.800960481]


def test_beta_is_pinned() -> None:
    assert Draws(0, positions(3)).beta("mix", 0.8, 0.8).tolist() == pytest.approx(PINNED_BETA, abs=1e-6)


@pytest.mark.parametrize("a", [0.0, -1.0, math.inf, math.nan])
def test_impossible_shapes_are_refused(a: float) -> None:
    for draw in (lambda d: d.gamma("x", a), lambda d: d.beta("x", a, 1.0), lambda d: d.beta("x", 1.0, a)):
        with pytest.raises(ValueError, match="above 0"):
            draw(Draws(0, positions(2)))


DRAWN: dict[str, Callable[[Draws], Tensor]] = {
    "bits": lambda d: d.bits("x", 2, 3),
    "uniform": lambda d: d.uniform("x", 5),
    "bounds": lambda d: d.uniform("x", 200, low=-0.7, high=0.3),
    "far bounds": lambda d: d.uniform("x", 200, low=math.log(3 / 4), high=math.log(4 / 3)),
    "integers": lambda d: d.integers("x", 1000, 4),
    "most integers": lambda d: d.integers("x", 1 << 31, 4),
    "permutation": lambda d: d.permutation("x", 9),
    "none": lambda d: d.bits("x", 0),
}


@pytest.mark.parametrize("what", DRAWN)
def test_numpy_and_torch_draw_the_same_bits(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's path equals that of other devices and of torch.compile."""
    for start, n in itertools.product((0, -5, 10**12, 2**63 - 60), (0, 1, 50)):
        host = DRAWN[what](Draws(3, positions(n, start)).stream("source"))
        with monkeypatch.context() as patch:
            patch.setattr(Draws, "on_host", False)
            device = DRAWN[what](Draws(3, positions(n, start)).stream("source"))
        assert host.dtype == device.dtype and torch.equal(host, device)


def test_both_finalisers_are_one() -> None:
    x = torch.cat([positions(1000, -500), splitmix64(positions(1000)), torch.tensor([2**63 - 1, -(2**63)])])
    assert torch.equal(torch.from_numpy(splitmix64_words(words_of(x.clone())).view(np.int64)), splitmix64(x))


def test_drawing_does_not_write_into_positions() -> None:
    where = positions(20)[::2]  # not contiguous
    draws = Draws(0, where)
    kept = draws.hashed.clone()
    first = draws.bits("x", 3).clone()
    draws.bits("x", 3).zero_()
    assert torch.equal(where, torch.arange(0, 20, 2)) and torch.equal(draws.hashed, kept)
    assert torch.equal(draws.bits("x", 3), first)
