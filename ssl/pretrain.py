"""The recipe of `rootstock pretrain`: unlabeled images in, an exported backbone out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch

from ..core.config import resolve as config
from ..core.config.resolve import Choice, Duration, Section
from ..core.distributed import rank, world
from ..core.draws import Draws
from ..core.errors import UserError
from ..core.images.damage import Damage, read_or_neighbour
from ..core.images.open import Images, holdout, open_images
from ..core.images.sets import HELD_OUT, add_seen, align, describe, exposure, fingerprints, labelled, open_tests
from ..core.method import RawBatch, Views
from ..core.model import norm
from ..core.model.backbone import create
from ..core.run.directory import Run
from ..core.stream.batches import Decode, Share, stream
from ..core.stream.order import SHUFFLES, Order
from ..core.train.fit import Evaluator, Every, fit
from ..core.train.optim import Optim
from ..core.views.presets import VIEWS
from ..core.views.view import Evaluation
from .registry import METHODS
from .watch.collapse import CollapseAlarm
from .watch.evaluators import Probes, Watch, knn_options, linear_options, watch_options
from .watch.pictures import draw


def data_options(
    *, train: str | list[str], size: int, views: Annotated[dict[str, Any], Choice(VIEWS)] = {"name": "simclr"},
    shuffle: Annotated[dict[str, Any], Choice(SHUFFLES)] = {"name": "full"}, decode: Decode = "full",
    selection: str = "last",
) -> None:  # fmt: skip
    """train: a URI, or several as a union of domains; labels are not used. size: pixels of a view. views: how they are drawn.
    shuffle: the order of an epoch, full or in blocks of neighbours on the disk. decode: JPEGs in full, or scaled: large ones
    only as large as their crops need, sooner but with slightly other pixels; evaluation always decodes in full.
    selection: how the hyper-parameters of this config were chosen, said in its result and in those of later stages.
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
    """What is measured during training. watch: without labels. knn, linear: by the labels of `bank`, labelled images (data.train by
    default), on `test`, a labelled set or several by name, of any domain (a held-out 20 % of the bank by default). every: how
    often, beside the end; null is only then."""


def pretrain(
    run: Run,
    *,
    data: Annotated[dict[str, Any], Section(data_options)],
    backbone: Annotated[dict[str, Any], Section(create)],
    method: Annotated[dict[str, Any], Choice(METHODS)],
    optim: Annotated[dict[str, Any], Section(Optim)],
    evaluate: Annotated[dict[str, Any], Section(evaluate_options)] = {},
    seed: int = 0,
) -> dict[str, Any]:
    """Pretrain, export, and return the result."""
    torch.manual_seed(seed)
    options, settings = run.options, Optim(**optim)
    train = open_images(data["train"], seed=seed, role="unlabelled")
    bank, tests = _evaluation_sets(evaluate, data, seed)
    run.record(data=fingerprints({"train": train, **tests}))

    channels = read_or_neighbour(train, 0)[0].shape[0]
    model = create(data["size"], channels=channels, **backbone)
    objective: Any = config.build(method, METHODS, model, options["chunk"])
    norm.configure(objective, backbone["norm"], accumulate=options["accumulate"], chunk=options["chunk"], log=run.log)
    views = config.build(data["views"], VIEWS, data["size"], model.mean, model.std, objective.views)
    views = views if objective.takes_local else views.refuse_local(method["name"])
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
        f"pretrain {method['name']}: {len(train)} images, {steps} steps of {settings.batch_size}, "
        f"{settings.rate_in_words()}"
    )

    def prepare(raw: RawBatch) -> Views:
        return views(raw, Draws(seed, raw.positions))

    view = Evaluation(data["size"], mean=model.mean, std=model.std)
    probes = Probes(bank, tests, view, run, evaluate["knn"], evaluate["linear"])
    evaluators: dict[str, Evaluator] = {"eval": probes} if tests else {}
    watch = None if evaluate["watch"] is None else Watch(train, view, views, run, **evaluate["watch"])
    if watch is not None:
        evaluators["watch"] = watch
    fit(
        objective, batches, prepare,
        steps=steps, steps_per_epoch=order.steps_per_epoch, optim=settings, seed=seed, run=run,
        evaluators=evaluators, every=Every.of(run, steps, order.steps_per_epoch, evaluate["every"]), alarm=CollapseAlarm(run.rows),
    )  # fmt: skip

    model = objective.backbone  # a teacher, where the method exports one
    model.seen = add_seen(model.seen, "pretrain", train)
    told = {"task": "pretrain", "method": method["name"], "steps": steps, "seed": seed, "selection": data["selection"]}
    model.provenance.append({**told, "data": describe({"train": train})})
    if run.main:
        model.export(run.dir)
        draw(run, objective, batches, prepare)
    if watch is not None and not tests:
        watch.conclude(objective)
    facts = describe({"train": train, **tests}, held_out=bool(tests) and evaluate["test"] is None)
    counts = {"steps": steps, "images_seen": steps * settings.batch_size, "damaged": list(damage.names.values())}
    found = {**exposure(model.seen, tests), "metrics": probes.conclude(objective)}
    return run.finish({"data": facts, **found, **counts, "selection": model.selection("last")})


def _evaluation_sets(
    evaluate: Mapping[str, Any], data: Mapping[str, Any], seed: int
) -> tuple[Images | None, dict[str, Images]]:
    """The labelled bank and the tests; none where neither kNN nor a linear probe is asked for."""
    if evaluate["knn"] is None and evaluate["linear"] is None:
        return None, {}
    if (linear := evaluate["linear"]) is not None and (
        min(linear["steps"], linear["batch_size"]) < 1 or linear["lr"] <= 0
    ):
        raise UserError(
            f"evaluate.linear: expected steps and batch_size of at least 1 and lr above 0, got {dict(linear)}"
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
