"""The meaning of a set's folders: splits, classes, and an archive's wrapper.

The folders right below the path are the classes, even if there is only one; folders inside a class are still that class. Folders that
have names of splits come before the classes, and what leads to them is passed through. If everything in an archive lies in one folder,
that is the archive's wrapper, and the folders inside it are the classes, unless pictures lie directly in it and folders without
pictures beside it: then these are classes too.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...errors import UserError
from ...printable import printable
from ..decode import EXTENSIONS
from ..groups import BY_FOLDER, groups_below
from ..notes import Note
from ..places import abridged
from ..store import Source, Store, number_classes

AS_CLASS = "; ?labels=folders would make it a class"
SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing", "unlabelled", "unlabeled")


class NamedStore(Store, Protocol):
    """A store of named files. unstamped: how many letters of each name its stamps leave out."""

    unstamped: int


class Layout(NamedTuple):
    """The meaning of a set's folders. names: sorted, relative to prefix. classes: the class of each image; None if unlabelled.

    shared: length of the folders that all names begin with. Fingerprints leave them out, so that they are those of earlier versions,
    which passed through such folders. uncut: as of `Source`.
    """

    prefix: str
    names: list[str]
    splits: dict[str, list[int]]
    classes: list[str] | None
    shared: int = 0
    notes: tuple[Note, ...] = ()
    uncut: str = ""

    def groups(self, group: str | None, title: str) -> Tensor | None:
        """The groups of ?group=folder: the folders below the classes, if the folders are those, or else below the splits."""
        if group is None:
            return None
        if group != BY_FOLDER:
            raise UserError(f"{title}: group={abridged(group, 40)} is unknown (known: {BY_FOLDER})")
        below = split_folders(self.names)[1] if self.splits else self.names
        if self.classes is not None:
            below = [name.partition("/")[2] for name in below]
        return groups_below([name.rpartition("/")[0] for name in below], self.names, title)

    def source(self, store: NamedStore) -> Source:
        labels, classes = number_classes(self.classes) if self.classes is not None else (None, None)
        splits = {name: torch.tensor(indices, dtype=torch.int64) for name, indices in self.splits.items()}
        store.unstamped = self.shared
        return Source(store, labels, classes, splits, notes=self.notes, uncut=self.uncut)


def arrange(
    paths: Iterable[str],
    labels: str,
    title: str,
    place: str,
    *,
    archive: bool = True,
    empty: Collection[str] = (),
    beside: Sequence[Note] = (),
) -> Layout:
    """Splits and classes from relative image paths; images without folders are unlabelled.

    archive: whether a single folder can be a wrapper. empty: folders without any image. beside: what else the set holds.
    Raises UserError if there are no images, or if some are outside the class folders.
    """
    if labels not in ("folders", "none"):
        raise UserError(f"{title}: labels={labels} is unknown (known: folders, none)")
    names = sorted(paths)
    if not names:
        raise UserError(
            f"{title}: no pictures under {place}; expected files ending in {', '.join(EXTENSIONS)}"
            + "".join(f"; it holds {note.sentence()}" for note in beside)
        )
    chain = common_folders(names)
    prefix = wrapper(names, chain, archive, empty)
    names, shared = [name[len(prefix) :] for name in names], len(chain) - len(prefix)
    splits, below = split_folders(names)
    uncut, about_splits = ("", []) if splits else about_split_names(chain, [prefix + name for name in names])
    loose = [i for i, name in enumerate(below) if "/" not in name]
    labelled = labels == "folders" and len(loose) < len(below)
    notes = [
        *beside,
        *about_wrapper(prefix, archive, labels == "folders" and not labelled),
        *about_empty(empty, prefix, bool(splits), labelled),
    ]
    if not labelled:
        return Layout(prefix, names, splits, None, shared, (*notes, *about_splits), uncut)
    if loose:
        raise UserError(
            f"{title}: {len(loose)} pictures lie in no class folder ({printable(names[loose[0]])}), the others do; "
            "move them, or add ?labels=none to use all without labels"
        )
    classes = [name.partition("/")[0] for name in below]
    notes += [*about_only_class(set(classes), below), *about_splits]
    return Layout(prefix, names, splits, classes, shared, tuple(notes), uncut)


def common_folders(names: Sequence[str]) -> str:
    """The folders that lead to all images, `a/b/`, but none from the first on that has the name of a split."""
    first, last = names[0].split("/")[:-1], names[-1].split("/")[:-1]  # they are sorted, so these two differ most
    shared = ""
    for one, other in zip(first, last, strict=False):
        if one != other or one.lower() in SPLIT_NAMES:
            break
        shared += f"{one}/"
    return shared


def wrapper(names: Sequence[str], chain: str, archive: bool, empty: Collection[str]) -> str:
    """The folders that are passed through: all before the splits; in an archive else the only one.

    If pictures lie directly in the only one, and other folders beside it hold none, it is a class, and so are they.
    """
    if chain and split_folders([name[len(chain) :] for name in names])[0]:
        return chain
    first = chain[: chain.find("/") + 1]
    is_class = any("/" not in name for name in empty) and any(name.count("/") == 1 for name in names)
    return first if archive and not is_class else ""


def split_folders(names: Sequence[str]) -> tuple[dict[str, list[int]], list[str]]:
    """The images of each split, and their names below it; no splits unless every top folder has the name of one."""
    tops = {name.partition("/")[0] for name in names}
    if not all(top.lower() in SPLIT_NAMES for top in tops) or not all("/" in name for name in names):
        return {}, list(names)
    splits: dict[str, list[int]] = {
        top: [] for top in sorted(tops, key=lambda top: (SPLIT_NAMES.index(top.lower()), top))
    }
    for i, name in enumerate(names):
        splits[name.partition("/")[0]].append(i)
    return splits, [name.partition("/")[2] for name in names]


def about_wrapper(prefix: str, archive: bool, class_lost: bool) -> list[Note]:
    """class_lost: whether the wrapper holds the pictures themselves, so that it may have been meant as the only class."""
    if not prefix:
        return []
    what = (
        "folders passed through: the archive's wrapper" if archive else "folders passed through: they hold the splits"
    )
    what += AS_CLASS if class_lost and archive and prefix.count("/") == 1 else ""
    return [Note(prefix.count("/"), what, prefix.rstrip("/"), "say")]


def about_empty(empty: Collection[str], prefix: str, in_splits: bool, labelled: bool) -> list[Note]:
    """The folders on the level of the classes (and of the splits, if there are some) that hold no image."""
    depths = (0, 1) if in_splits else (0,)
    inner = [name[len(prefix) :] for name in empty if name.startswith(prefix)]
    found = sorted(name for name in inner if name.count("/") in depths)
    found = [name for name in found if "/" not in name or name.partition("/")[0] not in found]
    if not found:
        return []
    shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    if not labelled:
        return [Note(len(found), "folders without a picture", shown, "list")]
    return [Note(len(found), "class folders without a picture, so these classes are missing", shown)]


def about_only_class(classes: Collection[str], below: Sequence[str]) -> list[Note]:
    """A hint for who expects the folders inside an only class to be the classes."""
    if len(classes) > 1 or not any(name.count("/") > 1 for name in below):
        return []
    (name,) = classes
    what = f"class, whose folders all belong to it; ?under={printable(name)} would make them the classes"
    return [Note(1, what, name, "say")]


def about_split_names(chain: str, names: Sequence[str]) -> tuple[str, list[Note]]:
    """`Source.uncut` and a warning if folders named like splits are none, because others with pictures lie beside them.

    chain: the folders that lead to all of the names. One such folder may be a class, so that it is only said.
    """
    tops = list(dict.fromkeys(name[len(chain) :].partition("/")[0] for name in names))
    folders = {name[len(chain) :].partition("/")[0] for name in names if "/" in name[len(chain) :]}
    found = sorted(name for name in folders if name.lower() in SPLIT_NAMES)
    others = sorted(set(tops) - set(found))
    if not found or not others:
        return "", []
    what = f"folders named like splits, which are none because {printable(others[0])} lies beside them; they would be splits without it"
    why = (
        f"its folders {', '.join(map(printable, found))} are no splits, because {printable(others[0])} lies beside them; move that "
        f"elsewhere, or open one of them alone by ?under={printable(chain + found[0])}"
    )
    return why if len(found) > 1 else "", [Note(len(found), what, ", ".join(found))]
