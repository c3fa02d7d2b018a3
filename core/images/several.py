"""Labels of images that may have several classes, or none: uint8 [N, K], 1 where an image has the class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UserError
from .store import number_classes


def has_several(labels: Tensor | None) -> bool:
    """Whether labels are of this kind, uint8 [N, K], and not int64 [N], one class for each image."""
    return labels is not None and labels.ndim == 2


def names_in_cell(cell: str, between: str, where: str) -> list[str]:
    """The names of classes in a cell of a table, in its order; none of an empty cell.

    between: what separates them; a space stands for any white space. where: the line, for errors. Raises UserError for a name that
    is empty or given twice.
    """
    names = cell.split() if between == " " else [name.strip() for name in cell.split(between)] if cell.strip() else []
    if "" in names:
        raise UserError(
            f"{where} has an empty name of a class beside a {between!r} ({cell!r}); remove the {between!r}, or fill the name in"
        )
    if repeated := [name for k, name in enumerate(names) if name in names[:k]]:
        raise UserError(f"{where} has the class {repeated[0]} twice ({cell!r}); remove one of them")
    return names


def number_several(names: Sequence[Sequence[str]]) -> tuple[Tensor, tuple[str, ...]]:
    """The class names of each image -> (labels uint8 [N, K], sorted class names)."""
    index, classes = number_classes([name for group in names for name in group])
    labels = torch.zeros(len(names), len(classes), dtype=torch.uint8)
    image = torch.repeat_interleave(torch.arange(len(names)), torch.tensor([len(group) for group in names]))
    labels[image, index] = 1
    return labels, classes


def among_classes(labels: Tensor, classes: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """Labels uint8 [N, K] of `classes` as those of other classes, uint8 [N, len(wanted)]; classes that are not wanted are dropped."""
    found = torch.zeros(len(labels), len(wanted), dtype=torch.uint8)
    kept = [k for k, name in enumerate(classes) if name in wanted]
    found[:, [wanted.index(classes[k]) for k in kept]] = labels[:, kept]
    return found


def numbered_sets(labels: Tensor) -> Tensor:
    """int64 [N]: a number for each image, equal where the labels are equal. labels: int64 [N], which stay, or uint8 [N, K]."""
    return labels.unique(dim=0, return_inverse=True)[1] if has_several(labels) else labels


def only_classes(labels: Tensor) -> Tensor:
    """int64 [N]: the class of each image; of labels uint8 [N, K], -1 where an image has several classes, or none."""
    return torch.where(labels.sum(1) == 1, labels.argmax(1), -1) if has_several(labels) else labels


def rarest_classes(keys: Tensor, labels: Tensor) -> Tensor:
    """int64 [N]: the rarest of each image's classes, by identities, of equally rare ones the first; K where it has none.

    keys: int64 [N], identities; labels: uint8 [N, K]. An identity has the classes of all its images. So a cut within these groups has
    images of rare classes on both sides, and copies change nothing.
    """
    different, member = keys.unique(return_inverse=True)
    has = torch.zeros(len(different), labels.shape[1], dtype=torch.int64).index_add_(0, member, labels.long()) > 0
    counts = has.sum(0)
    rarest = torch.where(has, counts, len(different) + 1).argmin(1) if len(counts) else torch.zeros(len(has)).long()
    return torch.where(has.any(1), rarest, len(counts))[member]
