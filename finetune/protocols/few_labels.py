"""Which training images have a label, where a protocol gives labels to few: so many a class, a part of them, or those of a list file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.documents import Unreadable, read_bytes
from ...core.draws import Draws
from ...core.errors import UserError
from ...core.files import expanded
from ...core.images.split import keys_by_class
from .contract import Counts

# More would take hours and much memory, and narrow the interval by nothing that is seen.
MOST_DRAWS = 10_000
# Of a list file; the names of all of ImageNet take 40 MB.
LARGEST_LIST = 1 << 28
# A message names so many of the names that it is about.
NAMES_SHOWN = 5


def check_draws(name: str, draws: int) -> None:
    """Raises UserError unless there is a sensible number of draws."""
    if draws < 1:
        raise UserError(f"{name} needs draws of at least 1, got {draws}")
    if draws > MOST_DRAWS:
        raise UserError(
            f"{name}: draws is {draws}, expected at most {MOST_DRAWS:,}; a hundred are enough for a narrow interval"
        )


def check_shots(name: str, shots: int, draws: int, counts: Counts, section: str = "fewshot") -> None:
    """Raises UserError for numbers below 1 and for a class with fewer different images than `shots`. section: that has the key shots."""
    if shots < 1 or draws < 1:
        raise UserError(f"{name} needs shots and draws of at least 1, got {shots} and {draws}")
    check_draws(name, draws)
    several = identities_by_class(counts)
    if (least := min(several, default=0)) < shots:
        title = counts.classes[several.index(least)]
        remedy = f"give evaluate.{section}.shots of at most {least}" if least else "leave the class out"
        raise UserError(
            f"{name}: class {title} has {least} different training images, fewer than shots = {shots}; {remedy}, or add images"
        )


def identities_by_class(counts: Counts) -> list[int]:
    """How many different training images each class has."""
    found = keys_by_class(counts.keys.cpu(), counts.labels.cpu())
    return [len(found[label]) if label in found else 0 for label in range(len(counts.classes))]


def drawn_rows(keys: Tensor, y: Tensor, seed: int, shots: int, draws: int) -> Tensor:
    """For each draw and class the rows of `shots` identities, int64 [draws, K, shots]; of an identity one random image of its class.

    A draw depends on the seed and the identities, not on the order of images. Where all images are taken, all draws would be the same, so
    there is one. keys, y: int64 [N].
    """
    picked, choice = [], False
    for label, own, order in _drawn_identities(keys, y, seed, draws):
        which = Draws(seed, own).uniform("fewshot/image", draws)
        chosen = order[:, :shots]
        rows = ((y == label) & torch.isin(keys, own)).nonzero()[:, 0]
        rows = rows[torch.searchsorted(own, keys[rows]).argsort(stable=True)]
        counts = torch.searchsorted(own, keys[rows]).bincount(minlength=len(own))
        choice |= len(rows) > shots
        at = counts.cumsum(0) - counts + (which.T * counts).long()  # [draws, identities]
        picked.append(rows[at.gather(1, chosen)])
    return torch.stack(picked, dim=1)[: draws if choice else 1]


def drawn_parts(keys: Tensor, y: Tensor, seed: int, fraction: float, draws: int) -> list[Tensor]:
    """For each draw the rows of `fraction` of the identities of each class, rounded, but at least one; int64, ascending.

    All images of a drawn identity are taken. The identities come in the order of `drawn_rows`, so a larger fraction holds the smaller ones.
    Where all are taken, there is one draw.
    """
    chosen: list[list[Tensor]] = [[] for _ in range(draws)]
    choice = False
    for _, own, order in _drawn_identities(keys, y, seed, draws):
        count = max(1, round(fraction * len(own)))
        choice |= count < len(own)
        for drawn, some in zip(chosen, order[:, :count], strict=True):
            drawn.append(own[some])
    return [torch.isin(keys, torch.cat(drawn)).nonzero()[:, 0] for drawn in chosen[: draws if choice else 1]]


def _drawn_identities(keys: Tensor, y: Tensor, seed: int, draws: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Of each class its label, its identities (ascending), and for each draw their places in random order, int64 [draws, identities]."""
    for label, own in keys_by_class(keys, y).items():
        yield label, own, Draws(seed, own).bits("fewshot", draws).argsort(dim=0, stable=True).T


class Listed(NamedTuple):
    """The training images that a list file names."""

    rows: Tensor  # int64, ascending
    names: int  # lines with a name
    missing: tuple[str, ...]  # names that no training image has
    sha256: str  # of the file


def listed_rows(file: str, images: Sequence[tuple[str, int]]) -> Listed:
    """Find the images that a list file names, one a line, as SimCLR's 1percent.txt does.

    images: (name, row) of every image. A line is the end of an image's name: `cat7.jpg` is found as `train/cat/cat7.jpg`.
    Raises UserError for a file that cannot be read, for a line that several images end in, and if no image is found.
    """
    try:
        content = read_bytes(expanded(file), LARGEST_LIST)
        lines = [line.strip() for line in content.decode("utf-8-sig").split("\n")]
    except (Unreadable, UnicodeDecodeError) as error:
        reason = "not a text in UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise UserError(
            f"evaluate.few_linear.list: {file} cannot be read ({reason}); give a text with one file name a line"
        ) from None
    by_last: dict[str, list[tuple[str, int]]] = {}
    for name, row in images:
        by_last.setdefault(_parts(name)[-1], []).append((name, row))
    rows, missing = set[int](), list[str]()
    wanted = [line for line in dict.fromkeys(lines) if line]
    for line in wanted:
        end = _parts(line)
        found = [(name, row) for name, row in by_last.get(end[-1], []) if _parts(name)[-len(end) :] == end]
        if len({row for _, row in found}) > 1:
            raise UserError(
                f"evaluate.few_linear.list: {file} names {line}, and {len(found)} training images end so "
                f"({', '.join(name for name, _ in found[:NAMES_SHOWN])}); write their folders before the names"
            )
        rows |= {row for _, row in found}
        missing += [] if found else [line]
    if not rows:
        shown = ", ".join(name for name, _ in images[:2])
        raise UserError(
            f"evaluate.few_linear.list: {file} names none of the training images ({shown}, ...); give a list of their names, one a line"
        )
    return Listed(torch.tensor(sorted(rows)), len(wanted), tuple(missing), hashlib.sha256(content).hexdigest())


def _parts(name: str) -> list[str]:
    return name.replace("\\", "/").removeprefix("./").split("/")
