"""The recipes of `rootstock probe` (frozen features) and `rootstock finetune` (cross-entropy through the whole network)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.config import resolve as config
from ..core.config.resolve import Choice, Section
from ..core.distributed import rank, world
from ..core.draws import Draws
from ..core.errors import UserError
from ..core.evaluate.features import extract
from ..core.evaluate.pictures import denormalise, save_map, save_sheet
from ..core.evaluate.scores import Scores, add_scores, score
from ..core.images.damage import Damage, read_or_neighbour
from ..core.images.open import Images
from ..core.images.sets import LABELLED, add_seen, describe, exposure, fingerprints, train_and_tests
from ..core.method import Labelled, Method, RawBatch, Step
from ..core.model import norm
from ..core.model.backbone import OWN, Backbone, create
from ..core.model.classifier import Classifier
from ..core.numerics import wide
from ..core.run.directory import Run
from ..core.stream.batches import Decode, Share, stream
from ..core.stream.order import SHUFFLES, Order
from ..core.train.fit import Every, fit
from ..core.train.optim import Optim
from ..core.views.mixup import Mixing, mix
from ..core.views.presets import VIEWS
from ..core.views.view import Evaluation
from .baselines.registry import BASELINES
from .protocols import protocols
from .protocols.attentive import Training
from .protocols.tokens import extract_tokens


def data_options(
    *, train: str | list[str], test: str | dict[str, str] | None = None, size: int, crop: float = 1.0,
    views: Annotated[dict[str, Any], Choice(VIEWS)] = {"name": "supervised"},
    shuffle: Annotated[dict[str, Any], Choice(SHUFFLES)] = {"name": "full"}, decode: Decode = "full",
    selection: str = "last",
) -> None:  # fmt: skip
    """train: labelled images. test: a labelled set or several by name; a stratified 20 % of train is held out without it. size:
    pixels. crop: the part of the shorter side that evaluation sees. views: how training images are drawn.
    shuffle: the order of an epoch, full or in blocks of neighbours on the disk. decode: JPEGs in full, or scaled: large ones
    only as large as their crops need, sooner but with slightly other pixels; evaluation always decodes in full.
    selection: how the hyper-parameters of this config were chosen, said in the result."""


def probe_data_options(
    *, train: str | list[str], test: str | dict[str, str] | None = None, size: int, crop: float = 1.0
) -> None:
    """train: labelled images. test: a labelled set or several by name; a stratified 20 % of train is held out without it."""


def evaluate_options(
    *,
    knn: Annotated[dict[str, Any] | None, Section(protocols.knn)] = None,
    linear: Annotated[dict[str, Any] | None, Section(protocols.linear)] = None,
    attentive: Annotated[dict[str, Any] | None, Section(Training)] = None,
    fewshot: Annotated[dict[str, Any] | None, Section(protocols.fewshot)] = None,
    presets: list[str] = [],
) -> None:
    """Which protocols run on the frozen features, or tokens (attentive); presets: published ones by name."""


def probe(
    run: Run,
    *,
    data: Annotated[dict[str, Any], Section(probe_data_options)],
    backbone: Annotated[dict[str, Any], Section(create)],
    evaluate: Annotated[dict[str, Any], Section(evaluate_options)],
    seed: int = 0,
) -> dict[str, Any]:
    """Score frozen features and return the result. Chooses (k, C, rates) only on a held-out slice of the training features."""
    torch.manual_seed(seed)
    chosen, attentive = _protocols(evaluate), Training(**(evaluate["attentive"] or {}))
    train, tests = train_and_tests(data["train"], data["test"], seed)
    run.record(data=fingerprints(_named(train, tests)))
    assert train.labels is not None and train.classes is not None
    channels = read_or_neighbour(train, 0)[0].shape[0]
    model = create(data["size"], channels, {**OWN, **BASELINES}, **backbone).to(run.device)
    view = Evaluation(data["size"], crop=data["crop"], mean=model.mean, std=model.std)
    workers = run.options["workers"]

    if backbone["weights"] == "none" and model.spec["name"] not in BASELINES:
        run.log("WARNING: backbone.weights is none: these are features of a network that nothing has trained")
    run.log(
        f"probe {model.spec['name']}: features of {len(train)} training and {sum(map(len, tests.values()))} test images"
    )
    labelled = {name: t for name, t in tests.items() if t.labels is not None}
    tokens: list[Tensor] = []
    if any(name in protocols.READ_TOKENS for name, _ in chosen):
        # Before the features, because they may be refused for want of memory.
        read = [train, *labelled.values()]
        tokens = extract_tokens(model, read, view, attentive, device=run.device, workers=workers, log=run.log)
    known = extract(model, train, view, device=run.device, workers=workers)
    features = {name: extract(model, t, view, device=run.device, workers=workers) for name, t in tests.items()}
    scores, picked, selection = Scores({}, {}, {}), {}, "last"
    for name, protocol in chosen:
        if name in protocols.READ_TOKENS:
            pairs = {test: (x, t.labels) for (test, t), x in zip(labelled.items(), tokens[1:], strict=True)}
            outcome = protocol(tokens[0], train.labels, pairs, train.classes, seed, run.device)
        else:
            pairs = {test: (features[test], t.labels) for test, t in labelled.items()}
            outcome = protocol(known, train.labels, pairs, train.classes, seed)
        for key, predictions in outcome.predictions.items():
            if predictions.ndim == 1:
                add_scores(scores, key, tests[key.split("/")[0]], predictions, train.classes, seed)
        scores.metrics.update(outcome.metrics)
        scores.details.update(outcome.details)
        scores.intervals.update({k: [v for v in pair if v is not None] for k, pair in outcome.intervals.items()})
        picked.update(outcome.chosen)
        selection = outcome.selection if outcome.selection != "last" else selection
    if run.main:
        save_map(run.dir, features, tests, seed)
    model.seen = add_seen(model.seen, LABELLED, train)
    extra = {"chosen": picked, "selection": model.selection(selection)}
    return run.finish(_result(scores, model, train, tests, data, extra))


class FineTune(Method):
    """Cross-entropy on labelled images."""

    rows_per_position = 1
    couples_samples = False

    def __init__(self, classifier: Classifier, label_smoothing: float) -> None:
        super().__init__()
        self.classifier, self.label_smoothing = classifier, label_smoothing

    @property
    def backbone(self) -> Backbone:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.classifier.backbone

    def forward(self, batch: Labelled, progress: float) -> Step:
        """batch.images: [N, C, h, w]; labels of mixed images, [N, K], count as right what is most of the image."""
        logits = self.classifier(batch.images)
        loss = F.cross_entropy(wide(logits), batch.labels, label_smoothing=self.label_smoothing)
        labels = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(1)
        return Step(loss, {"train_accuracy": (logits.argmax(1) == labels).float().mean()})


def method_options(
    *, label_smoothing: float = 0.0, mixup: float = 0.0, cutmix: float = 0.0, dropout: float = 0.0, freeze: bool = False
) -> None:
    """label_smoothing: of the cross-entropy. mixup, cutmix: a of Beta(a, a), 0 for none; with both, either for half of the images.
    dropout: before the head. freeze: train the head alone, the backbone in eval mode."""


def finetune(
    run: Run,
    *,
    data: Annotated[dict[str, Any], Section(data_options)],
    backbone: Annotated[dict[str, Any], Section(create)],
    optim: Annotated[dict[str, Any], Section(Optim)],
    method: Annotated[dict[str, Any], Section(method_options)] = {},
    seed: int = 0,
) -> dict[str, Any]:
    """Train a classifier through the backbone, export both, and return the result of the last iterate."""
    torch.manual_seed(seed)
    _check(method)
    options, settings = run.options, Optim(**optim)
    train, tests = train_and_tests(data["train"], data["test"], seed)
    run.record(data=fingerprints(_named(train, tests)))
    assert train.classes is not None
    channels = read_or_neighbour(train, 0)[0].shape[0]
    model = create(data["size"], channels=channels, **backbone)
    view = Evaluation(data["size"], crop=data["crop"], mean=model.mean, std=model.std)
    classifier = Classifier(model, train.classes, method["dropout"])
    if method["freeze"]:
        model.freeze()
    objective = FineTune(classifier, method["label_smoothing"])
    norm.configure(objective, backbone["norm"], accumulate=options["accumulate"], chunk=options["chunk"], log=run.log)
    views = config.build(data["views"], VIEWS, data["size"], model.mean, model.std, 1).refuse_local("finetune")
    views.warn_unused(channels, run.log)

    order = Order(len(train), settings.batch_size, seed, shuffle=config.build(data["shuffle"], SHUFFLES))
    steps = settings.steps(order.steps_per_epoch)
    damage = Damage(options["damaged"], report=run.log)
    share = Share(rank(), world(), options["accumulate"])
    batches = stream(
        train.in_storage_order() if data["shuffle"]["name"] == "blocks" else train, order, views,
        steps=steps, device=run.device, share=share, workers=options["workers"], damage=damage,
        resident=options["resident"], decode=data["decode"],
    )  # fmt: skip
    run.log(
        f"finetune {model.spec['name']}: {len(train)} images of {len(train.classes)} classes, "
        f"{steps} steps of {settings.batch_size}"
    )

    mixing = Mixing(method["mixup"], method["cutmix"])
    mixing.check(settings.batch_size, share.world * share.micro)

    def prepare(raw: RawBatch) -> Labelled:
        draws = Draws(seed, raw.positions)
        images = views(raw, draws).images[0]
        if not any(mixing):
            return Labelled(images, raw.labels, draws)
        return Labelled(*mix(images, raw.labels, draws.stream("mix"), len(classifier.classes), mixing), draws)

    fit(
        objective, batches, prepare,
        steps=steps, steps_per_epoch=order.steps_per_epoch, optim=settings, seed=seed, run=run,
        every=Every.of(run, steps, order.steps_per_epoch),
    )  # fmt: skip

    scores = score(classifier, tests, view, train.classes, run.device, seed, options["workers"])
    model.seen = add_seen(model.seen, LABELLED, train)
    told = {"task": "finetune", "steps": steps, "seed": seed, "selection": data["selection"]}
    model.provenance.append({**told, "data": describe({"train": train})})
    if run.main:
        classifier.export(run.dir)
        if (first := next(iter(batches(0)), None)) is not None:
            shown = denormalise(prepare(first[0]).images[None, :12], model.mean, model.std)
            save_sheet(run.dir, "views", shown, "Augmented training images.")
    counts = {"steps": steps, "images_seen": steps * settings.batch_size, "damaged": list(damage.names.values())}
    extra = {**counts, "selection": model.selection(data["selection"])}
    return run.finish(_result(scores, model, train, tests, data, extra))


def _check(method: Mapping[str, Any]) -> None:
    """Raises UserError for fractions that are none."""
    for key in ("label_smoothing", "dropout"):
        if not 0 <= method[key] < 1:
            raise UserError(f"method.{key}: expected 0 or more and less than 1, got {method[key]}")


def _named(train: Images, tests: Mapping[str, Images]) -> dict[str, Images]:
    """All sets by name; a test that is called train stays apart from the training set."""
    return {"train": train, **{"test.train" if name == "train" else name: images for name, images in tests.items()}}


def _result(
    scores: Scores,
    model: Backbone,
    train: Images,
    tests: Mapping[str, Images],
    data: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "data": describe(_named(train, tests), held_out=data["test"] is None),
        **exposure(model.seen, tests),
        **scores._asdict(),
        **extra,
    }


def _protocols(evaluate: Mapping[str, Any]) -> list[tuple[str, Callable[..., protocols.Outcome]]]:
    """The protocols that a config asks for, with their names, in its order; kNN where it asks for none.

    Raises UserError for unknown presets.
    """
    chosen: list[tuple[str, Callable[..., protocols.Outcome]]] = []
    for name in ("knn", "linear", "attentive", "fewshot"):
        if evaluate[name] is not None:
            chosen.append((name, partial(protocols.PROTOCOLS[name], **evaluate[name])))
    for name in evaluate["presets"]:
        if name not in protocols.PROTOCOLS:
            raise UserError(
                f"evaluate.presets: unknown preset {name!r} (known: {', '.join(sorted(protocols.PROTOCOLS))})"
            )
        chosen.append((name, protocols.PROTOCOLS[name]))
    return chosen or [("knn", protocols.knn)]
