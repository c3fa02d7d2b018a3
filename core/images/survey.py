"""Looks at every picture of a set once: its size, damage, further pages and greatest value. What was found is cached.

Files that are not hashed yet are hashed in the same pass, so that each is read once.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch

from .cache import entry_name, recall, remember
from .images import Images
from .look import MANY_PAGES, Tally, evenly, is_reduced, may_be_deep, pages_of
from .notes import Note
from .pack.reader import PackStore
from .sources.files import FileStore
from .store import DamagedImage, Store, sha256_key

FEWEST_READERS, MOST_READERS, SMALL_BYTES = 2, 8, 32_768
"""Threads: the fewest, the most, and the mean size of files up to which the fewest are best."""

CHUNK, GROUP = 128, 4096
"""How many pictures a thread looks at before it takes the next ones, and how many are waited for at a time."""

CONSIDERED, SAMPLED, SAMPLED_PAGES, SAMPLED_DEEP = 20_000, 64, 256, 8
"""Before a training: among how many files, evenly spaced, some are looked at; how many of them; how many of the formats that often
hold pages; and how many 16-bit pictures are decoded."""

ShowProgress = Callable[[Iterable[int], int], Iterable[int]]
"""(numbers of pictures that are done, one after the other; how many there are) -> the same, perhaps with a progress display."""


class Survey(NamedTuple):
    """What a set holds. shapes: number of images by (C, H, W). damaged: (index, error). remembered: whether it is from the cache."""

    shapes: Counter[tuple[int, ...]]
    damaged: list[tuple[int, str]]
    tally: Tally
    remembered: bool = False


class Seen(NamedTuple):
    """One picture. shape: (C, H, W), or the error of a damaged one. key: its identity, None if that is known. unreadable: of no bytes."""

    shape: tuple[int, ...] | str
    pages: int = 1
    highest: int | None = None
    key: int | None = None
    unreadable: bool = False
    reduced: bool = False


def survey(images: Images, follow: ShowProgress = lambda numbers, count: numbers, anew: bool = False) -> Survey:
    """Look at every picture, or recall what was found if no file has changed since. anew: don't recall it."""
    files = [store for store in images.stores if isinstance(store, FileStore)]
    identities, whole, name = [store.identity() for store in files], images.is_whole(), None
    if len(files) == len(images.stores):
        chosen = "all" if whole else images.places()
        name = entry_name("survey-3", identities, chosen, str(PIL.__version__), [store.bits for store in files])
        if not anew and (content := recall("surveys", name)) is not None:
            return from_json(content)
    # Only if every file of every store is looked at, in order, can their keys be taken from this pass.
    hashed = name is not None and whole and not any(store.knows_keys() for store in files)
    found = look_at_all(images, follow, hashed)
    if hashed:
        adopt_keys(files, identities, found)
    made = survey_of(images, found)
    if name is not None and not any(seen.unreadable for seen in found):
        remember("surveys", name, to_json(made), max(store.newest() for store in files))
    return made


def look_at_all(images: Images, follow: ShowProgress, hashed: bool) -> list[Seen]:
    stores, (which, index) = images.stores, images.places()

    def chunk(start: int) -> list[Seen]:
        numbers = range(start, min(start + CHUNK, len(images)))
        return [look(stores[which[i]], index[i], hashed) for i in numbers]

    found: list[Seen] = []
    with ThreadPoolExecutor(readers_for(stores)) as readers:
        # in groups, so that a large set does not queue all its results
        groups = (range(start, min(start + GROUP, len(images)), CHUNK) for start in range(0, len(images), GROUP))
        chunks = (seen for group in groups for seen in readers.map(chunk, group))
        ends = (len(found) for seen in chunks if found.extend(seen) is None)
        for _ in follow(ends, len(images)):
            pass
    return found


def readers_for(stores: Sequence[Store]) -> int:
    """How many threads read: decoding small files is mostly Python's work, which threads only do in turns."""
    sizes = [float(store.stamps[:, 0].mean()) for store in stores if isinstance(store, FileStore) and len(store)]
    return min(MOST_READERS, os.cpu_count() or 1) if sizes and max(sizes) > SMALL_BYTES else FEWEST_READERS


def look(store: Store, i: int, hashed: bool) -> Seen:
    """Read and decode one picture. hashed: also hash it, if it is a file."""
    if not isinstance(store, FileStore):
        try:
            picture = store.read(i)
        except DamagedImage as error:
            return Seen(str(error))
        deep = picture.dtype == torch.uint16
        return Seen(tuple(picture.shape), highest=int(picture.numpy().max()) if deep else None)
    try:
        content = store.file(i)
    except DamagedImage as error:
        return Seen(str(error), key=store.substitute_key(i) if hashed else None, unreadable=True)
    key = sha256_key(content) if hashed else None
    try:
        picture = store.decoded(i, content)
    except DamagedImage as error:
        return Seen(str(error), key=key)
    deep = picture.dtype == torch.uint16
    highest = int(picture.numpy().max()) if deep else None
    return Seen(tuple(picture.shape), pages_of(content), highest, key, reduced=is_reduced(content))


def adopt_keys(files: Sequence[FileStore], identities: Sequence[str], found: Sequence[Seen]) -> None:
    """Give each store the keys of its files; found: of all stores, one after the other."""
    start = 0
    for store, identity in zip(files, identities, strict=True):
        mine = found[start : start + len(store)]
        start += len(store)
        unreadable = {i: str(seen.shape) for i, seen in enumerate(mine) if seen.unreadable}
        store.adopt_keys(np.array([seen.key for seen in mine], dtype=np.int64), unreadable, identity)


def survey_of(images: Images, found: Sequence[Seen]) -> Survey:
    tally = Tally()
    for i, seen in enumerate(found):
        if seen.pages > 1 or seen.highest is not None or seen.reduced:
            tally = tally.plus(seen.pages, seen.highest, lambda i=i: images.full_name(i), seen.reduced)
    shapes = Counter(seen.shape for seen in found if not isinstance(seen.shape, str))
    return Survey(shapes, [(i, seen.shape) for i, seen in enumerate(found) if isinstance(seen.shape, str)], tally)


def to_json(made: Survey) -> bytes:
    shapes = [[*shape, number] for shape, number in made.shapes.items()]
    return json.dumps({"shapes": shapes, "damaged": made.damaged, "tally": made.tally}).encode()


def from_json(content: bytes) -> Survey:
    found: dict[str, Any] = json.loads(content)
    several, unread, deep, dim, highest, (first, second), *reduced = found["tally"]
    shapes = Counter({tuple(shape): number for *shape, number in found["shapes"]})
    return Survey(
        shapes,
        [(i, error) for i, error in found["damaged"]],
        Tally(several, unread, deep, dim, highest, (first, second), *reduced),
        True,
    )


def sampled_notes(images: Images) -> list[Note]:
    """Further pages and dark 16-bit pictures among some files of a set, looked at before a training; nothing for other sources."""
    numbers = [i for i in evenly(list(range(len(images))), CONSIDERED) if isinstance(images.at(i)[0], FileStore)]
    endings = {i: images.name(i).lower() for i in numbers}
    many = [i for i in numbers if endings[i].endswith(MANY_PAGES)]
    plain = [i for i in numbers if not endings[i].endswith((".jpg", ".jpeg", ".jfif", *MANY_PAGES))]
    tally, looked, decoded = Tally(), 0, 0
    for i in sorted([*evenly(many, SAMPLED_PAGES), *evenly(plain, SAMPLED)]):
        store, k = images.at(i)
        assert isinstance(store, FileStore)
        highest = None
        try:
            content = store.file(k)
            if decoded < SAMPLED_DEEP and may_be_deep(content):
                decoded += 1
                picture = store.decoded(k, content)
                highest = int(picture.numpy().max()) if picture.dtype == torch.uint16 else None
        except DamagedImage:  # the training meets it, and says it
            continue
        looked += 1
        tally = tally.plus(pages_of(content), highest, lambda i=i: images.full_name(i), is_reduced(content))
    return notes_of(images, tally, None if looked == len(images) else looked)


def notes_of(images: Images, tally: Tally, of_sample: int | None = None) -> list[Note]:
    """What a training or `rootstock data` says of a tally. of_sample: the number of pictures it is of, if it isn't all."""
    packed = any(isinstance(store, PackStore) for store in images.stores)
    return tally.notes(of_sample, "open the source with ?bits={bits} and pack it again" if packed else "")
