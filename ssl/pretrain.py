"""The recipe of `rootstock pretrain`: unlabeled images in, an exported backbone out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import torch

from ..core import stage
from ..core.checks import LARGEST_RATE
from ..core.config.auto import OrAuto
from ..core.config.resolve import Choice, Duration, Section
from ..core.draws import Draws
from ..core.errors import UserError
from ..core.images.open import Images, holdout, open_images
from ..core.images.sets import HELD_OUT, add_seen, align, describe_sets, exposure, labelled, open_tests
from ..core.images.store import Stamp
from ..core.method import PretrainMethod, RawBatch, Views
from ..core.model.backbone import create
from ..core.run.directory import Run
from ..core.stream.batches import Decode
from ..core.stream.order import SHUFFLES
from ..core.train.fit import Evaluator, Training
from ..core.train.optim import Optim
from ..core.views.presets import VIEWS
from ..core.views.resample import Interpolation
from .registry import PRETRAIN_METHODS
from .watch.collapse import CollapseAlarm
from .watch.evaluators import Probes, Watch, knn_options, linear_options, watch_options
from .watch.pictures import save_pictures


def data_options(
    *,
    train: str | list[str],
    size: Annotated[int, OrAuto],
    views: Annotated[dict[str, Any], Choice(VIEWS)] = {"name": "simclr"},
    shuffle: Annotated[dict[str, Any], Choice(SHUFFLES)] = {"name": "full"},
    crop: float = 1.0,
    resize: int | None = None,
    interpolation: Interpolation = "bilinear",
    decode: Decode = "full",
    stamp: Stamp = "mtime",
    selection: str = "last",
) -> None:
    """The `data` section of `rootstock pretrain`.

    train: URI of the training images, or a list of URIs whose union is taken. Labels are not used.
    size: Side of a view in pixels. auto: that of the run in `backbone.weights`, or else what the pictures have, at most 224,
        without an accelerator 96.
    views: How views of an image are drawn: a preset's name, or a mapping with its name and changed numbers.
    shuffle: Order of an epoch: full, or blocks of images that are neighbours on the disk.
    crop: Part of the shorter side that evaluation keeps, 0.01 to 1 (0.875 takes 224 of 256 pixels). A picture that already has the size is
        taken whole.
    resize: Pixels to which evaluation resizes the shorter side before it cuts out the centre, at least size; null is size / crop. A
        picture that already has the size is taken whole.
    interpolation: How evaluation resizes: bilinear, or bicubic, as DINOv2, MAE and timm's ViTs are evaluated.
    decode: How JPEG files are decoded: full, or scaled, which decodes a large file only as large as its crops need. Scaled is faster
        and gives slightly other pixels; evaluation always decodes in full.
    stamp: How a changed picture is noticed when the run resumes, in files and archives: size (another name or size), mtime (also another
        time of change) or content (also other bytes; reads every file at each start).
    selection: How the hyper-parameters of this config were chosen, as this result and those of later stages say it: last,
        train-split, source-val, tuned-on-target or oracle.
    """


def evaluate_options(
    *,
    knn: Annotated[dict[str, Any] | None, Section(knn_options)] = None,
    linear: Annotated[dict[str, Any] | None, Section(linear_options)] = None,
    watch: Annotated[dict[str, Any] | None, Section(watch_options)] = {},
    every: Duration | None = Duration(10, "%"),
    bank: str | list[str] | None = None,
    test: str | dict[str, str] | None = None,
) -> None:
    """The `evaluate` section of `rootstock pretrain`: what is measured during training and at its end.

    knn: A kNN classifier on the frozen features, by the labels of `bank`; null for none.
    linear: A linear probe on the frozen features, by the labels of `bank`; null for none.
    watch: Measures of the features that need no labels; null for none.
    every: How often the measures are taken besides at the end: steps, `10ep` or `10%`; null for the end alone.
    bank: URI, or list of URIs, of the labelled images for kNN and linear probe; null takes data.train.
    test: URI of the labelled test set, or a mapping of names to URIs; null holds out 20 % of the bank by seed.
    """


class Pretraining(NamedTuple):
    """A pretraining, ready to run."""

    plan: Training
    fed: stage.Feed
    train: Images
    tests: dict[str, Images]  # labelled sets of the probes; empty without probes
    probes: Probes
    watch: Watch | None

    @property
    def evaluators(self) -> dict[str, Evaluator]:
        """What measures the method during training and at its end."""
        probes: dict[str, Evaluator] = {"eval": self.probes} if self.tests else {}
        return probes if self.watch is None else {**probes, "watch": self.watch}


def build_pretraining(
    run: Run,
    data: Mapping[str, Any],
    backbone: Mapping[str, Any],
    method: Mapping[str, Any],
    optim: Mapping[str, Any],
    evaluate: Mapping[str, Any],
    seed: int,
) -> Pretraining:
    """Open the sets and build network, method, augmentation, batches and evaluators. Raises UserError."""
    torch.manual_seed(seed)
    settings = Optim(**optim)
    train = open_images(data["train"], seed=seed, role="unlabelled")
    bank, tests = _evaluation_sets(evaluate, data, seed)
    stage.record_sets(run, {"train": train, **tests}, data["stamp"])

    model = stage.network(backbone, data["size"], train)
    if model.frozen:
        raise UserError(
            f"backbone.freeze: {backbone['freeze']} leaves nothing to pretrain; freeze fewer stages, or none"
        )
    objective: PretrainMethod = stage.build_method(method, PRETRAIN_METHODS, model, run)
    stage.set_norm(run, objective, backbone["norm"])
    views = stage.augmentation(run, data["views"], objective, method["name"], train)
    fed = stage.feed(run, {"train": train}, views, data, settings, seed)
    run.log(
        f"pretrain {method['name']}: {len(train)} images, {fed.steps} steps of {settings.batch_size}, "
        f"{settings.rate_in_words()}"
    )

    def prepare(raw: RawBatch) -> Views:
        return views(raw, Draws(seed, raw.positions))

    view = stage.evaluation(data, model)
    probes = Probes(bank, tests, view, run, evaluate["knn"], evaluate["linear"])
    watch = None if evaluate["watch"] is None else Watch(train, view, views, run, **evaluate["watch"])
    plan = stage.training(run, objective, fed, prepare, settings, evaluate["every"])
    return Pretraining(plan, fed, train, tests, probes, watch)


def pretrain(
    run: Run,
    *,
    data: Annotated[dict[str, Any], Section(data_options)],
    backbone: Annotated[dict[str, Any], Section(create)],
    method: Annotated[dict[str, Any], Choice(PRETRAIN_METHODS)],
    optim: Annotated[dict[str, Any], Section(Optim)],
    evaluate: Annotated[dict[str, Any], Section(evaluate_options)] = {},
    seed: int = 0,
) -> dict[str, Any]:
    """Pretrain a backbone without labels, export it, and return the result.

    data: Training images and how they are drawn.
    backbone: The network that is trained.
    method: The pretraining method by name, with its keys.
    optim: Optimizer, learning rate and length of the training.
    evaluate: What is measured during training.
    seed: Seed of everything random, 0 or more.
    """
    built = build_pretraining(run, data, backbone, method, optim, evaluate, seed)
    plan, fed, train, tests, probes, watch = built
    stage.train(run, plan, built.evaluators, CollapseAlarm(run.rows))

    objective = plan.method
    model = objective.backbone  # a teacher, where the method exports one
    model.seen = add_seen(model.seen, "pretrain", train)
    stage.trace(run, model, {"train": train}, data, method=method["name"], steps=fed.steps)
    if run.main:
        model.export(run.dir)
    if run.main and run.draws:
        save_pictures(run, objective, plan.batches, plan.prepare)
    if watch is not None and not tests and run.draws:
        watch.save_map(objective)
    facts = describe_sets({"train": train, **tests}, held_out=bool(tests) and evaluate["test"] is None)
    if probes.bank is not None and probes.bank.classes is not None:
        facts["classes"] = len(probes.bank.classes)
    found = {**exposure(model.seen, tests), "metrics": probes.final_scores(objective)}
    return run.finish({"data": facts, **found, **fed.counts(), "selection": model.selection("last")})


def _evaluation_sets(
    evaluate: Mapping[str, Any], data: Mapping[str, Any], seed: int
) -> tuple[Images | None, dict[str, Images]]:
    """The labelled bank and the tests; none where neither kNN nor a linear probe is asked for."""
    if evaluate["knn"] is None and evaluate["linear"] is None:
        return None, {}
    if (linear := evaluate["linear"]) is not None and (
        min(linear["steps"], linear["batch_size"]) < 1 or not 0 < linear["lr"] <= LARGEST_RATE
    ):
        raise UserError(
            f"evaluate.linear: expected steps and batch_size of at least 1 and lr above 0, at most {LARGEST_RATE:g}, got {dict(linear)}"
        )
    if evaluate["knn"] is not None and (
        evaluate["knn"]["k"] < 1 or not evaluate["knn"]["temperature"] > 0
    ):  # said now, not after the training
        raise UserError(
            f"evaluate.knn: expected k of at least 1 and a temperature above 0, got {dict(evaluate['knn'])}"
        )
    key = "evaluate.bank" if evaluate["bank"] is not None else "data.train"
    uri = evaluate["bank"] if evaluate["bank"] is not None else data["train"]
    bank = labelled(open_images(uri, seed=seed), f"evaluate.knn and evaluate.linear need labels; {key}")
    assert bank.classes is not None
    if evaluate["test"] is None:
        bank, held = holdout(bank, fraction=HELD_OUT, seed=seed, stratify=True)
        return bank, {"test": held}
    tests = open_tests(evaluate["test"], seed, "evaluate.test")
    return bank, {name: align(t, bank.classes, f"evaluate.test.{name}") for name, t in tests.items()}
