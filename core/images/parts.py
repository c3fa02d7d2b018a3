"""Parts of a set by content: the fragments of a URI, what is held out, and what is drawn apart from a test. None tears a group."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UserError
from ..printable import printable
from .groups import NO_GROUP, refuse_torn, units_of
from .images import Images
from .places import abridged
from .priors import of_drawn_priors
from .split import GENERIC, Fragment, TornGroup, cut, hash_order, identities_in, one_of_each
from .store import Source
from .uri import Uri


def natural_split(uri: Uri, source: Source, name: str | None) -> Tensor:
    """Indices of the source's own split `name`.

    Raises UserError if there are several splits, or images in none, and none is named: test images would be used for training by mistake.
    """
    names, count = ", ".join(source.splits), len(source.store)
    if name == "all" or (name is None and not needs_name(source)):
        return torch.arange(count)
    if name is None:
        outside = count - len(torch.cat(list(source.splits.values())).unique())
        more = f", and {outside:,} of its pictures are in none" if outside else ""
        raise UserError(
            f"{uri.text} comes in splits ({names}){more}: say which, as in {uri.location}#{next(iter(source.splits))}, "
            f"or {uri.location}#all for everything"
        )
    if name not in source.splits:
        raise UserError(f"{abridged(uri.text)}: it has no split {abridged(name, 60)} (it has: {names}, all)")
    refuse_torn(source.splits, source.groups, uri.text)
    return source.splits[name]


def needs_name(source: Source) -> bool:
    """Whether a URI has to say which of its splits is meant: there are several, or one that does not hold all images."""
    several = len(source.splits) > 1
    return several or any(len(one.unique()) < len(source.store) for one in source.splits.values())


def refuse_cut(uri: Uri, source: Source, fragments: Sequence[Fragment]) -> None:
    """Raises UserError if a fragment would make a part of all images where names in the source say other ones (`Source.uncut`)."""
    asked = next((one.name for one in fragments if one.name in GENERIC), None)
    if asked and source.uncut:
        raise UserError(
            f"{abridged(uri.text)}: #{asked} would be a random part of all pictures, for {source.uncut}; #[:80%] is a random part"
        )


def apply_fragment(uri: Uri, images: Images, fragment: Fragment) -> Images:
    """Apply a fragment of the URI; `train` and `test` mean the first 80 % and the last 20 % here."""
    if fragment.name not in (None, "all", *GENERIC):
        raise UserError(f"{uri.text}: it has no split {fragment.name} (it has: train, test, all)")
    if fragment.stratify and images.labels is None:
        raise UserError(f"{uri.text}: stratify needs labels, and these pictures have none; remove it")
    cuts = [GENERIC[fragment.name]] if fragment.name in GENERIC else []
    cuts += [(fragment.low, fragment.high)] if fragment.sliced else []
    for low, high in cuts:
        labels = images.labels if fragment.stratify else None
        images = part_of(images, low, high, fragment.seed, labels, uri.text)
        if not len(images):
            raise UserError(f"{uri.text}: no picture is left after #{low or ''}:{high or ''}; widen the slice")
    return of_drawn_priors(images, fragment, uri.text)


def part_of(images: Images, low: str | None, high: str | None, seed: int, labels: Tensor | None, title: str) -> Images:
    """The images between the bounds in the hash order of the seed, whole groups. Raises UserError if a group is larger than the part."""
    keys, units = images.keys(), images.units()
    try:
        return images.select(cut(keys, low, high, seed, labels, units))
    except TornGroup as torn:
        mine = units == torn.unit
        example = printable(images.name(int(mine.nonzero()[0, 0])))
        joined = 1 if images.groups is None else len(images.groups[mine].unique())
        what = f"a group of {torn.size:,} (that of {example})"
        if joined > 1:
            what = f"{joined:,} groups that copies of pictures join, {torn.size:,} in all (with {example})"
        # the frames of a file are a group without the option
        remedy = ", or leave ?group= out" if "group=" in title else ", or add pictures of other groups"
        raise UserError(
            f"{title}: a part of {torn.wanted:,} pictures would tear {what}, which is larger than the part; choose a larger part, "
            f"another seed{', remove the copies' if joined > 1 else ''}{remedy}"
        ) from None


def holdout(images: Images, *, fraction: float = 0.2, seed: int, stratify: bool) -> tuple[Images, Images]:
    """(kept, held out): the last `fraction` of the unique images in the hash order of `seed` is held out; groups stay whole."""
    if not 0 < fraction < 1:
        raise UserError(f"a held-out fraction of {fraction} is given; expected a number between 0 and 1")
    if stratify and images.labels is None:
        raise UserError(f"{images.uri}: a stratified hold-out needs labels, and these pictures have none")
    labels, bound = images.labels if stratify else None, f"{100 * (1 - fraction):.6f}%"
    what = f"{images.uri}, held out"
    held = part_of(images, bound, None, seed, labels, what)
    kept = part_of(images, None, bound, seed, labels, what)
    if not len(kept) or not len(held):
        raise UserError(f"{images.uri}: {len(images)} pictures are too few to hold {fraction:.0%} of them out")
    return kept, held


def drawn_apart(images: Images, count: int, seed: int, *, leave: bool) -> Images:
    """One image of each of `count` identities, of the units that come first in the hash order of the seed and hold so many.

    leave: at most half of the identities and half of the units are taken, so that others are left for a test (`linked_to` tells which);
    none, where there is but one unit.
    """
    keys, units = images.keys(), images.units()
    sizes = dict(zip(*(column.tolist() for column in identities_in(keys, units)), strict=True))
    order = hash_order(units, seed)
    if leave:
        order, count = order[: len(order) // 2], min(count, sum(sizes.values()) // 2)
    taken, held = list[int](), 0
    for unit in order:
        if held >= count:
            break
        taken.append(unit)
        held += sizes[unit]
    rows = torch.isin(units, torch.tensor(taken, dtype=torch.int64)).nonzero()[:, 0]
    return images.select(rows[one_of_each(keys[rows], seed, count)])


def linked_to(images: Images, others: Images) -> Tensor:
    """bool [N]: which images are copies of one of the others, or of a group with one, or hang together with such a one (`units_of`)."""
    parts = (images, others)
    keys = torch.cat([part.keys() for part in parts])
    groups = [torch.full((len(part),), NO_GROUP) if part.groups is None else part.groups for part in parts]
    units = units_of(keys, torch.cat(groups))
    return torch.isin(units[: len(images)], units[len(images) :])
