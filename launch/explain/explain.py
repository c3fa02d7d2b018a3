"""`rootstock explain`: what a classifier looked at, and how far each kind of map can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.distributed import connected
from ...core.errors import UserError
from ...core.evaluate.counts import Bools
from ...core.evaluate.trained import TrainedRun
from ...core.images.images import Images
from ...core.images.open import open_images
from ...core.images.sets import refuse_inside
from ...core.images.several import has_several
from ...core.images.split import hash_order
from ...core.images.survey import survey
from ...core.views.view import normalise, stack_pictures
from ...finetune.explain.curves import Curves
from ...finetune.explain.methods import Explainer, MapSettings, PicturesSeen, check_methods, is_constant
from ...finetune.explain.nearest import Neighbour, nearest_pictures
from ...finetune.explain.pointing import TOLERANCE_PART
from ...finetune.explain.randomised import maps_of
from ..aloud import conclude, say
from ..following import command
from ..outputs.pictures import damage_with_remedy, joined, without
from ..outputs.predict import labels_for
from .contents import Explained
from .masks import object_masks, share_in_words
from .measured import Measures, curves_at_random, measured_curves, measured_points, measured_sanity
from .network import explained_run
from .outcome import check_page_folder, write_outcome
from .training import pooled_features, training_pictures

PREDICTED, LABEL = "predicted", "label"


class Explaining(NamedTuple):
    """The options of the verb. of: predicted, label, or a class's name. pictures: on the page; measured: by sanity check and curves."""

    methods: tuple[str, ...] = ()
    settings: MapSettings = MapSettings()
    of: str = PREDICTED
    masks: str | None = None
    tolerance: float | None = None
    train: tuple[str, ...] = ()
    neighbours: int = 5
    pictures: int = 12
    measured: int = 12
    batch_size: int = 16
    workers: int = 8
    device: str = "auto"
    skip_damaged: bool = False

    def check(self) -> None:
        """Raises UserError for numbers out of range."""
        least = {"neighbours": 0, "pictures": 1, "measured": 0, "batch_size": 1}
        for name, low in least.items():
            if (value := getattr(self, name)) < low:
                raise UserError(f"--{name.replace('_', '-')}: expected {low} or more, got {value}")
        if self.tolerance is not None and not 0 <= self.tolerance < float("inf"):
            raise UserError(f"--tolerance: expected pixels, 0 or more, got {self.tolerance}")
        if self.tolerance is not None and self.masks is None:
            raise UserError(
                "--tolerance is of the pointing game, which needs masks; add --masks PLACE, or leave it out"
            )
        if not 1 <= self.settings.draws <= 10_000:
            raise UserError(f"--draws: expected 1 to 10000, got {self.settings.draws}")
        if self.settings.most_steps < self.settings.first_steps:
            raise UserError(f"--steps: expected {self.settings.first_steps} or more, got {self.settings.most_steps}")


def explain_pictures(run: Path, uris: Sequence[str], out: Path, asked: Explaining) -> int:
    """Write maps of the pictures as PNG files, a page and result.json into `out`. Returns the exit code 0. Raises UserError."""
    asked.check()
    device = joined(asked.device)
    if connected():
        raise UserError("rootstock explain works in one process; start it without torchrun or a launcher")
    check_page_folder(out)
    trained, classifier = explained_run(run)
    images = _opened(uris, trained, asked.skip_damaged)
    train = _training(trained, asked)
    for read in (images, train):
        if read is not None:
            refuse_inside(read, out, "--out")
    made, lacking = check_methods(asked.methods, classifier.to(device), asked.settings)
    labels, target, probability = _targets(trained, images, asked, device)
    masks = {} if asked.masks is None else object_masks(asked.masks, images, trained.view)
    rows, shown = chosen_rows(images, masks, asked)
    names = ", ".join(one.name for one in made)
    say(f"explain {trained.title}: {names}; maps of {len(rows)} of {len(images)} pictures, on {device}")
    for sentence in lacking:
        say(f"left out: {sentence}")
    if masks:
        say(
            f"masks: {len(masks)} of {len(images)} pictures have an object, which covers {share_in_words(masks)} on average"
        )
    side, tolerance = trained.view.size, _tolerance(asked, trained.view.size)
    seen = _seen(trained, images, rows, target, device)
    maps, constant, measures = dict[str, Tensor](), dict[str, list[int]](), dict[str, Measures]()
    chance = curves_at_random(classifier, seen.rows(slice(asked.measured)), asked.settings.seed, asked.batch_size)
    for explainer in made:
        found, empty = _maps(explainer, seen, rows, asked.batch_size)
        maps[explainer.name], constant[explainer.name] = found, [rows[k] for k in empty]
        good = [k for k in range(len(rows)) if k not in empty]
        measures[explainer.name] = _measures(explainer, seen, found, rows, good, masks, side, tolerance, chance, asked)
    neighbours = _neighbours(trained, images, train, rows[:shown], asked, device)
    explained = Explained(
        trained, classifier, images, labels, target, probability, rows, shown, made, lacking, maps, constant, measures, masks,
        tolerance, neighbours, train,
    )  # fmt: skip
    page = write_outcome(out, explained, asked.of, asked.settings.seed)
    print(page)
    conclude(verdict(explained), command("predict", str(run), *uris, "--out", "labels.csv"))
    return 0


def verdict(explained: Explained) -> str:
    """Which maps passed the sanity check, and how the pointing game went."""
    checked = {name: one.sanity for name, one in explained.measures.items() if one.sanity}
    passed = ", ".join(name for name, one in checked.items() if one.passed) or "none"
    failed = ", ".join(name for name, one in checked.items() if not one.passed and not one.refused)
    refused = ", ".join(name for name, one in checked.items() if one.refused)
    parts = [f"explain: {len(explained.rows)} pictures"]
    if checked:
        parts.append(f"maps that follow the weights: {passed}")
        parts += [f"maps that do not: {failed}"] if failed else []
        parts += [f"maps without a verdict: {refused}"] if refused else []
    for name, one in explained.measures.items():
        if one.game is not None:
            hits, chance = one.game.hits.estimate, one.game.chance.estimate
            parts.append(f"{name} points at the object in {100 * hits:.0f} % (chance {100 * chance:.0f} %)")
    return "; ".join(parts)


def _opened(uris: Sequence[str], trained: TrainedRun, skip_damaged: bool) -> Images:
    images = open_images(list(uris), role="test")
    if skip_damaged:
        images = without(images, [(int(i), str(why)) for i, why in survey(images).damaged], say)
    with damage_with_remedy():
        trained.check_pictures(images)
    return images


def _tolerance(asked: Explaining, side: int) -> float:
    return TOLERANCE_PART * side if asked.tolerance is None else asked.tolerance


def _targets(
    trained: TrainedRun, images: Images, asked: Explaining, device: torch.device
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Labels where the pictures have them, the output that is explained of each picture, and its probability."""
    classifier, labels = trained.classifier, None
    assert classifier is not None
    known = images.labels is not None and images.classes is not None and not has_several(images.labels)
    if asked.of == LABEL or (known and set(images.classes or ()) <= set(classifier.outputs)):
        labels = labels_for(trained, images, "--class label")
    probabilities = list[Tensor]()
    for start in range(0, len(images), asked.batch_size):
        rows = list(range(start, min(start + asked.batch_size, len(images))))
        with torch.no_grad():
            probabilities.append(classifier(_pixels(trained, images, rows, device)).double().softmax(1).cpu())
    table = torch.cat(probabilities)
    if asked.of == PREDICTED:
        target = table.argmax(1)
    elif asked.of == LABEL:
        assert labels is not None
        target = labels
    elif asked.of in classifier.outputs:
        target = torch.full((len(images),), classifier.outputs.index(asked.of))
    else:
        raise UserError(
            f"--class: {trained.title} has no class {asked.of}; give {PREDICTED}, {LABEL}, or one of {', '.join(classifier.outputs[:10])}"
        )
    return labels, target, table.gather(1, target[:, None])[:, 0]


def chosen_rows(images: Images, masks: Mapping[int, Bools], asked: Explaining) -> tuple[list[int], int]:
    """The pictures that get maps, and how many of them come on the page: drawn by content and seed, those with masks first."""
    place = {key: number for number, key in enumerate(hash_order(images.keys(), asked.settings.seed))}
    keys = images.keys().tolist()
    order = sorted(range(len(images)), key=lambda row: (bool(masks) and row not in masks, place[keys[row]], row))
    count = max(asked.pictures, asked.measured, len(masks))
    return order[:count], min(asked.pictures, len(order))


def _pixels(trained: TrainedRun, images: Images, rows: Sequence[int], device: torch.device) -> Tensor:
    with damage_with_remedy():
        crops = stack_pictures([trained.view.worker(images.read(row)) for row in rows])
    return trained.view(crops.to(device))


def _seen(trained: TrainedRun, images: Images, rows: list[int], target: Tensor, device: torch.device) -> PicturesSeen:
    view, keys, units = trained.view, images.keys()[rows], images.units()[rows]
    black = normalise(torch.zeros(1, trained.backbone.channels, 1, 1), view.mean, view.std)[0]
    return PicturesSeen(_pixels(trained, images, rows, device), target[rows].to(device), keys, units, black.to(device))


def _maps(explainer: Explainer, seen: PicturesSeen, rows: list[int], batch: int) -> tuple[Tensor, list[int]]:
    """The maps of all pictures, and the numbers of those that are constant. Raises UserError if all are."""
    found = maps_of(explainer, seen, batch)
    empty = is_constant(found).nonzero()[:, 0].tolist()
    if len(empty) == len(rows):
        raise UserError(
            f"{explainer.name}: the maps of all {len(rows)} pictures are constant, so they say nothing; take another method, or for "
            "grad-cam another --layer"
        )
    if empty:
        say(
            f"WARNING: {explainer.name}: the maps of {len(empty)} of {len(rows)} pictures are constant: they point at a place that is drawn"
        )
    if broken := [one for one in explainer.completed.values() if not one[3]]:
        worst = max(broken, key=lambda one: one[1])
        say(
            f"WARNING: {explainer.name}: of {len(broken)} of {len(rows)} pictures the attributions do not sum to the difference of the "
            f"logits after {worst[2]} points (at worst {worst[1]:.3g} of {worst[0]:.3g}); give a larger --steps"
        )
    return found, empty


def _measures(
    explainer: Explainer, seen: PicturesSeen, maps: Tensor, rows: list[int], good: list[int], masks: Mapping[int, Bools], side: int,
    tolerance: float, chance: Curves | None, asked: Explaining,
) -> Measures:  # fmt: skip
    seed, few = asked.settings.seed, [k for k in good if k < asked.measured]
    sanity, curves = None, None
    if few and chance is not None:
        some = seen.rows(few)
        say(f"{explainer.name}: sanity check, insertion and deletion on {len(few)} pictures")
        sanity = measured_sanity(explainer, some, seed, asked.batch_size)
        beside = Curves(*(curve[few] for curve in chance))
        curves = measured_curves(explainer.classifier, some, maps[few], beside, seed, asked.batch_size)
    game, points = measured_points(maps, rows, seen, masks, side, tolerance, seed)
    return Measures(sanity, curves, game, points)


def _training(trained: TrainedRun, asked: Explaining) -> Images | None:
    """The training pictures, among which the nearest ones are looked for; None, with a sentence, where they are not to be had."""
    if asked.neighbours == 0:
        return None
    try:
        return training_pictures(trained, asked.train)
    except UserError as error:
        if asked.train:
            raise
        say(f"WARNING: no nearest training pictures: {error}")
        return None


def _neighbours(
    trained: TrainedRun, images: Images, train: Images | None, rows: list[int], asked: Explaining, device: torch.device
) -> list[list[Neighbour]]:
    """The nearest training pictures of each picture on the page; none without training pictures."""
    if train is None:
        return [[] for _ in rows]
    few = images.select(torch.tensor(rows))
    bank, own = (pooled_features(trained, some, device, asked.workers, 256) for some in (train, few))
    return nearest_pictures(own, few.keys(), bank, train.keys(), asked.neighbours)
