"""The recipe of `rootstock probe`: the scores of frozen features by kNN, linear and attentive probes, and few-shot classification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from ..core import stage
from ..core.config.resolve import Section
from ..core.errors import UserError
from ..core.evaluate.features import extract
from ..core.evaluate.held_out import describe_slice, distinct_rows
from ..core.evaluate.pictures import save_map
from ..core.evaluate.scores import Scores, add_scores
from ..core.images.open import Images
from ..core.images.sets import LABELLED, add_seen, describe_sets, exposure, train_and_tests
from ..core.images.store import Stamp
from ..core.model.backbone import OWN, Backbone, create
from ..core.run.directory import Run
from ..core.views.view import Evaluation
from .baselines.registry import BASELINES
from .protocols.attentive import AttentiveTraining
from .protocols.fewshot import fewshot as fewshot_protocol
from .protocols.knn import knn as knn_protocol
from .protocols.linear import linear as linear_protocol
from .protocols.outcome import Outcome
from .protocols.registry import PROTOCOLS, READ_TOKENS, check_protocol
from .protocols.tokens import extract_tokens

CONFIGURED = ("knn", "linear", "attentive", "fewshot")
Protocol = Callable[..., Outcome]


def probe_data_options(
    *,
    train: str | list[str],
    test: str | dict[str, str] | None = None,
    size: int,
    crop: float = 1.0,
    stamp: Stamp = "mtime",
) -> None:
    """The `data` section of `rootstock probe`.

    train: URI of the labelled training images, or a list of URIs whose union is taken.
    test: URI of a labelled test set, or a mapping of names to URIs; null holds out a stratified 20 % of the training images by seed.
    size: Side of the network's input in pixels.
    crop: Part of the shorter side that is kept, 0.01 to 1 (0.875 takes 224 of 256 pixels).
    stamp: How a changed picture is noticed when the run resumes, in files and archives: size (another name or size), mtime (also another
        time of change) or content (also other bytes; reads every file at each start).
    """


def protocol_options(
    *,
    knn: Annotated[dict[str, Any] | None, Section(knn_protocol)] = None,
    linear: Annotated[dict[str, Any] | None, Section(linear_protocol)] = None,
    attentive: Annotated[dict[str, Any] | None, Section(AttentiveTraining)] = None,
    fewshot: Annotated[dict[str, Any] | None, Section(fewshot_protocol)] = None,
    presets: list[str] = [],
) -> None:
    """The `evaluate` section of `rootstock probe`: which protocols run; kNN where none is given.

    knn: A weighted kNN classifier; null for none.
    linear: Logistic regression, its regularisation chosen on a part of the training images; null for none.
    attentive: An attentive probe on the tokens before pooling; null for none.
    fewshot: Nearest class mean from a few labelled images a class; null for none.
    presets: Published protocols by name: knn-lightly, knn-dino, logreg.
    """


class Probing(NamedTuple):
    """A probe, ready to score."""

    chosen: list[tuple[str, Protocol]]
    attentive: AttentiveTraining
    train: Images
    distinct: Images  # the training images without copies: what the protocols see
    tests: dict[str, Images]
    model: Backbone


def build_probe(
    run: Run, data: Mapping[str, Any], backbone: Mapping[str, Any], evaluate: Mapping[str, Any], seed: int
) -> Probing:
    """Choose the protocols, open the sets and build the network. Raises UserError, also for what a protocol cannot do on this set."""
    torch.manual_seed(seed)
    options, attentive = _chosen_protocols(evaluate), AttentiveTraining(**(evaluate["attentive"] or {}))
    train, tests = train_and_tests(data["train"], data["test"], seed)
    stage.record_sets(run, stage.named_sets(train, tests), data["stamp"])
    distinct = train.select(distinct_rows(train))
    assert distinct.labels is not None and distinct.classes is not None
    if copies := len(train) - len(distinct):
        run.log(f"{copies} of {len(train)} training images are copies of others; each counts once")
    for name, given in options.items():
        check_protocol(name, given, distinct.keys(), distinct.labels, distinct.classes)
    chosen = [(name, partial(PROTOCOLS[name], **given)) for name, given in options.items()]
    model = create(data["size"], stage.channels_of(train), {**OWN, **BASELINES}, **backbone)
    return Probing(chosen, attentive, train, distinct, tests, model)


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
    chosen, attentive, train, distinct, tests, model = build_probe(run, data, backbone, evaluate, seed)
    model = model.to(run.device)
    if backbone["weights"] == "none" and model.spec["name"] not in BASELINES:
        run.log("WARNING: backbone.weights is none: these are features of a network that nothing has trained")
    count = sum(map(len, tests.values()))
    run.log(f"probe {model.spec['name']}: features of {len(distinct)} training and {count} test images")

    view = Evaluation(data["size"], crop=data["crop"], mean=model.mean, std=model.std)
    reads_tokens = any(name in READ_TOKENS for name, _ in chosen)
    inputs = _extracted(run, model, view, distinct, tests, attentive if reads_tokens else None)
    scores, outcomes = _scored(run, chosen, inputs, distinct, tests)

    if run.main:
        save_map(run.dir, inputs.features, tests, seed)
    model.seen = add_seen(model.seen, LABELLED, train)
    facts = describe_sets(stage.named_sets(train, tests), held_out=data["test"] is None)
    if copies := len(train) - len(distinct):
        facts["copies"] = {"train": copies}
    found = {**exposure(model.seen, tests), **scores._asdict(), **_choices(outcomes, distinct, seed)}
    selection = next((o.selection for o in outcomes if o.selection != "last"), "last")
    return run.finish({"data": facts, **found, "selection": model.selection(selection)})


def _choices(outcomes: Sequence[Outcome], train: Images, seed: int) -> dict[str, Any]:
    """What the protocols chose, how the slice of the training images was drawn on which they did, and how solvers ended."""
    chosen = {key: value for outcome in outcomes for key, value in outcome.chosen.items()}
    fits = {key: value for outcome in outcomes for key, value in outcome.fits.items()}
    drawn = {"held_out": describe_slice(train, seed)} if chosen else {}
    return {"chosen": chosen, **drawn, **({"fits": fits} if fits else {})}


class _Inputs(NamedTuple):
    """What protocols read of the frozen network. Tokens are there only if a protocol reads them."""

    train: Tensor  # [N, D]
    features: dict[str, Tensor]  # of each test set, [M, D]
    train_tokens: Tensor | None  # [N, L, D]
    tokens: dict[str, Tensor]  # of each labelled test set, [M, L, D]


def _extracted(
    run: Run,
    model: Backbone,
    view: Evaluation,
    train: Images,
    tests: Mapping[str, Images],
    attentive: AttentiveTraining | None,
) -> _Inputs:
    """Features of all sets, each image once; attentive: what reads tokens, None where nothing does."""
    workers = run.options["workers"]
    labelled = {name: images for name, images in tests.items() if images.labels is not None}
    tokens: list[Tensor] = []
    if attentive is not None:
        # Before the features, because tokens may be refused for want of memory.
        sets = [train, *labelled.values()]
        tokens = extract_tokens(model, sets, view, attentive, device=run.device, workers=workers, log=run.log)
    known = extract(model, train, view, device=run.device, workers=workers)
    features = {name: extract(model, t, view, device=run.device, workers=workers) for name, t in tests.items()}
    named = dict(zip(labelled, tokens[1:], strict=True)) if tokens else {}
    return _Inputs(known, features, tokens[0] if tokens else None, named)


def _scored(
    run: Run, chosen: list[tuple[str, Protocol]], inputs: _Inputs, train: Images, tests: Mapping[str, Images]
) -> tuple[Scores, list[Outcome]]:
    """The scores of all protocols, and their outcomes."""
    assert train.labels is not None and train.classes is not None
    scores, outcomes, keys = Scores({}, {}, {}), list[Outcome](), train.keys()
    for name, protocol in chosen:
        tokens = name in READ_TOKENS
        known, features = (inputs.train_tokens, inputs.tokens) if tokens else (inputs.train, inputs.features)
        pairs = {test: (features[test], t.labels) for test, t in tests.items() if t.labels is not None}
        place = (run.device,) if tokens else ()  # where a protocol that trains does so
        outcome = protocol(known, train.labels, keys, pairs, train.classes, run.seed, *place)
        for key, predictions in outcome.predictions.items():
            if predictions.ndim == 1:
                add_scores(scores, key, tests[key.split("/")[0]], predictions, train.classes, run.seed)
        scores.metrics.update(outcome.metrics)
        scores.details.update(outcome.details)
        scores.intervals.update({k: [v for v in pair if v is not None] for k, pair in outcome.intervals.items()})
        outcomes.append(outcome)
    return scores, outcomes


def _chosen_protocols(evaluate: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The protocols that a config asks for with their options, in its order; kNN where it asks for none. Raises UserError."""
    chosen: dict[str, dict[str, Any]] = {
        name: dict(evaluate[name]) for name in CONFIGURED if evaluate[name] is not None
    }
    for name in evaluate["presets"]:
        if name not in PROTOCOLS:
            raise UserError(f"evaluate.presets: unknown preset {name!r} (known: {', '.join(sorted(PROTOCOLS))})")
        chosen.setdefault(name, {})
    return chosen or {"knn": {}}
