"""What pretrain, finetune and adapt do alike around their method: network, augmentation, feed, training, and the entries of a result.

Each recipe reads the same: open the sets, build the network and the method, feed them, `train`, export, and finish with a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from .agree import same_everywhere
from .checks import sizes_fit
from .config import resolve as config
from .distributed import connected, rank, world
from .draws import Draws
from .errors import UserError
from .evaluate.pictures import denormalise, save_sheet
from .images.damage import Damage, read_or_neighbour
from .images.limits import size_of
from .images.notes import line_of
from .images.open import Images
from .images.sets import describe_sets, refuse_run_as_data, watch_sets
from .images.store import Stamp
from .images.survey import sampled_notes
from .loudness import Loudness, loudness
from .method import Method, PretrainMethod
from .model import norm
from .model.backbone import Backbone, create
from .registration import check_built
from .run.directory import Run
from .stream.batches import Crop, MicroBatches, Share, source_draws, stream, zip_pairs
from .stream.order import SHUFFLES, Order
from .stream.rows import KeptRows, stream_rows
from .train.fit import Evaluator, Every, Training, fit
from .train.optim import Optim
from .train.refresh import NEVER, Refresh
from .views.multiview import Multiview, multiview
from .views.presets import VIEWS
from .views.view import Evaluation

SHOWN = 12  # images in a picture of augmented images


class Feed(NamedTuple):
    """The training images on their way to the method."""

    batches: MicroBatches  # batches(step): this process's micro-batches of each step from `step` on
    steps: int  # of the whole training
    steps_per_epoch: int  # of the first set
    images_per_step: int  # of all sets and processes
    damage: Damage  # the damaged pictures so far

    def counts(self) -> dict[str, Any]:
        """The entries of a result that say how long the training was and which pictures were damaged."""
        return {
            "steps": self.steps,
            "images_seen": self.steps * self.images_per_step,
            "damaged": list(self.damage.names.values()),
        }


def named_sets(train: Images, tests: Mapping[str, Images]) -> dict[str, Images]:
    """Training and test sets by name; a test set that is called "train" becomes "test.train"."""
    return {"train": train, **{"test.train" if name == "train" else name: images for name, images in tests.items()}}


def record_sets(run: Run, sets: Mapping[str, Images], stamp: Stamp) -> None:
    """Record the sets' fingerprints in run.json, and say in one line for each set what it holds that is not read.

    stamp: how the sets are watched for changes. Raises UserError if processes see different images, if a set has changed since the run
    began, or if the run's folder is one.
    """
    refuse_run_as_data(run.dir, sets)
    if connected():
        seen = {
            name: {"images": len(s), "fingerprint": s.fingerprint()[:12], "split": s.split_hash()[:12]}
            for name, s in sets.items()
        }
        same_everywhere({"data": seen}, "data", "give all of them the same files, on a shared disk or as equal copies")
    run.record(**watch_sets(sets, stamp))
    if not run.main:
        return
    for name, images in sets.items() if loudness() is Loudness.VERBOSE else ():
        run.detail(_about_set(name, images))
    for images in {images.uri: images for images in sets.values()}.values():
        if line := line_of(images.uri, [*images.notes, *sampled_notes(images)]):
            run.log(line)


def _about_set(name: str, images: Images) -> str:
    """What was opened, in a line for those who look for a mistake."""
    classes = "no labels" if images.classes is None else f"{len(images.classes)} classes"
    prints = f"fingerprint {images.fingerprint()[:12]}, split {images.split_hash()[:12]}"
    return f"{name}: {len(images)} images, {classes}, of {images.uri} ({prints})"


def channels_of(images: Images) -> int:
    """The number of channels of a set's pictures, read off the first one."""
    return read_or_neighbour(images, 0)[0].shape[0]


def network(backbone: Mapping[str, Any], size: int, images: Images) -> Backbone:
    """The network of the `backbone` section for pictures like these, size x size pixels. Raises UserError."""
    with sizes_fit("backbone", backbone):
        return create(size, channels=channels_of(images), **backbone)


def evaluation(data: Mapping[str, Any], model: Backbone) -> Evaluation:
    """The view of evaluation that the `data` section asks for. Raises UserError."""
    keys = ("crop", "resize", "interpolation")
    return Evaluation(data["size"], **{key: data[key] for key in keys}, mean=model.mean, std=model.std)


def build_method(
    section: Mapping[str, Any], registry: Mapping[str, Callable[..., Any]], network: nn.Module, run: Run
) -> Any:
    """The method that the `method` section names; its notes go into the log. network: the backbone, or in adaptation the classifier.

    Raises UserError.
    """
    with sizes_fit("method", section):
        method = config.build(section, registry, network, run.options["chunk"])
    check_built(method, section["name"])
    for line in method.notes:
        run.log(f"method {section['name']}: {line}")
    return method


def set_norm(run: Run, method: Method, mode: str) -> None:
    """Give the method's BatchNorm the mode of `backbone.norm`. Raises UserError if the mode cannot be honoured."""
    norm.configure(method, mode, accumulate=run.options["accumulate"], chunk=run.options["chunk"], log=run.log)


def augmentation(
    run: Run, views: Mapping[str, Any], method: Method, name: str, images: Images, key: str = "data.views"
) -> Multiview:
    """The `data.views` section for a method's backbone. name: the method's, for messages; key: the section's. Raises UserError."""
    model, count, local = method.backbone, 1, False
    if isinstance(method, PretrainMethod):
        count, local = method.views, method.takes_local
    with _named(key):
        made = multiview(config.build(views, VIEWS), model.size, model.mean, model.std, count)
        made = made if local else made.refuse_local(name)
    made.warn_unused(channels_of(images), run.log, key)
    return made


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Within it, errors about the keys of `data.views` name this section instead."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("data.views", key)) from error


def feed(
    run: Run,
    sets: Mapping[str, Images],
    views: Crop | Mapping[str, Multiview],
    data: Mapping[str, Any],
    optim: Optim,
    seed: int,
    rows: Callable[[str], KeptRows] | None = None,
    orders: Mapping[str, Order] | None = None,
) -> Feed:
    """The batches of one training set, or the pairs of two; each set has its own order.

    sets: by name, the first one's epochs count. views: of all sets, or of each by its name. data: the section, of which `shuffle` and
    `decode` are read. rows: the features of a set by its name, which then come in the place of its images; called with the first batch.
    orders: of the sets, by name; None for the shuffled ones.
    Raises UserError for a batch larger than a set.
    """
    options, shuffle = run.options, data.get("shuffle", {"name": "full"})
    orders = orders or {
        name: Order(len(s), optim.batch_size, seed, _stream_name(name, sets), config.build(shuffle, SHUFFLES))
        for name, s in sets.items()
    }
    epoch = next(iter(orders.values())).steps_per_epoch
    what = (
        "kept features"
        if rows is not None
        else f"pictures, decode {data['decode']}, at most {options['workers']} workers"
    )
    run.detail(f"batches of {what}, shuffle {shuffle['name']}, {epoch} steps an epoch, {pieces(run)} parts a batch")
    steps, damage = optim.steps(epoch), Damage(options["damaged"], report=run.log)
    place: dict[str, Any] = {
        "steps": steps,
        "device": run.device,
        "share": Share(rank(), world(), options["accumulate"]),
    }
    if rows is not None:
        streams = [
            stream_rows(partial(rows, name), s.labels, orders[name], note=partial(damage.note, s), **place)
            for name, s in sets.items()
        ]
    else:
        streams = [
            stream(
                images.in_storage_order() if shuffle["name"] == "blocks" else images, orders[name],
                views[name] if isinstance(views, Mapping) else views, workers=options["workers"], damage=damage,
                resident=options["resident"], decode=data["decode"],
                decoded_cache=size_of(options["decoded_cache"], "run.decoded_cache"), **place,
            )
            for name, images in sets.items()
        ]  # fmt: skip
    batches = streams[0] if len(streams) == 1 else zip_pairs(*streams)
    return Feed(batches, steps, epoch, len(sets) * optim.batch_size, damage)


def pieces(run: Run) -> int:
    """Into how many pieces processes and micro-batches cut a global batch."""
    return world() * run.options["accumulate"]


def draws_of(positions: Tensor, name: str, sets: Mapping[str, Images], seed: int) -> Draws:
    """The random draws of a set's images at these positions, int64 [N]."""
    return source_draws(seed, positions, _stream_name(name, sets))


def _stream_name(name: str, sets: Mapping[str, Images]) -> str:
    """The name under which a set's order and draws are random: its own where there are several sets."""
    return name if len(sets) > 1 else ""


def training(
    run: Run,
    method: Method,
    fed: Feed,
    prepare: Callable[[Any], Any],
    optim: Optim,
    evaluate_every: Any = None,
    refresh: Refresh = NEVER,
) -> Training:
    """All that `train` needs. evaluate_every: a duration, or None for the end alone."""
    every = Every.of(run, fed.steps, fed.steps_per_epoch, evaluate_every)
    return Training(method, fed.batches, prepare, optim, fed.steps, fed.steps_per_epoch, every, refresh)


def train(
    run: Run,
    plan: Training,
    evaluators: Mapping[str, Evaluator] = {},
    alarm: Callable[[int, Mapping[str, float]], str | None] | None = None,
    enough: Callable[[int], bool] | None = None,
) -> int:
    """`fit`, with the run's seed; returns how many steps were made."""
    return fit(
        plan.method, plan.batches, plan.prepare,
        steps=plan.steps, steps_per_epoch=plan.steps_per_epoch, optim=plan.optim, seed=run.seed, run=run,
        evaluators=evaluators, every=plan.every, refresh=plan.refresh, alarm=alarm, enough=enough,
    )  # fmt: skip


def trace(run: Run, model: Backbone, sets: Mapping[str, Images], data: Mapping[str, Any], **facts: Any) -> None:
    """Add this stage to the history of the backbone. facts: what else the entry says, such as method and steps."""
    entry = {"task": run.verb, **facts, "seed": run.seed, "selection": data["selection"]}
    model.provenance.append({**entry, "data": describe_sets(sets)})


def save_first(run: Run, plan: Training, model: Backbone, rows_of: Callable[[Any], Tensor], caption: str) -> None:
    """Write pictures/views.png: the first images as the method sees them. rows_of: batch -> float [rows, N, C, h, w]."""
    first = next(iter(plan.batches(0)), None) if run.draws else None
    if first is not None:
        rows = rows_of(plan.prepare(first[0]))[:, :SHOWN]
        save_sheet(run.dir, "views", denormalise(rows, model.mean, model.std), caption)
