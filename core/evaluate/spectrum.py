"""Published measures of frozen features that need no labels, as plain functions of the features.

All are computed in float64. They rank checkpoints of one method on one set of images; their values are not comparable across methods,
feature dimensions or numbers of images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Added to each share of the spectrum, so that an empty direction has a logarithm; the value of the papers' code.
SHARE_EPSILON = 1e-7


def rankme(features: Tensor) -> float:
    """The effective rank of [N, D] (Garrido et al. 2023, arXiv:2210.02885, eq. 1): exp of the entropy of its singular values."""
    return _effective_rank(torch.linalg.svdvals(features.double()))


def alpha_req(features: Tensor) -> float:
    """The exponent a of a power law i^-a for the eigenvalues of the covariance of [N, D] (Agrawal et al. 2022, alpha-ReQ, section 3).

    As in the authors' code (after Stringer et al. 2019): a line is fitted to the logarithms of eigenvalues 4 to 100, weighted by 1/i.
    About 1 is called good; a much larger exponent means that a few directions hold all variance. nan with fewer than 6 eigenvalues above
    rounding.
    """
    x = features.double()
    eigenvalues = torch.linalg.svdvals(x - x.mean(0)).square()
    positive = int((eigenvalues > eigenvalues[0] * 1e-12).sum())
    index = torch.arange(min(3, positive), min(100, positive), dtype=torch.float64, device=x.device)
    if len(index) < 3:
        return float("nan")
    design = torch.stack([-(index + 1).log(), torch.ones_like(index)], 1)
    weighted = design / (index + 1)[:, None]
    target = eigenvalues[index.long()].log()
    return float(torch.linalg.solve(design.T @ weighted, weighted.T @ target)[0])


def lidar(features: Tensor, delta: float = 1e-4) -> float:
    """The effective rank of the linear discriminants of images (Thilak et al. 2023, arXiv:2312.04000, eqs. 3 to 6).

    features: [N, q, D], q augmented views of each of N images, which are the N classes. delta: added to the diagonal of the covariance
    within images.
    """
    n, q, dim = features.shape
    x = features.double()
    centres = x.mean(1)
    between = centres - centres.mean(0)
    within = (x - centres[:, None]).flatten(0, 1)
    inner = within.T @ within / (n * (q - 1)) + delta * torch.eye(dim, dtype=x.dtype, device=x.device)
    outer = between.T @ between / (n - 1)
    # The eigenvalues of inner^-1/2 outer inner^-1/2 are those of L^-1 outer L^-T with inner = L L^T.
    factor = torch.linalg.cholesky(inner)
    half = torch.linalg.solve_triangular(factor, outer, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return _effective_rank(torch.linalg.eigvalsh(whitened).clamp(min=0.0))


def uniformity(features: Tensor) -> float:
    """log mean exp(-2 |x - y|^2) over pairs of normalised features [N, D] (Wang & Isola 2020, arXiv:2005.10242, eq. 4).

    0 if all are the same, about -4 if they cover the sphere.
    """
    return float(torch.pdist(F.normalize(features.double(), dim=1)).square().mul(-2.0).exp().mean().log())


def alignment(features: Tensor) -> float:
    """The mean squared distance between normalised features of two views of an image (Wang & Isola 2020, eq. 3); 0 is perfect.

    features: [N, q, D], averaged over all pairs of the q views.
    """
    x = F.normalize(features.double(), dim=2)
    return float(torch.stack([torch.pdist(views).square().mean() for views in x]).mean())


def _effective_rank(spectrum: Tensor) -> float:
    """exp of the entropy of a spectrum's shares (Roy & Vetterli 2007)."""
    share = spectrum / spectrum.sum().clamp(min=1e-30) + SHARE_EPSILON
    return float(torch.exp(-(share * share.log()).sum()))
