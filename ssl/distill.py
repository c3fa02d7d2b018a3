"""Feature distillation: a small network learns the features of frozen trained ones, on images without labels.

The student gets what its teachers compute of the same view, through linear layers that are thrown away. On any images: of another domain
than the teachers', or of several. As in FitNets (Romero et al. 2015, arXiv:1412.6550), with the targets of Wei et al. 2022
(arXiv:2205.14141) and, for several teachers, the losses of Ranzinger et al. 2024 (AM-RADIO, arXiv:2312.06709).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import MOST_LAYERS, check_count, check_not_negative
from ..core.errors import UserError
from ..core.evaluate.trained import load_trained
from ..core.method import PretrainMethod, Step, Views
from ..core.model.backbone import Backbone, create
from ..core.model.frozen_teacher import FrozenTeacher, teach
from ..core.numerics import wide
from .parts.feature_maps import FeatureMaps, to_grid
from .parts.teacher_cache import TeacherCache, read_or_ask
from .watch.collapse import collapse_metrics

Distance = Literal["cosine", "mse", "smooth_l1"]
BETA = 2.0  # of smooth L1, as in arXiv:2205.14141, section 3.3
TIMM_PREFIX = "timm:"


def feature_loss(student: Tensor, teacher: Tensor, kind: Distance) -> Tensor:
    """How far features are from the teacher's, the mean over images and places.

    student, teacher: [N, D] or [N, P, D]. cosine: 1 - cos. mse, smooth_l1 (with beta 2): the mean over dimensions of their difference from
    the teacher's features after a LayerNorm without scale and shift (arXiv:2205.14141, section 3.3).
    """
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = wide(student), wide(teacher)
        if kind == "cosine":
            return (1.0 - F.cosine_similarity(ours, theirs, dim=-1)).mean()
        target = F.layer_norm(theirs, theirs.shape[-1:])
        return F.mse_loss(ours, target) if kind == "mse" else F.smooth_l1_loss(ours, target, beta=BETA)


class _Teacher(NamedTuple):
    """One of the teachers. maps: of its network. cache: None without `method.cache`."""

    frozen: FrozenTeacher
    maps: FeatureMaps
    cache: TeacherCache | None

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """The pooled features and the maps of the student's images."""
        shown = self.frozen.images(images)
        return self.maps(shown) if self.cache is None else read_or_ask(self.cache, shown, self.maps)


class Distill(PretrainMethod):
    """Distillation of features into a backbone.

    teacher: Whose features are learned: the folder of a finished run or of `rootstock import`, or timm:NAME for timm's published weights;
        or a list of several, whose losses are averaged.
    teacher_size: Side in pixels, 1 or more, to which views are resized for the teachers, which see the student's own view. null: the
        run's, or data.size for timm's weights.
    loss: How features are compared: cosine, mse or smooth_l1. The last two normalise the teacher's features first.
    pooled: Weight of the loss of the pooled features, 0 or more.
    places: Weight of the loss of the features of each place, the mean over depths, 0 or more. The finer of both grids is averaged to the
        coarser one.
    depths: At how many depths, 1 or more, evenly spaced, features of places are compared; 1 is the end of the network alone.
    cache: Folder in which the teachers' features of every view are kept, for another student with the same data, views and seed. null:
        they are computed in each step.

    Raises UserError for numbers out of their range, and for teachers that cannot be read or see other pictures.
    """

    views = 1
    rows_per_position = 1
    couples_samples = False
    takes_teacher = True

    def __init__(
        self,
        backbone: Backbone,
        chunk: int | None = None,
        *,
        teacher: str | list[str],
        teacher_size: int | None = None,
        loss: Distance = "cosine",
        pooled: float = 1.0,
        places: float = 1.0,
        depths: int = 1,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        check_not_negative("pooled", pooled, "1 is usual")
        check_not_negative("places", places, "1 is usual")
        check_count("depths", depths, 1, MOST_LAYERS, "1 to 4 is usual")
        if pooled == places == 0.0:
            raise UserError("method.pooled: with places 0 and pooled 0 there is nothing to learn; set one of both to 1")
        sources = [teacher] if isinstance(teacher, str) else list(teacher)
        if not sources:
            raise UserError("method.teacher: an empty list; name the folder of a run, or timm:NAME")
        self.backbone = backbone
        self.kind: Distance = loss
        self.weights = (pooled, places)
        levels = depths if places else 0
        self.maps = FeatureMaps(backbone, levels)
        teachers = [_teacher(source, backbone, teacher_size, levels, cache) for source in sources]
        # A tuple in a tuple is no module to torch, so the frozen parts are registered beside it.
        self.teachers = tuple(teachers)
        self.frozen_teachers = nn.ModuleList(one.frozen for one in teachers)
        widths = [self.maps.width, *self.maps.widths]
        self.adapters = nn.ModuleList(
            nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, [one.maps.width, *one.maps.widths], strict=True))
            for one in teachers
        )
        self.notes = tuple(
            f"method.cache holds {len(one.cache)} views of {one.frozen.source}, {one.cache.bytes_of_view / 1024:.1f} KiB each"
            for one in teachers
            if one.cache is not None
        )

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [1, N, C, h, w]; N is this process's share."""
        (images,) = batch.images
        features, *maps = self.maps(images)
        losses: dict[str, list[Tensor]] = {"pooled_loss": [], "places_loss": []}
        cosines = []
        for one, adapters in zip(self.teachers, self.adapters, strict=True):
            target, *targets = one.features(images)
            first, *others = adapters  # pyright: ignore[reportGeneralTypeIssues]
            if self.weights[0]:
                made = first(features)
                losses["pooled_loss"].append(feature_loss(made, target, self.kind))
                cosines.append(F.cosine_similarity(wide(made.detach()), wide(target), dim=-1).mean())
            for k, adapter in enumerate(others):
                here, there = self.maps.grids[k], one.maps.grids[k]
                common = (min(here[0], there[0]), min(here[1], there[1]))
                made = adapter(to_grid(maps[k], here, common))
                losses["places_loss"].append(feature_loss(made, to_grid(targets[k], there, common), self.kind))
        parts = {name: torch.stack(found).mean() for name, found in losses.items() if found}
        total = sum(weight * parts[name] for name, weight in zip(losses, self.weights, strict=True) if name in parts)
        assert isinstance(total, Tensor)
        metrics = {name: part.detach() for name, part in parts.items()}
        if cosines:
            metrics["teacher_cosine"] = torch.stack(cosines).mean()
        return Step(total, {**metrics, **collapse_metrics(features.detach())})


def _teacher(source: str, student: Backbone, size: int | None, levels: int, cache: str | None) -> _Teacher:
    """A teacher of this student. Raises UserError."""
    network = teacher_network(source, student, size)
    frozen = teach(student, network, network, key="method.teacher", source=source)
    maps = FeatureMaps(network, levels)
    if cache is None:
        return _Teacher(frozen, maps, None)
    shapes: list[tuple[int, ...]] = [(maps.width,)]
    shapes += [(a * b, width) for (a, b), width in zip(maps.grids, maps.widths, strict=True)]
    return _Teacher(frozen, maps, TeacherCache(cache, f"{frozen.identity[:16]}-{network.size}px-{levels}", shapes))


def teacher_network(source: str, student: Backbone, size: int | None) -> Backbone:
    """The network of a run, or of `timm:NAME`, whose pictures are the student's where `size` is None. Raises UserError."""
    given: Mapping[str, Any] = {"name": source.removeprefix(TIMM_PREFIX), "weights": "timm"}
    try:
        if source.startswith(TIMM_PREFIX):
            return create(size or student.size, student.channels, **given)
        trained = load_trained(source).backbone
        if size in (None, trained.size):
            return trained
        return create(size, trained.channels, weights=source)
    except UserError as error:
        message = str(error).replace("backbone.weights: ", "").replace("backbone.name: ", "").replace("backbone: ", "")
        raise UserError(f"method.teacher: {message.replace('data.size', 'method.teacher_size')}") from error
