"""The recipe of `rootstock pretrain`: unlabeled images in, an exported backbone out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import nn

from ..core import config, norm
from ..core.backbone import Backbone, create
from ..core.config import Choice, Duration, Section
from ..core.distributed import rank, world
from ..core.draws import Draws
from ..core.features import extract
from ..core.images.source import Images, holdout, open_images
from ..core.knn import knn_predict
from ..core.optim import Optim
from ..core.pictures import denormalise, save_map, save_sheet
from ..core.presets import VIEWS
from ..core.run import Run
from ..core.sets import HELD_OUT, add_seen, align, count_seen, describe, fingerprints, labelled, open_tests
from ..core.stream import Damage, Order, Sample, Share, Views, stream
from ..core.train import Every, fit
from ..core.views import Evaluation, Multiview
from .mae import MAE
from .registry import METHODS


def data_options(
    *, train: str | list[str], size: int, views: Annotated[dict[str, Any], Choice(VIEWS)] = {"name": "simclr"}  # noqa: B006
) -> None:
    """train: a URI, or several as a union of domains; labels are not used. size: pixels of a view. views: how they are drawn."""


def knn_options(*, k: int = 20, temperature: float = 0.07) -> None:
    """Weighted cosine kNN; k and temperature are fixed beforehand, nothing is selected."""


def evaluate_options(
    *,
    knn: Annotated[dict[str, Any] | None, Section(knn_options)] = None,
    every: Duration | None = None,
    bank: str | list[str] | None = None,
    test: str | dict[str, str] | None = None,
) -> None:
    """Online kNN. bank: labelled images to vote (data.train by default). test: a labelled set or several by name, of any domain
    (a held-out 20 % of the bank by default). every: how often, beside the end."""


def pretrain(
    run: Run,
    *,
    data: Annotated[dict[str, Any], Section(data_options)],
    backbone: Annotated[dict[str, Any], Section(create)],
    method: Annotated[dict[str, Any], Choice(METHODS)],
    optim: Annotated[dict[str, Any], Section(Optim)],
    evaluate: Annotated[dict[str, Any], Section(evaluate_options)] = {},  # noqa: B006
    seed: int = 0,
) -> dict[str, Any]:
    """Pretrain, export, and return the result."""
    torch.manual_seed(seed)
    options, settings = run.options, Optim(**optim)
    train = open_images(data["train"], seed=seed, role="unlabelled")
    bank, tests = _evaluation_sets(evaluate, data, seed)
    run.record(data=fingerprints({"train": train, **tests}))

    model = create(data["size"], channels=train.read(0).shape[0], **backbone)
    view = Evaluation(data["size"], mean=model.mean, std=model.std)
    objective: Any = config.build(method, METHODS, model, options["chunk"])
    norm.configure(objective, backbone["norm"], accumulate=options["accumulate"], chunk=options["chunk"], log=run.log)
    views = Multiview([config.build(data["views"], VIEWS, data["size"], model.mean, model.std)] * objective.views)

    order = Order(len(train), settings.batch_size, seed)
    steps = settings.steps(order.steps_per_epoch)
    damage = Damage(options["damaged"], report=run.log)
    batches = stream(
        train, order, views.crop, steps=steps, device=run.device, share=Share(rank(), world(), options["accumulate"]),
        workers=options["workers"], damage=damage,
    )  # fmt: skip
    run.log(f"pretrain {method['name']}: {len(train)} images, {steps} steps of {settings.batch_size}, peak rate {settings.peak_lr:g}")

    def prepare(raw: Sample) -> Views:
        draws = Draws(seed, raw.positions)
        return Views(views(raw.images, draws), draws)

    def online_knn(module: nn.Module) -> Mapping[str, float]:
        return knn_accuracy(module.backbone, bank, tests, view, run.device, **evaluate["knn"])  # pyright: ignore[reportArgumentType]

    fit(
        objective, batches, prepare, steps=steps, steps_per_epoch=order.steps_per_epoch, optim=settings, seed=seed, run=run,
        evaluators={"eval": online_knn} if tests and evaluate["knn"] else {},
        every=Every.of(run, steps, order.steps_per_epoch, evaluate["every"]),
    )  # fmt: skip

    seen_before = dict(model.seen)
    model.seen = add_seen(model.seen, "pretrain", train)
    model.provenance.append({"task": "pretrain", "method": method["name"], "steps": steps, "seed": seed, "data": describe({"train": train})})
    metrics = online_knn(objective) if tests and evaluate["knn"] else {}
    features = {name: extract(model, t, view, device=run.device) for name, t in tests.items()}
    if run.main:
        model.export(run.dir)
        _draw(run, objective, batches, prepare, model)
        if features:
            save_map(run.dir, features, tests, seed)
    return run.finish(
        {
            "data": describe({"train": train, **tests}, held_out=bool(tests) and evaluate["test"] is None),
            "seen_unlabelled": {**count_seen(seen_before, tests), **count_seen({"pretrain": model.seen["pretrain"]}, tests)},
            "metrics": dict(metrics),
            "steps": steps,
            "images_seen": steps * settings.batch_size,
            "damaged": list(damage.names.values()),
            "selection": "last",
        }
    )


def knn_accuracy(
    backbone: nn.Module, bank: Images, tests: Mapping[str, Images], view: Evaluation, device: torch.device, *, k: int, temperature: float
) -> dict[str, float]:
    """ "TEST/knn/accuracy" of the frozen features, voted by the bank's labels."""
    assert bank.labels is not None and bank.classes is not None
    known = extract(backbone, bank, view, device=device)
    scores = {}
    for name, test in tests.items():
        assert test.labels is not None
        found = knn_predict(known, bank.labels, extract(backbone, test, view, device=device), len(bank.classes), k=k, temperature=temperature)
        scores[f"{name}/knn/accuracy"] = float((found == test.labels).double().mean())
    return scores


def _evaluation_sets(evaluate: Mapping[str, Any], data: Mapping[str, Any], seed: int) -> tuple[Images, dict[str, Images]]:
    """The voting bank and the tests; both empty of meaning where no kNN is asked for."""
    if evaluate["knn"] is None:
        return open_images(data["train"], seed=seed), {}
    key = "evaluate.bank" if evaluate["bank"] is not None else "data.train"
    bank = labelled(open_images(evaluate["bank"] if evaluate["bank"] is not None else data["train"], seed=seed), f"evaluate.knn needs labels; {key}")
    assert bank.classes is not None
    if evaluate["test"] is None:
        bank, held = holdout(bank, fraction=HELD_OUT, seed=seed, stratify=True)
        return bank, {"test": held}
    tests = open_tests(evaluate["test"], seed, "evaluate.test")
    return bank, {name: align(t, bank.classes, f"evaluate.test.{name}") for name, t in tests.items()}


def _draw(run: Run, objective: Any, batches: Any, prepare: Any, model: Backbone) -> None:
    """The first batch as the model sees it, and for MAE what it paints."""
    first = next(iter(batches(0)), None)
    if first is None:
        return
    batch = prepare(first[0])
    few = batch.images[:, :12]
    save_sheet(run.dir, "views", denormalise(few, model.mean, model.std), "Augmented views of the first images, one row a view.")
    if isinstance(objective, MAE):
        objective.eval()
        images = batch.images[0, :12]
        seen, painted = objective.paint(images, Draws(run.seed, batch.draws.positions[:12]))
        rows = denormalise(torch.stack([images, seen, painted]), model.mean, model.std)
        save_sheet(run.dir, "reconstructions", rows, "MAE: the image, the visible patches, and the painted image.")
