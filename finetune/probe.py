"""The recipe of `rootstock probe`: scores of frozen features by kNN, linear, attentive and few-shot probes, retrieval and verification."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch

from ..core import stage
from ..core.config.resolve import Section
from ..core.evaluate.feature_key import weights_digest
from ..core.evaluate.frozen import features_of
from ..core.evaluate.held_out import distinct_rows
from ..core.evaluate.pictures import save_map
from ..core.evaluate.scores import Scored
from ..core.evaluate.taps import LEVEL, Taps, available_taps
from ..core.images.limits import size_of
from ..core.images.open import Images
from ..core.images.sets import LABELLED, add_seen, describe_sets, exposure, train_and_tests
from ..core.images.store import Stamp
from ..core.model.backbone import OWN, create
from ..core.run.directory import Run
from ..core.views.resample import Interpolation
from ..core.views.view import Evaluation
from .baselines.registry import BASELINES
from .protocols.attentive import Attentive
from .protocols.contract import AnyProtocol, Counts, Features, Fitted, Known, Tapped, check_vectors
from .protocols.fewshot import FewShot
from .protocols.knn import KNN
from .protocols.linear import Linear
from .protocols.outcomes import add_outcome, what_was_chosen
from .protocols.registry import chosen_protocols
from .protocols.retrieval import Retrieval
from .protocols.verification import Verification


def probe_data_options(
    *,
    train: str | list[str],
    test: str | dict[str, str] | None = None,
    size: int,
    crop: float = 1.0,
    resize: int | None = None,
    interpolation: Interpolation = "bilinear",
    stamp: Stamp = "mtime",
) -> None:
    """The `data` section of `rootstock probe`.

    train: URI of the labelled training images, or a list of URIs whose union is taken.
    test: URI of a labelled test set, or a mapping of names to URIs; null holds out a stratified 20 % of the training images by seed.
    size: Side of the network's input in pixels.
    crop: Part of the shorter side that is kept, 0.01 to 1 (0.875 takes 224 of 256 pixels).
    resize: Pixels to which evaluation resizes the shorter side before it cuts out the centre, at least size; null is size / crop.
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
    retrieval: Annotated[dict[str, Any] | None, Section(Retrieval)] = None,
    verification: Annotated[dict[str, Any] | None, Section(Verification)] = None,
    presets: list[str] = [],
) -> None:
    """The `evaluate` section of `rootstock probe`: which protocols run; kNN where none is given.

    knn: A weighted kNN classifier; null for none.
    linear: Logistic regression, its regularisation chosen on a part of the training images; null for none.
    attentive: An attentive probe on the tokens before pooling; null for none.
    fewshot: Nearest class mean from a few labelled images a class; null for none.
    retrieval: Which images of a gallery are nearest to a test image: mAP, recall@k, precision@k; null for none.
    verification: Whether two test images have the same class, by their cosine: equal error rate, FRR at a FAR; null for none.
    presets: Published protocols by name: knn-lightly, knn-dino, logreg.
    """


class Probing(NamedTuple):
    """A probe, ready to score."""

    protocols: dict[str, AnyProtocol]
    train: Images
    distinct: Images  # the training images without copies: what the protocols see
    tests: dict[str, Images]
    taps: Taps  # of the network, those that the protocols read


def build_probe(
    run: Run, data: Mapping[str, Any], backbone: Mapping[str, Any], evaluate: Mapping[str, Any], seed: int
) -> Probing:
    """Choose the protocols, open the sets and build the network. Raises UserError, also for what a protocol cannot do on this set."""
    torch.manual_seed(seed)
    train, tests = train_and_tests(data["train"], data["test"], seed)
    stage.record_sets(run, stage.named_sets(train, tests), data["stamp"])
    distinct = train.select(distinct_rows(train))
    assert distinct.labels is not None and distinct.classes is not None
    if copies := len(train) - len(distinct):
        run.log(f"{copies} of {len(train)} training images are copies of others; each counts once")
    model = create(data["size"], stage.channels_of(train), {**OWN, **BASELINES}, **backbone)
    protocols = chosen_protocols(evaluate, tuple(tap for tap in available_taps(model) if LEVEL.fullmatch(tap)))
    taps = Taps(model, [tap for protocol in protocols.values() for tap in protocol.reads])
    one = taps(torch.zeros(1, model.channels, model.size, model.size))
    shapes = {tap: tuple(found.shape[1:]) for tap, found in one.items()}
    asked = {name: test.keys() for name, test in tests.items() if test.labels is not None}
    counts = Counts(distinct.labels, distinct.keys(), distinct.classes, shapes, asked)
    for name, protocol in protocols.items():
        if isinstance(protocol, Tapped):
            check_vectors(name, protocol, counts)
        protocol.requires(name, counts)
    return Probing(protocols, train, distinct, tests, taps)


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
    protocols, train, distinct, tests, taps = build_probe(run, data, backbone, evaluate, seed)
    taps, model = taps.to(run.device), taps.backbone
    if backbone["weights"] == "none" and model.spec["name"] not in BASELINES:
        run.log("WARNING: backbone.weights is none: these are features of a network that nothing has trained")
    count = sum(map(len, tests.values()))
    run.log(f"probe {model.spec['name']}: features of {len(distinct)} training and {count} test images")

    view = stage.evaluation(data, model)
    known, shown = _extracted(run, taps, view, distinct, tests)
    scored, outcomes = Scored(known.classes, seed), dict[str, Fitted]()
    for name, protocol in protocols.items():
        fitted = protocol.fit(known)
        add_outcome(scored, name, fitted, tests, shown)
        if isinstance(fitted, Fitted):
            outcomes[name] = fitted

    if run.main:
        scored.save(run.dir)
        save_map(run.dir, {name: taps["pooled"] for name, taps in shown.items()}, tests, seed)
    model.seen = add_seen(model.seen, LABELLED, train)
    facts = describe_sets(stage.named_sets(train, tests), held_out=data["test"] is None)
    if copies := len(train) - len(distinct):
        facts["copies"] = {"train": copies}
    found = {**exposure(model.seen, tests), **scored.as_result(), **what_was_chosen(outcomes, distinct, seed)}
    selection = "train-split" if found["chosen"] else "last"
    return run.finish({"data": facts, **found, "selection": model.selection(selection)})


def _extracted(
    run: Run, taps: Taps, view: Evaluation, train: Images, tests: Mapping[str, Images]
) -> tuple[Known, Mapping[str, Features]]:
    """The features of all sets, each image once: the training set's, and those of each test by name.

    Pooled ones come for every test, which the map of features shows; others only where there are labels to score.
    """
    assert train.labels is not None and train.classes is not None
    find = partial(
        features_of,
        view=view,
        device=run.device,
        workers=run.options["workers"],
        cache=size_of(run.options["feature_cache"], "run.feature_cache"),
        weights=weights_digest(taps.backbone),
        log=run.log,
    )
    pooled = Taps(taps.backbone)
    everything = taps if "pooled" in taps.names else Taps(taps.backbone, ["pooled", *taps.names])
    found = find(taps, train)
    shown = {name: find(everything if t.labels is not None else pooled, t) for name, t in tests.items()}
    return Known(found, train.labels, train.keys(), train.classes, run.seed, run.device), shown
