"""The recipe of `rootstock adapt`: a labelled source and an unlabelled target in, a classifier for the target out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from ..core import stage
from ..core.config.resolve import Choice, Section
from ..core.draws import Draws
from ..core.evaluate.features import extract
from ..core.evaluate.pictures import save_map
from ..core.evaluate.scores import score
from ..core.images.damage import Damage, read_or_neighbour, rows_or_neighbours
from ..core.images.open import Images, holdout, open_images
from ..core.images.sets import (
    HELD_OUT,
    LABELLED,
    add_seen,
    align,
    describe_sets,
    exposure,
    labelled,
    open_tests,
)
from ..core.images.store import Stamp
from ..core.method import Labelled, Pair, RawBatch, RawPair, Unlabelled
from ..core.model.backbone import create
from ..core.model.classifier import Classifier
from ..core.run.directory import Run
from ..core.stream.batches import Decode
from ..core.train.fit import Training
from ..core.train.optim import Optim
from ..core.views.presets import VIEWS
from ..core.views.resample import Interpolation
from ..core.views.view import Evaluation, stack_pictures
from .frozen import FrozenFeatures
from .objective import METHOD, build_objective

SOURCE, TARGET = "source", "target"


def data_options(
    *,
    source: str | list[str],
    target: str | list[str],
    test: str | dict[str, str] | None = None,
    size: int,
    crop: float = 1.0,
    resize: int | None = None,
    interpolation: Interpolation = "bilinear",
    views: Annotated[dict[str, Any], Choice(VIEWS)] = {"name": "supervised"},
    decode: Decode = "full",
    stamp: Stamp = "mtime",
    selection: str = "last",
) -> None:
    """The `data` section of `rootstock adapt`.

    source: URI of the labelled source images, or a list of URIs whose union is taken.
    target: URI of the target images, or a list of URIs. Their labels, if any, are dropped when they are opened.
    test: URI of a labelled test set, or a mapping of names to URIs; null holds out 20 % of the source, and of the target where it has
        labels, by seed.
    size: Side of the network's input in pixels.
    crop: Part of the shorter side that evaluation keeps, 0.01 to 1 (0.875 takes 224 of 256 pixels). A picture that already has the size is
        taken whole.
    resize: Pixels to which evaluation resizes the shorter side before it cuts out the centre, at least size; null is size / crop. A
        picture that already has the size is taken whole.
    interpolation: How evaluation resizes: bilinear, or bicubic, as DINOv2, MAE and timm's ViTs are evaluated.
    views: How training images of both domains are augmented: a preset's name, or a mapping with its name and changed numbers.
    decode: How JPEG files are decoded: full, or scaled, which decodes a large file only as large as its crops need. Scaled is faster
        and gives slightly other pixels; evaluation always decodes in full.
    stamp: How a changed picture is noticed when the run resumes, in files and archives: size (another name or size), mtime (also another
        time of change) or content (also other bytes; reads every file at each start).
    selection: How the hyper-parameters of this config were chosen, as the result says it: last, train-split, source-val,
        tuned-on-target or oracle.
    """


class Sets(NamedTuple):
    """The images of an adaptation: the target's have no labels; classes are numbered as the source's everywhere."""

    source: Images
    target: Images
    tests: dict[str, Images]

    def training(self) -> dict[str, Images]:
        return {SOURCE: self.source, TARGET: self.target}

    def named(self) -> dict[str, Images]:
        return {**self.training(), **{f"test.{name}": images for name, images in self.tests.items()}}


class Adaptation(NamedTuple):
    """An adaptation, ready to run."""

    plan: Training
    fed: stage.Feed
    sets: Sets
    view: Evaluation
    frozen: FrozenFeatures | None  # where batches hold features of a frozen backbone instead of images


def build_adaptation(
    run: Run,
    data: Mapping[str, Any],
    backbone: Mapping[str, Any],
    method: Mapping[str, Any],
    optim: Mapping[str, Any],
    seed: int,
) -> Adaptation:
    """Open the sets and build network, method, augmentation and batches. Raises UserError."""
    torch.manual_seed(seed)
    settings, sets = Optim(**optim), open_sets(data, seed)
    stage.record_sets(run, sets.named(), data["stamp"])

    assert sets.source.classes is not None
    model = stage.network(backbone, data["size"], sets.source)
    objective = build_objective(method, model, sets.source.classes, backbone["weights"], run)
    stage.set_norm(run, objective, backbone["norm"])
    views = stage.augmentation(run, data["views"], objective, method["name"], sets.source)
    view = stage.evaluation(data, model)
    frozen = FrozenFeatures.of(run, objective, views, sets.training(), data)
    fed = stage.feed(run, sets.training(), views, data, settings, seed, frozen.rows if frozen else None)
    run.log(
        f"adapt {method['name']}: {len(sets.source)} source and {len(sets.target)} target images, "
        f"{fed.steps} steps of {settings.batch_size} images of each"
    )

    def shown(raw: RawBatch, draws: Draws) -> Tensor:
        return raw.images if frozen else views(raw, draws).images[0]

    def prepare(raw: RawPair) -> Pair:
        named = zip(sets.training(), raw, strict=True)
        source, target = (stage.draws_of(part.positions, name, sets.training(), seed) for name, part in named)
        return Pair(
            Labelled(shown(raw.source, source), raw.source.labels, source),
            Unlabelled(shown(raw.target, target), target),
        )

    return Adaptation(stage.training(run, objective, fed, prepare, settings), fed, sets, view, frozen)


def adapt(
    run: Run,
    *,
    data: Annotated[dict[str, Any], Section(data_options)],
    backbone: Annotated[dict[str, Any], Section(create)],
    method: Annotated[dict[str, Any], METHOD],
    optim: Annotated[dict[str, Any], Section(Optim)],
    seed: int = 0,
) -> dict[str, Any]:
    """Adapt a classifier from a labelled source to an unlabelled target, export it, and return the result of the last step.

    data: Source, target and test images, and how they are drawn.
    backbone: The network under the classifier.
    method: The adaptation method by name, with its keys and those of all methods.
    optim: Optimizer, learning rate and length of the training.
    seed: Seed of everything random, 0 or more.
    """
    plan, fed, sets, view, frozen = build_adaptation(run, data, backbone, method, optim, seed)
    stage.train(run, plan)
    objective: Any = plan.method
    objective.conclude(whole(sets.target, view, run.device, run.options["workers"], fed.damage))

    model, classifier = objective.backbone, objective.classifier
    if objective.sees_target:
        model.seen = add_seen(model.seen, "adapt", sets.target)
    model.seen = add_seen(model.seen, LABELLED, sets.source)
    stage.trace(run, model, sets.training(), data, method=method["name"], steps=fed.steps)
    if run.main:
        classifier.export(run.dir)
    if run.main and frozen is None:
        caption = "Augmented training images: source above, target below."
        stage.save_first(
            run, plan, model, lambda pair: torch.stack([part.images[: stage.SHOWN] for part in pair]), caption
        )
    outcome = _test(run, classifier, sets.tests, view, frozen)
    facts = describe_sets(sets.named(), held_out=data["test"] is None)
    return run.finish({"data": facts, **outcome, **fed.counts(), "selection": model.selection(data["selection"])})


def open_sets(data: Mapping[str, Any], seed: int) -> Sets:
    """Source, target and tests of the `data` section.

    The target is opened without labels and lies in the order of its content: neither a split nor the order of training
    depends on the class folders that its pictures may lie in.
    """
    source = labelled(open_images(data["source"], seed=seed), "data.source")
    target = open_images(data["target"], seed=seed, role="unlabelled")
    assert source.classes is not None
    if data["test"] is not None:
        names = isinstance(data["test"], Mapping)
        opened = open_tests(data["test"], seed)
        tests = {n: align(t, source.classes, f"data.test.{n}" if names else "data.test") for n, t in opened.items()}
        return Sets(source, _by_content(target), tests)
    source, source_test = holdout(source, fraction=HELD_OUT, seed=seed, stratify=True)
    tests = {SOURCE: source_test}
    # The same pictures once more, with labels for the final test alone; they play no part in cutting.
    known = open_images(data["target"], seed=seed, role="test")
    if known.labels is not None:
        assert source.classes is not None
        # Aligned before cutting: a class that the source lacks is refused wherever the cut would put its pictures.
        known = align(known, source.classes, "data.target")
        target, _ = holdout(target, fraction=HELD_OUT, seed=seed, stratify=False)
        _, held = holdout(known, fraction=HELD_OUT, seed=seed, stratify=False)
        tests = {TARGET: held, **tests}
    return Sets(source, _by_content(target), tests)


def whole(
    images: Images, view: Evaluation, device: torch.device, workers: int, damage: Damage, batch_size: int = 256
) -> Iterator[Tensor]:
    """Every image once, as evaluation sees it, in batches alike in size: float [n, C, h, w]; the same on every process.

    These are training images: a damaged one is replaced by its neighbour, as in the stream.
    """
    batches = torch.arange(len(images)).tensor_split(-(-len(images) // batch_size))

    def crop(index: int) -> tuple[Tensor, int]:
        picture, read = read_or_neighbour(images, index)
        return view.worker(picture), read

    with ThreadPoolExecutor(max(1, min(workers, os.cpu_count() or 1))) as pool:
        for wanted in batches:
            if images.uniform() is not None:
                raw, read = rows_or_neighbours(images, wanted)
            else:
                crops, numbers = zip(*pool.map(crop, wanted.tolist()), strict=True)
                raw, read = stack_pictures(crops), torch.tensor(numbers)
            damage.note(images, wanted, read)
            yield view(raw.to(device))


def _by_content(images: Images) -> Images:
    return images.select(images.keys().argsort(stable=True))


def _test(
    run: Run, classifier: Classifier, tests: Mapping[str, Images], view: Evaluation, frozen: FrozenFeatures | None
) -> dict[str, Any]:
    """What a result says about the tests, each image once."""
    workers, model = run.options["workers"], classifier.backbone
    if frozen is not None:
        scored, features = frozen.test(tests, view)
    else:
        scored = score(classifier, tests, view, classifier.outputs, run.device, run.seed, workers)
        features = {name: extract(model, t, view, device=run.device, workers=workers) for name, t in tests.items()}
    if run.main:
        scored.save(run.dir)
        save_map(run.dir, features, tests, run.seed)
    return {**exposure(model.seen, tests), **scored.as_result()}
