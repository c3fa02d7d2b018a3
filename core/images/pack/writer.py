"""Packing a set: into `FOLDER.part`, which is renamed to FOLDER when it is complete.

After any interruption, the same command continues where it stopped, and the result has the same bytes as without interruption.
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

from ...errors import MachineError, UserError
from ...files import expanded, sync
from ...printable import printable
from ..cache import replacing
from ..images import Images
from ..sources.files import Names
from ..store import DamagedImage
from .files import ABOUT, INDEX, RECORDS, unusable
from .journal import DAMAGED, JOURNAL, append_pictures, end_of, read_again, trusted_entries
from .reader import PACK_FORMAT, PackStore, save_index
from .record import Packing
from .unfinished import PLAN, locked, withdraw, writable
from .validate import check_numbers

Follow = Callable[[Iterable[int], int], Iterable[int]]
"""(numbers, how many there are) -> the same numbers, perhaps with a progress display."""


class Packed(NamedTuple):
    """The contents of a pack. damaged: (number in the source, error) of images left out. resumed: images that were packed before."""

    pictures: int
    size: int
    damaged: list[tuple[int, str]]
    resumed: int


@dataclass(frozen=True)
class Task:
    """A set to pack, how, and where. splits: the source's own splits, name to int64 indices."""

    images: Images
    splits: Mapping[str, Tensor]
    packing: Packing
    folder: Path

    @property
    def part(self) -> Path:
        return Path(f"{self.folder}.part")  # the root has no name to change


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

    Raises UserError if `folder` or its unfinished packing has another set or other options, if it is damaged or cannot be written,
    or if images are damaged and skip_damaged is off. Raises OSError on a full disk.
    """
    task = Task(images, splits, packing, expanded(folder).absolute())
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
                    f"{images.uri}: none of its pictures can be read, so there is nothing to pack; repair them, and remove "
                    f"{task.part}, which is kept"
                )
            finish_packing(task, plan, made, damaged)
    return Packed(len(images) - len(damaged), end_of(made), damaged, resumed)


def records_of(task: Task, journal: int, follow: Follow) -> tuple[np.ndarray, list[tuple[int, str]], int]:
    """Pack what is missing: all entries, (number, error) of damaged images, and how many images were packed before."""
    with open(task.part / RECORDS, "ab") as records:
        entries, known = read_again(task.images, trusted_entries(task.part, len(task.images)))
        os.truncate(journal, entries.nbytes)
        os.truncate(records.fileno(), end_of(entries))
        numbers = follow(range(len(entries), len(task.images)), len(task.images) - len(entries))
        try:
            made, found = append_pictures(task.images, task.packing, numbers, entries, records.fileno(), journal)
        except UserError as error:
            kind = MachineError if isinstance(error, MachineError) else UserError
            raise kind(f"{error}; {task.part} is kept; remove it before packing in another way") from None
        os.fsync(records.fileno())
    return made, sorted({**known, **found}.items()), len(entries)


def plan_of(task: Task, unreadable: list[int] | None = None) -> dict[str, Any]:
    """Everything that the bytes of a pack depend on; an unfinished packing continues only with an equal plan.

    unreadable: the images whose identities are ignored, by default those that cannot be read now.
    """
    images, keys = task.images, task.images.keys()
    unreadable = images.unreadable() if unreadable is None else unreadable
    keys[unreadable] = 0
    digest = hashlib.sha256()
    for tensor in (keys, images.labels, images.domains, *task.splits.values()):
        digest.update(b"none" if tensor is None else str(len(tensor)).encode() + tensor.numpy().tobytes())
    if images.groups is not None:
        digest.update(b"groups" + images.groups.numpy().tobytes())
    for i in range(len(images)):
        digest.update(f"{images.name(i)}\n{images.stamp(i)}\n".encode("utf-8", "surrogateescape"))
    digest.update(json.dumps(about_of(images, task.splits)).encode())
    return {
        "format": PACK_FORMAT,
        "pictures": digest.hexdigest(),
        "options": task.packing.options(),
        # other versions may decode, encode or resample to other pixels
        "pillow": None if task.packing.format == "original" else PIL.__version__,
        "torch": None if task.packing.short is None else str(torch.__version__),
        **({"unreadable": unreadable} if unreadable else {}),
    }


def plan_difference(found: Mapping[str, Any], plan: Mapping[str, Any]) -> str | None:
    """The first difference of a stored plan from the current one, in words; None if they are equal."""
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
    """The existing pack in `folder`, if it has this plan and is complete. Raises UserError otherwise."""
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        found = dict(about["plan"])
        damaged = [(int(i), str(sentence)) for i, sentence in about["skipped"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if (folder / RECORDS).is_file():
            raise unusable(folder, f"its {ABOUT} is damaged or missing") from None
        raise UserError(f"{folder} exists, but is not a finished pack; name another folder, or remove it") from None
    difference = plan_difference(found, plan)
    if difference is not None:
        raise UserError(f"{folder} is a pack that was made {difference}; name another folder, or remove it")
    store = PackStore(folder)
    verify(store, follow)
    tidy(folder)
    return Packed(len(store), int(store.offsets[-1]), damaged, len(store))


def verify(store: PackStore, follow: Follow) -> None:
    """Read every record. Raises UserError if one has changed; the index was checked when the store was opened."""
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
    """Write the plan, or compare it with the plan of the unfinished packing."""
    file = task.part / PLAN
    try:
        found = dict(json.loads(file.read_bytes())) if file.is_file() else plan
        difference = plan_difference(found, plan)
        # images that could not be read before, and can be now: the journal continues from the first of them
        if difference is not None and found.get("unreadable"):
            difference = plan_difference(
                found, plan_of(task, check_numbers(found["unreadable"], range(len(task.images))))
            )
    except (ValueError, TypeError, AttributeError, RecursionError):
        difference = f"with a {PLAN} that is damaged now"
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
        f"{len(damaged)} damaged: {damaged[0][1]}{more}; repair what is damaged and remove {part}, "
        "which is kept, or add --skip-damaged to leave it out"
    )


def finish_packing(task: Task, plan: Mapping[str, Any], entries: np.ndarray, damaged: list[tuple[int, str]]) -> None:
    """Write the index and the description of the pack, then rename the part to the folder."""
    kept = torch.from_numpy(entries["kind"] != DAMAGED)
    images, entries = task.images.select(kept.nonzero().flatten()), entries[kept.numpy()]
    # an image's new number is the count of kept images before it
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
    for name in (INDEX, ABOUT):  # as temporary files, they are readable by this user only
        os.chmod(task.part / name, (task.part / RECORDS).stat().st_mode)
    sync(task.part)
    os.rename(task.part, task.folder)
    sync(task.folder.parent)
    # not earlier: until the folder has its name, packing continues from the journal
    tidy(task.folder)


def tidy(folder: Path) -> None:
    """Remove the journal, the plan and temporary files from a finished pack."""
    for leftover in folder.iterdir():
        if leftover.name in (JOURNAL, PLAN) or leftover.suffix == ".part":
            leftover.unlink()


def index_of(images: Images, splits: Mapping[str, Tensor], packing: Packing, entries: np.ndarray) -> dict[str, Tensor]:
    """The tensors of the index: what reading needs, then identities, names, labels, domains and splits."""
    changes = packing.changes()
    stamps = [images.stamp(i) for i in range(len(images))]
    if changes is not None:  # the pixels differ, so the fingerprint must differ from the source's
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
    if images.groups is not None:
        index["groups"] = images.groups
    return {name: tensor.contiguous() for name, tensor in index.items()}


def about_of(images: Images, splits: Mapping[str, Tensor]) -> dict[str, Any]:
    """The texts of the index: names of classes, domains and splits."""
    return {
        "classes": None if images.classes is None else list(images.classes),
        "domain_names": list(images.domain_names),
        "splits": list(splits),
    }
