"""`method.prune`: a fine-tuning that begins with a part of the network of `backbone.weights` and trains it to recover.

Which channels stay is decided once, before the first step, by rank 0, and written to RUN/checkpoints/kept/: all processes, and a command
that goes on with the run, train the very same network.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...core.checks import check_count
from ...core.distributed import broadcast_text
from ...core.errors import UserError
from ...core.evaluate.trained import load_trained
from ...core.images.images import Images
from ...core.manifest import DamagedFile, read_record, write_record
from ...core.model.backbone import Backbone, create
from ...core.model.classifier import Classifier
from ...core.model.macs import macs_of, parameters_of
from ...core.model.pruned import give_sizes
from ...core.run.directory import Run
from ...core.views.view import Evaluation
from .channels import CoupledUnits, UnprunableNetwork, coupled_channels
from .importance import Importance, by_magnitude, by_taylor, chosen_pictures, layers_to_score, shown_batches
from .kept import keep_channels, kept_channels, sizes_with
from .masks import WeightMasks
from .widths import Ranking, Scope

DECISION = "pruned.json"


class UnreachableShare(UserError):
    """So few multiply-adds cannot stay of a network that can be pruned."""


# What the first process found, as all of them raise it.
_REFUSALS: Mapping[str, type[UserError]] = {"network": UnprunableNetwork, "share": UnreachableShare, "other": UserError}


def prune_options(
    *,
    macs: float | None = None,
    of: str | None = None,
    importance: Importance = "magnitude",
    scope: Scope = "global",
    least: float = 0.1,
    multiple: int = 8,
    pictures: int = 512,
    weights: float | None = None,
) -> None:
    """The `method.prune` section: whole channels go (`macs`), or single weights become 0 (`weights`); one of both is given.

    macs: Share of the multiply-adds of the network in backbone.weights that is kept, above 0 and below 1. Channels and heads of attention
        go, so the network gets smaller and faster.
    of: Folder of a run of whose multiply-adds macs is a share instead, so that rounds of pruning come to one goal. null: backbone.weights.
    importance: What goes first: what has the smallest weights (magnitude), or changes the loss least (taylor, Molchanov et al. 2019,
        arXiv:1906.10771), which needs the head of that network: keep_head.
    scope: Whether channels are ranked among those of all layers (global), or each layer loses the same share of its own (layer).
    least: Share of each layer's channels that stays at least, 0 to below 1; rounded up to a multiple.
    multiple: Numbers of channels are rounded to multiples of this, 1 or more; 8 suits the kernels of most devices.
    pictures: Training images that taylor looks at, 1 or more.
    weights: Share of the weights of all convolutions and linear layers that become exactly 0, those of smallest magnitude, above 0 and
        below 1; they stay 0 in every step. The network keeps its size.
    """


def check_prune(method: Mapping[str, Any], backbone: Mapping[str, Any], sharding: str) -> None:
    """Raises UserError for numbers out of their range, and for keys that contradict pruning."""
    options = method["prune"]
    if options is None:
        return
    for key in ("macs", "weights"):
        if options[key] is not None and not 0.0 < options[key] < 1.0:
            what = "multiply-adds that are kept" if key == "macs" else "weights that become 0"
            raise UserError(
                f"method.prune.{key}: expected a share of the {what}, above 0 and below 1, got {options[key]}; 0.5 is usual, and without "
                "method.prune nothing is pruned"
            )
    if (options["macs"] is None) == (options["weights"] is None):
        given = "neither is given" if options["macs"] is None else "both are given"
        raise UserError(
            f"method.prune: expected macs (whole channels go) or weights (single weights become 0), and {given}; give one of them"
        )
    if options["of"] is not None and options["macs"] is None:
        raise UserError(
            "method.prune.of: it says whose multiply-adds macs is a share of, and single weights have none; leave it out"
        )
    if not 0.0 <= options["least"] < 1.0:
        raise UserError(f"method.prune.least: expected 0 or more and less than 1, got {options['least']}")
    check_count("prune.multiple", options["multiple"], 1, 4096, "8 is usual")
    check_count("prune.pictures", options["pictures"], 1, 10_000_000, "512 are usual")
    if backbone["weights"] == "none":
        raise UserError(
            "method.prune: which weights matter is seen in trained ones, and these are random; set backbone.weights, or leave prune out"
        )
    if options["macs"] is not None and options["importance"] == "taylor" and not method["keep_head"]:
        raise UserError(
            "method.prune.importance: taylor asks for the loss, which a new head cannot tell; give method.keep_head: true with the run of "
            "a classifier in backbone.weights, or importance: magnitude"
        )
    resting = {
        "backbone.lora": backbone["lora"] is not None,
        "backbone.freeze": backbone["freeze"] != "none",
        "method.freeze": method["freeze"],
        "method.trained": method["trained"] != "all",
    }
    if other := next((key for key, given in resting.items() if given), None):
        raise UserError(
            f"method.prune: all layers are pruned and have to recover, and {other} lets some rest; leave one of both out"
        )
    if sharding != "none":
        raise UserError(f"method.prune: it does not work with run.sharding: {sharding}; use run.sharding=none")


class Pruned:
    """What `method.prune` did to a classifier, in place. masks: of single weights, which have to be held at 0; None for channels."""

    def __init__(
        self, run: Run, classifier: Classifier, method: Mapping[str, Any], images: Images, view: Evaluation
    ) -> None:
        options = method["prune"]
        self.options, self.model, self.masks = options, classifier.backbone.model, None
        self.size = (classifier.backbone.channels, classifier.backbone.size)
        self.before = self._cost()
        if options["weights"] is not None:
            self.masks = WeightMasks(classifier.backbone.model, options["weights"], options["scope"])
            self.masks.apply_to(classifier.backbone.model)
            run.log(f"prune: {self.masks.zeros:,} of {self.masks.total:,} weights are 0 and stay so")
            return
        told = broadcast_text(json.dumps(_decided(run, classifier, method, images, view)) if run.main else "")
        kept: dict[str, Any] = json.loads(told)
        if "refused" in kept:
            raise _REFUSALS[kept["kind"]](kept["refused"])
        keep_channels(
            classifier,
            {place: {side: torch.tensor(rows) for side, rows in sides.items()} for place, sides in kept.items()},  # pyright: ignore[reportArgumentType]
        )
        now = self._cost()
        run.log(
            f"prune: {now['macs'] / 1e6:,.1f} of {self.before['macs'] / 1e6:,.1f} million multiply-adds a picture stay "
            f"({now['macs'] / self.before['macs']:.1%}), and {now['parameters']:,} of {self.before['parameters']:,} parameters"
        )

    def _cost(self) -> dict[str, int]:
        return {"macs": macs_of(self.model, *self.size), "parameters": parameters_of(self.model)}

    def held(self) -> WeightMasks | None:
        """The masks, whose weights get no gradient from now on; None for channels."""
        if self.masks is not None:
            self.masks.hold(self.model)
        return self.masks

    def as_result(self) -> dict[str, Any]:
        """The entry `pruned` of a result: what the backbone costs before and after, for one picture."""
        used = ("weights", "scope") if self.masks is not None else ("macs", "importance", "scope", "least", "multiple")
        by = {key: self.options[key] for key in used} | ({"of": self.options["of"]} if self.options["of"] else {})
        found: dict[str, Any] = {"by": by, "before": self.before}
        if self.masks is not None:
            return {**found, "zeros": self.masks.zeros, "of_weights": self.masks.total}
        return {**found, "after": self._cost()}


def _decided(
    run: Run, classifier: Classifier, method: Mapping[str, Any], images: Images, view: Evaluation
) -> dict[str, Any]:
    """The channels that stay, as JSON; those that an earlier command of this run has decided. Or {"refused": why, "kind": ...}."""
    path = run.checkpoints / "kept" / DECISION
    try:
        return read_record(path)["kept"]
    except FileNotFoundError:
        pass
    except (DamagedFile, KeyError) as error:
        run.log(f"WARNING: {error}; it is decided again what is pruned")
    try:
        found = _choose(run, classifier, method, images, view)
    except UnprunableNetwork as error:
        return {"refused": error.why, "kind": "network"}
    except UserError as error:
        return {"refused": str(error), "kind": "share" if isinstance(error, UnreachableShare) else "other"}
    if not run.dry:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, {"kept": found})
    return found


def _choose(
    run: Run, classifier: Classifier, method: Mapping[str, Any], images: Images, view: Evaluation
) -> dict[str, Any]:
    options, backbone = method["prune"], classifier.backbone
    linear = isinstance(layers_to_score(classifier)["reader"], nn.Linear)
    groups = coupled_channels(backbone, features=linear)
    if options["importance"] == "taylor" and not run.dry:
        classifier.to(run.device)
        shown = shown_batches(chosen_pictures(images, options["pictures"], run.seed), view, run.device)
        scores = by_taylor(classifier, groups, shown)
        classifier.cpu()
    else:
        layers = layers_to_score(classifier)
        scores = by_magnitude(layers if method["keep_head"] else {**layers, "reader": nn.Identity()}, groups)
    ranking = Ranking(groups, scores, options["scope"], options["least"], options["multiple"])
    cost = _CostOf(classifier, groups, ranking)
    whole = _cost_of_whole(options["of"], backbone)
    counts = ranking.first_within(cost, int(options["macs"] * whole))
    if counts is None:
        most = cost(ranking.counts(ranking.levels)) / whole
        raise UnreachableShare(
            f"method.prune.macs: {options['macs']:.3g} of the multiply-adds of {options['of'] or backbone.spec['name']} cannot be reached: "
            f"{most:.3f} stay where each layer keeps {options['least']:g} of its channels, in multiples of {options['multiple']}; give "
            "more, or lower method.prune.least or multiple"
        )
    kept = kept_channels(groups, ranking.kept(counts))
    return {place: {side: rows.tolist() for side, rows in sides.items()} for place, sides in kept.items()}


def _cost_of_whole(run: str | None, backbone: Backbone) -> int:
    """The multiply-adds of which a share stays: of the network in a run's folder, else of the backbone itself. Raises UserError."""
    if run is None:
        return macs_of(backbone.model, backbone.channels, backbone.size)
    try:
        with torch.random.fork_rng(devices=[]):  # so that the run draws what it draws without
            whole = load_trained(run).backbone
            if whole.size != backbone.size:
                whole = create(backbone.size, whole.channels, weights=run)
    except UserError as error:
        raise UserError(f"method.prune.of: {str(error).removeprefix('backbone.weights: ')}") from error
    return macs_of(whole.model, whole.channels, whole.size)


class _CostOf:
    """Multiply-adds of the backbone with so many units of each group, counted on a network without values."""

    def __init__(self, classifier: Classifier, groups: Sequence[CoupledUnits], ranking: Ranking) -> None:
        self.backbone, self.groups, self.ranking = classifier.backbone, groups, ranking
        self.blank = copy.deepcopy(classifier.backbone.model).to("meta")
        self.known: dict[tuple[int, ...], int] = {}

    def __call__(self, counts: Sequence[int]) -> int:
        found = self.known.get(key := tuple(counts))
        if found is None:
            model = copy.deepcopy(self.blank)
            give_sizes(model, sizes_with(model, kept_channels(self.groups, self.ranking.kept(counts))))
            found = self.known[key] = macs_of(model, self.backbone.channels, self.backbone.size)
        return found
