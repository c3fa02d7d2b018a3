"""The recipe of `rootstock probe`: scores of frozen features by kNN, linear, attentive and few-shot probes, retrieval and verification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch

from ..core import stage
from ..core.config.auto import OrAuto
from ..core.config.resolve import Section
from ..core.errors import UserError
from ..core.evaluate.augmented import RandomCrops
from ..core.evaluate.feature_key import weights_digest
from ..core.evaluate.frozen import features_of
from ..core.evaluate.held_out import distinct_rows, rows_by_name
from ..core.evaluate.pictures import save_map
from ..core.evaluate.scores import Scored
from ..core.evaluate.taps import LEVEL, PATCHES, Taps, available_taps
from ..core.images.limits import size_of
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
from ..core.model.backbone import OWN, create
from ..core.run.directory import Run
from ..core.views.resample import Interpolation
from ..core.views.view import Evaluation
from .baselines.registry import BASELINES
from .dense.dense import Dense, DenseProbe, prepare
from .dense.outcome import score_dense
from .protocols.attentive import Attentive
from .protocols.attentive_capi import AttentiveCAPI
from .protocols.contract import (
    AnyProtocol,
    Augmented,
    Counts,
    Features,
    Fitted,
    Known,
    Tapped,
    check_vectors,
    section_in,
)
from .protocols.few_linear import FewLinear
from .protocols.fewshot import FewShot
from .protocols.kept import keep_outcomes
from .protocols.knn import KNN
from .protocols.linear import Linear
from .protocols.linear_sgd import LinearSGD
from .protocols.nearest_mean import NearestMean
from .protocols.outcomes import add_outcome, given_to_all, say_ends, say_what_was_done, what_was_chosen, with_settings
from .protocols.prototypes import PrototypeClassifier
from .protocols.registry import (
    check_one_class,
    check_taps,
    chosen_protocols,
    gives_scores,
    naming_preset,
    other_views,
    published,
)
from .protocols.retrieval import Retrieval
from .protocols.ridge import FewShotRidge
from .protocols.verification import Verification


def probe_data_options(
    *,
    train: str | list[str],
    test: str | dict[str, str] | None = None,
    size: Annotated[int, OrAuto],
    crop: float = 1.0,
    resize: int | None = None,
    interpolation: Interpolation = "bilinear",
    stamp: Stamp = "mtime",
) -> None:
    """The `data` section of `rootstock probe`.

    train: URI of the labelled training images, or a list of URIs whose union is taken.
    test: URI of a labelled test set, or a mapping of names to URIs; null holds out a stratified 20 % of the training images by seed.
    size: Side of the network's input in pixels. auto: that of the run in `backbone.weights`, or else what the pictures have, at most 224,
        without an accelerator 96.
    crop: Part of the shorter side that is kept, 0.01 to 1 (0.875 takes 224 of 256 pixels). A picture that already has the size is
        taken whole.
    resize: Pixels to which evaluation resizes the shorter side before it cuts out the centre, at least size; null is size / crop. A
        picture that already has the size is taken whole.
    interpolation: How evaluation resizes: bilinear, or bicubic, as DINOv2, MAE and timm's ViTs are evaluated.
    stamp: How a changed picture is noticed when the run resumes, in files and archives: size (another name or size), mtime (also another
        time of change) or content (also other bytes; reads every file at each start).
    """


def protocol_options(
    *,
    knn: Annotated[dict[str, Any] | None, Section(KNN)] = None,
    linear: Annotated[dict[str, Any] | None, Section(Linear)] = None,
    attentive: Annotated[dict[str, Any] | None, Section(Attentive)] = None,
    fewshot: Annotated[dict[str, Any] | None, Section(FewShot)] = None,
    ridge: Annotated[dict[str, Any] | None, Section(FewShotRidge)] = None,
    nearest_mean: Annotated[dict[str, Any] | None, Section(NearestMean)] = None,
    few_linear: Annotated[dict[str, Any] | None, Section(FewLinear)] = None,
    linear_sgd: Annotated[dict[str, Any] | None, Section(LinearSGD)] = None,
    attentive_capi: Annotated[dict[str, Any] | None, Section(AttentiveCAPI)] = None,
    prototypes: Annotated[dict[str, Any] | None, Section(PrototypeClassifier)] = None,
    dense: Annotated[dict[str, Any] | None, Section(Dense)] = None,
    retrieval: Annotated[dict[str, Any] | None, Section(Retrieval)] = None,
    verification: Annotated[dict[str, Any] | None, Section(Verification)] = None,
    presets: list[str] = [],
) -> None:
    """The `evaluate` section of `rootstock probe`: which protocols run; kNN where none is given.

    knn: A weighted kNN classifier; null for none.
    linear: Logistic regression, its regularisation chosen on a part of the training images; null for none.
    attentive: An attentive probe on the tokens before pooling; null for none.
    fewshot: Nearest class mean from a few labelled images a class; null for none.
    ridge: Ridge regression from a few labelled images a class, big_vision's few-shot probe; null for none.
    nearest_mean: Nearest class mean of all training images; null for none.
    few_linear: Logistic regression from 1 %, 10 % or a few of the labels; null for none.
    linear_sgd: Linear heads trained by SGD as SimCLR's, MAE's or DINOv2's linear evaluation; null for none.
    attentive_capi: CAPI's attentive and linear probes; null for none.
    prototypes: A classifier by likeness to patches of training images, with a sparse last layer; null for none.
    dense: Segmentation by a linear classifier on patches, from masks; null for none. With it alone, images need no class labels.
    retrieval: Which images of a gallery are nearest to a test image: mAP, recall@k, precision@k; null for none.
    verification: Whether two test images have the same class, by their cosine: equal error rate, FRR at a FAR; null for none.
    presets: Published protocols by name: knn-lightly, knn-dino, logreg, ridge-bigvision, linear-simclr, linear-simclr-cifar, linear-mae,
        linear-dinov2, attentive-capi.
    """


class Probing(NamedTuple):
    """A probe, ready to score."""

    protocols: dict[str, AnyProtocol]
    train: Images
    distinct: Images  # the training images without copies: what the protocols see
    names: Callable[[], Sequence[tuple[str, int]]]  # (name, row of `distinct`) of every training image
    tests: dict[str, Images]
    taps: Taps  # of the network, those that the protocols read
    view: Evaluation
    dense: DenseProbe | None


def build_probe(
    run: Run, data: Mapping[str, Any], backbone: Mapping[str, Any], evaluate: Mapping[str, Any], seed: int
) -> Probing:
    """Choose the protocols, open the sets and build the network. Raises UserError, also for what a protocol cannot do on this set."""
    torch.manual_seed(seed)
    # Masks are all the labels that a dense probe needs.
    unlabelled = evaluate["dense"] is not None and not chosen_protocols(evaluate, ("pooled",))
    train, tests = train_and_tests(data["train"], data["test"], seed, labels=not unlabelled, several=True)
    stage.record_sets(run, stage.named_sets(train, tests), data["stamp"])
    kept = distinct_rows(train)
    distinct, names = train.select(kept), partial(rows_by_name, train, kept)
    if copies := len(train) - len(distinct):
        run.log(f"{copies} of {len(train)} training images are copies of others; each counts once")
    if backbone["freeze"] != "none":
        raise UserError("backbone.freeze: a probe trains no layer of the backbone; leave freeze out")
    model = create(data["size"], stage.channels_of(train), {**OWN, **BASELINES}, **backbone)
    view = stage.evaluation(data, model)
    offered = available_taps(model)
    protocols = chosen_protocols(evaluate, tuple(tap for tap in offered if LEVEL.fullmatch(tap)))
    check_taps(protocols, offered, model.spec["name"])
    if any(map(gives_scores, protocols.values())):
        refuse_one_class(train)
    overlap = trained_with_labels(add_seen(model.seen, LABELLED, train), tests)
    for sentence in [*untrained_classes(train, tests), *overlap, *other_views(protocols, view.in_words())]:
        run.log(sentence)
    taps = Taps(model, [tap for protocol in protocols.values() for tap in protocol.reads])
    if protocols:
        one = taps(torch.zeros(1, model.channels, model.size, model.size))
        shapes = {tap: tuple(found.shape[1:]) for tap, found in one.items()}
        assert distinct.labels is not None and distinct.classes is not None
        asked = {name: test.keys() for name, test in tests.items() if test.labels is not None}
        counts = Counts(distinct.labels, distinct.keys(), distinct.classes, shapes, names, asked, distinct.units())
        for name, protocol in protocols.items():
            if isinstance(protocol, Tapped):
                check_vectors(f"evaluate.{section_in(name)}.taps", protocol.taps, counts)
            check_one_class(name, protocol, counts)
            with naming_preset(name, protocol):
                protocol.requires(name, counts)
    # After what the others ask, since every mask is read here.
    dense = prepare(evaluate["dense"], stage.named_sets(distinct, tests), model, view, seed, run.log)
    taps = Taps(model, [*taps.names, PATCHES]) if dense else taps
    return Probing(protocols, train, distinct, names, tests, taps, view, dense)


def probe(
    run: Run,
    *,
    data: Annotated[dict[str, Any], Section(probe_data_options)],
    backbone: Annotated[dict[str, Any], Section(create)],
    evaluate: Annotated[dict[str, Any], Section(protocol_options)],
    seed: int = 0,
) -> dict[str, Any]:
    """Score frozen features, and return the result. What is chosen (k, C, rates) is chosen on held-out training images.

    data: Training and test images, and how large they are shown.
    backbone: The network whose features are scored: a run, weights, or a baseline (pixels, hog).
    evaluate: The protocols.
    seed: Seed of held-out images and random draws, 0 or more.
    """
    build = build_probe(run, data, backbone, evaluate, seed)
    protocols, train, distinct, tests, dense = build.protocols, build.train, build.distinct, build.tests, build.dense
    model = build.taps.to(run.device).backbone
    if backbone["weights"] == "none" and model.spec["name"] not in BASELINES:
        warning = "" if run.silent else "WARNING: "  # in a pipeline it is a row that others have to beat
        run.log(f"{warning}backbone.weights is none: these are features of a network that nothing has trained")
    count = sum(map(len, tests.values()))
    run.log(f"probe {model.spec['name']}: features of {len(distinct)} training and {count} test images")

    finder = _Finder(run, build)
    features, shown = finder.sets(distinct, tests)
    given = given_to_all(build.view, backbone["weights"], finder.weights, len(distinct))
    scored, outcomes = Scored(distinct.classes or (), seed), dict[str, Fitted]()
    for name, protocol in protocols.items():
        with naming_preset(name, protocol):
            fitted = protocol.fit(_known(features, build, run, finder))
        fitted = with_settings(fitted, protocol.reads, {**published(name), **given})
        say_what_was_done(name, fitted, run.detail)
        if isinstance(fitted, Fitted):
            outcomes[name] = fitted
            say_ends(name, fitted, run.log)
        add_outcome(scored, name, fitted, tests, shown)
    segmented = score_dense(dense, scored, features, shown, run) if dense else None

    if run.main:
        scored.save(run.dir)
        keep_outcomes(run.dir, outcomes, distinct, build.view, build.taps.grid, finder.weights)
        save_map(run.dir, {name: taps["pooled"] for name, taps in shown.items()}, tests, seed)
    model.seen = add_seen(model.seen, LABELLED, train)
    facts = describe_sets(stage.named_sets(train, tests), held_out=data["test"] is None)
    if copies := len(train) - len(distinct):
        facts["copies"] = {"train": copies}
    found = {**exposure(model.seen, tests), **scored.as_result(), **what_was_chosen(outcomes, distinct, seed)}
    if segmented:
        segmented.add_to(found)
    selection = "train-split" if found["chosen"] or "held_out" in found else "last"
    return run.finish({"data": facts, **found, "selection": model.selection(selection)})


class _Finder:
    """Extracts features, or takes them from the cache."""

    def __init__(self, run: Run, build: Probing) -> None:
        self.run, self.taps, self.view = run, build.taps, build.view
        self.room = size_of(run.options["feature_cache"], "run.feature_cache")
        self.weights = weights_digest(build.taps.backbone)
        self.said = set[str]()

    def __call__(self, taps: Taps, images: Images, room: int, **more: Any) -> Features:
        """room: bytes of the whole cache; 0: it is neither read nor written."""
        run, workers = self.run, self.run.options["workers"]
        settings = {"device": run.device, "workers": workers, "weights": self.weights, "log": run.log}
        return features_of(taps, images, self.view, cache=room, **settings, **more)

    def sets(self, train: Images, tests: Mapping[str, Images]) -> tuple[Features, Mapping[str, Features]]:
        """The features of all sets, each image once: the training set's, and those of each test by name.

        Pooled ones come for every test, which the map of features shows.
        """
        taps = self.taps
        everything = taps if "pooled" in taps.names else Taps(taps.backbone, ["pooled", *taps.names])
        found = self(taps, train, self.room)
        return found, {name: self(everything, images, self.room) for name, images in tests.items()}

    def epoch(self, train: Images, cropped: Sequence[str], number: int, names: Sequence[str], kept: bool) -> Features:
        """Of random crops, as `Known.epoch`. cropped: the taps that any protocol reads of them; the cache gets all from one pass."""
        crops, room = RandomCrops(train, self.view, seed=self.run.seed, epoch=number), self.room if kept else 0
        wanted = self.taps.only(cropped if room else names)
        which = f"epoch {number} of random crops" if kept else "random crops, anew for each epoch"
        if (line := f"features of {which} ({', '.join(wanted.names)})") not in self.said:
            self.said.add(line)
            self.run.log(line)
        return self(wanted, crops, room, described=crops.describe(self.view))


def _known(features: Features, build: Probing, run: Run, finder: _Finder) -> Known:
    """The training images as protocols see them."""
    train, several = build.distinct, build.protocols.values()
    assert train.labels is not None and train.classes is not None
    cropped = [tap for one in several if isinstance(one, Augmented) and one.augment == "crops" for tap in one.reads]
    epoch = partial(finder.epoch, train, cropped)
    known = Known(features, train.labels, train.keys(), train.classes, run.seed, run.device, build.names, epoch)
    return known._replace(grouped=train.units())
