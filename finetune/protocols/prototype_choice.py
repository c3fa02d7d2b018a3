"""Prototypes of classes among frozen patches: clusters of a class's patches, each replaced by the nearest patch of that class (push).

Rows are first put in the order of their content, and starts are drawn by identities, so the order of the training set is no matter.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...core.draws import Draws

ITERATIONS = 15
# Similarities are computed for so many numbers of patches at a time: 64 MB in float32.
NUMBERS_OF_PATCHES = 1 << 24


class ChosenPrototypes(NamedTuple):
    """J training patches. vectors: float32 [J, D], of length 1, after the mean [D] is taken away; owner: int64 [J], the class of each.

    row, cell: int64 [J], the training image and the number of the patch in it. separation: float64 [J], how far the class's images lie
    above the others in similarity, in deviations.
    """

    vectors: Tensor
    mean: Tensor
    owner: Tensor
    row: Tensor
    cell: Tensor
    separation: Tensor

    def similarities(self, patches: Tensor) -> Tensor:
        """The highest cosine of any patch of an image with each prototype: [M, P, D] -> float64 [M, J] on the CPU."""
        return _similarities(patches, self.mean, self.vectors)


def content_order(patches: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
    """The order of the rows by identity, label and content, int64 [N]: the same for the same images in any order."""
    digests = [
        hashlib.sha256(np.ascontiguousarray(row.float().numpy()).tobytes()).digest()[:8] if twice else b""
        for row, twice in zip(patches, _repeated(keys), strict=True)
    ]
    numbers = np.array([int.from_bytes(one) for one in digests], dtype=np.uint64)
    return torch.from_numpy(np.lexsort((numbers, labels.numpy(), keys.numpy())))


def _repeated(keys: Tensor) -> list[bool]:
    _, inverse, counts = keys.unique(return_inverse=True, return_counts=True)
    return (counts[inverse] > 1).tolist()


def choose_prototypes(
    patches: Tensor,
    labels: Tensor,
    keys: Tensor,
    *,
    per_class: int,
    candidates: int,
    most: int,
    seed: int,
    device: torch.device,
) -> ChosenPrototypes:
    """The `per_class` most separating patches of each class; fewer where a class has fewer different ones.

    patches: [N, P, D], rows in `content_order`; labels, keys: int64 [N]. candidates: clusters of a class for each of its prototypes.
    most: patches of a class that clusters are made of at most, drawn by content.
    """
    mean = _mean(patches)
    vectors, owner, row, cell = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    for label in labels.unique().tolist():
        mine = (labels == label).nonzero()[:, 0]
        found = _of_class(patches, mine, keys, mean, candidates * per_class, most, seed, device)
        vectors.append(found[0])
        row.append(found[1])
        cell.append(found[2])
        owner.append(torch.full((len(found[1]),), label))
    every = ChosenPrototypes(
        torch.cat(vectors), mean, torch.cat(owner), torch.cat(row), torch.cat(cell), torch.zeros(0, dtype=torch.float64)
    )
    score = separations(every.similarities(patches), labels, every.owner)
    kept = list[Tensor]()
    for label in every.owner.unique().tolist():
        own = (every.owner == label).nonzero()[:, 0]
        kept.append(own[score[own].argsort(descending=True, stable=True)[:per_class]])
    which = torch.cat(kept)
    return ChosenPrototypes(
        every.vectors[which], mean, *(part[which] for part in (every.owner, every.row, every.cell, score))
    )


def separations(similar: Tensor, labels: Tensor, owner: Tensor) -> Tensor:
    """(mean similarity of the class's images - that of all others) / deviation over all, float64 [J]; 0 where nothing differs."""
    found = torch.zeros(len(owner), dtype=torch.float64)
    deviation = similar.std(0, correction=0)
    for label in owner.unique().tolist():
        mine, own = labels == label, owner == label
        others = similar[~mine][:, own].mean(0) if bool((~mine).any()) else 0.0
        found[own] = (similar[mine][:, own].mean(0) - others) / deviation[own].clamp(min=1e-12)
    return found


def _of_class(
    patches: Tensor, mine: Tensor, keys: Tensor, mean: Tensor, clusters: int, most: int, seed: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Pushed centres [M, D] of one class, their rows and cells: each is a patch of the class, and none comes twice."""
    drawn = Draws(seed, keys[mine]).uniform("prototypes/patches", patches.shape[1])
    kept = drawn.flatten().argsort(stable=True)[:most].sort().values
    row, cell = mine[kept // patches.shape[1]], kept % patches.shape[1]
    x = normalize((patches[row, cell].float() - mean).to(device), dim=1)
    centres = _starts(x, keys[row], cell, clusters, seed)
    for _ in range(ITERATIONS):
        nearest = (x @ centres.T).argmax(1)
        total = torch.zeros_like(centres, dtype=torch.float64).index_add_(0, nearest, x.double())
        centres = normalize(total[total.abs().sum(1) > 0], dim=1).float()
    pushed = torch.unique((x @ centres.T).argmax(0)).cpu()
    return x[pushed].cpu(), row[pushed], cell[pushed]


def _starts(x: Tensor, keys: Tensor, cell: Tensor, clusters: int, seed: int) -> Tensor:
    """k-means++ (Arthur & Vassilvitskii 2007): each next start with probability proportional to its squared distance from the others.

    A draw belongs to the patch, by its image's identity and its cell: the largest log distance plus Gumbel noise is drawn.
    """
    places, many = keys * 1_000_003 + cell, min(clusters, len(x))
    apart = torch.ones(len(x), dtype=torch.float64)
    chosen = list[int]()
    for number in range(many):
        unit = Draws(seed, places).uniform(f"prototypes/start/{number}").double().clamp(min=2.0**-24, max=1 - 2.0**-24)
        score = apart.clamp(min=0).log() - (-unit.log()).log()
        best = int(score.argmax())
        if not bool(score[best] > -torch.inf):  # all others are copies of what is chosen
            break
        chosen.append(best)
        distance = (2 - 2 * (x @ x[best])).double().cpu()
        distance[distance < 1e-6] = 0.0
        apart = torch.minimum(apart, distance) if number else distance
    return x[chosen]


def _mean(patches: Tensor) -> Tensor:
    """The mean patch, float32 [D], summed in float64."""
    total = torch.zeros(patches.shape[2], dtype=torch.float64)
    for part in patches.split(_rows_at_once(patches)):
        total += part.double().sum((0, 1))
    return (total / (len(patches) * patches.shape[1])).float()


def _similarities(patches: Tensor, mean: Tensor, vectors: Tensor) -> Tensor:
    found = [torch.zeros(0, len(vectors), dtype=torch.float64)]
    for part in patches.split(_rows_at_once(patches)):
        x = normalize(part.cpu().float() - mean, dim=2)
        found.append((x @ vectors.T).amax(1).double())
    return torch.cat(found)


def _rows_at_once(patches: Tensor) -> int:
    return max(1, NUMBERS_OF_PATCHES // max(1, patches.shape[1] * patches.shape[2]))
