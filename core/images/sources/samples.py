"""Samples of an archive in WebDataset's form: members with one key belong together, a picture and the sidecars that say its class."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...errors import UserError
from ..notes import Note, merged
from ..places import abridged
from .tar_index import TarContents
from .tar_labels import Reading
from .walk import HIDDEN, note_of_ending, parents

KEYS = ("first-dot", "last-dot")
TEXTS = (".json", ".txt")
"""Files beside the pictures that may hold labels, but are read only if they are asked for."""


class TarMember(NamedTuple):
    """An image in archive number `shard`: name, and offset and size in bytes."""

    name: str
    shard: int
    offset: int
    size: int


class LabelRule(NamedTuple):
    """How labels are found. given: the option as text, None if there is none. key: where a name is cut. image: endings of pictures.

    Without the option, whole numbers in .cls are labels. With it, the texts in the sidecars of this ending are, or, for json:KEY, the
    values of that key.
    """

    given: str | None
    key: str
    image: tuple[str, ...]

    @property
    def ending(self) -> str:
        """The whole ending of the sidecars, behind the key."""
        return (self.given or "cls").partition(":")[0].lstrip(".")

    def reading(self) -> Reading:
        field = (self.given or "").partition(":")[2]
        return Reading(self.ending.rpartition(".")[2], field or None)

    def takes(self, name: str) -> bool:
        """Whether a sidecar is one of those that are read."""
        return self.given is None or self.split(name)[1].lower() == self.ending.lower()

    def split(self, name: str, key: str | None = None) -> tuple[str, str]:
        """(key with its folder, ending): a member's name is cut at the first dot of its last part, or at the last."""
        folder, slash, last = name.rpartition("/")
        cut = last.partition if (key or self.key) == "first-dot" else last.rpartition
        first, _, ending = cut(".")
        return folder + slash + first, ending


def rule_of(label: str | None, key: str, image: str | None, title: str) -> LabelRule:
    """The rule that a URI's options give. Raises UserError for options that make no sense."""
    if key not in KEYS:
        raise UserError(f"{title}: key={abridged(key, 40)} is unknown (known: {', '.join(KEYS)})")
    if label is not None:
        ending, colon, field = label.partition(":")
        is_json = ending.rpartition(".")[2] == "json"
        if not ending.strip(".") or is_json != bool(field) or bool(colon) != bool(field):
            raise UserError(f"{title}: label={abridged(label, 40)} is not understood; expected cls, txt or json:KEY")
    endings = tuple(one.strip().lstrip(".") for one in image.split(",")) if image is not None else ()
    if "" in endings:
        raise UserError(
            f"{title}: image={abridged(image or '', 40)} names no ending; expected for example png, or jpg,png"
        )
    return LabelRule(label, key, endings)


def members_below(inside: str, indices: Sequence[TarContents], rule: LabelRule) -> tuple[list[TarMember], list[Note]]:
    """The visible images of the folder `inside`, sorted by name, then by archive, the order of `arrange`; and what was left out."""
    below = [
        TarMember(name[len(inside) :], shard, *span)
        for shard, found in enumerate(indices)
        for name, span in found.pictures.items()
        if name.startswith(inside)
    ]
    members = [member for member in below if is_visible(member.name)]
    members.sort(key=lambda member: (member.name, member.shard))
    notes = []
    if hidden := [member.name for member in below if not is_visible(member.name)]:
        notes.append(Note(len(hidden), HIDDEN, min(hidden), "list"))
    if not rule.image:
        return members, notes
    kept = [member for member in members if rule.split(member.name)[1] in rule.image]
    chosen = {(member.name, member.shard) for member in kept}
    left = [member.name for member in members if (member.name, member.shard) not in chosen]
    what = f"pictures with another ending than ?image={','.join(rule.image)}"
    return kept, [*notes, *([Note(len(left), what, left[0], "list")] if left else [])]


def is_visible(path: str) -> bool:
    """Whether no part of a relative path is hidden or macOS metadata."""
    return not any(part.startswith((".", "__MACOSX")) for part in path.split("/") if part != ".")


def folders_without(members: Sequence[TarMember], inside: str, indices: Sequence[TarContents]) -> list[str]:
    """The visible folders below `inside`, at most three deep, that hold no picture."""
    filled = {parent for member in members for parent in parents(member.name)}
    found = {
        name[len(inside) :] for one in indices for name in one.folders if name.startswith(inside) and name != inside
    }
    return sorted(name for name in found - filled if is_visible(name))


def endings_of(members: Sequence[TarMember], rule: LabelRule) -> list[str]:
    """The endings of pictures, the shortest first."""
    return sorted({rule.split(member.name)[1] for member in members}, key=lambda ending: (ending.count("."), ending))


def classes_beside(
    members: Sequence[TarMember], inside: str, indices: Sequence[TarContents], rule: LabelRule, title: str
) -> list[str] | None:
    """The class that the sidecar of each image says; None if no image has one.

    Raises UserError if only some images have a sidecar, if a sample has several of them or several images, or if a sidecar holds no
    label.
    """
    sidecars = [beside(found, inside, rule) for found in indices]
    named = [sidecars[member.shard].get(rule.split(member.name)[0], []) for member in members]
    if not any(named):
        if rule.given is not None:
            raise UserError(
                f"{title}: no picture has a .{rule.ending} beside it; name another ending, or remove ?label="
            )
        return None
    refuse_several(members, named, rule, title)
    if without := [member.name for member, names in zip(members, named, strict=True) if not names]:
        raise UserError(
            f"{title}: {len(without)} pictures have no .{rule.ending} beside them ({abridged(without[0])}), the others do; "
            "add ?labels=none to use all without labels"
        )
    labels = []
    for member, (name, *_) in zip(members, named, strict=True):
        found = indices[member.shard]
        fault = found.faults.get(inside + name)
        label = found.labels.get(inside + name, "")
        if fault is None and rule.given is None and not re.fullmatch("-?[0-9]{1,1000}", label):
            fault = f"says {abridged(label, 60)!r}, which is not a whole number"
        if fault is not None:
            as_name = "add ?label=cls if it is the name of a class, " if rule.given is None and label else ""
            raise UserError(
                f"{title}: the .{rule.ending} beside {abridged(member.name)} {fault}; correct it, {as_name}or add ?labels=none"
            )
        labels.append(label if rule.given is not None else str(int(label)))  # 07 is 7
    return labels


def beside(found: TarContents, inside: str, rule: LabelRule) -> dict[str, list[str]]:
    """Key of a sample to the names of its sidecars that are read, below the folder `inside`."""
    names: dict[str, list[str]] = defaultdict(list)
    for table in (found.labels, found.faults):
        for name in table:
            if name.startswith(inside) and rule.takes(name[len(inside) :]):
                names[rule.split(name[len(inside) :])[0]].append(name[len(inside) :])
    return names


def refuse_several(members: Sequence[TarMember], named: Sequence[Sequence[str]], rule: LabelRule, title: str) -> None:
    """Raises UserError if a sample has several images or several sidecars, naming its key and the options that choose."""
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, member in enumerate(members):
        groups[rule.split(member.name)[0], member.shard].append(i)
    several = [(key, of) for (key, _), of in groups.items() if named[of[0]] and (len(of) > 1 or len(named[of[0]]) > 1)]
    if not several:
        return
    key, of = several[0]
    pictures, sidecars = [members[i].name for i in of], sorted(named[of[0]])
    remedies = []
    stems = {stem(name) for name in sidecars}
    if rule.key == "first-dot" and stems != {key} and stems <= {stem(name) for name in pictures}:
        remedies.append("add ?key=last-dot if each is a sample of its own")
    elif len(pictures) > 1:
        remedies.append(f"add {choosing('image', [rule.split(name)[1] for name in pictures])} to choose a picture")
    endings = {rule.split(name)[1].lower() for name in sidecars}
    if len(endings) > 1 and not remedies:
        remedies.append(f"add {choosing('label', [rule.split(name)[1] for name in sidecars])} to choose a label")
    elif len(sidecars) > 1 and not remedies:  # a.cls and a.CLS: the case of an ending chooses nothing
        remedies.append("leave one of them out of the archive")
    more = f" ({len(several) - 1} more samples are like it)" if len(several) > 1 else ""
    raise UserError(
        f"{title}: the sample {abridged(key)} has {how_many(pictures, 'picture')} and "
        f"{how_many(sidecars, '.' + rule.ending)}, where one of each is expected{more}; {', or '.join(remedies)}, or "
        "add ?labels=none to use all pictures without labels"
    )


def stem(name: str) -> str:
    """A name up to its last dot."""
    return name.rpartition(".")[0]


def how_many(names: Sequence[str], what: str) -> str:
    """How many names there are, and the first two if there are several."""
    if len(names) == 1:
        return f"1 {what}"
    plural = what if what.startswith(".") else f"{what}s"
    return f"{len(names)} {plural} ({', '.join(abridged(name, 60) for name in names[:2])}{', ...' if len(names) > 2 else ''})"


def choosing(key: str, endings: Sequence[str]) -> str:
    """`?image=png or ?image=seg.png`: the shortest endings first."""
    shortest = sorted(set(endings), key=lambda ending: (ending.count("."), ending))
    return " or ".join(f"?{key}={abridged(ending, 60)}" for ending in shortest[:3])


def notes_about(
    members: Sequence[TarMember], inside: str, indices: Sequence[TarContents], rule: LabelRule, labelled: bool
) -> list[Note]:
    """What the archives hold beside the images and labels that are read. labelled: whether the labels come from sidecars."""
    notes = list(merged(found.notes for found in indices))
    if labelled:
        keys = {(rule.split(member.name)[0], member.shard) for member in members}
        alone = [
            names[0]
            for shard, found in enumerate(indices)
            for key, names in beside(found, inside, rule).items()
            if (key, shard) not in keys
        ]
        if alone:
            notes.append(Note(len(alone), f".{rule.ending} without a picture beside them", min(alone)))
    elif not rule.image and (several := samples_of_several(members, rule)):
        what = "samples with several pictures, all of which are read; ?image=ENDING would choose one of each"
        notes.append(Note(len(several), what, ", ".join(several[0])))
    for ending, (number, example) in others(indices).items():
        note = note_of_ending(ending, number, example)
        if not labelled and ending in TEXTS:
            ask = f"; ?label={'json:KEY' if ending == '.json' else ending[1:]} would read a label from them"
            note = note._replace(what=note.what + ask, level="say")
        notes.append(note)
    return notes


def others(indices: Sequence[TarContents]) -> Mapping[str, tuple[int, str]]:
    """Ending to (number, first name) of the files that are neither pictures nor sidecars that are read, over all archives."""
    total: dict[str, tuple[int, str]] = {}
    for found in indices:
        for ending, (number, example) in found.others.items():
            before, first = total.get(ending, (0, example))
            total[ending] = (before + number, min(first, example))
    return dict(sorted(total.items(), key=lambda item: (-item[1][0], item[0])))


def samples_of_several(members: Sequence[TarMember], rule: LabelRule) -> list[list[str]]:
    """Images of one sample such as 000.png and 000.seg.png: a name with one dot beside those with more."""
    groups: dict[tuple[str, int], list[str]] = defaultdict(list)
    for member in members:
        groups[rule.split(member.name)[0], member.shard].append(member.name)
    return [
        names
        for names in groups.values()
        if len(names) > 1 and {"." in rule.split(name)[1] for name in names} == {True, False}
    ]
