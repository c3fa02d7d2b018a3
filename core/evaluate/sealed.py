"""The final test of an adaptation: logits first, without labels; then one opening, which is counted, scores all candidates.

candidates.safetensors of the run holds what is scored, before any label is read:

    TEST/keys               int64 [M]       identities of the images, in the order of the test set
    TEST/CANDIDATE/logits   float16 [M, K]

The header's entry `about` is JSON: format, classes, digest and tests of each candidate. A candidate is the last iterate, a validator's
pick or the oracle. Only `open_sealed` and `rows_by_class`, which counts too, read labels of sealed sets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from ..distributed import broadcast_text, of_first
from ..errors import MachineError, UserError
from ..files import read_regular, write_bytes
from ..images.images import Images
from ..images.sealed import SealedImages
from ..manifest import DamagedFile, read_manifest
from ..run.directory import Run
from ..run.rows import CANDIDATES
from ..views.view import Evaluation
from .looks import LookedAt, record_look
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


def digest_of_pictures(images: Images, view: Evaluation, count: int = 4) -> str:
    """The digest of how images are shown: of the view, and of what it makes of the first `count` of them by content.

    Identities know neither a corruption nor a blend, and weights neither a crop nor a size; the pixels know all of them.
    """
    digest = hashlib.sha256(json.dumps(view.describe(), sort_keys=True).encode())
    for i in images.keys().argsort(stable=True)[:count].tolist():
        digest.update(view.worker(images.read(i)).numpy().tobytes())
    return digest.hexdigest()


def open_sealed(
    run: Run,
    tests: Mapping[str, Images],
    candidates: Mapping[str, CandidateLogits],
    classes: Sequence[str],
    states: Mapping[str, CandidateLogits] = {},
    open_set: bool = False,
    view: Evaluation | None = None,
) -> Opened:
    """Store the logits of all candidates, write the look down, read the labels and score everything under TEST/CANDIDATE/METRIC.

    classes: of the outputs. open_set: whether the last of them is `unknown`. view: how the images were shown, a part of what a look is.
    tests: by name; those that are sealed are opened, once. Every process calls it with the same candidates; the main one alone
    reads labels, so there is one look on any number of processes. states: earlier states of the training, of which only the accuracy
    is told, as `states` by test. Raises UserError on all processes.
    """
    opened = dict(tests)

    def work() -> str:
        every = {**candidates, **states}
        logits = _frozen(run.dir, tests, every, classes)
        found, looks = _open(run.dir, tests, {name: found.digest for name, found in every.items()}, view)
        opened.update(found)
        scored = Scored(classes, run.seed, open_set)
        accuracies: dict[str, dict[str, float]] = {}
        for key, values in logits.items():
            test, _, name = key.partition("/")
            if name in candidates:
                scored.add(key, opened[test], values, "logits")
            else:
                accuracies.setdefault(test, {})[name] = accuracy_of(opened[test], values)
        scored.save(run.dir)
        return json.dumps({**scored.as_result(), "looks": looks, **({"states": accuracies} if states else {})})

    return Opened(json.loads(on_main_process(run, work)), opened)


def rows_by_class(run: Run, name: str, images: SealedImages) -> tuple[Tensor, dict[str, Any]]:
    """The rows of a sealed set sorted by class, int64 [M], those of a class as they lie; and the look that it was, as in `looks`.

    What meets the images in this order has seen their labels in a way, so it is a look, written down before they are read: one for each
    config, however often its run is resumed. name: of the set. Every process calls it; the main one alone reads labels. Raises UserError
    on all processes, also where an image has no label or several.
    """
    rows = list[Tensor]()
    lacks = UserError(f"{images.uri} has not one label for each picture, so it cannot be sorted by class")
    if images.classes is None:  # which is known without a look
        raise lacks

    def work() -> str:
        config = {key: value for key, value in run.config.items() if key != "run"}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()
        opened, looks = _open(run.dir, {name: images}, {"in the order of classes": digest}, None)
        labels = opened[name].labels
        if labels is None or labels.ndim != 1:
            raise lacks
        rows.append(labels.argsort(stable=True))
        return json.dumps(looks[name])

    look = json.loads(on_main_process(run, work))
    like = torch.empty(len(images), dtype=torch.int64, device=run.device)
    return of_first(lambda: rows[0], like).cpu(), look


def on_main_process(run: Run, work: Callable[[], str]) -> str:
    """What `work` returns on the main process, on all of them; the others don't call it.

    An error of it is one sentence on all, since an exception on one process alone would leave the others waiting. Raises UserError.
    """
    trouble, machine, text = "", False, ""
    if run.main:
        try:
            text = work()
        except UserError as error:
            trouble, machine = str(error), isinstance(error, MachineError)
        except DamagedFile as error:
            trouble = f"{error}; restore it from a copy, or choose another run.dir"
        except OSError as error:
            place, machine = error.filename or run.dir, True
            trouble = (
                f"the final test of {run.dir} needs {place}, and the system says: {error.strerror or error}; "
                "mend that, then run the same command again"
            )
    trouble, machine = json.loads(broadcast_text(json.dumps([trouble, machine])))
    if trouble:
        raise (MachineError if machine else UserError)(trouble)
    return broadcast_text(text)


def frozen_candidate(run: Path, name: str) -> CandidateLogits | None:
    """A candidate as an earlier command of this run stored it before the labels were read; None if none did, or it cannot be read."""
    try:
        content = read_regular(run / CANDIDATES)
        arrays, about = safetensors.numpy.load(content), _about(content)
        logits = {test: torch.from_numpy(arrays[f"{test}/{name}/logits"]) for test in about["tests"][name]}
        return CandidateLogits(about["candidates"][name], logits)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return None


def accuracy_of(images: Images, logits: Tensor) -> float:
    """The share of labelled images whose largest logit is their label's. logits: [M, K]."""
    assert images.labels is not None
    return float((logits.float().argmax(1) == images.labels).double().mean())


def _open(
    folder: Path, tests: Mapping[str, Images], digests: Mapping[str, str], view: Evaluation | None
) -> tuple[dict[str, Images], dict[str, Any]]:
    """The tests with their labels, and the entry `looks` of result.json. Every look is on disk before the first label is read."""
    sealed = {name: images for name, images in tests.items() if isinstance(images, SealedImages)}
    looks = {}
    for name, images in sealed.items():
        what = LookedAt(images.looked_at, images.split_hash(), "" if view is None else digest_of_pictures(images, view))
        looks[name] = record_look(folder, name, what, digests)
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
        same = _about(content) == about
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return None
    names = {*keys, *(f"{test}/{name}/logits" for name, tests in about["tests"].items() for test in tests)}
    return arrays if same and set(arrays) == names and all(np.array_equal(arrays[k], keys[k]) for k in keys) else None


def _about(content: bytes) -> Any:
    """The entry `about` of the header of a safetensors file. Raises ValueError, KeyError or TypeError."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["about"])
