"""What a dense probe finds: it is fitted on the training images' patches, and says mIoU and pixel accuracy of each test set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ...core.evaluate.counts import Floats
from ...core.evaluate.held_out import CHOICE_FRACTION
from ...core.evaluate.measures import Measured
from ...core.evaluate.patch_probe import PatchFit, fit_patches, image_confusions, sliced_images
from ...core.evaluate.scores import Scored
from ...core.evaluate.segmentation import counts_of, measure_segmentation
from ...core.evaluate.taps import PATCHES
from ...core.run.directory import Run
from .dense import DenseProbe
from .pictures import save_examples

DENSE = "dense"


class DenseFound(NamedTuple):
    """chosen, candidates, fits: the entries of a result under the protocol's name."""

    chosen: dict[str, Any]
    candidates: list[dict[str, Any]]
    fits: dict[str, Any]

    def add_to(self, found: dict[str, Any]) -> None:
        """Add the entries to those of the other protocols."""
        found["chosen"] = {**found["chosen"], **{f"{DENSE}/{key}": value for key, value in self.chosen.items()}}
        found["fits"] = {**found.get("fits", {}), DENSE: self.fits}
        if self.candidates:
            found["candidates"] = {**found.get("candidates", {}), DENSE: self.candidates}


def score_dense(
    probe: DenseProbe, scored: Scored, train: Mapping[str, Tensor], shown: Mapping[str, Mapping[str, Tensor]], run: Run
) -> DenseFound:
    """Fit and score; metrics, intervals and details go into `scored`, and pictures into the run's folder.

    train: the features of the training images, by tap; shown: those of each test set, in the probe's order. Every process does the same.
    """
    name, *sets = probe.masks
    keys = probe.masks[name].images.units()
    fitted = fit_patches(
        train[PATCHES],
        probe.patch_labels,
        keys,
        probe.pixels(name),
        seed=run.seed,
        values_of_C=probe.settings.grid_of_C,
        most=probe.settings.patches,
        device=run.device,
    )
    labelled = int((probe.patch_labels >= 0).sum())
    run.log(
        f"dense: {fitted.used:,} of {labelled:,} labelled training patches of {len(keys):,} images, C = {fitted.model.C:g}"
    )
    for held, (test, features) in zip(sets, shown.items(), strict=True):
        key, measured = f"{test}/{DENSE}", _scored(probe, held, fitted, features[PATCHES], run.seed)
        scored.add_measured(key, measured)
        scored.details[key] |= _facts(probe, held, fitted, labelled)
        if run.main:
            save_examples(run.dir, held, probe, fitted.model, features[PATCHES])
    if not fitted.candidates:
        return DenseFound({}, [], {"choice": [], "refit": fitted.model.fit._asdict()})
    outer = sliced_images(keys, run.seed)
    drawn = {
        "drawn": "over content keys, whole images",
        "fraction": CHOICE_FRACTION,
        "seed": run.seed,
        "images": int(outer.sum()),
        "of_images": len(outer),
    }
    fits = {"choice": list(map(dict, fitted.choice)), "refit": fitted.model.fit._asdict(), "held_out": drawn}
    return DenseFound({"C": fitted.model.C}, list(map(dict, fitted.candidates)), fits)


def _scored(probe: DenseProbe, test: str, fitted: PatchFit, features: Tensor, seed: int) -> Measured:
    """The metrics of one test set. Memory: 24 bytes for each image and class, beside one image's enlarged logits."""
    classes, images = probe.table.names, probe.masks[test].images
    each: Floats = np.zeros((len(images), 3 * len(classes)))
    total = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for i, confusion in image_confusions([fitted.model], features, probe.pixels(test), range(len(images))):
        each[i] = counts_of(confusion[0])
        total += confusion[0]
    return measure_segmentation(each, total, images.units().numpy(), classes, seed)


def _facts(probe: DenseProbe, test: str, fitted: PatchFit, labelled: int) -> dict[str, Any]:
    """All that a number depends on and that is not in the config's other sections."""
    train = next(iter(probe.masks))
    without = [probe.table.names[k] for k in range(len(probe.table.names)) if k not in fitted.model.classes.tolist()]
    return {
        "protocol": "logistic regression on standardised patches; a patch's label is the mode of its pixels; C by mIoU on held-out "
        "training images; logits enlarged bilinearly",
        "tap": PATCHES,
        "grid": list(probe.grid),
        "resolution": probe.side,
        "ignore": probe.table.ignore,
        "values": list(probe.table.values),
        "patches": fitted.used,
        "of_patches": labelled,
        "never_predicted": without,
        "C": fitted.model.C,
        "masks": {"train": probe.surveys[train].digest, "test": probe.surveys[test].digest},
    }
