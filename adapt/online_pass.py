"""One pass over the target: its order, its pictures as evaluation sees them, and what it predicted, by test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..core import stage
from ..core.config.resolve import build
from ..core.draws import Draws
from ..core.errors import UserError
from ..core.evaluate.sealed import rows_by_class
from ..core.images.images import Images
from ..core.images.store import sha256_key
from ..core.method import RawBatch
from ..core.run.directory import Run
from ..core.stream.order import Full, Given, Order
from ..core.train.optim import Optim
from ..core.views.augmentation import Augmentation
from ..core.views.presets import VIEWS
from ..core.views.view import Evaluation, stack_pictures
from .parts.online import OnlinePredictions
from .registry import ADAPT_METHODS
from .sets import TARGET, sealed_target

StreamOrder = Literal["shuffled", "sequential", "sorted"]
SORTED = "sorted: a diagnostic; the target's labels were read to order its stream, and for nothing else, and that look is counted"
LOOK = "target/order by class"
"""The entry of a result's `looks` for a stream that is sorted by class. No test has such a name, which has a slash."""


def check_order(data: Mapping[str, Any], name: str) -> None:
    """Raises UserError where the method `name` cannot have this order, these views or this decoding."""
    if not ADAPT_METHODS[name].online:
        if data["order"] != "shuffled":
            online = ", ".join(one for one, kind in ADAPT_METHODS.items() if kind.online)
            raise UserError(
                f"data.order: {data['order']} is for methods that go over the target once ({online}); {name} has its own order, shuffled"
            )
        return
    given: Augmentation = build(data["views"], VIEWS)
    if given.varies or given.centre != 1.0 or given.interpolation != Augmentation().interpolation:
        raise UserError(
            f"data.views: {name} predicts the very pictures from which it learns, as evaluation sees them; use data.views=none"
        )
    if data["decode"] != "full":
        raise UserError(f"data.decode: {name} predicts the very pictures from which it learns; use full")


def stream_order(run: Run, data: Mapping[str, Any], target: Images, batch_size: int) -> tuple[Order, dict[str, Any]]:
    """The order of the pass over the target, which lies in the order of its content: by seed, as it lies, or by label; and its looks.

    `sorted` opens the target with labels, as the final test does: it is a look, counted, and nothing besides the order is kept. A dry run
    does not look. Raises UserError if there are no labels, or several an image.
    """
    shuffle, looks = Full(), dict[str, Any]()
    if data["order"] == "sequential":
        shuffle = Given(np.arange(len(target)))
    elif data["order"] == "sorted":
        sealed = sealed_target(data, run.seed)
        if not torch.equal(sealed.keys(), target.keys()):
            raise UserError(
                "data.order: the target holds other pictures than a moment ago; leave it alone and run again"
            )
        rows = torch.arange(len(target))
        if not run.dry:
            run.log(f"WARNING: data.order: {SORTED}")
            rows, looks[LOOK] = rows_by_class(run, LOOK, sealed)
        shuffle = Given(rows.numpy())
    return Order(len(target), batch_size, run.seed, TARGET, shuffle, whole=True), looks


class AsEvaluated:
    """How loader processes crop pictures of the pass: as evaluation does. A `Crop` (core/stream/batches.py)."""

    def __init__(self, view: Evaluation) -> None:
        self.view = view

    def crop_each(
        self, pictures: Sequence[Tensor], draws: Draws, sizes: Sequence[tuple[int, int]] | None = None
    ) -> dict[str, Tensor]:
        """[C, H, W] of any sizes -> {"images": [N, 1, C, size, size]}."""
        return {"images": stack_pictures([self.view.worker(picture) for picture in pictures])[:, None]}

    def scale(self, draws: Draws, height: int, width: int) -> int:
        """Decoded in full."""
        return 1

    def __call__(self, raw: RawBatch) -> Tensor:
        """Whole pictures or crops of loader processes -> normalised float32 [N, C, size, size]."""
        return self.view(raw.images if raw.images.ndim == 4 else raw.images[:, 0])


def feed_once(run: Run, target: Images, crop: AsEvaluated, order: Order, optim: Optim, name: str) -> stage.Feed:
    """The batches of one pass over the target. Raises UserError for another length."""
    if optim.steps(order.steps_per_epoch) != order.steps_per_epoch:
        raise UserError(
            f"optim.duration: {name} goes over the target once, in {order.steps_per_epoch} steps of {order.batch_size} images; use 1ep"
        )
    data = {"decode": "full"}
    return stage.feed(run, {TARGET: target}, crop, data, optim, order.seed, orders={TARGET: order})


def by_test(predictions: OnlinePredictions, target: Images, tests: Mapping[str, Images]) -> dict[str, Tensor]:
    """What the pass predicted, float32 [M, K], for each test whose images are all in the target, in the test's order."""
    if not bool(predictions.written.all()):
        raise ValueError("the pass did not meet every image of the target")
    places = {name: met_by(images, target) for name, images in tests.items()}
    logits = predictions.logits.cpu()
    return {name: logits[rows] for name, rows in places.items() if rows is not None}


def met_by(images: Images, target: Images) -> Tensor | None:
    """The row of each picture in the target, int64 [M]; None unless all are there.

    An identity is not enough: the blends of a digit share the digit's, and so does a scan at every size. A picture is known by its place in
    its source besides, and where a test names its source otherwise, by its pixels.
    """
    found = places_of(_digests(images, Images.stamp), _digests(target, Images.stamp))
    if found is not None:
        return found
    wanted, keys = images.keys().unique(), target.keys()
    rows = torch.isin(keys, wanted).nonzero()[:, 0]
    if len(keys[rows].unique()) < len(wanted):
        return None
    found = places_of(_digests(images, _pixels), _digests(target.select(rows), _pixels))
    return None if found is None else rows[found]


def _digests(images: Images, what: Callable[[Images, int], str]) -> Tensor:
    """int64 [N]: of the identity of each picture and of what else tells it from others."""
    texts = (f"{key}\t{what(images, i)}" for i, key in enumerate(images.keys().tolist()))
    return torch.tensor([sha256_key(text.encode("utf-8", "surrogateescape")) for text in texts], dtype=torch.int64)


def _pixels(images: Images, i: int) -> str:
    picture = images.read(i)
    return f"{tuple(picture.shape)} {hashlib.sha256(picture.numpy().tobytes()).hexdigest()}"


def places_of(keys: Tensor, among: Tensor) -> Tensor | None:
    """For each key its place in `among`, the k-th of equal ones to the k-th there, int64 [M]; None unless all are there."""
    wanted, order = keys.sort(stable=True)
    there, places = among.sort(stable=True)
    nth = torch.arange(len(wanted)) - torch.searchsorted(wanted, wanted)
    found = torch.searchsorted(there, wanted) + nth
    if not len(there) or not bool((found < len(there)).all()) or not torch.equal(there[found], wanted):
        return None
    rows = torch.empty_like(order)
    rows[order] = places[found]
    return rows
