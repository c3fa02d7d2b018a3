"""The recipe of `rootstock adapt`: a labelled source and an unlabelled target in, a classifier for the target out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from ..core import stage
from ..core.config.resolve import Choice, Section
from ..core.distributed import broadcast_text
from ..core.draws import Draws
from ..core.errors import UserError
from ..core.evaluate.looks import refuse_damaged_looks
from ..core.images.sets import (
    LABELLED,
    add_seen,
    describe_sets,
    trained_with_labels,
)
from ..core.images.store import Stamp
from ..core.method import Domains, Labelled, RawBatch, RawPair, Unlabelled
from ..core.model.backbone import create
from ..core.run.directory import Run
from ..core.stream.batches import Decode
from ..core.train.fit import Training
from ..core.train.optim import Optim
from ..core.views.presets import VIEWS
from ..core.views.resample import Interpolation
from ..core.views.view import Evaluation
from .examine import Examination, check_examination, examine_options
from .frozen import FrozenFeatures
from .objective import METHOD, build_objective
from .outcome import final_test, logits_of_tests
from .sets import Reader, Sets, open_sets, replaced_silently, whole
from .shift import check_label_shift, estimate_shift, label_shift_options, resample
from .validators.selection import add_regrets


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


class Adaptation(NamedTuple):
    """An adaptation, ready to run."""

    plan: Training
    fed: stage.Feed
    sets: Sets
    view: Evaluation
    frozen: FrozenFeatures | None  # where batches hold features of a frozen backbone instead of images
    read: Reader
    examination: Examination | None  # scores and diagnostics that need no target label


def build_adaptation(
    run: Run,
    data: Mapping[str, Any],
    backbone: Mapping[str, Any],
    method: Mapping[str, Any],
    optim: Mapping[str, Any],
    label_shift: Mapping[str, Any],
    evaluate: Mapping[str, Any] | None,
    seed: int,
) -> Adaptation:
    """Open the sets and build network, method, augmentation and batches. Raises UserError."""
    torch.manual_seed(seed)
    settings, sets = Optim(**optim), open_sets(data, seed)
    if evaluate is not None:
        check_examination(evaluate)
        sets = sets.hold_out(evaluate["held_out"], seed)
    stage.record_sets(run, sets.named(), data["stamp"])

    assert sets.source.classes is not None
    model = stage.network(backbone, data["size"], sets.source)
    objective = build_objective(method, model, sets.source.classes, backbone["weights"], run)
    check_label_shift(label_shift, objective)
    if label_shift["resample"] != "none":
        resample(objective, sets.source)
    stage.set_norm(run, objective, backbone["norm"])
    views = stage.augmentation(run, data["views"], objective, method["name"], sets.source)
    view = stage.evaluation(data, model)
    frozen = FrozenFeatures.of(run, objective, views, sets.of_training(), data)
    fed = stage.feed(run, sets.training(), views, data, settings, seed, frozen.rows if frozen else None)
    run.log(
        f"adapt {method['name']}: {len(sets.source)} source and {len(sets.target)} target images, "
        f"{fed.steps} steps of {settings.batch_size} images of each"
    )

    def shown(raw: RawBatch, draws: Draws) -> Tensor:
        return raw.images if frozen else views(raw, draws).images[0]

    def prepare(raw: RawPair) -> Domains:
        named = zip(sets.training(), raw, strict=True)
        source, target = (stage.draws_of(part.positions, name, sets.training(), seed) for name, part in named)
        return Domains.of(
            Labelled(shown(raw.source, source), raw.source.labels, source),
            Unlabelled(shown(raw.target, target), target),
        )

    pictures = partial(whole, view=view, device=run.device, workers=run.options["workers"], damage=replaced_silently())
    read = pictures if frozen is None else partial(frozen.read, view=view)
    test = partial(logits_of_tests, run, sets.tests, view, frozen)
    examination = None if evaluate is None else Examination(run, evaluate, sets, read, pictures, test)
    plan = stage.training(run, objective, fed, prepare, settings, evaluate["every"] if evaluate else None)
    return Adaptation(plan, fed, sets, view, frozen, read, examination)


def adapt(
    run: Run,
    *,
    data: Annotated[dict[str, Any], Section(data_options)],
    backbone: Annotated[dict[str, Any], Section(create)],
    method: Annotated[dict[str, Any], METHOD],
    optim: Annotated[dict[str, Any], Section(Optim)],
    label_shift: Annotated[dict[str, Any], Section(label_shift_options)] = {},
    evaluate: Annotated[dict[str, Any] | None, Section(examine_options)] = {},
    seed: int = 0,
) -> dict[str, Any]:
    """Adapt a classifier from a labelled source to an unlabelled target, export it, and return the result of the last step.

    data: Source, target and test images, and how they are drawn.
    backbone: The network under the classifier.
    method: The adaptation method by name, with its keys and those of all methods.
    optim: Optimizer, learning rate and length of the training.
    label_shift: What is done about class priors that differ between source and target.
    evaluate: What is measured without target labels: validators' scores of candidates, and diagnostics; null for nothing.
    seed: Seed of everything random, 0 or more.
    """
    if trouble := broadcast_text(refuse_damaged_looks(run.dir) if run.main else ""):
        raise UserError(trouble)
    built = build_adaptation(run, data, backbone, method, optim, label_shift, evaluate, seed)
    plan, fed, sets, view, examination = built.plan, built.fed, built.sets, built.view, built.examination
    objective: Any = plan.method
    if examination is not None:
        examination.start(objective.classifier)
    stage.train(run, plan, {"candidate": examination} if examination is not None and plan.every.evaluate else {})
    objective.conclude(whole(sets.target, view, run.device, run.options["workers"], fed.damage))

    model, classifier = objective.backbone, objective.classifier
    if objective.sees_target:
        model.seen = add_seen(model.seen, "adapt", sets.target)
    model.seen = add_seen(model.seen, LABELLED, sets.source)
    for sentence in trained_with_labels(model.seen, sets.tests):
        run.log(sentence)
    stage.trace(run, model, sets.training(), data, method=method["name"], steps=fed.steps)
    if run.main:
        classifier.export(run.dir)
    if run.main and built.frozen is None:
        caption = "Augmented training images: source above, target below."
        stage.save_first(
            run,
            plan,
            model,
            lambda both: torch.stack([p.images[: stage.SHOWN] for p in (both.source, both.target)]),
            caption,
        )
    # Before the final test: no choice can follow from a label of the target.
    measured = {} if examination is None else examination.conclude(classifier, fed.steps, plan.every.evaluate)
    shift = estimate_shift(objective, sets, built.read, label_shift, seed)
    states = {} if examination is None else examination.states(fed.steps, plan.every.evaluate)
    outcome = final_test(run, classifier, sets.tests, view, built.frozen, shift, states)
    if examination is not None:
        add_regrets(measured["validators"], outcome)
    facts = describe_sets(sets.named(), held_out=data["test"] is None)
    selection = model.selection(data["selection"])
    return run.finish({"data": facts, **outcome, **measured, **fed.counts(), "selection": selection})
