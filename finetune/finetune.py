"""The recipe of `rootstock finetune`: a classifier is trained through the whole network, or its head alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from ..core import stage
from ..core.config.resolve import Section, build
from ..core.draws import Draws
from ..core.evaluate.class_groups import add_class_groups, check_cuts
from ..core.evaluate.mistakes import save_mistakes
from ..core.evaluate.scores import score
from ..core.images.open import Images
from ..core.images.sets import (
    LABELLED,
    add_seen,
    describe_sets,
    exposure,
    refuse_one_class,
    train_and_tests,
    trained_with_labels,
    untrained_classes,
)
from ..core.method import Labelled, RawBatch
from ..core.model.backbone import create
from ..core.run.directory import Run
from ..core.stream.resampled import class_power, order_of_classes
from ..core.train.fit import Evaluator, Training
from ..core.train.optim import Optim
from ..core.views.mixup import Mixing, mix_images
from ..core.views.view import Evaluation
from .compress.distillation import Teacher, load_teacher
from .compress.prune import Pruned, check_prune
from .finetune_options import data_options, method_options
from .training.averages import averaging_of
from .training.evaluation import HeldOutEvaluation, hold_out, slice_options
from .training.first_classifier import first_classifier
from .training.label_noise import NoisyLabels, check_label_noise, fitted_noise, noise_in_result, with_label_noise
from .training.losses import LOSSES, ClassLoss
from .training.objective import FineTune, check_corrections, check_method
from .training.partial import train_part
from .training.posthoc import check_head
from .training.regime import Regime, check_regime


class FineTuning(NamedTuple):
    """A fine-tuning, ready to run."""

    plan: Training
    fed: stage.Feed
    tests: dict[str, Images]
    view: Evaluation
    regime: Regime
    counts: Tensor  # int64 [K], training images of each class
    noise: NoisyLabels | None
    seen_as: str  # the entry of `seen` for the training images
    pruned: Pruned | None

    @property
    def evaluators(self) -> dict[str, Evaluator]:
        """What looks at held-out training images meanwhile."""
        return self.regime.evaluators if self.plan.every.evaluate else {}


def _open_sets(
    run: Run, data: Mapping[str, Any], method: Mapping[str, Any], evaluate: Mapping[str, Any], seed: int
) -> tuple[Teacher | None, Images, dict[str, Images], NoisyLabels | None]:
    """The teacher, the training images with the labels that count, the tests, and what `data.label_noise` changed. Raises UserError."""
    teacher = load_teacher(method, evaluate)
    whole, tests = train_and_tests(data["train"], data["test"], seed) if teacher is None else teacher.sets(data, seed)
    stage.record_sets(run, stage.named_sets(whole, tests), data["stamp"])
    whole = whole if teacher is None else teacher.labelled(run, whole)
    if not data["label_noise"]:
        return teacher, whole, tests, None
    noise = with_label_noise(whole, data["label_noise"], seed)
    return teacher, noise.images, tests, noise


def build_finetuning(
    run: Run,
    data: Mapping[str, Any],
    backbone: Mapping[str, Any],
    method: Mapping[str, Any],
    optim: Mapping[str, Any],
    evaluate: Mapping[str, Any],
    seed: int,
) -> FineTuning:
    """Open the sets and build network, classifier, augmentation and batches. Raises UserError."""
    torch.manual_seed(seed)
    _check(data, backbone, method, evaluate, run.options["sharding"])
    settings = Optim(**optim)
    teacher, whole, tests, noise = _open_sets(run, data, method, evaluate, seed)
    train, held_out = hold_out(whole, evaluate, seed)
    seen_as = LABELLED if teacher is None else teacher.seen_as
    if seen_as == LABELLED:
        refuse_one_class(train)
    assert train.classes is not None and train.labels is not None
    counts = train.labels.bincount(minlength=len(train.classes))
    criterion: ClassLoss = build(method["loss"], LOSSES, counts, method["label_smoothing"])
    check_corrections(criterion, data["sampler"], method)
    model = stage.network(backbone, data["size"], train)
    teaching = None if teacher is None else teacher.teaching(model, train.classes)
    overlap = trained_with_labels(add_seen(model.seen, seen_as, whole), tests)
    for sentence in [*untrained_classes(train, tests), *overlap]:
        run.log(sentence)
    view = stage.evaluation(data, model)
    classifier = first_classifier(model, train.classes, method, backbone["weights"], criterion)
    check_head(method["posthoc"], classifier.head, held_out is not None)
    pruned = None if method["prune"] is None else Pruned(run, classifier, method, train, view)
    train_part(model, "head" if method["freeze"] else method["trained"])
    masks = None if pruned is None else pruned.held()
    objective = FineTune(classifier, criterion, l2_sp=method["l2_sp"], teaching=teaching, masks=masks)
    stage.set_norm(run, objective, backbone["norm"])
    views = stage.augmentation(run, data["views"], objective, "finetune", train)
    mixing = Mixing(method["mixup"], method["cutmix"], method["mix_by"])
    mixing.check(settings.batch_size, stage.pieces(run))
    order = order_of_classes(data["sampler"], train.labels, settings.batch_size, seed, data["shuffle"]["name"])
    orders = None if order is None else {"train": order}
    fed = stage.feed(run, {"train": train}, views, data, settings, seed, orders=orders)
    objective.add_l1(method["l1"], settings, fed)
    classes, what = len(train.classes), f"{len(train)} images of {len(train.classes)} classes"
    run.log(f"finetune {model.spec['name']}: {what}, {fed.steps} steps of {settings.batch_size}")

    def prepare(raw: RawBatch) -> Labelled:
        draws = Draws(seed, raw.positions)
        images, labels = views(raw, draws).images[0], raw.labels
        if mixing.on:
            drawn = mixing.draws_of(draws.stream("mix"), settings.batch_size)
            images, labels = mix_images(images, labels, drawn, classes, mixing)
        return Labelled(images, labels, draws)

    objective.averaging = averaging_of(method, classifier, fed.steps, fed.steps_per_epoch)
    evaluation = None if held_out is None else HeldOutEvaluation(run, evaluate, held_out, view)
    regime = Regime(run, method, classifier, objective.averaging, evaluation, whole, train, view, {}, {})
    plan = stage.training(run, objective, fed, prepare, settings, evaluate["every"])
    return FineTuning(plan, fed, tests, view, regime, counts, noise, seen_as, pruned)


def _check(
    data: Mapping[str, Any],
    backbone: Mapping[str, Any],
    method: Mapping[str, Any],
    evaluate: Mapping[str, Any],
    sharding: str,
) -> None:
    """Raises UserError for values out of their range, and for keys that contradict each other."""
    check_method(method, backbone, sharding)
    check_regime(method, backbone, evaluate)
    check_prune(method, backbone, sharding)
    check_cuts(data["class_groups"])
    class_power(data["sampler"])
    check_label_noise(data["label_noise"])


def finetune(
    run: Run,
    *,
    data: Annotated[dict[str, Any], Section(data_options)],
    backbone: Annotated[dict[str, Any], Section(create)],
    optim: Annotated[dict[str, Any], Section(Optim)],
    method: Annotated[dict[str, Any], Section(method_options)] = {},
    evaluate: Annotated[dict[str, Any], Section(slice_options)] = {},
    seed: int = 0,
) -> dict[str, Any]:
    """Train a classifier through the backbone, export both, and return the result.

    data: Training and test images, and how they are drawn.
    backbone: The network under the classifier.
    optim: Optimizer, learning rate and length of the training.
    method: Regularisation, mixing of images, averages of the weights, and whether the backbone is trained.
    evaluate: A held-out part of the training images that training is judged by; none by default.
    seed: Seed of everything random, 0 or more.
    """
    built = build_finetuning(run, data, backbone, method, optim, evaluate, seed)
    plan, fed, tests, view, regime, counts, noise, seen_as, pruned = built
    train = regime.train  # without the held-out slice, which is chosen by and therefore seen
    regime.begin()
    done = stage.train(run, plan, built.evaluators, enough=regime.enough)
    ended = regime.conclude(plan, done)

    objective: Any = plan.method
    model, classifier = objective.backbone, objective.classifier
    scored = score(classifier, tests, view, classifier.classes, run.device, seed, run.options["workers"])
    regime.score_raw(scored, tests)
    add_class_groups(scored, counts.tolist(), data["class_groups"])
    place = {"device": run.device, "workers": run.options["workers"], "write": run.main}
    if run.draws:
        save_mistakes(run.dir, classifier, train, tests, scored, view, **place)
    model.seen = add_seen(model.seen, seen_as, regime.whole)
    selection = regime.selection(data["selection"])
    smaller = {} if pruned is None else {"pruned": pruned.as_result()}
    stage.trace(run, model, {"train": train}, {**data, "selection": selection}, steps=done, **smaller)
    if run.main:
        classifier.export(run.dir)
        scored.save(run.dir)
        stage.save_first(run, plan, model, lambda batch: batch.images[None], "Augmented training images.")
    facts = describe_sets(stage.named_sets(train, tests), held_out=data["test"] is None)
    found = {
        **exposure(model.seen, tests),
        **scored.as_result(),
        **ended,
        **fed._replace(steps=done).counts(),
        **smaller,
    }
    if noise is not None:
        found |= noise_in_result(fitted_noise(noise, train, classifier, view, run), found["metrics"])
    return run.finish({"data": facts, **found, "selection": model.selection(selection)})
