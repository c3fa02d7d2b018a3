"""Packing a set: into `FOLDER.part`, which becomes FOLDER when all is there.

The same command goes on where it was interrupted, however that came about, and ends in the same bytes as without.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from torch import Tensor

from ...errors import UserError
from ...files import sync
from ..cache import replacing
from ..images import Images
from ..sources.files import Names, printable
from ..store import DamagedImage
from .journal import DAMAGED, JOURNAL, append_pictures, end_of, read_again, trusted_entries
from .reader import ABOUT, INDEX, PACK_FORMAT, RECORDS, PackStore, save_index, unusable
from .record import Packing
from .unfinished import locked, withdraw, writable

PLAN = "plan.json"

Follow = Callable[[Iterable[int], int], Iterable[int]]
"""(numbers, how many) -> the numbers, perhaps showing how far they are."""


class Packed(NamedTuple):
    """What a pack holds. damaged: (number in the source, sentence) of what was left out. resumed: found packed already."""

    pictures: int
    size: int
    damaged: list[tuple[int, str]]
    resumed: int


@dataclass(frozen=True)
class Task:
    """What is packed, how, and where. splits: the source's own, name to int64 indices."""

    images: Images
    splits: Mapping[str, Tensor]
    packing: Packing
    folder: Path

    @property
    def part(self) -> Path:
        return self.folder.with_name(self.folder.name + ".part")


def pack(
    images: Images,
    splits: Mapping[str, Tensor],
    folder: Path,
    packing: Packing,
    *,
    skip_damaged: bool = False,
    follow: Follow = lambda numbers, count: numbers,
) -> Packed:
    """Pack `images` into `folder`.

    Raises UserError where `folder` or its unfinished packing is of another set or other options, where it is damaged or cannot
    be written, and where pictures are damaged and are not to be skipped. Raises OSError on a full disk.
    """
    task = Task(images, splits, packing, folder.expanduser().absolute())
    plan = plan_of(task)
    with writable(task.part):
        if task.folder.exists():
            return read_finished(task.folder, plan, follow)
        task.part.mkdir(parents=True, exist_ok=True)
        with locked(task.part / JOURNAL) as journal:
            if task.folder.exists():  # another process finished it just now
                withdraw(task.part, journal)
                return read_finished(task.folder, plan, follow)
            begin_packing(task, plan)
            made, damaged, resumed = records_of(task, journal, follow)
            if damaged and not skip_damaged:
                raise UserError(damage_message(damaged, task.part))
            if len(damaged) == len(images):
                raise UserError(
                    f"{images.uri}: none of its pictures can be read, so there is nothing to pack; mend them, and remove "
                    f"{task.part}, which stays"
                )
            finish_packing(task, plan, made, damaged)
    return Packed(len(images) - len(damaged), end_of(made), damaged, resumed)


def records_of(task: Task, journal: int, follow: Follow) -> tuple[np.ndarray, list[tuple[int, str]], int]:
    """Go on from what the part holds: all entries, (number, sentence) of the damaged, and how many were found packed."""
    with open(task.part / RECORDS, "ab") as records:
        entries, known = read_again(task.images, trusted_entries(task.part))
        os.truncate(journal, entries.nbytes)
        os.truncate(records.fileno(), end_of(entries))
        numbers = follow(range(len(entries), len(task.images)), len(task.images) - len(entries))
        try:
            made, found = append_pictures(task.images, task.packing, numbers, entries, records.fileno(), journal)
        except UserError as error:
            raise UserError(f"{error}; {task.part} stays, remove it before packing in another way") from None
        os.fsync(records.fileno())
    return made, sorted({**known, **found}.items()), len(entries)


def plan_of(task: Task, unreadable: list[int] | None = None) -> dict[str, Any]:
    """All that the bytes of a pack depend on; an unfinished packing goes on only under the same.

    unreadable: the pictures whose identities do not count, by default those that cannot be read now.
    """
    images, keys = task.images, task.images.keys()
    unreadable = images.unreadable() if unreadable is None else unreadable
    keys[unreadable] = 0
    digest = hashlib.sha256()
    for tensor in (keys, images.labels, images.domains, *task.splits.values()):
        digest.update(b"none" if tensor is None else str(len(tensor)).encode() + tensor.numpy().tobytes())
    for i in range(len(images)):
        digest.update(f"{images.name(i)}\n{images.stamp(i)}\n".encode("utf-8", "surrogateescape"))
    digest.update(json.dumps(about_of(images, task.splits)).encode())
    return {
        "format": PACK_FORMAT,
        "pictures": digest.hexdigest(),
        "options": task.packing.options(),
        # another version may decode, encode or resample to other pixels
        "pillow": None if task.packing.format == "original" else PIL.__version__,
        "torch": None if task.packing.short is None else str(torch.__version__),
        **({"unreadable": unreadable} if unreadable else {}),
    }


def plan_difference(found: Mapping[str, Any], plan: Mapping[str, Any]) -> str | None:
    """What makes the plan that was found another one, in words; None where it is the same."""
    options = found["options"] if isinstance(found.get("options"), dict) else {}
    words = {
        "format": "by another version of this program",
        "pictures": "from other pictures or labels than there are now",
        "options": "with " + " ".join(f"--{name} {value}" for name, value in options.items()),
        "pillow": f"with Pillow {found.get('pillow')}",
        "torch": f"with torch {found.get('torch')}",
    }
    return next((words[key] for key in plan if found.get(key) != plan[key]), None)


def read_finished(folder: Path, plan: Mapping[str, Any], follow: Follow) -> Packed:
    """What stands in `folder` already, if it is this very pack and whole."""
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        found = dict(about["plan"])
        damaged = [(int(i), str(sentence)) for i, sentence in about["skipped"]]
    except (OSError, ValueError, KeyError, TypeError):
        if (folder / RECORDS).is_file():
            raise unusable(folder, f"its {ABOUT} is damaged or missing") from None
        raise UserError(f"{folder} exists and is no finished pack; name another folder, or remove it") from None
    difference = plan_difference(found, plan)
    if difference is not None:
        raise UserError(f"{folder} is a pack that was made {difference}; name another folder, or remove it")
    store = PackStore(folder)
    verify(store, follow)
    tidy(folder)
    return Packed(len(store), int(store.offsets[-1]), damaged, len(store))


def verify(store: PackStore, follow: Follow) -> None:
    """Read every record. Raises UserError if one is not what was written; of the index, opening the store has made sure."""
    wrong = []
    for i in follow(range(len(store)), len(store)):
        try:
            store.record(i)
        except DamagedImage:
            wrong.append(i)
    if wrong:
        name = printable(store.name(wrong[0]))
        raise unusable(
            store.folder, f"{len(wrong)} of its {len(store)} records are damaged, the first is that of {name}"
        )


def begin_packing(task: Task, plan: Mapping[str, Any]) -> None:
    """Write the plan, or compare it with that of the packing begun."""
    file = task.part / PLAN
    try:
        found = json.loads(file.read_bytes()) if file.is_file() else plan
        difference = plan_difference(found, plan)
        # what could not be read at first, and can be now, is what the journal goes on from
        if difference is not None and found.get("unreadable"):
            difference = plan_difference(found, plan_of(task, found["unreadable"]))
    except (ValueError, TypeError, AttributeError, IndexError):
        difference = f"with a {PLAN} that is damaged by now"
    if difference is not None:
        raise UserError(
            f"{task.part} is an unfinished packing that was begun {difference}; remove it to begin anew, or name another folder"
            + (", or try again when all pictures can be read" if "unreadable" in plan else "")
        )
    with replacing(file) as new:
        new.write(json.dumps(plan, indent=2).encode())


def damage_message(damaged: list[tuple[int, str]], part: Path) -> str:
    more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    return (
        f"{len(damaged)} damaged: {damaged[0][1]}{more}; mend what is damaged and remove {part}, "
        "which stays, or add --skip-damaged to leave it out"
    )


def finish_packing(task: Task, plan: Mapping[str, Any], entries: np.ndarray, damaged: list[tuple[int, str]]) -> None:
    """Write the index and what the pack is, then let the part become the folder."""
    kept = torch.from_numpy(entries["kind"] != DAMAGED)
    images, entries = task.images.select(kept.nonzero().flatten()), entries[kept.numpy()]
    # a picture's new number is how many kept ones stand before it
    splits = {name: (kept.cumsum(0) - 1)[indices[kept[indices]]] for name, indices in task.splits.items()}
    content = save_index(index_of(images, splits, task.packing, entries), about_of(images, splits))
    with replacing(task.part / INDEX) as file:
        file.write(content)
    changes = task.packing.changes()
    about = {
        "format": PACK_FORMAT,
        "source": images.uri,
        "pixels": "those of the source" if changes is None else f"not those of the source: {changes}",
        "pictures": len(images),
        "bytes": end_of(entries),
        "fingerprint of the source": task.images.fingerprint(),
        "split_hash": images.split_hash(),
        "index_sha256": hashlib.sha256(content).hexdigest(),
        "plan": plan,
        "skipped": damaged,
    }
    with replacing(task.part / ABOUT) as file:
        file.write(json.dumps(about, indent=2).encode())
    for name in (INDEX, ABOUT):  # made for this user's eyes only, as temporary files are
        os.chmod(task.part / name, (task.part / RECORDS).stat().st_mode)
    sync(task.part)
    os.rename(task.part, task.folder)
    sync(task.folder.parent)
    # only now: until the folder has its name, the journal is what packing goes on from
    tidy(task.folder)


def tidy(folder: Path) -> None:
    """Leave in a finished pack only what it consists of."""
    for leftover in folder.iterdir():
        if leftover.name in (JOURNAL, PLAN) or leftover.suffix == ".part":
            leftover.unlink()


def index_of(images: Images, splits: Mapping[str, Tensor], packing: Packing, entries: np.ndarray) -> dict[str, Tensor]:
    """The tensors of the index: what reading needs, then what is known of the pictures."""
    changes = packing.changes()
    stamps = [images.stamp(i) for i in range(len(images))]
    if changes is not None:  # other pixels, so another fingerprint than the source's
        stamps = [f"{stamp}\t{changes}\t{record}" for stamp, record in zip(stamps, entries["record"], strict=True)]
    index = {
        "offsets": torch.from_numpy(np.concatenate([[0], entries["end"]]).astype(np.int64)),
        "checksums": torch.from_numpy(entries["record"].astype(np.int64)),
        "kinds": torch.from_numpy(entries["kind"].astype(np.uint8)),
        "shapes": torch.from_numpy(entries["shape"].astype(np.int64)),
        "keys": images.keys(),
        **{f"split.{k}": indices for k, indices in enumerate(splits.values())},
    }
    for name, texts in ("names", Names(images.name(i) for i in range(len(images)))), ("stamps", Names(stamps)):
        index[name] = torch.from_numpy(np.frombuffer(bytearray(texts.block), np.uint8))
        index[f"{name}.ends"] = torch.from_numpy(texts.ends)
    if images.labels is not None:
        index["labels"] = images.labels
    if len(images.domain_names) > 1:
        index["domains"] = images.domains
    return {name: tensor.contiguous() for name, tensor in index.items()}


def about_of(images: Images, splits: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the index says in words."""
    return {
        "classes": None if images.classes is None else list(images.classes),
        "domain_names": list(images.domain_names),
        "splits": list(splits),
    }
