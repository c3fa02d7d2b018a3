"""The final test of an adaptation: everything that needs no label of the target is settled before the labels are read, once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ..core.evaluate.pictures import save_map
from ..core.evaluate.predictions import to_half
from ..core.evaluate.sealed import CandidateLogits, digest_of_export, on_main_process, open_sealed
from ..core.images.open import Images
from ..core.images.sets import describe_sets, exposure
from ..core.model.classifier import Classifier
from ..core.run.directory import Run
from ..core.views.view import Evaluation
from .by_class import errors_by_class
from .changes import Beforehand, save_changes
from .frozen import FrozenFeatures
from .kept_states import KeptStates
from .online_pass import SORTED
from .sets import SOURCE, Sets
from .shift import EstimatedShift, true_distances
from .shown import ShownTest, show_tests

LAST, CORRECTED, ONLINE = "classifier", "corrected", "online"


def final_test(
    run: Run,
    classifier: Classifier,
    tests: Mapping[str, Images],
    view: Evaluation,
    frozen: FrozenFeatures | None,
    shift: EstimatedShift,
    states: KeptStates,
    online: Mapping[str, Tensor] = {},
    began: Beforehand | None = None,
    looks: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """What a result says about the tests, each image once. Their labels are read last: no weight and no choice can follow from them.

    shift: the estimated class priors; where they correct predictions, the corrected ones are a second candidate of the same look.
    states: of the training, of which the accuracies are told (`states`), and why some are missing (`states_lost`).
    online: logits [M, K] by test, which an online pass predicted: another one. began: the state before the training, for map and pictures.
    looks: that there were already, as entries of `looks`.
    """
    shown = show_tests(run, view, frozen, tests, classifier)
    logits = {name: found.logits for name, found in shown.items()}
    digest = on_main_process(run, lambda: digest_of_export(run.dir))
    candidates = {LAST: CandidateLogits(digest, logits)}
    if shift.corrects:
        adjusted = {name: shift.correct(rows) for name, rows in logits.items() if name != SOURCE}
        candidates[CORRECTED] = CandidateLogits(f"{digest} corrected by {shift.corrects}", adjusted)
    if online:
        predicted = hashlib.sha256(b"".join(online[name].numpy().tobytes() for name in sorted(online))).hexdigest()
        candidates[ONLINE] = CandidateLogits(f"online {predicted}", online)
    result, opened = open_sealed(
        run, tests, candidates, classifier.outputs, states.found, classifier.structure.extra > 0, view
    )
    told = json.loads(
        on_main_process(run, lambda: json.dumps(_of_labels(run, opened, shown, shift, classifier, began, view)))
    )
    return {
        **exposure(classifier.backbone.seen, tests),
        **result,
        "looks": {**looks, **result["looks"]},
        **({"states_lost": states.lost} if states.lost else {}),
        "label_shift": {**shift.told, "true": told.pop("true")},
        **told,
    }


def _of_labels(
    run: Run,
    opened: Mapping[str, Images],
    shown: Mapping[str, ShownTest],
    shift: EstimatedShift,
    classifier: Classifier,
    began: Beforehand | None,
    view: Evaluation,
) -> dict[str, Any]:
    """What else the labels of the opened tests say: true priors, accuracies by class and domain, and what the training changed."""
    domains = dict(shift.by_class)
    for name, images in opened.items():
        if images.labels is not None:
            half = to_half(shown[name].logits.numpy(), "logits", name).scores  # as the tests are scored
            domains |= errors_by_class(name, images, np.asarray(half).argmax(1), classifier.outputs)
    told = {"true": true_distances(shift.prior, opened), "by_class": domains}
    if began is not None:
        return told | {"changes": save_changes(run, opened, shown, began, view)}
    if run.draws:
        save_map(run.dir, {name: found.features for name, found in shown.items()}, opened, run.seed)
    return told


def facts_of(sets: Sets, data: Mapping[str, Any], online: bool) -> dict[str, Any]:
    """The entry `data` of a result: the sets, and in which order and how corrupted the target was met, where a key asks for it."""
    facts = describe_sets(sets.named(), held_out=data["test"] is None)
    if online:
        facts["order"] = SORTED if data["order"] == "sorted" else data["order"]
    if data["corrupt"] is not None:
        facts["corrupt"] = dict(data["corrupt"])
    return facts
