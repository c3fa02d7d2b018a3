"""The final test of an adaptation: logits first, without labels; then one opening, which is counted, scores all candidates.

candidates.safetensors of the run holds what is scored, before any label is read:

    TEST/keys               int64 [M]       identities of the images, in the order of the test set
    TEST/CANDIDATE/logits   float16 [M, K]

The header's entry `about` is JSON: format, classes, digest and tests of each candidate. A candidate is the last iterate, a validator's
pick or the oracle. `open_sealed` is the only place that reads labels of sealed sets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from ..distributed import broadcast_text
from ..errors import UserError
from ..files import read_regular, write_bytes
from ..images.images import Images
from ..images.sealed import SealedImages
from ..manifest import read_manifest
from ..run.directory import Run
from ..run.rows import CANDIDATES
from .looks import record_look
from .predictions import to_half
from .scores import Scored

_FORMAT = 1


class CandidateLogits(NamedTuple):
    """A classifier to be scored. digest: of its weights (`digest_of_export`). logits: float [M, K] by name of the test."""

    digest: str
    logits: Mapping[str, Tensor]


class Opened(NamedTuple):
    """result: entries of result.json, the same on all processes. tests: with labels on the main process, elsewhere as they were given."""

    result: dict[str, Any]
    tests: dict[str, Images]


def digest_of_export(run: Path, folders: Iterable[str] = ("backbone", "classifier")) -> str:
    """The digest of the weights in the exported folders of a run. On the main process, after the export. Raises DamagedFile."""
    listed = {
        f"{name}/{file}": digest for name in folders for file, digest in (read_manifest(run / name) or {}).items()
    }
    weights = {name: digest for name, digest in listed.items() if name.endswith(".safetensors")}
    return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()


def open_sealed(
    run: Run,
    tests: Mapping[str, Images],
    candidates: Mapping[str, CandidateLogits],
    classes: Sequence[str],
    states: Mapping[str, CandidateLogits] = {},
    open_set: bool = False,
) -> Opened:
    """Store the logits of all candidates, write the look down, read the labels and score everything under TEST/CANDIDATE/METRIC.

    classes: of the outputs. open_set: whether the last of them is `unknown`.
    tests: by name; those that are sealed are opened, once. Every process calls it with the same candidates; the main one alone
    reads labels, so there is one look on any number of processes. states: earlier states of the training, of which only the accuracy
    is told, as `states` by test. Raises UserError on all processes.
    """
    trouble, text, opened = "", "", dict(tests)
    if run.main:
        try:
            every = {**candidates, **states}
            logits = _frozen(run.dir, tests, every, classes)
            opened, looks = _open(run.dir, tests, {name: found.digest for name, found in every.items()})
            scored = Scored(classes, run.seed, open_set)
            accuracies: dict[str, dict[str, float]] = {}
            for key, values in logits.items():
                test, _, name = key.partition("/")
                if name in candidates:
                    scored.add(key, opened[test], values, "logits")
                else:
                    accuracies.setdefault(test, {})[name] = accuracy_of(opened[test], values)
            scored.save(run.dir)
            text = json.dumps({**scored.as_result(), "looks": looks, **({"states": accuracies} if states else {})})
        except UserError as error:
            trouble = str(error)
    if trouble := broadcast_text(trouble):
        raise UserError(trouble)
    return Opened(json.loads(broadcast_text(text)), opened)


def accuracy_of(images: Images, logits: Tensor) -> float:
    """The share of labelled images whose largest logit is their label's. logits: [M, K]."""
    assert images.labels is not None
    return float((logits.float().argmax(1) == images.labels).double().mean())


def _open(
    folder: Path, tests: Mapping[str, Images], digests: Mapping[str, str]
) -> tuple[dict[str, Images], dict[str, Any]]:
    """The tests with their labels, and the entry `looks` of result.json. Every look is on disk before the first label is read."""
    sealed = {name: images for name, images in tests.items() if isinstance(images, SealedImages)}
    looks = {name: record_look(folder, name, images.split_hash(), digests) for name, images in sealed.items()}
    return {name: sealed[name].unsealed() if name in sealed else images for name, images in tests.items()}, looks


def _frozen(
    folder: Path, tests: Mapping[str, Images], candidates: Mapping[str, CandidateLogits], classes: Sequence[str]
) -> dict[str, Tensor]:
    """The logits by TEST/CANDIDATE as they are stored: those of an earlier command if it stored the same candidates, else these."""
    digests = {name: found.digest for name, found in candidates.items()}
    scored = {name: sorted(found.logits) for name, found in candidates.items()}
    about = {"format": _FORMAT, "classes": list(classes), "candidates": digests, "tests": scored}
    arrays: dict[str, NDArray[Any]] = {f"{name}/keys": images.keys().numpy() for name, images in tests.items()}
    if (stored := _stored(folder / CANDIDATES, about, arrays)) is None:
        for name in tests:
            for candidate, found in candidates.items():
                if name not in found.logits:
                    continue
                wide = found.logits[name].detach().cpu().float().numpy()
                key = f"{name}/{candidate}"
                arrays[f"{key}/logits"] = np.ascontiguousarray(to_half(wide, "logits", key).scores)
        write_bytes(folder / CANDIDATES, safetensors.numpy.save(arrays, {"about": json.dumps(about)}))
        stored = arrays
    wanted = [f"{test}/{name}" for test in tests for name, found in candidates.items() if test in found.logits]
    return {key: torch.from_numpy(stored[f"{key}/logits"]) for key in wanted}


def _stored(path: Path, about: Mapping[str, Any], keys: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]] | None:
    """The arrays of the file; None if there is none, or it holds other candidates or images, or cannot be read: it is made anew then."""
    try:
        content = read_regular(path)
        arrays = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        same = json.loads(header["__metadata__"]["about"]) == about
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return None
    names = {*keys, *(f"{test}/{name}/logits" for name, tests in about["tests"].items() for test in tests)}
    return arrays if same and set(arrays) == names and all(np.array_equal(arrays[k], keys[k]) for k in keys) else None
