"""The dense linear probe: segmentation by a linear classifier on frozen patches. Here its keys, and what is checked before extraction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.evaluate.counts import Ints
from ...core.evaluate.logreg import check_C
from ...core.evaluate.patch_probe import DENSE_GRID, PixelLabels, sliced_images
from ...core.evaluate.segmentation import draw_patches
from ...core.evaluate.taps import PATCHES, available_taps, layout_of
from ...core.images.images import Images
from ...core.model.backbone import Backbone
from ...core.views.augmentation import LARGEST_SIDE
from ...core.views.view import Evaluation
from .mask_files import LARGEST_VALUE, MaskFiles
from .masks import ClassTable, Masks, MaskSurvey, class_table

DENSE_KEY = "evaluate.dense"
MOST_CLASSES = 10_000


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Segmentation by logistic regression on frozen patches, after CAPI (Darcet et al. 2025, arXiv:2502.08769): scored by mIoU.

    The whole protocol: the picture as `data` says (size, crop, resize, interpolation); the patch tokens after the last norm, or the last
    map of a convolutional network; each feature standardised over the training patches; the label of a patch is the mode of its pixels that
    count, those without any are left out; logistic regression from zeros to its minimum (no rate, no epochs); C by mIoU on the pixels of
    20 % of the training images, drawn over identities, then all are fitted; logits are enlarged bilinearly to `resolution`, and the largest
    is the class of a pixel. CAPI squeezes pictures into a square instead of cutting them, leaves out patches
    most of whose pixels are ignored, holds out a random 10 %, and gives all pixels of a patch one class.

    masks: Folder of the masks, each with its picture's name (cat/01.png for cat/01.jpg); or a pattern with {stem} for that name without
        ending (masks/{stem}_mask.png); or a mapping of `train` and each test set to one. PNG, TIFF, BMP or GIF of the picture's size, whose
        numbers are the classes: gray of up to 16 bits, or a palette.
    ignore: Number in the masks whose pixels count nowhere, 0 to 65535; null for none.
    classes: Number of classes, numbered from 0 in the masks, or their names in this order; null takes the numbers that the training masks
        hold.
    resolution: Side in pixels at which masks and predictions are compared, at least the patches of a side; null is data.size. It moves
        mIoU, so compare numbers of one resolution.
    patches: Number of labelled training patches that are used at most, drawn by seed; 50,000 of 768 numbers take 1.5 GB.
    C: Inverse strengths of the L2 penalty to try, 1e-12 to 1e12, as in scikit-learn; a single one is used without choosing. null tries
        CAPI's eight, 1e-6 to 1e5.
    """

    masks: str | dict[str, str]
    ignore: int | None = 255
    classes: int | tuple[str, ...] | None = None
    resolution: int | None = None
    patches: int = 50_000
    C: tuple[float, ...] | None = None

    @property
    def grid_of_C(self) -> list[float]:
        """The values to try, ascending. Raises UserError unless all are above 0."""
        return check_C(DENSE_GRID if self.C is None else self.C, f"{DENSE_KEY}.C")

    def check(self, size: int, grid: tuple[int, int]) -> None:
        """Raises UserError for values that no probe can have. size: of the input in pixels; grid: rows and columns of patches."""
        self.check_classes()
        if self.ignore is not None and not 0 <= self.ignore <= LARGEST_VALUE:
            raise UserError(
                f"{DENSE_KEY}.ignore: {self.ignore} is given; expected a number of the masks, 0 to {LARGEST_VALUE}, or null"
            )
        if self.patches < 1:
            raise UserError(f"{DENSE_KEY}.patches: {self.patches} is given; expected at least 1")
        side = size if self.resolution is None else self.resolution
        if not max(grid) <= side <= LARGEST_SIDE:
            raise UserError(
                f"{DENSE_KEY}.resolution: {side} px are given; expected {max(grid)} (the patches of a side) to {LARGEST_SIDE:,}"
            )
        _ = self.grid_of_C

    def check_classes(self) -> None:
        """Raises UserError for classes that are too few or too many, or names that are equal."""
        if self.classes is None:
            return
        count = self.classes if isinstance(self.classes, int) else len(self.classes)
        if not 2 <= count <= MOST_CLASSES:
            raise UserError(f"{DENSE_KEY}.classes: {count} classes are given; expected 2 to {MOST_CLASSES:,}")
        if not isinstance(self.classes, int) and len(set(self.classes)) < count:
            raise UserError(f"{DENSE_KEY}.classes: two names are equal; give each class its own")


class DenseProbe(NamedTuple):
    """A dense probe, ready for features. Everything that can be wrong with masks has been checked."""

    settings: Dense
    table: ClassTable
    masks: Mapping[str, Masks]  # by name of the set, the training set's first
    surveys: Mapping[str, MaskSurvey]
    grid: tuple[int, int]
    side: int
    patch_labels: Tensor  # int64 [N, P], of the training images; IGNORED where none

    def pixels(self, name: str) -> PixelLabels:
        """The labels of the pixels of a set."""
        masks, table = self.masks[name], self.table

        def labels(i: int) -> Ints:
            return table.indices(masks.numbers(i, self.side))

        return PixelLabels(labels, self.grid, self.side, len(table.names))


def prepare(
    section: Mapping[str, object] | None,
    sets: Mapping[str, Images],
    model: Backbone,
    view: Evaluation,
    seed: int,
    log: Callable[[str], None],
) -> DenseProbe | None:
    """Check the section `evaluate.dense`, the network, and all masks. None without a section. Raises UserError.

    sets: by name, the training images (without copies) first. view: of the evaluation.
    """
    if section is None:
        return None
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}
    settings = Dense(**fields)  # pyright: ignore[reportArgumentType]
    if PATCHES not in available_taps(model) or (grid := layout_of(model).grid) is None:
        raise UserError(
            f"{DENSE_KEY}: {model.spec['name']} has no features of single places; take a ViT or a convolutional network"
        )
    settings.check(model.size, grid)
    paths = MaskFiles(settings.masks).of_sets(sets)
    masks = {name: Masks(images, paths[name], view) for name, images in sets.items()}
    surveys = {name: found.survey(grid, settings.ignore) for name, found in masks.items()}
    table = class_table(settings.classes, settings.ignore, surveys)
    if settings.ignore in table.values:
        log(f"dense: class {table.names[table.values.index(settings.ignore)]} counts nowhere (evaluate.dense.ignore)")
    train, side = next(iter(surveys)), settings.resolution or model.size
    cells = surveys[train].cells
    labels = torch.from_numpy(table.indices(cells.clamp(min=0).numpy())).where(cells >= 0, -1)
    _check_slice(settings, labels, sets[train].units(), seed)
    for name in [name for name in surveys if name != train]:
        if not bool((surveys[name].cells >= 0).any()):
            raise UserError(
                f"{DENSE_KEY}: no pixel of the masks of {name} counts: all are {settings.ignore}, which is ignored, or lie outside what "
                "the view shows; correct the masks or evaluate.dense.ignore"
            )
    return DenseProbe(settings, table, masks, surveys, grid, side, labels)


def _check_slice(settings: Dense, labels: Tensor, keys: Tensor, seed: int) -> None:
    """Raises UserError if there are no patches to fit, or nothing to choose C on."""
    labelled = (labels >= 0).any(dim=1)
    if not bool(labelled.any()):
        raise UserError(
            f"{DENSE_KEY}: no pixel of the training masks counts in what the view shows; correct them or {DENSE_KEY}.ignore"
        )
    if len(settings.grid_of_C) == 1:
        return
    outer = sliced_images(keys, seed)
    if not bool(labelled[outer].any()) or not bool(labelled[~outer].any()):
        raise UserError(
            f"{DENSE_KEY}: there are too few different training images with pixels that count to choose C on a part of them; give "
            f"{DENSE_KEY}.C a single value"
        )
    drawn = draw_patches(labels, keys, settings.patches, seed)
    if bool(outer[drawn // labels.shape[1]].all()):
        raise UserError(
            f"{DENSE_KEY}.patches: {settings.patches} is given, and all patches that are drawn lie in the training images that are held "
            f"out to choose C on; give a larger number, or {DENSE_KEY}.C a single value"
        )
