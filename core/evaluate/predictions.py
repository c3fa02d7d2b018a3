"""predictions.safetensors of a run: the scores of every labelled test image, from which all metrics can be computed again.

    TEST/keys              int64 [M]       identities of the images (`Images.keys`), in the order of the test set
    TEST/labels            int64 [M]       indices into the classes; or uint8 [M, K] where an image may have several
    TEST/groups            int64 [M]       indices into the names of groups (domains), where the set has several
    TEST/clusters          int64 [M]       what was drawn independently (patients), where that isn't the keys
    TEST/PROTOCOL/scores   float16 [M, K]  or [draws, M, K] where a protocol repeats

Logits of images that have one class each are less the image's highest, which is therefore 0: softmax and order within an image are the
model's. A column of them is no score of its class: rank images by softmax, or by differences of two columns. All other scores are as given.

The header's entry `about` is JSON: format, classes and group names of each test, and the kind of each protocol's scores. Without torch, so
that a report of runs need not import it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from ..errors import UserError
from ..files import read_regular, write_bytes
from ..manifest import DamagedFile, check_file, read_manifest
from ..run.rows import PREDICTIONS
from .counts import Ints

SCORES_FORMAT = 1
# What scores are. Probabilities follow from logits by softmax. Votes (kNN) are shares of the row, and similarities (cosines) any numbers;
# both have an order, but are no probabilities. Of several classes an image, each has a sigmoid of its own, and votes are
# the shares of neighbours that have each class.
SCORE_KINDS = ("logits", "probabilities", "votes", "similarities")
LARGEST = float(np.finfo(np.float16).max)
Half = NDArray[np.float16]


@dataclass(frozen=True)
class ScoredImages:
    """The images of a test set, as the file has them: see this module. Raises ValueError for other types, lengths or values.

    groups: None where the set has a single one. clusters: what the bootstrap draws; the keys by default. open_set: whether the last class
    holds all images that are in none of the others.
    """

    keys: Ints
    labels: NDArray[Any]
    classes: tuple[str, ...]
    groups: Ints | None = None
    group_names: tuple[str, ...] = ()
    clusters: Ints | None = None
    open_set: bool = False

    def __post_init__(self) -> None:
        """Check that the arrays are what the file may hold, and fit together."""
        n, k = len(self.keys), len(self.classes)
        several = self.labels.ndim == 2
        for name, shape, kind in (
            ("keys", (n,), np.int64),
            ("labels", (n, k) if several else (n,), np.uint8 if several else np.int64),
            ("groups", (n,), np.int64),
            ("clusters", (n,), np.int64),
        ):
            array = getattr(self, name)
            if array is not None and (array.shape != shape or array.dtype != kind):
                raise ValueError(f"{name} are {array.dtype} {array.shape}, expected {np.dtype(kind)} {shape}")
        if several and n and self.labels.max() > 1:
            raise ValueError(
                f"labels hold {self.labels.max()}: where an image may have several classes, each is there (1) or not (0)"
            )
        for array, count in ((self.labels if self.labels.ndim == 1 else None, k), (self.groups, len(self.group_names))):
            if array is not None and n and not (array.min() >= 0 and array.max() < count):
                raise ValueError(f"indices {array.min()}..{array.max()} into {count} names")

    @property
    def drawn(self) -> Ints:
        """int64 [M]: what the bootstrap draws as a whole."""
        return self.keys if self.clusters is None else self.clusters

    @property
    def split(self) -> str:
        """sha256 of the sorted identities, as `Images.split_hash`: equal for the same images, whatever their order."""
        return hashlib.sha256(np.sort(self.keys).astype(">i8").tobytes()).hexdigest()


class SavedScores(NamedTuple):
    """kind: one of SCORE_KINDS. scores: float16 [M, K] or [draws, M, K], as `to_half` rounds them."""

    kind: str
    scores: Half


@dataclass
class Predictions:
    """tests: by name. scores: by "TEST/PROTOCOL"."""

    tests: dict[str, ScoredImages] = field(default_factory=dict)
    scores: dict[str, SavedScores] = field(default_factory=dict)

    def add(self, key: str, images: ScoredImages, scores: SavedScores) -> None:
        """Keep the scores of "TEST/PROTOCOL". Raises ValueError if they don't fit, or if the test set has other images already."""
        test, kind = _test_of(key), scores.kind
        known = self.tests.setdefault(test, images)
        if known is not images and (known.split != images.split or known.classes != images.classes):
            raise ValueError(f"{test} has two sets of images")
        if kind not in SCORE_KINDS or scores.scores.dtype != np.float16:
            raise ValueError(f"{key}: scores of kind {kind!r} and type {scores.scores.dtype}")
        if scores.scores.ndim not in (2, 3) or scores.scores.shape[-2:] != (len(images.keys), len(images.classes)):
            raise ValueError(
                f"{key}: scores {scores.scores.shape} of {len(images.keys)} images, {len(images.classes)} classes"
            )
        self.scores[key] = scores

    def write(self, folder: Path) -> None:
        """Write FOLDER/predictions.safetensors, whole or not at all. Raises OSError."""
        tensors: dict[str, NDArray[Any]] = {}
        about: dict[str, Any] = {"format": SCORES_FORMAT, "tests": {}, "scores": {}}
        for name, images in self.tests.items():
            fields = {key: getattr(images, key) for key in ("keys", "labels", "groups", "clusters")}
            tensors |= {f"{name}/{key}": array for key, array in fields.items() if array is not None}
            about["tests"][name] = {
                "classes": images.classes,
                "group_names": images.group_names,
                "split": images.split,
                "images": len(images.keys),
                **({"open_set": True} if images.open_set else {}),
            }
        for key, (kind, scores) in self.scores.items():
            tensors[f"{key}/scores"] = scores
            about["scores"][key] = {"kind": kind}
        whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        # A single entry, since safetensors does not keep the order of several.
        write_bytes(folder / PREDICTIONS, safetensors.numpy.save(whole, {"about": json.dumps(about)}))


def read_predictions(folder: Path) -> Predictions | None:
    """The scores of a run; None if it has none, as runs of earlier versions and of protocols without scores.

    Raises DamagedFile if the file is not what was written, or lost, and UserError if a later version wrote it.
    """
    path, digests = folder / PREDICTIONS, read_manifest(folder) or {}
    if PREDICTIONS in digests:
        check_file(folder, PREDICTIONS, digests)
    try:
        content = read_regular(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read ({error.strerror})") from error
    try:
        tensors = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = json.loads(header["__metadata__"]["about"])
        form = about["format"]
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged (it holds no scores that can be read)") from error
    if form != SCORES_FORMAT:
        raise UserError(f"{path} has format {form}, and this version reads {SCORES_FORMAT}; update Rootstock")
    try:
        return _from_tensors(tensors, about)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"{path} is damaged (it is not as a run writes it: {error})") from error


def _from_tensors(tensors: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> Predictions:
    found = Predictions()
    for name, told in about["tests"].items():
        columns = {key: tensors.get(f"{name}/{key}") for key in ("keys", "labels", "groups", "clusters")}
        keys, labels = tensors[f"{name}/keys"], tensors[f"{name}/labels"]
        if keys.ndim != 1:
            raise ValueError(f"{name} has keys {keys.shape}")
        names = [tuple(str(text) for text in told[key]) for key in ("classes", "group_names")]
        more = {"open_set": told.get("open_set", False) is True}  # earlier versions did not write it
        found.tests[name] = ScoredImages(
            keys, labels, names[0], columns["groups"], names[1], columns["clusters"], **more
        )
    for key, told in about["scores"].items():
        scores = tensors[f"{key}/scores"]
        if not np.isfinite(scores).all():
            raise ValueError(f"{key} has scores that are not finite")
        found.add(key, found.tests[_test_of(key)], SavedScores(told["kind"], scores))
    return found


def _test_of(key: str) -> str:
    """The test set of "TEST/PROTOCOL"."""
    return key.partition("/")[0]


def to_half(scores: NDArray[np.floating], kind: str, key: str = "scores", *, several: bool = False) -> SavedScores:
    """Scores as they are kept and as metrics are computed from them: float16, with the predictions of the given ones.

    scores: [..., M, K]. Of logits the highest of each image is subtracted, since softmax ignores what they have in common, and float16
    would round it: at 5000 by 4. Votes are divided by their sum. Beyond 65504 scores become that. Where rounding makes a class of a lower
    index equal to the highest one, it is moved down by the smallest step, so argmax stays. several: images may have several classes, so a
    score is of its class alone, and is only rounded. Raises UserError for NaN.
    """
    broken = np.isnan(scores)
    if broken.any():  # an image is one, in however many draws
        rows = len(np.unique(np.nonzero(broken)[-2]))
        raise UserError(
            f"{key}: the scores of {rows} images are not numbers (NaN): the training has diverged; take a lower learning rate"
        )
    given = np.asarray(scores)
    if several:
        return SavedScores(kind, np.clip(given, -LARGEST, LARGEST).astype(np.float16))
    if kind == "votes":
        wide = given.astype(np.float64)
        total = wide.sum(axis=-1, keepdims=True)
        given = np.divide(wide, total, out=np.zeros_like(wide), where=total > 0)
    elif kind == "logits":
        top = given.max(axis=-1, keepdims=True, initial=-np.inf)
        given = np.subtract(
            given, top, out=np.zeros_like(given), where=given != top
        )  # infinity less infinity is 0, too
    half = np.clip(given, -LARGEST, LARGEST).astype(np.float16).reshape(-1, given.shape[-1])
    first = np.asarray(scores).reshape(half.shape).argmax(axis=1)
    for row in np.flatnonzero(half.argmax(axis=1) != first):
        best = half[row, first[row]]
        if best == -LARGEST:
            half[row, first[row]] = np.nextafter(best, np.float16(np.inf))
        else:
            equal = np.flatnonzero(half[row, : first[row]] == best)
            half[row, equal] = np.nextafter(best, np.float16(-np.inf))
    return SavedScores(kind, half.reshape(given.shape))
