"""Constructed candidates whose target accuracy is known: good, as confident but wrong, collapsed."""

from __future__ import annotations

import torch
from torch import Tensor

from rootstock.adapt.validators.candidate import CandidateModel, SourceFeatures, SourceOutputs, TargetOutputs

N, K, D = 1000, 10, 16
CONFIDENT, CERTAIN = 0.213, 0.016  # mean entropies of the good and the collapsed model


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of(predicted: Tensor, entropy: float, classes: int = K, seed: int = 0) -> Tensor:
    """Logits that predict these classes, with a mean entropy of the softmax."""
    noise = torch.randn(len(predicted), classes, generator=generator(seed), dtype=torch.float64)
    chosen = torch.nn.functional.one_hot(predicted, classes).double()

    def logits(gap: float) -> Tensor:
        return noise * (1 - chosen) + (gap + noise.abs()) * chosen

    low, high = 0.0, 30.0
    for _ in range(60):
        gap = (low + high) / 2
        p = logits(gap).softmax(1)
        low, high = (gap, high) if float(torch.special.entr(p).sum(1).mean()) > entropy else (low, gap)
    return logits((low + high) / 2).float()


def corrupted(labels: Tensor, accuracy: float, classes: int = K, seed: int = 0) -> Tensor:
    """Predictions of that accuracy, the errors spread evenly over the other classes."""
    order = torch.randperm(len(labels), generator=generator(seed))
    wrong = order[round(accuracy * len(labels)) :]
    predicted = labels.clone()
    predicted[wrong] = (labels[wrong] + 1 + torch.arange(len(wrong)) % (classes - 1)) % classes
    return predicted


def clusters(labels: Tensor, seed: int, spread: float = 0.4, shift: float = 0.0) -> Tensor:
    noise = torch.randn(len(labels), D, generator=generator(seed))
    features = spread * noise
    features[torch.arange(len(labels)), labels] += 3.0
    features[:, -1] += shift
    return features


class Triple:
    """Three candidates on one target of 1,000 images of 10 classes, all with 95 % on held-out source.

    The wrong one has features as good as the good one's but a head that has 46 % wrong with the same confidence. The collapsed one gives
    all target images one feature and one class, and has kept the source.
    """

    def __init__(self) -> None:
        self.labels = torch.arange(N) % K
        source = torch.arange(400) % K
        trained = torch.arange(600) % K
        keys = torch.randperm(1 << 20, generator=generator(9))
        self.target_keys, self.source_keys, self.trained_keys = keys[:N], keys[N : N + 400], keys[N + 400 : N + 1000]
        guessed = corrupted(source, 0.95, seed=5)
        self.source = SourceOutputs(
            clusters(source, 1), logits_of(guessed, CONFIDENT, seed=6), source, self.source_keys
        )
        self.trained = SourceFeatures(clusters(trained, 2), self.trained_keys)
        weight = torch.eye(K, D)
        one = 3.0 + 0.01 * torch.randn(N, D, generator=generator(4))
        outputs = {
            "good": (clusters(self.labels, 3, shift=0.5), corrupted(self.labels, 0.90, seed=7), CONFIDENT),
            "wrong": (clusters(self.labels, 3, shift=0.5), corrupted(self.labels, 0.54, seed=8), CONFIDENT),
            "collapsed": (one, torch.zeros(N, dtype=torch.int64), CERTAIN),
        }
        self.accuracy, self.candidates = dict[str, float](), dict[str, CandidateModel]()
        for step, (name, (features, predicted, entropy)) in enumerate(outputs.items()):
            logits = logits_of(predicted, entropy, seed=10)
            target = TargetOutputs(features, logits, self.target_keys)
            self.candidates[name] = CandidateModel(name, step, target, self.source, self.trained, weight)
            self.accuracy[name] = float((logits.argmax(1) == self.labels).double().mean())


def shuffled(candidate: CandidateModel, seed: int = 0) -> CandidateModel:
    """The same candidate, its rows in another order in each set."""
    t = candidate.target
    order = torch.randperm(len(t.keys), generator=generator(seed))
    target = TargetOutputs(t.features[order], t.logits[order], t.keys[order])
    source, trained, mixed = candidate.source, candidate.trained, candidate.mixed
    if source is not None:
        rows = torch.randperm(len(source.keys), generator=generator(seed + 1))
        source = SourceOutputs(source.features[rows], source.logits[rows], source.labels[rows], source.keys[rows])
    if trained is not None:
        rows = torch.randperm(len(trained.keys), generator=generator(seed + 2))
        trained = SourceFeatures(trained.features[rows], trained.keys[rows])
    again = (lambda a, b, share: mixed(order[a], order[b], share)) if callable(mixed) else mixed
    return CandidateModel(candidate.name, candidate.step, target, source, trained, candidate.weight, again)
