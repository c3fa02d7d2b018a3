"""The recipe of `rootstock adapt`: a labelled source and an unlabelled target in, a classifier for the target out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from ..core import config, norm
from ..core.backbone import create
from ..core.classifier import Classifier, score
from ..core.config import Choice, Section
from ..core.distributed import rank, world
from ..core.features import extract
from ..core.images.source import Images, holdout, open_images
from ..core.optim import Optim
from ..core.pictures import denormalise, save_map, save_sheet
from ..core.presets import VIEWS
from ..core.run import Run
from ..core.sets import HELD_OUT, add_seen, align, count_seen, count_trained, describe, fingerprints, labelled, open_tests
from ..core.stream import Damage, Labelled, Order, Pair, PairSample, Share, Unlabelled, pairs, source_draws, stream
from ..core.train import Every, fit
from ..core.views import Evaluation, Multiview
from .registry import METHODS

SOURCE, TARGET = "source", "target"


def data_options(
    *,
    source: str | list[str],
    target: str | list[str],
    test: str | dict[str, str] | None = None,
    size: int,
    crop: float = 1.0,
    views: Annotated[dict[str, Any], Choice(VIEWS)] = {"name": "supervised"},  # noqa: B006
    selection: str = "last",
) -> None:
    """source: labelled images. target: images whose labels, if any, are dropped on opening. test: a labelled set or several by
    name; without it 20 % of the source, and of the target where it has labels, are held out by seed. size: pixels. views:
    augmentation of both domains. selection: how the hyper-parameters of this config were chosen, said in the result.
    """


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
    options, settings = run.options, Optim(**optim)
    source, target, tests = _sets(data, seed)
    run.record(data=fingerprints({SOURCE: source, TARGET: target, **{f"test.{name}": t for name, t in tests.items()}}))
    assert source.classes is not None
    model = create(data["size"], channels=source.read(0).shape[0], **backbone)
    view = Evaluation(data["size"], crop=data["crop"], mean=model.mean, std=model.std)
    classifier = Classifier(model, source.classes)
    objective: Any = config.build(method, METHODS, classifier)
    if objective.keeps_head:
        classifier.load_head(backbone["weights"])
    norm.configure(objective, backbone["norm"], accumulate=options["accumulate"], chunk=options["chunk"], log=run.log)
    views = Multiview([config.build(data["views"], VIEWS, data["size"], model.mean, model.std)])

    damage = Damage(options["damaged"], report=run.log)
    orders = {name: Order(len(s), settings.batch_size, seed, name) for name, s in ((SOURCE, source), (TARGET, target))}
    steps = settings.steps(orders[SOURCE].steps_per_epoch)
    source_batches, target_batches = (
        stream(
            images, orders[name], views.crop, steps=steps, device=run.device, share=Share(rank(), world(), options["accumulate"]),
            workers=options["workers"], damage=damage,
        )
        for name, images in ((SOURCE, source), (TARGET, target))
    )  # fmt: skip
    run.log(f"adapt {method['name']}: {len(source)} source and {len(target)} target images, {steps} steps of 2 x {settings.batch_size}")

    def prepare(raw: PairSample) -> Pair:
        draws = {name: source_draws(seed, sample.positions, name) for name, sample in zip((SOURCE, TARGET), raw, strict=True)}
        return Pair(
            Labelled(views(raw.source.images, draws[SOURCE])[0], raw.source.labels, draws[SOURCE]),
            Unlabelled(views(raw.target.images, draws[TARGET])[0], draws[TARGET]),
        )

    batches = pairs(source_batches, target_batches)
    fit(
        objective, batches, prepare, steps=steps, steps_per_epoch=orders[SOURCE].steps_per_epoch, optim=settings, seed=seed, run=run,
        every=Every.of(run, steps, orders[SOURCE].steps_per_epoch),
    )  # fmt: skip
    if hasattr(objective, "conclude"):
        objective.conclude(whole(target, view, run.device, options["workers"]))

    seen = add_seen(model.seen, "adapt", target)
    scores = score(classifier, tests, view, source.classes, run.device, seed, options["workers"])
    features = {name: extract(model, t, view, device=run.device, workers=options["workers"]) for name, t in tests.items()}
    model.seen = seen
    model.provenance.append({"task": "adapt", "method": method["name"], "steps": steps, "seed": seed, "data": describe({SOURCE: source, TARGET: target})})
    if run.main:
        classifier.export(run.dir)
        _draw(run, batches, prepare, classifier)
        save_map(run.dir, features, tests, seed)
    return run.finish(
        {
            "data": describe({SOURCE: source, TARGET: target, **{f"test.{n}": t for n, t in tests.items()}}, held_out=data["test"] is None),
            "seen_unlabelled": count_seen(seen, tests),
            "seen_labelled": count_trained(source, tests),
            "metrics": scores.metrics,
            "intervals": scores.intervals,
            "details": scores.details,
            "steps": steps,
            "images_seen": 2 * steps * settings.batch_size,
            "damaged": list(damage.names.values()),
            "selection": data["selection"],
        }
    )


def whole(images: Images, view: Evaluation, device: torch.device, workers: int, batch_size: int = 256) -> Iterator[Tensor]:
    """Every image once, in order, as evaluation sees it: float [n, C, h, w]; the same on every process."""
    resident = images.resident()
    for start in range(0, len(images), batch_size):
        stop = min(start + batch_size, len(images))
        if resident is not None:
            raw = resident[start:stop]
        else:
            raw = torch.stack([view.worker(images.read(i)) for i in range(start, stop)])
        yield view(raw.to(device))


def _sets(data: Mapping[str, Any], seed: int) -> tuple[Images, Images, dict[str, Images]]:
    """Source, target without labels, and the tests with classes as the source numbers them."""
    source = labelled(open_images(data["source"], seed=seed), "data.source")
    assert source.classes is not None
    if data["test"] is not None:
        target = open_images(data["target"], seed=seed, role="unlabelled")
        tests = open_tests(data["test"], seed)
        return source, target, {name: align(t, source.classes, f"data.test.{name}") for name, t in tests.items()}
    tests = {}
    source, tests[SOURCE] = holdout(source, fraction=HELD_OUT, seed=seed, stratify=True)
    # Labels play no part in cutting the target; the held-out part keeps them for the final test alone.
    target, held = holdout(open_images(data["target"], seed=seed, role="test"), fraction=HELD_OUT, seed=seed, stratify=False)
    if held.labels is not None:
        tests[TARGET] = align(held, source.classes, "data.target")
    return source, target.unlabelled(), dict(reversed(tests.items()))


def _draw(run: Run, batches: Any, prepare: Any, classifier: Classifier) -> None:
    first = next(iter(batches(0)), None)
    if first is None:
        return
    pair = prepare(first[0])
    rows = torch.stack([pair.source.images[:12], pair.target.images[:12]])
    model = classifier.backbone
    save_sheet(run.dir, "views", denormalise(rows, model.mean, model.std), "Augmented training images: source above, target below.")
