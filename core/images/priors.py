"""Parts of labelled sets for experiments: class priors that are drawn (label shift), or that fall exponentially (long tails)."""

import torch
from torch import Tensor

from ..draws import Draws
from ..errors import UserError
from .images import Images
from .several import has_several
from .split import Fragment, hash_order, keys_by_class


def of_drawn_priors(images: Images, fragment: Fragment, uri: str) -> Images:
    """`with_drawn_priors` or `with_long_tail`, as a fragment asks; all images if it doesn't. Raises UserError without labels."""
    if not fragment.drawn:
        return images
    if images.labels is None or images.classes is None or has_several(images.labels):
        what = "dirichlet draws class priors" if fragment.dirichlet else "longtail changes class sizes"
        raise UserError(f"{uri}: {what}, so it needs one label for each picture; remove it")
    if fragment.longtail is not None:
        return images.select(with_long_tail(images.keys(), images.labels, fragment.longtail, fragment.seed))
    assert fragment.dirichlet is not None
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
    return _of_shares(keys, groups, dict(zip(there, priors, strict=True)), seed, least=0)


def with_long_tail(keys: Tensor, labels: Tensor, factor: float, seed: int) -> Tensor:
    """Indices (int64, ascending) of the largest subset whose class sizes fall exponentially: class k of K has n_0 factor^(-k / (K - 1)).

    keys, labels: int64 [N]. factor: the imbalance factor, largest over smallest class, 1 or more. Classes without images are left out.
    The order is that of the classes, as in CIFAR-LT (Cui et al. 2019, arXiv:1901.05555, section 5.1; its code cuts sizes down to whole
    numbers where this rounds them). Which images a class keeps is a hash of content and `seed`; it keeps one at least.
    """
    groups = keys_by_class(keys, labels)
    there = sorted(groups)
    sizes = {k: factor ** (-i / max(1, len(there) - 1)) for i, k in enumerate(there)}
    return _of_shares(keys, groups, sizes, seed, least=1)


def _of_shares(keys: Tensor, groups: dict[int, Tensor], share: dict[int, float], seed: int, least: int) -> Tensor:
    """The largest subset whose classes stand in these proportions: of each class the first identities in the hash order of `seed`."""
    size = min(len(groups[k]) / p for k, p in share.items() if p > 0)
    chosen: list[int] = []
    for k, p in share.items():
        chosen += hash_order(groups[k], seed)[: min(len(groups[k]), max(least, round(size * p)))]
    return torch.isin(keys, torch.tensor(chosen, dtype=torch.int64)).nonzero().flatten()
