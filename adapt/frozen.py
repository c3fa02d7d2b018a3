"""The features of a frozen backbone, computed once for each image: a step then costs what lies above the backbone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.evaluate.features import EvaluationView
from ..core.evaluate.frozen import features_of
from ..core.evaluate.taps import POOLED, Taps
from ..core.images.limits import size_of
from ..core.images.open import Images
from ..core.method import AdaptMethod
from ..core.model.classifier import Classifier
from ..core.run.directory import Run
from ..core.views.multiview import Multiview, StillView
from ..core.views.view import Evaluation

ROWS_AT_ONCE = 4096


class FrozenFeatures:
    """The features of all images, float32 [N, D], from the cache of features or from one pass over the images.

    They are those of the whole set in batches of 256, so the same bits on any number of processes and after a resume; a forward of the
    step's own images differs from them by rounding. A damaged training picture is an error here.
    """

    def __init__(self, run: Run, method: AdaptMethod, view: StillView, sets: Mapping[str, Images]) -> None:
        self.run, self.view, self.sets = run, view, sets
        self.classifier: Classifier = method.classifier
        self.taps = Taps(method.backbone, [POOLED])
        self._encoded = dict[str, Tensor]()  # in the view of evaluation, by content

    @staticmethod
    def of(
        run: Run,
        method: AdaptMethod,
        views: Mapping[str, Multiview],
        sets: Mapping[str, Images],
        data: Mapping[str, Any],
    ) -> FrozenFeatures | None:
        """None where a step needs images: the backbone learns, views vary or are several, pictures are decoded scaled, or the method uses
        pixels. views: of each domain.
        """
        if not method.backbone.frozen:
            return None
        view, *others = [StillView.of(each) for each in views.values()]
        varied = "with data.views=none it encodes each image once"
        why = _why_pictures(run, method, data) or (varied if view is None or None in others else "")
        if view is None or why:
            run.log(f"the frozen backbone encodes the images of every step; {why}")
            return None
        run.log("the frozen backbone encodes each image once")
        return FrozenFeatures(run, method, view, sets)

    def rows(self, name: str) -> Tensor:
        """The features of a training set by name, in the view of training."""
        return self._features(self.sets[name], self.view, self.view.describe())

    def features(self, images: Images, view: Evaluation) -> Tensor:
        """The features of a set in the view of evaluation, float32 [M, D]; encoded once in a run."""
        content = hashlib.sha256(images.keys().numpy().tobytes()).hexdigest()
        if content not in self._encoded:
            self._encoded[content] = self._features(images, view, None)
        return self._encoded[content]

    def batches(self, images: Images, view: Evaluation, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """The features of some rows of a set in the view of evaluation, [n, D] on the device for each int64 [n].

        Called on all processes, whichever rows each asks for: what is not yet encoded they encode together.
        """
        found = self.features(images, view)
        return (found[part].to(self.run.device) for part in rows)

    def read(self, images: Images, view: Evaluation) -> Iterator[Tensor]:
        """The features of some training images in the view of evaluation, in batches [n, D] on the device. Those of the whole set are
        encoded, once.
        """
        for parent in self.sets.values():
            if parent is images:  # blends of one digit have one identity, so rows are not looked up
                found = self.features(parent, view)
                break
            if (rows := _places(images.keys(), parent.keys())) is not None:
                found = self.features(parent, view)[rows]
                break
        else:
            found = self.features(images, view)
        for part in found.split(ROWS_AT_ONCE):
            yield part.to(self.run.device)

    def _features(self, images: Images, view: EvaluationView, described: Mapping[str, Any] | None) -> Tensor:
        run = self.run
        found = features_of(
            self.taps.to(run.device),
            images,
            view,
            device=run.device,
            workers=run.options["workers"],
            cache=size_of(run.options["feature_cache"], "run.feature_cache"),
            described=described,
            log=run.log,
        )
        return found[POOLED]


def _why_pictures(run: Run, method: AdaptMethod, data: Mapping[str, Any]) -> str:
    """Why a step needs pictures though the views draw nothing; "" if it doesn't."""
    if method.uses_pixels:
        return "this method needs the pictures"
    if data["decode"] != "full":
        return "with data.decode=full it encodes each image once"
    return "" if run.options["sharding"] == "none" else "with run.sharding=none it encodes each image once"


def _places(keys: Tensor, among: Tensor) -> Tensor | None:
    """The row in `among` of each key, both int64; None unless all are there."""
    ordered, order = among.sort(stable=True)
    places = torch.searchsorted(ordered, keys).clamp(max=len(among) - 1)
    return order[places] if bool((ordered[places] == keys).all()) else None
