"""The recipe of `rootstock adapt`: a labelled source and an unlabelled target in, a classifier for the target out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from ..core import stage
from ..core.config.auto import OrAuto
from ..core.config.resolve import Choice, Section
from ..core.distributed import broadcast_text
from ..core.draws import Draws
from ..core.errors import UserError
from ..core.evaluate.looks import refuse_damaged_looks
from ..core.images.sets import (
    LABELLED,
    add_seen,
    trained_with_labels,
)
from ..core.images.store import Stamp
from ..core.method import AdaptMethod, Domains, Labelled, RawBatch, RawPair, Unlabelled
from ..core.model.backbone import create
from ..core.model.classifier import UNKNOWN
from ..core.run.directory import Run
from ..core.stream.batches import Decode
from ..core.stream.order import Order
from ..core.train.fit import Evaluator, Training
from ..core.train.optim import Optim
from ..core.train.refresh import Refresh
from ..core.views.corrupted import corruption_options
from ..core.views.presets import VIEWS
from ..core.views.resample import Interpolation
from ..core.views.view import Evaluation
from .changes import Beforehand
from .chosen import selection_of
from .domain_views import domain_views
from .examine import Examination, check_examination, examine_options
from .frozen import FrozenFeatures
from .kept_states import check_states, kept_states
from .objective import METHOD, build_objective, further_outputs, with_terms
from .online_pass import AsEvaluated, StreamOrder, by_test, check_order, feed_once, stream_order
from .outcome import facts_of, final_test
from .overview import look_over
from .parts.online import OnlinePredictions
from .registry import ADAPT_METHODS
from .sets import SOURCE, TARGET, Reader, Sets, open_sets, replaced_silently, source_images, whole, with_labels
from .shift import check_label_shift, check_unseen_source, estimate_shift, label_shift_options, resample
from .shown import show_tests
from .validators.selection import add_regrets


def data_options(
    *,
    source: str | list[str],
    target: str | list[str],
    test: str | dict[str, str] | None = None,
    size: Annotated[int, OrAuto],
    crop: float = 1.0,
    resize: int | None = None,
    interpolation: Interpolation = "bilinear",
    views: Annotated[dict[str, Any], Choice(VIEWS)] = {"name": "supervised"},
    strong: Annotated[dict[str, Any] | None, Choice(VIEWS)] = None,
    decode: Decode = "full",
    stamp: Stamp = "mtime",
    order: StreamOrder = "shuffled",
    corrupt: Annotated[dict[str, Any] | None, Section(corruption_options)] = None,
    selection: str = "last",
) -> None:
    """The `data` section of `rootstock adapt`.

    source: URI of the labelled source images, or a list of URIs whose union is taken.
    target: URI of the target images, or a list of URIs. Their labels, if any, are dropped when they are opened.
    test: URI of a labelled test set, or a mapping of names to URIs; null holds out 20 % of the source, and of the target where it has
        labels, by seed. Classes that the source lacks are refused, except by methods with an output for unknown images (osbp), which take
        them as one class `unknown`.
    size: Side of the network's input in pixels. auto: that of the run in `backbone.weights`, or else what the pictures have, at most 224,
        without an accelerator 96.
    crop: Part of the shorter side that evaluation keeps, 0.01 to 1 (0.875 takes 224 of 256 pixels). A picture that already has the size is
        taken whole.
    resize: Pixels to which evaluation resizes the shorter side before it cuts out the centre, at least size; null is size / crop. A
        picture that already has the size is taken whole.
    interpolation: How evaluation resizes: bilinear, or bicubic, as DINOv2, MAE and timm's ViTs are evaluated.
    views: How training images of both domains are augmented: a preset's name, or a mapping with its name and changed numbers.
    strong: How the strong view of an image is augmented, for methods that compare it with the weak one, `views` (fixmatch, adamatch): as
        `views`; null is the preset fixmatch (RandAugment and Cutout). Other methods refuse it.
    decode: How JPEG files are decoded: full, or scaled, which decodes a large file only as large as its crops need. Scaled is faster
        and gives slightly other pixels; evaluation always decodes in full.
    stamp: How a changed picture is noticed when the run resumes, in files and archives: size (another name or size), mtime (also another
        time of change) or content (also other bytes; reads every file at each start).
    order: In which order methods that go over the target once (tent, eata, roid) meet its images: shuffled by seed, sequential (by content,
        the same for every seed), or sorted by class, a diagnostic: it reads the target's labels, for this alone. That is counted as a
        look at them, and result and page say so.
    corrupt: A corruption of all pictures of the target and of `test`, after the crop of evaluation; null for none.
    selection: How the hyper-parameters of this config were chosen, as the result says it: last, train-split, source-val,
        tuned-on-target or oracle.
    """


class Adaptation(NamedTuple):
    """An adaptation, ready to run."""

    plan: Training
    fed: stage.Feed
    sets: Sets
    view: Evaluation
    frozen: FrozenFeatures | None  # where batches hold features of frozen layers instead of images
    read: Reader
    examination: Examination | None  # scores and diagnostics that need no target label
    looks: dict[str, Any]  # at labels of the target before the pass over it, where its order is by class

    @property
    def evaluators(self) -> dict[str, Evaluator]:
        """What looks at candidates during training."""
        return {"candidate": self.examination} if self.examination is not None and self.plan.every.evaluate else {}

    def begin(self, run: Run) -> None:
        """What is looked at before the first step."""
        objective: Any = self.plan.method
        if self.examination is not None:
            self.examination.start(objective.classifier)
        if objective.online:
            objective.to(run.device).begin(partial(source_images, self.sets.source, self.view, run))

    @property
    def began(self) -> Beforehand | None:
        """The state before the training, once the examination is concluded."""
        return self.examination and self.examination.began()


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
    check_order(data, method["name"])
    unknown = UNKNOWN if further_outputs(method, backbone["weights"]) else None
    settings, sets = Optim(**optim), open_sets(data, seed, unknown, ADAPT_METHODS[method["name"]].online)
    if evaluate is not None:
        check_examination(evaluate, run.options["sharding"])
        sets = sets.hold_out(evaluate["held_out"], seed)
    stage.record_sets(run, sets.named(), data["stamp"])

    assert sets.source.classes is not None
    model = stage.network(backbone, data["size"], sets.source)
    objective = build_objective(method, model, sets.source.classes, backbone["weights"], run)
    check_label_shift(label_shift, objective)
    check_unseen_source(label_shift, sets, evaluate is not None)
    if label_shift["resample"] != "none":
        resample(objective, sets.source)
    objective.make_room(len(sets.target))
    objective = with_terms(objective, method, run)
    stage.set_norm(run, objective, backbone["norm"])
    view = stage.evaluation(data, model)
    frozen, looks = None, dict[str, Any]()
    if objective.online:
        order, looks = stream_order(run, data, sets.target, settings.batch_size)
        fed, prepare = pass_of(run, objective, order, settings, sets, view, method["name"])
    else:
        frozen, fed, prepare = pairs(run, objective, data, settings, sets, view, method["name"])
    run.log(
        f"adapt {method['name']}: {len(sets.source)} source and {len(sets.target)} target images, "
        f"{fed.steps} steps of {settings.batch_size} images{'' if objective.online else ' of each'}"
    )
    if untested := sets.untested():
        run.log(untested)
    pictures = partial(whole, view=view, device=run.device, workers=run.options["workers"], damage=replaced_silently())
    read = pictures if frozen is None else partial(frozen.read, view=view)
    show = partial(show_tests, run, view, frozen, sets.tests)
    keeps = ADAPT_METHODS[method["name"]].keeps_head or method["keep_head"]
    examination = None if evaluate is None else Examination(run, evaluate, sets, read, pictures, show, keeps)
    encode = partial(pictures, sets.target) if frozen is None else partial(frozen.batches, sets.target, view)
    look = partial(look_over, objective.classifier, len(sets.target), encode)
    refresh = Refresh.of(objective, fed.steps, len(sets.target) // settings.batch_size, look)
    plan = stage.training(run, objective, fed, prepare, settings, evaluate["every"] if evaluate else None, refresh)
    if examination is not None:
        check_states(method["name"], fed.steps, plan.every.evaluate)
    return Adaptation(plan, fed, sets, view, frozen, read, examination, looks)


def pass_of(
    run: Run, objective: AdaptMethod, order: Order, optim: Optim, sets: Sets, view: Evaluation, name: str
) -> tuple[stage.Feed, Callable[[Any], Domains]]:
    """The batches of one pass over the target; what makes `Domains` of them."""
    crop = AsEvaluated(view)
    objective.predictions = OnlinePredictions(len(sets.target), len(objective.classifier.outputs))
    numbers = order.images_of(0).to(run.device)

    def prepare(raw: RawBatch) -> Domains:
        draws = stage.draws_of(raw.positions, TARGET, sets.training(), run.seed)
        return Domains((), (Unlabelled(crop(raw), draws, numbers[raw.positions % len(numbers)]),))

    return feed_once(run, sets.target, crop, order, optim, name), prepare


def pairs(
    run: Run, objective: AdaptMethod, data: Mapping[str, Any], optim: Optim, sets: Sets, view: Evaluation, name: str
) -> tuple[FrozenFeatures | None, stage.Feed, Callable[[Any], Domains]]:
    """Features of frozen layers; the batches of pairs of both domains; what makes `Domains` of them."""
    views = domain_views(run, data, objective, name, sets.source)
    clean = data["corrupt"] is None  # kept features know a picture by its content, which a corruption does not change
    frozen = FrozenFeatures.of(run, objective, views, sets, data) if clean else None
    fed = stage.feed(run, sets.training(), views, data, optim, run.seed, frozen.rows if frozen else None)

    def shown(domain: str, raw: RawBatch) -> tuple[Draws, Tensor, tuple[Tensor, ...]]:
        draws = stage.draws_of(raw.positions, domain, sets.training(), run.seed)
        weak, *more = (raw.images,) if frozen else views[domain](raw, draws).images
        return draws, weak, tuple(more)

    def prepare(raw: RawPair) -> Domains:
        draws, images, more = shown(SOURCE, raw.source)
        source = Labelled(images, raw.source.labels, draws, more)
        draws, images, more = shown(TARGET, raw.target)
        return Domains.of(source, Unlabelled(images, draws, raw.target.index, more))

    return frozen, fed, prepare


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
    built.begin(run)
    stage.train(run, plan, built.evaluators)
    objective.conclude_source(with_labels(sets.source, built.read))
    objective.conclude(
        whole(sets.target, view=view, device=run.device, workers=run.options["workers"], damage=fed.damage)
    )

    model, classifier = objective.backbone, objective.classifier
    if objective.sees_target:
        model.seen = add_seen(model.seen, "adapt", sets.target)
    if not objective.online:
        model.seen = add_seen(model.seen, LABELLED, sets.source)
    for sentence in trained_with_labels(model.seen, sets.tests):
        run.log(sentence)
    stage.trace(run, model, sets.training(), data, method=method["name"], steps=fed.steps)
    # Before the final test: no choice can follow from a label of the target.
    measured = {} if examination is None else examination.conclude(classifier, fed.steps, plan.every.evaluate)
    if run.main:
        classifier.export(run.dir)
        _save_pictures(run, plan, objective, built.frozen)
    shift = estimate_shift(objective, sets, built.read, label_shift, seed)
    every, exported = (plan.every.evaluate, examination.exported) if examination else (0, fed.steps)
    states = kept_states(run, fed.steps, every, exported)
    online = by_test(objective.predictions, sets.target, sets.tests) if objective.online else {}
    about = (built.frozen, shift, states, online, built.began, built.looks)
    outcome = final_test(run, classifier, sets.tests, view, *about)
    if examination is not None:
        add_regrets(measured["validators"], outcome)
    selection = model.selection(selection_of(data["selection"], evaluate, measured))
    return run.finish(
        {"data": facts_of(sets, data, objective.online), **outcome, **measured, **fed.counts(), "selection": selection}
    )


def _save_pictures(run: Run, plan: Training, objective: AdaptMethod, frozen: FrozenFeatures | None) -> None:
    """Write pictures/views.png: the first images as the method sees them."""
    if frozen is not None:
        return
    caption = "Target images."
    if not objective.online:
        caption = "Augmented training images: source above, target below; of each first the weak view, then any other."

    def rows(batch: Domains) -> Tensor:
        return torch.stack([view for part in (*batch.sources, *batch.targets) for view in (part.images, *part.more)])

    stage.save_first(run, plan, objective.backbone, rows, caption)
