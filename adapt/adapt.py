"""The recipe of `rootstock adapt`: a labelled source and an unlabelled target in, a classifier for the target out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from ..core.config import resolve as config
from ..core.config.resolve import Choice, Section
from ..core.distributed import rank, world
from ..core.evaluate.features import extract
from ..core.evaluate.pictures import denormalise, save_map, save_sheet
from ..core.evaluate.scores import score
from ..core.images.damage import Damage, read_or_neighbour, rows_or_neighbours
from ..core.images.open import Images, holdout, open_images
from ..core.images.sets import (
    HELD_OUT,
    LABELLED,
    add_seen,
    align,
    describe,
    exposure,
    fingerprints,
    labelled,
    open_tests,
)
from ..core.method import Labelled, Pair, RawPair, Unlabelled
from ..core.model import norm
from ..core.model.backbone import create
from ..core.model.classifier import Classifier
from ..core.run.directory import Run
from ..core.stream.batches import Batches, Decode, Share, pairs, source_draws, stream
from ..core.stream.order import Order
from ..core.train.fit import Every, fit
from ..core.train.optim import Optim
from ..core.views.multiview import Multiview
from ..core.views.presets import VIEWS
from ..core.views.view import Evaluation, stack_pictures
from .registry import METHODS

SOURCE, TARGET = "source", "target"


def data_options(
    *,
    source: str | list[str],
    target: str | list[str],
    test: str | dict[str, str] | None = None,
    size: int,
    crop: float = 1.0,
    views: Annotated[dict[str, Any], Choice(VIEWS)] = {"name": "supervised"},
    decode: Decode = "full",
    selection: str = "last",
) -> None:
    """source: labelled images. target: images whose labels, if any, are dropped on opening. test: a labelled set or several by
    name; without it 20 % of the source, and of the target where it has labels, are held out by seed. size: pixels. views:
    augmentation of both domains. decode: JPEGs in full, or scaled: large ones only as large as their crops need, sooner but
    with slightly other pixels; evaluation always decodes in full. selection: how the hyper-parameters of this config were
    chosen, said in the result.
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


def adapt(
    run: Run,
    *,
    data: Annotated[dict[str, Any], Section(data_options)],
    backbone: Annotated[dict[str, Any], Section(create)],
    method: Annotated[dict[str, Any], Choice(METHODS)],
    optim: Annotated[dict[str, Any], Section(Optim)],
    seed: int = 0,
) -> dict[str, Any]:
    """Adapt, export, and return the result of the last iterate."""
    torch.manual_seed(seed)
    settings, sets = Optim(**optim), open_sets(data, seed)
    run.record(data=fingerprints(sets.named()))
    objective = _objective(run, sets.source, data["size"], backbone, method)
    model = objective.backbone
    views = config.build(data["views"], VIEWS, data["size"], model.mean, model.std, 1).refuse_local(method["name"])
    views.warn_unused(read_or_neighbour(sets.source, 0)[0].shape[0], run.log)
    view = Evaluation(data["size"], crop=data["crop"], mean=model.mean, std=model.std)

    damage = Damage(run.options["damaged"], report=run.log)
    orders = {name: Order(len(s), settings.batch_size, seed, name) for name, s in sets.training().items()}
    epoch = orders[SOURCE].steps_per_epoch
    steps = settings.steps(epoch)
    batches = _batches(run, sets, orders, views, steps, damage, data["decode"])
    run.log(
        f"adapt {method['name']}: {len(sets.source)} source and {len(sets.target)} target images, "
        f"{steps} steps of 2 x {settings.batch_size}"
    )

    def prepare(raw: RawPair) -> Pair:
        source, target = (
            source_draws(seed, sample.positions, name) for name, sample in zip((SOURCE, TARGET), raw, strict=True)
        )
        return Pair(
            Labelled(views(raw.source, source).images[0], raw.source.labels, source),
            Unlabelled(views(raw.target, target).images[0], target),
        )

    fit(
        objective, batches, prepare,
        steps=steps, steps_per_epoch=epoch, optim=settings, seed=seed, run=run, every=Every.of(run, steps, epoch),
    )  # fmt: skip
    objective.conclude(whole(sets.target, view, run.device, run.options["workers"], damage))

    if objective.sees_target:
        model.seen = add_seen(model.seen, "adapt", sets.target)
    model.seen = add_seen(model.seen, LABELLED, sets.source)
    told = {"task": "adapt", "method": method["name"], "steps": steps, "seed": seed, "selection": data["selection"]}
    model.provenance.append({**told, "data": describe(sets.training())})
    if run.main:
        objective.classifier.export(run.dir)
        _draw(run, batches, prepare, objective.classifier)
    outcome = _test(run, objective.classifier, sets.tests, view)
    counts = {"steps": steps, "images_seen": 2 * steps * settings.batch_size, "damaged": list(damage.names.values())}
    facts = describe(sets.named(), held_out=data["test"] is None)
    return run.finish({"data": facts, **outcome, **counts, "selection": model.selection(data["selection"])})


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


def _objective(run: Run, source: Images, size: int, backbone: Mapping[str, Any], method: Mapping[str, Any]) -> Any:
    """The method around a classifier of the source's classes."""
    assert source.classes is not None
    model = create(size, channels=read_or_neighbour(source, 0)[0].shape[0], **backbone)
    classifier = Classifier(model, source.classes)
    objective: Any = config.build(method, METHODS, classifier, run.options["chunk"])
    if objective.keeps_head:
        classifier.load_head(backbone["weights"])
    accumulate, chunk = run.options["accumulate"], run.options["chunk"]
    norm.configure(objective, backbone["norm"], accumulate=accumulate, chunk=chunk, log=run.log)
    return objective


def _batches(
    run: Run, sets: Sets, orders: Mapping[str, Order], views: Multiview, steps: int, damage: Damage, decode: Decode
) -> Batches:
    share = Share(rank(), world(), run.options["accumulate"])
    source, target = (
        stream(
            images, orders[name], views,
            steps=steps, device=run.device, share=share, workers=run.options["workers"], damage=damage,
            resident=run.options["resident"], decode=decode,
        )
        for name, images in sets.training().items()
    )  # fmt: skip
    return pairs(source, target)


def _test(run: Run, classifier: Classifier, tests: Mapping[str, Images], view: Evaluation) -> dict[str, Any]:
    """What a result says about the tests, each image once."""
    workers = run.options["workers"]
    scores = score(classifier, tests, view, classifier.classes, run.device, run.seed, workers)
    model = classifier.backbone
    features = {name: extract(model, t, view, device=run.device, workers=workers) for name, t in tests.items()}
    if run.main:
        save_map(run.dir, features, tests, run.seed)
    return {**exposure(model.seen, tests), **scores._asdict()}


def _draw(run: Run, batches: Batches, prepare: Callable[[Any], Pair], classifier: Classifier) -> None:
    """The first augmented images of both domains."""
    first = next(iter(batches(0)), None)
    if first is None:
        return
    pair = prepare(first[0])
    rows = torch.stack([pair.source.images[:12], pair.target.images[:12]])
    shown = denormalise(rows, classifier.backbone.mean, classifier.backbone.std)
    save_sheet(run.dir, "views", shown, "Augmented training images: source above, target below.")
