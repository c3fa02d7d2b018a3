"""How far apart two domains are in a feature space, without labels: A-distance by a domain classifier, and MMD with a permutation test."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..draws import Draws
from ..kernels import gaussian_kernels, mean_squared_distance, multi_kernel_mmd, squared_distances
from .logreg import LogisticRegression, fit_choosing_C
from .statistics import wilson

DOMAIN_C = tuple(10.0**k for k in range(-5, 4))
"""Values of C from which a domain classifier's is chosen."""

FEWEST = 4  # identities of a domain in each half, below which there is no A-distance
PERMUTATIONS = 999


class ADistance(NamedTuple):
    """value: 0 (alike) to 2 (always told apart). low, high: 95 %. error: of the domain classifier on held-out halves, at most 1/2."""

    value: float
    low: float
    high: float
    error: float
    images: int  # held-out identities of both domains
    C: float


class MMDTest(NamedTuple):
    """value: the unbiased squared MMD. p: the share of permutations of the domains, this one included, with one as large."""

    value: float
    p: float


def domain_classifier(
    source: Tensor, target: Tensor, source_keys: Tensor, target_keys: Tensor, *, seed: int = 0
) -> LogisticRegression:
    """A logistic regression of target (1) against source (0), its C chosen on a held-out fifth, then fitted on all rows.

    source: [N, D]; target: [M, D]; keys: int64 identities, so that copies don't lie on both sides. Its two columns of logits give
    log p(target) / p(source) + log(N / M), the density ratio.
    """
    x = torch.cat([source, target])
    y = torch.cat([torch.zeros(len(source)), torch.ones(len(target))]).long()
    return fit_choosing_C(x, y, torch.cat([source_keys, target_keys]), 2, seed=seed, values_of_C=DOMAIN_C)


def log_density_ratio(model: LogisticRegression, x: Tensor, rows: tuple[int, int]) -> Tensor:
    """log p(x | target) / p(x | source) of [N, D], float64 [N] on the CPU. rows: of source and target that the classifier was fitted on."""
    logits = model.logits(x).cpu()
    return logits[:, 1] - logits[:, 0] + torch.tensor(rows[0] / rows[1], dtype=torch.float64).log()


def a_distance(
    source: Tensor, target: Tensor, source_keys: Tensor, target_keys: Tensor, *, seed: int = 0
) -> ADistance | None:
    """2 (1 - 2 err) (Ben-David et al. 2007), err of a domain classifier on the half of the identities that it has not seen.

    Its C is chosen on a fifth of the other half. err is the mean over both domains at equal priors, clipped at 1/2; the interval is
    Wilson's, with 4 / (1/n + 1/m) trials for n and m identities of the domains on that half: n + m where both are equal, else fewer,
    as the variance of that mean has it. tllib trains for ten epochs on one random split and doesn't clip. None for domains of fewer than
    four identities in a half.
    """
    # By a hash of its own: slices and samples of sets are cut along `hash_order`, so its halves could hold one domain each.
    first = [Draws(seed, keys.cpu()).bernoulli("a_distance", 0.5) for keys in (source_keys, target_keys)]
    parts = [(keys.cpu(), half) for keys, half in zip((source_keys, target_keys), first, strict=True)]
    counts = [len(keys[side].unique()) for keys, half in parts for side in (half, ~half)]
    if min(counts) < FEWEST:
        return None
    rows = (int(first[0].sum()), int(first[1].sum()))
    model = domain_classifier(
        source[first[0]], target[first[1]], source_keys.cpu()[first[0]], target_keys.cpu()[first[1]], seed=seed
    )
    # At equal priors, so that a larger domain is not guessed more often.
    wrong = [
        float((log_density_ratio(model, x[~half], rows) > 0).double().sub(truth).abs().mean())
        for x, half, truth in ((source, first[0], 0.0), (target, first[1], 1.0))
    ]
    error = min(0.5, sum(wrong) / 2)
    held = (counts[1], counts[3])
    low, high = wilson(error, 4 / (1 / held[0] + 1 / held[1]))
    return ADistance(2 - 4 * error, max(0.0, 2 - 4 * high), 2 - 4 * low, error, sum(held), model.C)


def mmd_test(source: Tensor, target: Tensor, *, seed: int = 0, permutations: int = PERMUTATIONS) -> MMDTest:
    """The unbiased squared MMD with DAN's kernels, and the p-value of "both domains are alike" by permuting rows (Gretton et al. 2012).

    source: [N, D]; target: [M, D], independent rows: one of each identity. Memory: (N + M)^2 numbers of 8 bytes.
    """
    n, m = len(source), len(target)
    x = torch.cat([source, target]).double()
    kernel = gaussian_kernels(squared_distances(x, x), mean_squared_distance(x))
    kernel.fill_diagonal_(0.0)
    shuffled = Draws(seed, torch.arange(permutations)).permutation("mmd", n + m)
    member = torch.zeros(n + m, permutations + 1, dtype=torch.float64)
    member[:n, 0] = 1.0
    member[:, 1:].scatter_(0, shuffled.T[:n].contiguous(), 1.0)
    seen = kernel @ member
    within_source = (member * seen).sum(0)
    between = seen.sum(0) - within_source
    within_target = kernel.sum() - within_source - 2 * between
    values = within_source / (n * (n - 1)) + within_target / (m * (m - 1)) - 2 * between / (n * m)
    # Equal but for rounding is as large.
    as_large = values >= values[0] - 1e-12 * values[0].abs().clamp(min=1e-12)
    return MMDTest(float(multi_kernel_mmd(source.double(), target.double())), float(as_large.double().mean()))
