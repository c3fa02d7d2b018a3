"""The final test of an adaptation: everything that needs no label of the target is settled before the labels are read, once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..core.evaluate.features import evaluating, extract
from ..core.evaluate.pictures import save_map
from ..core.evaluate.sealed import CandidateLogits, digest_of_export, on_main_process, open_sealed
from ..core.images.open import Images
from ..core.images.sets import exposure
from ..core.model.classifier import Classifier
from ..core.run.directory import Run
from ..core.views.view import Evaluation
from .frozen import ROWS_AT_ONCE, FrozenFeatures
from .kept_states import KeptStates
from .sets import SOURCE
from .shift import EstimatedShift, true_distances

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
) -> dict[str, Any]:
    """What a result says about the tests, each image once. Their labels are read last: no weight and no choice can follow from them.

    shift: the estimated class priors; where they correct predictions, the corrected ones are a second candidate of the same look.
    states: of the training, of which the accuracies are told (`states`), and why some are missing (`states_lost`).
    online: logits [M, K] by test, which an online pass predicted: another one.
    """
    features = features_of_tests(run, classifier, tests, view, frozen)
    logits = logits_of_tests(run, tests, view, frozen, classifier)
    digest = on_main_process(run, lambda: digest_of_export(run.dir))
    candidates = {LAST: CandidateLogits(digest, logits)}
    if shift.corrects:
        adjusted = {name: shift.correct(rows) for name, rows in logits.items() if name != SOURCE}
        candidates[CORRECTED] = CandidateLogits(f"{digest} corrected by {shift.corrects}", adjusted)
    if online:
        predicted = hashlib.sha256(b"".join(online[name].numpy().tobytes() for name in sorted(online))).hexdigest()
        candidates[ONLINE] = CandidateLogits(f"online {predicted}", online)
    result, opened = open_sealed(
        run, tests, candidates, classifier.outputs, states.found, classifier.structure.extra > 0
    )

    def after_the_look() -> str:
        save_map(run.dir, features, opened, run.seed)
        return json.dumps(true_distances(shift.prior, opened))

    true = json.loads(on_main_process(run, after_the_look))
    return {
        **exposure(classifier.backbone.seen, tests),
        **result,
        **({"states_lost": states.lost} if states.lost else {}),
        "label_shift": {**shift.told, "true": true},
    }


def features_of_tests(
    run: Run, classifier: Classifier, tests: Mapping[str, Images], view: Evaluation, frozen: FrozenFeatures | None
) -> dict[str, Tensor]:
    """The backbone's features by test, float32 [M, D]."""
    if frozen is not None:
        return {name: frozen.features(images, view) for name, images in tests.items()}
    workers, model = run.options["workers"], classifier.backbone
    return {name: extract(model, test, view, device=run.device, workers=workers) for name, test in tests.items()}


def logits_of_tests(
    run: Run, tests: Mapping[str, Images], view: Evaluation, frozen: FrozenFeatures | None, classifier: Classifier
) -> dict[str, Tensor]:
    """The classifier's logits by test, float32 [M, K] on the CPU; no label is read."""
    if frozen is None:
        workers = run.options["workers"]
        return {n: extract(classifier, test, view, device=run.device, workers=workers) for n, test in tests.items()}
    found = {}
    with evaluating(classifier), torch.inference_mode():
        for name, images in tests.items():
            rows = frozen.features(images, view).split(ROWS_AT_ONCE)
            found[name] = torch.cat([classifier(part.to(run.device)).cpu() for part in rows])
    return found
