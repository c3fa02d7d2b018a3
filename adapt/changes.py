"""What the training changed: a map of the features before and after, and pictures that went from wrong to right, or from right to wrong.

The state before the training is a function of the config. It is shown the tests without their labels, nothing is chosen by it, and it gets
no score of its own: its guesses are compared with the labels after the one opening.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.evaluate.pictures import save_map, save_sheet, spread
from ..core.images.images import Images
from ..core.run.directory import Run
from ..core.views.view import Evaluation, stack_pictures
from .sets import SOURCE
from .shown import ShownTest

PICTURES, ACROSS = 12, 6
OWN_GUESS = "the classifier that the training began with"
NEAREST_MEAN = "the nearest class mean of the source in the features before the training, whose head is new"


class Beforehand(NamedTuple):
    """The state before the training, on some images of each test. No label of a target is in it.

    source: labelled training images, of the map; rows: int64 [n] by test; features: [n, D] by test, and of the source; guesses: int64 [n]
    by test; how: whose guesses these are; source_after: the source's features after the training, [n, D'].
    """

    source: Images
    rows: dict[str, Tensor]
    features: dict[str, Tensor]
    guesses: dict[str, Tensor]
    how: str
    source_after: Tensor


def nearest_means(features: Tensor, labels: Tensor, others: Tensor, classes: int) -> Tensor:
    """The class whose mean of labelled features [N, D] is nearest to each of `others` [M, D]: int64 [M]; never one without a row."""
    known = torch.nn.functional.one_hot(labels, classes).double()
    counts = known.sum(0)
    means = (known.T @ features.double()) / counts.clamp(min=1.0)[:, None]
    apart = torch.cdist(others.double(), means).masked_fill(counts == 0, torch.inf)
    return apart.argmin(1)


def save_changes(
    run: Run, opened: Mapping[str, Images], shown: Mapping[str, ShownTest], began: Beforehand, view: Evaluation
) -> dict[str, Any]:
    """Write map and pictures into the run, on the main process; returns the entry `changes` of a result.

    opened: the tests with their labels. shown: the trained classifier on all images of each. Pictures are of the first test that isn't the
    source's, at most twelve of each kind, evenly spaced in its order.
    """
    seen = {name: opened[name].select(rows) for name, rows in began.rows.items()}
    after = {name: shown[name].features[rows] for name, rows in began.rows.items()}
    before = {name: began.features[name] for name in after}
    if SOURCE not in seen:  # as many as the largest test has, so that none hides the other
        some = spread(len(began.source), max(map(len, began.rows.values())))
        seen, after = {SOURCE: began.source.select(some), **seen}, {SOURCE: began.source_after[some], **after}
        before = {SOURCE: began.features[SOURCE][some], **before}
    if run.draws:
        save_map(run.dir, after, seen, run.seed, before=before, rows=began.rows)
    told: dict[str, Any] = {"before": began.how, "tests": {}}
    for name, rows in began.rows.items():
        labels = seen[name].labels
        if name == SOURCE or labels is None:
            continue
        was, now = began.guesses[name] == labels, shown[name].logits[rows].argmax(1) == labels
        to_right, to_wrong = (~was & now).nonzero()[:, 0], (was & ~now).nonzero()[:, 0]
        if not told["tests"] and run.draws:
            for kind, found in (("wrong_to_right", to_right), ("right_to_wrong", to_wrong)):
                guesses = began.guesses[name] if kind == "wrong_to_right" else shown[name].logits[rows].argmax(1)
                _save_pictures(run, kind, name, seen[name], found, guesses, began.how, view)
        told["tests"][name] = {"images": len(rows), "to_right": len(to_right), "to_wrong": len(to_wrong)}
    return told


def _save_pictures(
    run: Run, kind: str, test: str, images: Images, found: Tensor, guesses: Tensor, how: str, view: Evaluation
) -> None:
    """One sheet of pictures. found: rows of `images`. guesses: what each image was taken for while it was wrong."""
    chosen = found[spread(len(found), PICTURES)].tolist()
    if not chosen:
        return
    try:
        raw = stack_pictures([view.worker(images.read(row)) for row in chosen])
    except UserError as error:  # as damaged ones, which the test itself would have refused
        run.log(f"WARNING: pictures/{kind}.png is left out: {error}")
        return
    pixels = raw.float() / (255.0 if raw.dtype == torch.uint8 else 65535.0)
    empty = torch.ones(-len(pixels) % ACROSS, *pixels.shape[1:]) if len(pixels) > ACROSS else pixels[:0]
    across = min(ACROSS, len(pixels))
    assert images.labels is not None and images.classes is not None
    names = [*images.classes, "unknown"]
    true = images.labels[chosen].tolist()
    cases = [
        f"{names[label]}, taken for {names[guess]}" for label, guess in zip(true, guesses[chosen].tolist(), strict=True)
    ]
    title = (
        "Wrong before the training, right after it"
        if kind == "wrong_to_right"
        else "Right before the training, wrong after it"
    )
    of = f"{len(chosen)} of {len(found)} such images among {len(images)} of {test}"
    caption = f"{title}: {of}. Before: {how}. In rows: {'; '.join(cases)}."
    save_sheet(run.dir, kind, torch.cat([pixels, empty]).unflatten(0, (-1, across)), caption)
