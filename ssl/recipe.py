"""The recipe of `rootstock pretrain`: unlabeled images in, an exported backbone out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..core import config, norm
from ..core.backbone import Backbone, create
from ..core.config import Choice, Duration, Section
from ..core.damage import Damage, read_or_neighbour
from ..core.distributed import rank, world
from ..core.draws import Draws
from ..core.errors import UserError
from ..core.features import extract
from ..core.images.source import Images, holdout, open_images
from ..core.knn import knn_predict
from ..core.optim import Optim
from ..core.order import SHUFFLES, Order
from ..core.pictures import denormalise, save_map, save_sheet
from ..core.presets import VIEWS
from ..core.run import Run
from ..core.sample import Sample, Views
from ..core.sets import HELD_OUT, add_seen, align, describe, exposure, fingerprints, labelled, open_tests
from ..core.stream import Batches, Decode, Share, stream
from ..core.train import Every, fit
from ..core.views import Evaluation
from .mae import MAE
from .registry import METHODS


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
    views = views if getattr(objective, "takes_local", False) else views.without_local(method["name"])
    views.tell_left_out(channels, run.log)

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
        f"{settings.told_rate()}"
    )

    def prepare(raw: Sample) -> Views:
        return views(raw, Draws(seed, raw.positions))

    view = Evaluation(data["size"], mean=model.mean, std=model.std)
    knn = OnlineKNN(bank, tests, view, run, evaluate["knn"])
    fit(
        objective, batches, prepare,
        steps=steps, steps_per_epoch=order.steps_per_epoch, optim=settings, seed=seed, run=run,
        evaluators={"eval": knn} if tests else {},
        every=Every.of(run, steps, order.steps_per_epoch, evaluate["every"]),
    )  # fmt: skip

    model = objective.backbone  # a teacher, where the method exports one
    model.seen = add_seen(model.seen, "pretrain", train)
    told = {"task": "pretrain", "method": method["name"], "steps": steps, "seed": seed, "selection": data["selection"]}
    model.provenance.append({**told, "data": describe({"train": train})})
    if run.main:
        model.export(run.dir)
        _draw(run, objective, batches, prepare, model)
    facts = describe({"train": train, **tests}, held_out=bool(tests) and evaluate["test"] is None)
    counts = {"steps": steps, "images_seen": steps * settings.batch_size, "damaged": list(damage.names.values())}
    found = {**exposure(model.seen, tests), "metrics": knn.conclude(objective)}
    return run.finish({"data": facts, **found, **counts, "selection": model.selection("last")})


class OnlineKNN:
    """ "TEST/knn/accuracy" of a method's frozen backbone, voted by the bank's labels; nothing where there are no tests."""

    def __init__(
        self, bank: Images | None, tests: Mapping[str, Images], view: Evaluation, run: Run, options: Mapping[str, Any]
    ) -> None:
        self.bank, self.tests, self.view, self.run, self.options = bank, tests, view, run, options

    def __call__(self, method: Any) -> dict[str, float]:
        """The evaluator that `fit` calls."""
        return self._vote(method.backbone, {name: self._features(method.backbone, t) for name, t in self.tests.items()})

    def conclude(self, method: Any) -> dict[str, float]:
        """The same at the end, and the map of the tests' features."""
        features = {name: self._features(method.backbone, t) for name, t in self.tests.items()}
        if self.run.main:
            save_map(self.run.dir, features, self.tests, self.run.seed)
        return self._vote(method.backbone, features)

    def _features(self, backbone: nn.Module, images: Images) -> Tensor:
        return extract(backbone, images, self.view, device=self.run.device, workers=self.run.options["workers"])

    def _vote(self, backbone: nn.Module, features: Mapping[str, Tensor]) -> dict[str, float]:
        if self.bank is None:
            return {}
        labels, classes = self.bank.labels, self.bank.classes
        assert labels is not None and classes is not None
        known = self._features(backbone, self.bank)
        scores = {}
        for name, x in features.items():
            found = knn_predict(known, labels, x, len(classes), **self.options)
            scores[f"{name}/knn/accuracy"] = float((found == self.tests[name].labels).double().mean())
        return scores


def _evaluation_sets(
    evaluate: Mapping[str, Any], data: Mapping[str, Any], seed: int
) -> tuple[Images | None, dict[str, Images]]:
    """The voting bank and the tests; none where no kNN is asked for."""
    if evaluate["knn"] is None:
        return None, {}
    if evaluate["knn"]["k"] < 1 or not evaluate["knn"]["temperature"] > 0:  # said now, not after the training
        raise UserError(
            f"evaluate.knn: expected k of at least 1 and a temperature above 0, got {dict(evaluate['knn'])}"
        )
    key = "evaluate.bank" if evaluate["bank"] is not None else "data.train"
    uri = evaluate["bank"] if evaluate["bank"] is not None else data["train"]
    bank = labelled(open_images(uri, seed=seed), f"evaluate.knn needs labels; {key}")
    assert bank.classes is not None
    if evaluate["test"] is None:
        bank, held = holdout(bank, fraction=HELD_OUT, seed=seed, stratify=True)
        return bank, {"test": held}
    tests = open_tests(evaluate["test"], seed, "evaluate.test")
    return bank, {name: align(t, bank.classes, f"evaluate.test.{name}") for name, t in tests.items()}


def _draw(run: Run, objective: Any, batches: Batches, prepare: Callable[[Any], Views], model: Backbone) -> None:
    """The first batch as the model sees it, and for MAE what it paints."""
    first = next(iter(batches(0)), None)
    if first is None:
        return
    batch = prepare(first[0])
    few = batch.images[:, :12]
    save_sheet(
        run.dir,
        "views",
        denormalise(few, model.mean, model.std),
        "Augmented views of the first images, one row a view.",
    )
    if isinstance(objective, MAE):
        objective.eval()
        images = batch.images[0, :12]
        seen, painted = objective.paint(images, Draws(run.seed, batch.draws.positions[:12]))
        rows = denormalise(torch.stack([images, seen, painted]), model.mean, model.std)
        save_sheet(run.dir, "reconstructions", rows, "MAE: the image, the visible patches, and the painted image.")
