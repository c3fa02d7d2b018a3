"""The recipe of `rootstock finetune`: a classifier is trained through the whole network, or its head alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..core import stage
from ..core.config.auto import OrAuto
from ..core.config.resolve import Choice, Section, build
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
from ..core.images.store import Stamp
from ..core.method import Labelled, RawBatch
from ..core.model.backbone import create
from ..core.model.heads import HeadInit
from ..core.run.directory import Run
from ..core.stream.batches import Decode
from ..core.stream.order import SHUFFLES
from ..core.stream.resampled import order_of_classes
from ..core.train.fit import Evaluator, Training
from ..core.train.optim import Optim
from ..core.views.mixup import MixBy, Mixing, mix_images
from ..core.views.presets import VIEWS
from ..core.views.resample import Interpolation
from ..core.views.view import Evaluation
from .compress.distillation import Teacher, load_teacher, teacher_options
from .compress.prune import Pruned, check_prune, prune_options
from .training.averages import averaging_of, ema_options, swa_options
from .training.evaluation import HeldOutEvaluation, hold_out, slice_options
from .training.first_classifier import first_classifier
from .training.label_noise import NoisyLabels, check_label_noise, fitted_noise, noise_in_result, with_label_noise
from .training.losses import LOSSES, ClassLoss
from .training.objective import FineTune, check_corrections, check_method
from .training.partial import train_part
from .training.penalties import l1_options, l2_sp_options
from .training.posthoc import POSTHOC, check_head
from .training.regime import Regime, check_regime


def data_options(
    *,
    train: str | list[str],
    test: str | dict[str, str] | None = None,
    size: Annotated[int, OrAuto],
    crop: float = 1.0,
    resize: int | None = None,
    interpolation: Interpolation = "bilinear",
    views: Annotated[dict[str, Any], Choice(VIEWS)] = {"name": "supervised"},
    shuffle: Annotated[dict[str, Any], Choice(SHUFFLES)] = {"name": "full"},
    sampler: Literal["uniform", "sqrt", "balanced"] = "uniform",
    label_noise: float = 0.0,
    class_groups: tuple[int, int] | None = None,
    decode: Decode = "full",
    stamp: Stamp = "mtime",
    selection: str = "last",
) -> None:
    """The `data` section of `rootstock finetune`.

    train: URI of the labelled training images, or a list of URIs whose union is taken.
    test: URI of a labelled test set, or a mapping of names to URIs; null holds out a stratified 20 % of the training images by seed.
    size: Side of the network's input in pixels. auto: that of the run in `backbone.weights`, or else what the pictures have, at most 224,
        without an accelerator 96.
    crop: Part of the shorter side that evaluation keeps, 0.01 to 1 (0.875 takes 224 of 256 pixels). A picture that already has the size is
        taken whole.
    resize: Pixels to which evaluation resizes the shorter side before it cuts out the centre, at least size; null is size / crop. A
        picture that already has the size is taken whole.
    interpolation: How evaluation resizes: bilinear, or bicubic, as DINOv2, MAE and timm's ViTs are evaluated.
    views: How training images are augmented: a preset's name, or a mapping with its name and changed numbers.
    shuffle: Order of an epoch: full, or blocks of images that are neighbours on the disk.
    sampler: How often an image of a class of n training images comes: each once an epoch (uniform), in proportion to n^-1/2 (sqrt), or to
        1 / n, so that all classes come equally often (balanced).
    label_noise: Share of the training images, the held-out ones included, that get the label of another class, drawn evenly from the
        others; tests keep theirs. 0: none. The result then has how many of these are predicted as trained, and as they are.
    class_groups: Two numbers of training images, for example [20, 100]: the result then has the accuracy of classes with fewer than the
        first (few), with more than the second (many) and of those between (medium). null: no such groups.
    decode: How JPEG files are decoded: full, or scaled, which decodes a large file only as large as its crops need. Scaled is faster
        and gives slightly other pixels; evaluation always decodes in full.
    stamp: How a changed picture is noticed when the run resumes, in files and archives: size (another name or size), mtime (also another
        time of change) or content (also other bytes; reads every file at each start).
    selection: How the hyper-parameters of this config were chosen, as the result says it: last, train-split, source-val,
        tuned-on-target or oracle.
    """


def method_options(
    *,
    loss: Annotated[dict[str, Any], Choice(LOSSES)] = {"name": "cross_entropy"},
    posthoc: Annotated[dict[str, Any], Choice(POSTHOC)] = {"name": "none"},
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    mix_by: MixBy = "pair",
    dropout: float = 0.0,
    freeze: bool = False,
    trained: str = "all",
    l2_sp: Annotated[dict[str, Any] | None, Section(l2_sp_options)] = None,
    l1: Annotated[dict[str, Any] | None, Section(l1_options)] = None,
    keep_head: bool = False,
    head_init: HeadInit = "torch",
    head_std: float = 2e-5,
    linear_first: bool = False,
    ema: Annotated[dict[str, Any] | None, Section(ema_options)] = None,
    swa: Annotated[dict[str, Any] | None, Section(swa_options)] = None,
    wise_ft: float | None = None,
    teacher: Annotated[dict[str, Any] | None, Section(teacher_options)] = None,
    prune: Annotated[dict[str, Any] | None, Section(prune_options)] = None,
) -> None:
    """The `method` section of `rootstock finetune`. Raises UserError for numbers out of their range.

    loss: What is minimised: cross_entropy, or for classes of unequal size inverse_frequency, class_balanced, focal, logit_adjusted,
        balanced_softmax or ldam.
    posthoc: What happens to the linear head after the training, for classes of unequal size: none, logit_adjusted or tau_norm.
    label_smoothing: Label smoothing of the cross-entropy, 0 or more and less than 1.
    mixup: Parameter a of Beta(a, a) for mixup (Zhang et al. 2018, arXiv:1710.09412); 0 for none. With cutmix too, each takes half of
        the images.
    cutmix: Parameter a of Beta(a, a) for CutMix (Yun et al. 2019, arXiv:1905.04899); 0 for none.
    mix_by: Whether each pair of images draws its own share, kind of mixing and box (pair), or the whole batch of all processes draws one
        of each (batch), as timm and MAE do.
    dropout: Dropout before the head, 0 or more and less than 1.
    freeze: Whether the head alone is trained; the same as `trained: head` and `backbone.freeze: all`.
    trained: What is trained beside the head: all, biases (BitFit, arXiv:2106.10199), head (nothing else) or last:N (the last N stages, of
        a ViT blocks). What rests stays in eval mode, so that BatchNorm keeps its statistics there.
    l2_sp: Penalty towards the weights that training begins with. null: none.
    l1: Penalty that makes weights exactly 0. null: none.
    keep_head: Whether training begins with the head of the classifier in `backbone.weights` instead of a new one, as the second half of
        LP-FT does: a head is trained on the frozen network, then everything from there (arXiv:2202.10054).
    head_init: How a new head is drawn: torch (as torch's linear layer), truncated_normal (N(0, head_std^2), as MAE's code), xavier,
        kaiming, or zeros. All but torch begin with a bias of 0.
    head_std: Standard deviation of head_init: truncated_normal, above 0.
    linear_first: Whether training begins with the head of a linear probe, fitted on the features of the network as it is given: LP-FT in
        one command (Kumar et al. 2022, arXiv:2202.10054).
    ema: An exponential moving average of the weights, which is exported and tested. null: none.
    swa: An equal average of the weights from some step on, which is exported and tested. null: none.
    wise_ft: Share alpha of the fine-tuned weights in those that are exported, 0 to 1; the rest is the start's (WiSE-FT, Wortsman et al.
        2022, arXiv:2109.01903). It needs a trained head at the start: linear_first or keep_head. BatchNorm's statistics are computed anew.
        null: all.
    teacher: A trained network whose outputs are learned, too: distillation. null: labels alone.
    prune: Part of the network in `backbone.weights` that is kept; training lets it recover. null: all.
    """


class FineTuning(NamedTuple):
    """A fine-tuning, ready to run."""

    plan: Training
    fed: stage.Feed
    train: Images
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
    regime = Regime(run, method, classifier, objective.averaging, evaluation, whole, train, view, {})
    plan = stage.training(run, objective, fed, prepare, settings, evaluate["every"])
    return FineTuning(plan, fed, whole, tests, view, regime, counts, noise, seen_as, pruned)


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
    plan, fed, train, tests, view, regime, counts, noise, seen_as, pruned = built
    regime.begin()
    done = stage.train(run, plan, built.evaluators, enough=regime.enough)
    ended = regime.conclude(plan, done)

    objective: Any = plan.method
    model, classifier = objective.backbone, objective.classifier
    scored = score(classifier, tests, view, classifier.classes, run.device, seed, run.options["workers"])
    add_class_groups(scored, counts.tolist(), data["class_groups"])
    place = {"device": run.device, "workers": run.options["workers"], "write": run.main}
    save_mistakes(run.dir, classifier, train, tests, scored, view, **place)
    model.seen = add_seen(model.seen, seen_as, train)
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
        found |= noise_in_result(fitted_noise(noise, regime.train, classifier, view, run), found["metrics"])
    return run.finish({"data": facts, **found, "selection": model.selection(selection)})
