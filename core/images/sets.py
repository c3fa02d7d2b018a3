"""The image sets of a stage: opened by role, with aligned class labels, described for the result, and compared with earlier stages."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..files import expanded
from ..printable import printable
from .open import Images, holdout, open_images
from .several import among_classes, has_several
from .sources.files import FileStore
from .sources.layout import AS_CLASS
from .store import Stamp

HELD_OUT = 0.2
# The entry of `seen` for images whose labels any stage was trained on.
LABELLED = "labelled"
CLASSES_NAMED = 5  # in a message


def labelled(images: Images, key: str, *, several: bool = False) -> Images:
    """Returns the images. Raises UserError, naming the key, if they have no labels.

    several: whether an image may have several classes, or none (labels uint8 [N, K]); refused otherwise.
    """
    if images.labels is None or images.classes is None:
        wrapper = next((note.example for note in images.notes if AS_CLASS in note.what), "")
        hint = f"; if its only folder {printable(wrapper)} is a class, add ?labels=folders" if wrapper else ""
        raise UserError(
            f"{key}: {images.uri} has no labels; give class folders (PATH/class/picture) or a list with labels{hint}"
        )
    if has_several(images.labels) and not several:
        raise UserError(
            f"{key}: {images.uri} may have several classes an image (?several=), which knn and linear of rootstock probe alone can use, "
            "for training and test images alike; give images of one class each here"
        )
    return images


def align(
    images: Images,
    classes: Sequence[str],
    key: str,
    *,
    several: bool = False,
    unknown: str | None = None,
    remedy: str = "",
) -> Images:
    """The same images with labels of `classes`. Raises UserError if an image's class is not one of them.

    several: whether labels are uint8 [N, K], as the training set's, and not indices. unknown: the name of one more class, after these,
    for all images of other classes; None refuses them. remedy: what else helps against a refusal.
    """
    images = labelled(images, key, several=several)
    assert images.classes is not None and images.labels is not None
    if several and not has_several(images.labels):
        raise UserError(
            f"{key}: {images.uri} has one class an image, and the training images may have several; give a table with ?several= too"
        )
    found = images.labels.any(dim=0).nonzero()[:, 0] if several else images.labels.unique()
    present = [images.classes[i] for i in found.tolist()]
    lacking = [name for name in present if name not in classes]
    if lacking and unknown is None:
        raise UserError(
            f"{key}: {images.uri} has classes that the training set lacks ({', '.join(lacking[:5])}); "
            f"known there: {', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}; rename the folders or leave them out; "
            f"if they are no classes, add ?labels=none{remedy}"
        )
    aligned = images.select(torch.arange(len(images)))
    if several:
        aligned.labels = among_classes(images.labels, images.classes, tuple(classes))
    else:
        other = -1 if unknown is None else len(classes)
        table = torch.tensor([list(classes).index(name) if name in classes else other for name in images.classes])
        aligned.labels = table[images.labels]
    aligned.classes = tuple(classes) if unknown is None else (*classes, unknown)
    return aligned


def open_tests(test: str | Mapping[str, str], seed: int, key: str = "data.test") -> dict[str, Images]:
    """Open one test URI (named "test"), or several by name. Returns them by name."""
    return {name: open_images(uri, seed=seed, role="test") for name, uri in named_tests(test, key).items()}


def named_tests(test: str | Mapping[str, str], key: str = "data.test") -> dict[str, str]:
    """The URIs by name; a single one is named "test". Raises UserError for a name that metrics cannot have."""
    named = {"test": test} if isinstance(test, str) else dict(test)
    if odd := [name for name in named if "/" in name]:
        raise UserError(
            f"{key}: metrics begin with a set's name (NAME/knn/accuracy), so it cannot contain '/'; rename {odd[0]}"
        )
    return named


def train_and_tests(
    train: str | Sequence[str],
    test: str | Mapping[str, str] | None,
    seed: int,
    *,
    labels: bool = True,
    several: bool = False,
) -> tuple[Images, dict[str, Images]]:
    """A training set and its test sets; without a test set, a stratified 20 % of the training set is held out by seed.

    labels: whether all need labels; else a test set whose labels are no classes of the training set has none. several: whether images
    may have several classes; then all sets have labels of the training set's kind.
    """
    images = open_images(train, seed=seed)
    images = labelled(images, "data.train", several=several) if labels else images
    if test is not None:
        keys = {"test": "data.test"} if isinstance(test, str) else {name: f"data.test.{name}" for name in test}
        tests = open_tests(test, seed)
        match, kind = align if labels else _align_if_possible, has_several(images.labels)
        return images, {name: match(t, images.classes or (), keys[name], several=kind) for name, t in tests.items()}
    kept, held = holdout(images, fraction=HELD_OUT, seed=seed, stratify=images.labels is not None)
    return kept, {"test": held}


def _align_if_possible(images: Images, classes: Sequence[str], key: str, *, several: bool) -> Images:
    try:
        return align(images, classes, key, several=several)
    except UserError:
        return images.unlabelled()


def refuse_one_class(train: Images, key: str = "data.train") -> None:
    """Raises UserError for training images, one class each, that all have the same: a classifier of them is right about everything."""
    if train.labels is None or train.classes is None or has_several(train.labels):
        return
    found = train.labels.unique().tolist()
    if len(found) < 2:
        only = f"of the class {printable(train.classes[found[0]])}" if found else "missing"
        raise UserError(
            f"{key}: all {len(train)} training images of {train.uri} are {only}, and a classifier needs two classes or more; "
            "add images of another class"
        )


def untrained_classes(train: Images, tests: Mapping[str, Images]) -> list[str]:
    """A warning for each test set with images of classes that no training image has, with the number of both."""
    if train.labels is None or train.classes is None:
        return []
    trained, sentences = _per_class(train.labels, len(train.classes)) > 0, list[str]()
    for name, images in tests.items():
        if images.labels is None or has_several(images.labels) != has_several(train.labels):
            continue
        counts = _per_class(images.labels, len(train.classes))
        absent = (~trained & (counts > 0)).nonzero()[:, 0].tolist()
        if not absent:
            continue
        shown = ", ".join(f"{printable(train.classes[i])}: {int(counts[i])}" for i in absent[:CLASSES_NAMED])
        shown += ", ..." if len(absent) > CLASSES_NAMED else ""
        several = has_several(images.labels)
        rows = images.labels[:, absent].any(dim=1) if several else torch.isin(images.labels, torch.tensor(absent))
        of = "a class without" if len(absent) == 1 else f"{len(absent)} classes without"
        counted = "nothing can find it there" if several else "accuracy counts them as wrong"
        sentences.append(
            f"WARNING: {name}: {int(rows.sum())} of {len(images)} images are of {of} any training image ({shown}); {counted}"
        )
    return sentences


def _per_class(labels: Tensor, classes: int) -> Tensor:
    """Images of each class, int64 [K]; labels: int64 [N], or uint8 [N, K]."""
    return labels.long().sum(dim=0) if has_several(labels) else labels.bincount(minlength=classes)


def describe_sets(sets: Mapping[str, Images], held_out: bool = False) -> dict[str, Any]:
    """The `data` entry of a result: one fingerprint for all sets, and the size and split hash of each set."""
    prints = {name: images.fingerprint() for name, images in sets.items()}
    return {
        "fingerprint": hashlib.sha256("".join(prints[name] for name in sorted(prints)).encode()).hexdigest(),
        "split": {name: images.split_hash() for name, images in sets.items()},
        "n": {name: len(images) for name, images in sets.items()},
        **({"test": f"held-out {HELD_OUT:.0%} by seed, over content keys"} if held_out else {}),
    }


def refuse_inside(images: Images, path: Path, option: str) -> None:
    """Raises UserError if an output would lie in a folder that is read, or replace a file of the set."""
    place = Path(os.path.realpath(expanded(path)))
    for folder in images.folders:
        if place.is_relative_to(os.path.realpath(folder)):
            raise UserError(
                f"{option}: {path} lies in {folder}, which is read as data, so it would become data itself; choose a place outside"
            )
    if not os.path.isfile(place):
        return
    for store in images.stores:
        if isinstance(store, FileStore) and store.holds(place):
            raise UserError(
                f"{option}: {path} is a file of {images.uri}; choose another name, so that it isn't overwritten"
            )


def refuse_run_as_data(folder: Path, sets: Mapping[str, Images]) -> None:
    """Raises UserError if the run's folder is itself a set that is read; inside one it is passed over."""
    for name, images in sets.items():
        if os.path.realpath(folder) in [os.path.realpath(read) for read in images.folders]:
            raise UserError(
                f"run.dir: {folder} is itself read as data.{name}; choose a folder of its own, for example {folder / 'runs' / name}"
            )


def fingerprints(sets: Mapping[str, Images]) -> dict[str, str]:
    """The fingerprint of each set; a run stores them, to refuse changed sets when it resumes."""
    return {name: images.fingerprint() for name, images in sets.items()}


def watch_sets(sets: Mapping[str, Images], stamp: Stamp) -> dict[str, Any]:
    """The entries `data` and `watched` of run.json: the fingerprints, and what a watch by `stamp` sees beside names and sizes."""
    seen = {name: images.fingerprint(stamp) for name, images in sets.items()}
    return {"data": fingerprints(sets), "watched": {"stamp": stamp, "sets": seen}}


def count_seen(seen: Mapping[str, Tensor], tests: Mapping[str, Images]) -> dict[str, int]:
    """The number of test images that each earlier stage saw without labels; seen: sorted image keys by stage."""
    return {stage: sum(int(torch.isin(t.keys(), keys).sum()) for t in tests.values()) for stage, keys in seen.items()}


def add_seen(seen: Mapping[str, Tensor], stage: str, images: Images) -> dict[str, Tensor]:
    """`seen` with the keys of the images that this stage saw without labels added."""
    keys = torch.cat([seen.get(stage, torch.empty(0, dtype=torch.int64)), images.keys()]).unique()
    return {**seen, stage: keys}


def exposure(seen: Mapping[str, Tensor], tests: Mapping[str, Images]) -> dict[str, Any]:
    """Two entries of a result: how many test images each stage saw without labels, and how many were trained on with labels."""
    counts = count_seen({LABELLED: torch.empty(0, dtype=torch.int64), **seen}, tests)
    return {"seen_labelled": counts.pop(LABELLED), "seen_unlabelled": counts}


def trained_with_labels(seen: Mapping[str, Tensor], tests: Mapping[str, Images]) -> list[str]:
    """A warning for each test set that holds images which this run or an earlier stage was trained on with their labels."""
    sentences = list[str]()
    for name, images in tests.items():
        if count := count_seen({LABELLED: seen.get(LABELLED, torch.empty(0, dtype=torch.int64))}, {name: images})[
            LABELLED
        ]:
            sentences.append(
                f"WARNING: {name}: {count} of {len(images)} images ({count / len(images):.1%}) are training images too, whose labels are "
                "known: scores there say little of new images"
            )
    return sentences


def seen_without_labels(seen: Mapping[str, Tensor], tests: Mapping[str, Images]) -> list[str]:
    """A sentence for each test set that holds images which earlier stages saw without their labels, as an adaptation sees its target."""
    stages, sentences = {stage: keys for stage, keys in seen.items() if stage != LABELLED}, list[str]()
    for name, images in tests.items():
        own = {name: images}
        if by := [stage for stage, keys in stages.items() if count_seen({stage: keys}, own)[stage]]:
            count = count_seen({"": torch.cat([stages[stage] for stage in by])}, own)[""]
            sentences.append(
                f"{name}: {count} of {len(images)} images ({count / len(images):.1%}) were seen in training without labels, by "
                f"{', '.join(by)}: scores may be lower on images that no training saw"
            )
    return sentences


def seen_in_training(seen: Mapping[str, Tensor], tests: Mapping[str, Images]) -> list[str]:
    """Both, for sets whose scores are measured after the training."""
    return [*trained_with_labels(seen, tests), *seen_without_labels(seen, tests)]
