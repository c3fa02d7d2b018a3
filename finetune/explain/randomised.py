"""The sanity check of Adebayo et al. 2018 (arXiv:1810.03292): a map that explains a network must change when its weights are lost.

Weights are drawn anew from the head down, layer by layer (cascading), and the maps of the same classes are compared with those of the
trained network by the rank correlation of their places.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from ...core.draws import Draws, permute
from ...core.evaluate.ranks import mean_ranks
from ...core.evaluate.statistics import Interval
from ...core.model import norm
from ...core.model.classifier import Classifier
from .curves import mean_intervals
from .methods import Explainer, PicturesSeen, is_constant

# A map passes if the 95 % interval of its mean rank correlation lies below this when all weights are random: at 0.5 the two maps share
# a quarter of the variance of their ranks, so at least three quarters of what the map shows come from what was learned.
THRESHOLD = 0.5
NORMS = ("Norm",)
MOST_LEVELS = 6


class Level(NamedTuple):
    """Maps after the weights of some layers were lost. what: these, in words. correlations: of each picture; NaN where its map is constant.

    interval: of the mean over the other pictures; None if all maps are constant. units: how many of those, or groups, are independent.
    """

    what: str
    correlations: list[float]
    interval: Interval | None
    units: int

    @property
    def constant(self) -> int:
        """Pictures whose map shows nothing any more, so that it has no order of places to compare."""
        return int(np.isnan(self.correlations).sum())


class SanityCheck(NamedTuple):
    """levels: from the head alone to all weights. unchanged: pictures whose map did not move at all at the last level."""

    levels: list[Level]
    unchanged: int

    @property
    def refused(self) -> str:
        """Why there is no verdict: too few maps to compare at the last level; "" where there is one."""
        last = self.levels[-1]
        n = len(last.correlations)
        if 2 * last.constant >= n:
            return f"without any learned weight its maps are constant on {last.constant} of {n} pictures, so there is no order to compare"
        return "" if last.units > 1 else "its maps are of a single picture or group of pictures, which is no evidence"

    @property
    def passed(self) -> bool:
        """Whether there is a verdict, every map changed, and the interval of the last level lies below the threshold."""
        last = self.levels[-1].interval
        if self.refused or last is None:
            return False
        high = last.estimate if last.high is None else last.high  # without an interval, all correlations are equal
        return self.unchanged == 0 and high < THRESHOLD


def sanity_check(
    make: Callable[[Classifier], Explainer], classifier: Classifier, shown: PicturesSeen, seed: int, batch: int = 16
) -> SanityCheck:
    """Compare maps of the trained network with those after its weights are lost, from the head down.

    make: the explainer of a classifier. shown: pictures, none of whose maps is constant.
    """
    trained = maps_of(make(classifier), shown, batch)
    groups = layers_from_the_head(classifier)
    levels, unchanged = list[Level](), 0
    for last in _spread(len(groups)):
        lost = randomised(classifier, [name for group in groups[: last + 1] for name in group], shown.images, seed)
        found = maps_of(make(lost), shown, batch)
        values = [map_rank_correlation(a, b) for a, b in zip(trained, found, strict=True)]
        levels.append(_level(_in_words(last, len(groups)), values, shown.units, seed))
        unchanged = int((found == trained).flatten(1).all(1).sum())
    return SanityCheck(levels, unchanged)


def _level(what: str, correlations: list[float], units: Tensor, seed: int) -> Level:
    """units: int64 [N], of the pictures."""
    values = np.array(correlations)
    there = ~np.isnan(values)
    units = units[torch.from_numpy(there)]
    found = mean_intervals({"mean": values[there]}, units, seed)["mean"] if there.any() else None
    return Level(what, correlations, found, len(units.unique()))


def maps_of(explainer: Explainer, shown: PicturesSeen, batch: int) -> Tensor:
    """The maps of all pictures, float32 [N, h, w], some at a time."""
    parts = [slice(start, start + batch) for start in range(0, len(shown.images), batch)]
    return torch.cat([explainer(shown.rows(part)) for part in parts])


def map_rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two maps [h, w], equal numbers sharing their mean rank; NaN where one of them is constant."""
    if bool(is_constant(torch.stack([a, b])).any()):
        return float("nan")
    ranks = [mean_ranks(one.flatten().numpy()) for one in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def layers_from_the_head(classifier: Classifier) -> list[list[str]]:
    """The names of parameters, [head and bottleneck, last layers, ..., first layers], as timm groups them for its decay of rates."""
    model: Any = classifier.backbone.model
    names, place = [name for name, _ in model.named_parameters()], "backbone.model."
    head = [name for name, _ in classifier.named_parameters() if not name.startswith("backbone.")]
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        number: dict[str, int] = {name: _first_number(name) for name in names}
    else:
        number = dict(group_parameters(model, matcher(coarse=True), reverse=True))
    layers = sorted(set(number.values()), reverse=True)
    return [head, *([place + name for name in names if number[name] == layer] for layer in layers)]


def _first_number(name: str) -> int:
    found = re.search(r"\d+", name)
    return int(found[0]) if found else 1 << 30


def _spread(count: int) -> Sequence[int]:
    """At most MOST_LEVELS of 0..count-1, the first and the last among them."""
    return sorted({round(x) for x in np.linspace(0, count - 1, min(count, MOST_LEVELS))})


def _in_words(last: int, count: int) -> str:
    if last == 0:
        return "the head"
    return "all weights" if last == count - 1 else f"the head and the last {last} of {count - 1} groups of layers"


def randomised(classifier: Classifier, names: Sequence[str], images: Tensor, seed: int) -> Classifier:
    """A copy whose parameters `names` have lost what they learned.

    Matrices and kernels are drawn from a normal distribution of their own mean and deviation; scales of norms are 1, shifts and biases 0;
    other vectors are shuffled. A network with BatchNorm would be blown up by statistics of weights that are gone, so those of the lost
    layers are measured anew on `images`.
    """
    lost, wanted = copy.deepcopy(classifier), set(names)
    owners = {
        f"{place}.{key}" if place else key: module
        for place, module in lost.named_modules()
        for key in module._parameters
    }
    norms = list[Any]()
    with torch.no_grad():
        for name, parameter in lost.named_parameters():
            if name not in wanted:
                continue
            owner = owners[name]
            if any(part in type(owner).__name__ for part in NORMS) and parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
                norms += [owner] if isinstance(owner, nn.modules.batchnorm._BatchNorm) and owner not in norms else []
            else:
                parameter.copy_(_anew(name, parameter, seed))
        if norms:
            with norm.measured_anew(norms):
                # BatchNorm of features needs two: a single picture comes with its mirror image.
                lost(images if len(images) > 1 else torch.cat([images, images.flip(-1)]))
    return lost


def _anew(name: str, parameter: Tensor, seed: int) -> Tensor:
    if parameter.ndim > 1:
        drawn = Draws(seed, torch.zeros(1, dtype=torch.int64)).normal(f"explain/lost/{name}", parameter.numel())
        deviation = parameter.double().std() if parameter.numel() > 1 else parameter.double().abs().sum()
        return (parameter.double().mean() + deviation * drawn.view(parameter.shape).to(parameter)).to(parameter)
    if name.endswith("bias"):
        return torch.zeros_like(parameter)
    order = permute(seed, f"explain/lost/{name}", len(parameter), torch.arange(len(parameter)))
    return parameter[order.to(parameter.device)]
