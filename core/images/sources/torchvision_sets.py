"""`torchvision:NAME?root=DIR`: sets that torchvision can find, and download with `download=true`.

Only sets stored as one array or as one file for each image are supported: splits need the identities that come from their bytes.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ..foreign import parsing
from ..places import abridged, place_named, titled
from ..store import Source, number_classes
from ..uri import suggestion
from .arrays import array_source, as_nchw
from .files import FileStore, stamps_of

TRAIN = {"train": {"train": True}, "test": {"train": False}}


def named(*splits: str) -> dict[str, dict[str, Any]]:
    """Splits that the constructor takes by name."""
    return {split: {"split": split} for split in splits}


TORCHVISION_SETS: dict[str, Mapping[str, Mapping[str, Any]]] = {
    "MNIST": TRAIN,
    "FashionMNIST": TRAIN,
    "KMNIST": TRAIN,
    "QMNIST": TRAIN,
    "USPS": TRAIN,
    "CIFAR10": TRAIN,
    "CIFAR100": TRAIN,
    "SVHN": named("train", "test", "extra"),
    "STL10": named("train", "test", "unlabeled"),
    "Food101": named("train", "test"),
    "Flowers102": named("train", "val", "test"),
    "DTD": named("train", "val", "test"),
    "FGVCAircraft": named("train", "val", "test"),
    "OxfordIIITPet": named("trainval", "test"),
    "GTSRB": named("train", "test"),
    "Country211": named("train", "valid", "test"),
    "EuroSAT": {"": {}},
}


def open_torchvision(name: str, split: str | None, *, root: str, download: bool = False) -> Source:
    """torchvision:NAME under `root`; nothing is downloaded without `download=true`. Only the requested split is loaded."""
    title = titled("torchvision", name)
    place = place_named(root, f"{title}: root")
    if name not in TORCHVISION_SETS:
        raise UserError(f"{title}: unknown set{suggestion(name[:100], TORCHVISION_SETS)}")
    import torchvision.datasets

    constructor: Callable[..., Any] = getattr(torchvision.datasets, name)
    splits = TORCHVISION_SETS[name]
    if "" not in splits and split not in (*splits, "all"):
        known = ", ".join(splits)
        raise UserError(f"{title} comes in splits: name one of {known}, or all, after '#' (given: {split or 'none'})")
    wanted = [split] if split is not None and split in splits else list(splits)
    opened = {}
    for one in wanted:
        remedy = "the download failed; try again" if download else "add &download=true to fetch it"
        with parsing(
            f"{title}: not usable under {abridged(root)}", remedy
        ):  # its readers raise what their formats raise
            opened[one] = constructor(root=str(place), download=download, **splits[one])
    first = next(iter(opened.values()))
    return from_arrays(title, opened) if hasattr(first, "data") else from_files(title, opened)


def from_arrays(title: str, opened: Mapping[str, Any]) -> Source:
    """Sets that hold `data` (array or tensor) and `targets` or `labels`."""
    parts: dict[str, tuple[Tensor, Tensor | None]] = {}
    for split, dataset in opened.items():
        pixels = as_nchw(np.asarray(dataset.data), "auto", title)
        raw = np.asarray(getattr(dataset, "targets", getattr(dataset, "labels", None)))
        numbers = torch.from_numpy(
            (raw[:, 0] if raw.ndim == 2 else raw).astype(np.int64)
        )  # QMNIST: the label is the first column
        parts[split] = pixels, None if (numbers < 0).any() else numbers  # STL10's unlabeled part says -1
    source = array_source(title, parts)
    names = getattr(next(iter(opened.values())), "classes", None)
    if source.classes is None or names is None:
        return source
    # "0 - zero" becomes "0", as in the other digit sets, since unions merge classes by name
    classes = tuple(names[int(number)].partition(" - ")[0] for number in source.classes)
    return Source(source.store, source.labels, classes, source.splits)


def from_files(title: str, opened: Mapping[str, Any]) -> Source:
    """Sets that hold a list of files and their labels."""
    files: list[str] = []
    names: list[str] = []
    splits: dict[str, Tensor] = {}
    for split, dataset in opened.items():
        samples = getattr(dataset, "samples", None) or getattr(dataset, "_samples", None)
        if samples is None:
            paths = getattr(dataset, "_image_files", None) or dataset._images
            samples = list(zip(paths, dataset._labels, strict=True))
        classes = getattr(dataset, "classes", None)
        splits[split] = torch.arange(len(files), len(files) + len(samples))
        files += [str(path) for path, _ in samples]
        names += [classes[int(label)] if classes else str(int(label)) for _, label in samples]
    top = str(Path(next(iter(opened.values())).root).absolute())
    relative = [str(Path(file).absolute().relative_to(top)) for file in files]
    labels, classes = number_classes(names)
    store = FileStore(top, relative, stamps_of(top, relative, title))
    return Source(store, labels, classes, {} if "" in splits else splits)
