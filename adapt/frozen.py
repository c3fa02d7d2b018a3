"""The features of frozen layers, computed once for each image: a step then costs what lies above them.

Of a backbone that is frozen as a whole these are its features, [N, D]; of one that is frozen up to a stage the maps at that boundary,
[N, C, h, w], on which a step runs the layers above (core/model/boundary.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.distributed import gather_texts
from ..core.evaluate.feature_key import weights_digest
from ..core.evaluate.features import EvaluationView
from ..core.evaluate.frozen import features_of
from ..core.evaluate.maps import BoundaryMaps, find_boundary, in_words
from ..core.evaluate.taps import POOLED, Taps
from ..core.images.damage import Damage, read_or_neighbour, readable_neighbours
from ..core.images.limits import size_of
from ..core.images.open import DamagedImage, Images
from ..core.method import AdaptMethod
from ..core.model.backbone import Backbone
from ..core.run.directory import Run
from ..core.stream.rows import KeptRows
from ..core.stream.workers import at_most_cores
from ..core.threads import in_threads
from ..core.views.multiview import Multiview, StillView
from ..core.views.view import Evaluation, stack_pictures
from .sets import Sets, in_batches, replaced_silently

ROWS_AT_ONCE = 4096  # of one axis each
LARGEST_STORE = 1 << 40
COMPARED = 4  # images on which the layers above the boundary are compared with the whole network


class FrozenFeatures:
    """The features of all images, float32 [N, D] or maps, from the cache of features or from one pass over the images.

    They are those of a whole domain in batches of 256, so the same bits on any number of processes and after a resume, and found again by
    other seeds, which hold other images out (`Sets.domains`); a forward of the step's own images differs from them by rounding. A damaged
    training picture is replaced by its neighbour, as in the stream; one of a test is an error.
    """

    def __init__(self, run: Run, taps: Taps, view: StillView, sets: Sets) -> None:
        """taps: one, of the frozen layers. view: of training."""
        self.run, self.taps, self.view, self.sets = run, taps, view, sets
        (self.name,) = taps.names
        self._known = dict[tuple[str, ...], tuple[Images, KeptRows]]()

    @staticmethod
    def of(
        run: Run,
        method: AdaptMethod,
        views: Mapping[str, Multiview],
        sets: Sets,
        data: Mapping[str, Any],
    ) -> FrozenFeatures | None:
        """None where a step needs images: nothing is frozen, views vary or are several, pictures are decoded scaled, the method uses
        pixels, or the layers above the frozen ones don't run on one map. views: of each domain.
        """
        model = method.backbone
        if not model.still:
            return None
        what = "the frozen backbone encodes" if model.frozen else "the frozen layers encode"
        view, *others = [StillView.of(each) for each in views.values()]
        varied = "with data.views=none each image is encoded once"
        why = _why_pictures(run, method, data) or (varied if view is None or None in others else "")
        if view is not None and not why and not model.frozen:
            why = _why_no_map(model, view, sets.source)
        if view is None or why:
            run.log(f"{what} the images of every step; {why}")
            return None
        above = ""
        if model.boundary is not None:
            above = f"; steps run the layers above {model.boundary.name} on maps of {in_words(model.boundary.shape)}"
        run.log(f"{what} each image once{above}")
        return FrozenFeatures(run, BoundaryMaps(model) if model.boundary else Taps(model, [POOLED]), view, sets)

    def rows(self, name: str) -> KeptRows:
        """The features of a training set by name, in the view of training."""
        return self._part("training", self.sets.training()[name], self.view, self.view.describe())

    def tested(self, images: Images, view: Evaluation) -> TestedRows:
        """The features of a test in the view of evaluation, encoded once in a run. Raises the error of a damaged picture."""
        found = self._once("tested", images, lambda images: KeptRows(self._features(images, view, None)))
        return TestedRows(found.numbers, images)

    def batches(self, images: Images, view: Evaluation, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """The features of some rows of a training set in the view of evaluation, [n, ...] on the device for each int64 [n].

        Called on all processes, whichever rows each asks for: what is not yet encoded they encode together.
        """
        found = self._part("seen", images, view)
        return (_taken(found, part).to(self.run.device) for part in rows)

    def read(self, images: Images, view: Evaluation, damage: Damage | None = None) -> Iterator[Tensor]:
        """The features of some training images in the view of evaluation, in batches [n, ...] on the device. Those of the whole set are
        encoded, once. A damaged picture is replaced by its neighbour among `images`, as `whole` does.
        """
        found, damage = self._part("seen", images, view), damage or replaced_silently()
        everything = torch.arange(len(images))
        parts = everything.split(ROWS_AT_ONCE) if self.taps.axes(self.name) == 1 else in_batches(len(images))
        for part in parts:
            damage.note(images, part, part if found.read is None else found.read[part])
            yield _taken(found, part).to(self.run.device)

    def _part(
        self, role: str, images: Images, view: EvaluationView, described: Mapping[str, Any] | None = None
    ) -> KeptRows:
        """The features of images as a part of those of their whole domain; of images that are in none, their own."""

        def encoded(images: Images) -> KeptRows:
            return self._once(role, images, lambda images: self._replaced(images, view, described))

        for parent in self.sets.domains():
            if (places := _places(images, parent)) is not None:
                break
        else:
            return encoded(images)
        whole = encoded(parent)
        if whole.read is None or whole.row is None:
            return KeptRows(whole.numbers, None, places)
        read = readable_neighbours(images, (whole.read == torch.arange(len(parent)))[places])
        return KeptRows(whole.numbers, read, whole.row[places[read]])

    def _once(self, role: str, images: Images, find: Callable[[Images], KeptRows]) -> KeptRows:
        """Kept for these images by their places, since blends of one digit have one identity, and for the layers as they are (AdaBN)."""
        places = hashlib.sha256(_codes(images, {}).numpy().tobytes()).hexdigest()
        key = (role, places, repr([id(store) for store in images.stores]), self._weights())
        if key not in self._known:
            self._known[key] = images, find(images)
        return self._known[key][1]

    def _weights(self) -> str:
        return self.taps.digest() if isinstance(self.taps, BoundaryMaps) else weights_digest(self.taps.backbone)

    def _replaced(self, images: Images, view: EvaluationView, described: Mapping[str, Any] | None) -> KeptRows:
        """The features of training images, a damaged one replaced by its neighbour."""
        try:
            return KeptRows(self._features(images, view, described))
        except DamagedImage:  # on all processes
            readable = self._readable(images)
            read = readable_neighbours(images, readable)
        numbers = self._features(images.select(readable.nonzero()[:, 0]), view, described)
        return KeptRows(numbers, read, (readable.cumsum(0) - 1)[read])

    def _readable(self, images: Images) -> Tensor:
        """bool [N]: the images that every process can read."""

        def damaged(index: int) -> bool:
            try:
                images.read(index)
            except DamagedImage:
                return True
            return False

        with in_threads(at_most_cores(self.run.options["workers"])) as side_by_side:
            own = [index for index, wrong in enumerate(side_by_side(damaged, range(len(images)))) if wrong]
        readable = torch.ones(len(images), dtype=torch.bool)
        for text in gather_texts(" ".join(map(str, own))):
            readable[[int(index) for index in text.split()]] = False
        return readable

    def _features(self, images: Images, view: EvaluationView, described: Mapping[str, Any] | None) -> Tensor:
        run, taps = self.run, self.taps
        found = features_of(
            taps.to(run.device),
            images,
            view,
            device=run.device,
            workers=run.options["workers"],
            cache=size_of(run.options["feature_cache"], "run.feature_cache"),
            weights=self._weights(),
            described=described,
            log=run.log,
        )
        return found[self.name]


class TestedRows:
    """The features of a test, [M, ...], for `extract` in the place of its pictures."""

    def __init__(self, numbers: Tensor, images: Images) -> None:
        self.numbers, self.images = numbers, images

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, i: int) -> Tensor:
        """The features of one image."""
        return self.numbers[i]

    def uniform(self) -> object:
        """That they need no decoding."""
        return self.numbers.shape[1:]

    def rows(self, indices: Tensor) -> Tensor:
        """The features of some images, [m, ...]."""
        return self.numbers.index_select(0, indices)

    def full_name(self, i: int) -> str:
        """That of the picture."""
        return self.images.full_name(i)


class AsTheyAre:
    """The view of features."""

    def worker(self, image: Tensor) -> Tensor:
        """The same."""
        return image

    def __call__(self, images: Tensor) -> Tensor:
        return images


def _why_pictures(run: Run, method: AdaptMethod, data: Mapping[str, Any]) -> str:
    """Why a step needs pictures though the views draw nothing; "" if it doesn't."""
    if method.uses_pixels:
        return "this method needs the pictures"
    if data["decode"] != "full":
        return "with data.decode=full each image is encoded once"
    return "" if run.options["sharding"] == "none" else "with run.sharding=none each image is encoded once"


def _why_no_map(model: Backbone, view: StillView, source: Images) -> str:
    """Why the layers above the frozen ones need pictures, the same on all processes; "" if they don't, and the boundary is set."""
    shown = range(min(COMPARED, len(source)))
    pictures = stack_pictures([view.worker(read_or_neighbour(source, index)[0]) for index in shown])
    why = find_boundary(model, view(pictures.to(next(model.parameters()).device)))
    if every := [reason for reason in gather_texts(why) if reason]:
        model.boundary, why = None, every[0]
    return why


def _taken(found: KeptRows, index: Tensor) -> Tensor:
    return found.numbers.index_select(0, index if found.row is None else found.row[index])


def _codes(images: Images, known: dict[int, int]) -> Tensor:
    """int64 [N]: a number for the place of each image, equal for the same picture of the same store. known: the numbers of stores."""
    numbers = [known.setdefault(id(store), len(known)) for store in images.stores]
    which, index = (torch.tensor(part, dtype=torch.int64) for part in images.places())
    return torch.tensor(numbers, dtype=torch.int64)[which] * LARGEST_STORE + index


def _places(images: Images, among: Images) -> Tensor | None:
    """The row in `among` of each image, int64 [N], by store and number there; None unless all are in it."""
    known = dict[int, int]()
    there, keys = _codes(among, known), _codes(images, known)
    ordered, order = there.sort(stable=True)
    places = torch.searchsorted(ordered, keys).clamp(max=len(there) - 1)
    return order[places] if bool((ordered[places] == keys).all()) else None
