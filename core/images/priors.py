"""Label shift for experiments: a part of a labelled set whose class priors are drawn."""

import torch
from torch import Tensor

from ..draws import Draws
from ..errors import UserError
from .images import Images
from .several import has_several
from .split import Fragment, hash_order, keys_by_class


def of_drawn_priors(images: Images, fragment: Fragment, uri: str) -> Images:
    """`with_drawn_priors` by the alpha and the seed of a fragment; all images if it has no alpha. Raises UserError without labels."""
    if fragment.dirichlet is None:
        return images
    if images.labels is None or images.classes is None or has_several(images.labels):
        raise UserError(f"{uri}: dirichlet draws class priors, so it needs one label for each picture; remove it")
    classes = len(images.classes)
    return images.select(with_drawn_priors(images.keys(), images.labels, classes, fragment.dirichlet, fragment.seed))


def with_drawn_priors(keys: Tensor, labels: Tensor, classes: int, alpha: float, seed: int) -> Tensor:
    """Indices (int64, ascending) of the largest subset whose class priors are a draw from Dirichlet(alpha, ..., alpha): label shift.

    keys, labels: int64 [N]; classes: K, also those without images, which are left out. Small alpha: few classes hold nearly all;
    large alpha: all alike. Within a class the first identities in the hash order of `seed` are taken, so names and the order of files
    play no part. Counts are of identities and rounded, so a class of small prior may have none.

    As everywhere in the literature (RLSbench, arXiv:2302.03020), the labels shape *which* images there are. The subset of a target
    is thus a property of the experiment, not something that a method could have made. Which label an image of it has reaches no method.
    """
    groups = keys_by_class(keys, labels)
    there = sorted(groups)
    # Logarithms, since for small alpha a gamma underflows.
    logs = Draws(seed, torch.arange(classes), "label shift/").log_gamma("dirichlet", alpha).double()[there]
    priors = logs.softmax(0).tolist()
    size = min(len(groups[k]) / p for k, p in zip(there, priors, strict=True) if p > 0)
    chosen: list[int] = []
    for k, p in zip(there, priors, strict=True):
        chosen += hash_order(groups[k], seed)[: min(len(groups[k]), round(size * p))]
    return torch.isin(keys, torch.tensor(chosen, dtype=torch.int64)).nonzero().flatten()
