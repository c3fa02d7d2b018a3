"""Importance-weighted validation and DEV: the risk on held-out source, weighted by how much an image looks like the target."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import Tensor

from ...core.evaluate.domain_gap import domain_classifier, log_density_ratio
from .candidate import CandidateModel, log_probabilities
from .contract import Validator

_BLIND = (
    "label shift, confidence that is wrong on the target alone, and a target that the source does not cover: the weights then vary wildly, "
    "or all are near 0, which IWV prefers"
)


# Three validators need the ratio of a candidate, which takes a fit; it goes when the candidate goes.
_RATIOS: WeakKeyDictionary[CandidateModel, Tensor] = WeakKeyDictionary()


class ImportanceWeightedValidation(Validator):
    """IWV: -mean(w e), e = 1 for a wrong held-out source image (Sugiyama et al. 2007, "Covariate shift adaptation by importance weighted
    cross validation"). w: as of `DeepEmbeddedValidation`.
    """

    name = "iwv"
    needs = ("source", "trained", "target")
    blind_to = _BLIND

    def score(self, candidate: CandidateModel) -> float:
        """Minus the weighted error, unbounded below."""
        return -float((density_ratio(candidate) * errors(candidate)).mean())


class DeepEmbeddedValidation(Validator):
    """DEV: -(mean(w e) + eta (mean(w) - 1)), eta = -cov(w e, w) / var(w) with ddof 1 (You et al. 2019, "Towards accurate model selection in
    deep unsupervised domain adaptation", ICML).

    e is the cross-entropy of a held-out source image. w = p(target) / p(source) * N_s / N_t by a domain classifier on the features of
    trained source and target: a logistic regression whose C is chosen on a held-out fifth, groups whole. (The authors train a two-layer
    network with one of five decays.) Where all w are equal, eta is 0.
    """

    name = "dev"
    needs = ("source", "trained", "target")
    blind_to = _BLIND

    def score(self, candidate: CandidateModel) -> float:
        """Minus the estimated risk; the control variate can make the risk negative."""
        return -controlled_risk(self.weights(candidate), cross_entropies(candidate))

    def weights(self, candidate: CandidateModel) -> Tensor:
        """The weights of the held-out source, float64 [M]."""
        return density_ratio(candidate)


class NormalisedDEV(DeepEmbeddedValidation):
    """DEVN: DEV with weights w / max(w), shifted to a mean of 1 (Musgrave et al. 2022, arXiv:2208.07360), which bounds their variance."""

    name = "devn"

    def weights(self, candidate: CandidateModel) -> Tensor:
        """The weights of the held-out source, float64 [M]."""
        scaled = density_ratio(candidate)
        scaled = scaled / scaled.max()
        return scaled - scaled.mean() + 1.0


def density_ratio(candidate: CandidateModel) -> Tensor:
    """p(x | target) / p(x | source) of the held-out source images, float64 [M]."""
    if candidate.trained is None:
        raise ValueError(f"candidate {candidate.name} has no features of its training source")
    if candidate not in _RATIOS:
        trained, target = candidate.trained, candidate.target
        units = [part.keys if part.units is None else part.units for part in (trained, target)]
        model = domain_classifier(trained.features, target.features, *units)
        rows = (len(trained.features), len(target.features))
        _RATIOS[candidate] = log_density_ratio(model, candidate.held_out.features, rows).exp()
    return _RATIOS[candidate]


def controlled_risk(weights: Tensor, losses: Tensor) -> float:
    """mean(w e) + eta (mean(w) - 1), eta = -cov(w e, w) / var(w). weights, losses: float64 [M]. eta is 0 for one image."""
    weighted = weights * losses
    if len(weights) < 2:
        return float(weighted.mean())
    variance = weights.var(correction=1)
    covariance = ((weighted - weighted.mean()) * (weights - weights.mean())).sum() / (len(weights) - 1)
    # Rounding alone is no variance.
    flat = bool(variance <= 1e-24 * weights.abs().max().square())
    eta = 0.0 if flat else -float(covariance / variance)
    return float(weighted.mean()) + eta * (float(weights.mean()) - 1.0)


def errors(candidate: CandidateModel) -> Tensor:
    """1 for each held-out source image that is wrong, else 0; float64 [M]."""
    source = candidate.held_out
    return (source.logits.argmax(1) != source.labels).double()


def cross_entropies(candidate: CandidateModel) -> Tensor:
    """-log p(label) of each held-out source image, float64 [M]."""
    source = candidate.held_out
    return -log_probabilities(source.logits).gather(1, source.labels[:, None])[:, 0]
