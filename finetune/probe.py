"""The recipe of `rootstock probe`: scores of frozen features by kNN, linear, attentive and few-shot probes, retrieval and verification."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch

from ..core import stage
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
from ..core.model.backbone import OWN, create
from ..core.run.directory import Run
from ..core.views.view import Evaluation
from .baselines.registry import BASELINES
from .baselines.words import VisualWords, learn_words
from .dense.dense import DenseProbe, prepare
from .dense.outcome import score_dense
from .probe_options import probe_data_options, protocol_options
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
from .protocols.kept import keep_outcomes
from .protocols.outcomes import add_outcome, given_to_all, say_ends, say_what_was_done, what_was_chosen, with_settings
from .protocols.registry import (
    check_one_class,
    check_taps,
    chosen_protocols,
    gives_scores,
    naming_preset,
    other_views,
    published,
)
from .robustness import corrupted_tests
from .speed import check_speed, measured_speed


class Probing(NamedTuple):
    """A probe, ready to score."""

    protocols: dict[str, AnyProtocol]
    train: Images
    distinct: Images  # the training images without copies: what the protocols see
    names: Callable[[], Sequence[tuple[str, int]]]  # (name, row of `distinct`) of every training image
    tests: dict[str, Images]  # as they are, then their corrupted copies
    clean: dict[str, Images]  # as they are
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
    clean = tests
    if data["corrupt"] is not None:
        tests = {**clean, **corrupted_tests(clean, **data["corrupt"], view=view)}
    if evaluate["speed"] is not None:
        check_speed(**evaluate["speed"])
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
    dense = prepare(evaluate["dense"], stage.named_sets(distinct, clean), model, view, seed, run.log)
    taps = Taps(model, [*taps.names, PATCHES]) if dense else taps
    return Probing(protocols, train, distinct, names, tests, clean, taps, view, dense)


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
    backbone: The network whose features are scored: a run, weights, or a baseline (pixels, colour, sobel, canny, lbp, hog, sift, surf).
    evaluate: The protocols.
    seed: Seed of held-out images and random draws, 0 or more.
    """
    build = build_probe(run, data, backbone, evaluate, seed)
    protocols, train, distinct, tests, dense = build.protocols, build.train, build.distinct, build.tests, build.dense
    if isinstance(words := build.taps.backbone.model, VisualWords):
        learn_words(words, distinct, build.view, seed=seed, log=run.log)
    model = build.taps.to(run.device).backbone
    if backbone["weights"] == "none" and model.spec["name"] not in BASELINES:
        warning = "" if run.silent else "WARNING: "  # in a pipeline it is a row that others have to beat
        run.log(f"{warning}backbone.weights is none: these are features of a network that nothing has trained")
    count = sum(map(len, tests.values()))
    run.log(f"probe {model.spec['name']}: features of {len(distinct)} training and {count} test images")

    finder = _Finder(run, build)
    features, shown = finder.sets(distinct, tests, build.clean)
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
    if run.main and run.draws:
        save_map(run.dir, {name: shown[name]["pooled"] for name in build.clean}, build.clean, seed)
    model.seen = add_seen(model.seen, LABELLED, train)
    facts = describe_sets(stage.named_sets(train, build.clean), held_out=data["test"] is None)
    if copies := len(train) - len(distinct):
        facts["copies"] = {"train": copies}
    found = {**exposure(model.seen, build.clean), **scored.as_result(), **what_was_chosen(outcomes, distinct, seed)}
    if segmented:
        segmented.add_to(found)
    if evaluate["speed"] is not None and run.main:
        of = next(iter(tests.values()))
        found["speed"] = measured_speed(build.taps, of, build.view, **evaluate["speed"], device=run.device)
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

    def sets(
        self, train: Images, tests: Mapping[str, Images], clean: Collection[str]
    ) -> tuple[Features, Mapping[str, Features]]:
        """The features of all sets, each image once: the training set's, and those of each test by name.

        Pooled ones come for every test in `clean`, which the map of features shows.
        """
        taps = self.taps
        everything = taps if "pooled" in taps.names else Taps(taps.backbone, ["pooled", *taps.names])
        found = self(taps, train, self.room)
        of = {name: everything if name in clean else taps for name in tests}
        return found, {name: self(of[name], images, self.room) for name, images in tests.items()}

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
