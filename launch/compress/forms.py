"""The forms of a network that a budget is tried on: as it is, in 8 bits, and with fewer channels, each timed before anything is trained."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...core.errors import UserError
from ...core.evaluate.trained import TrainedRun, load_trained
from ...core.images.images import Images
from ...core.model.macs import macs_of
from ...finetune.compress.prune import UnreachableShare
from ..dry import build_dry
from ..outputs.checking import ShownPictures
from ..outputs.int8 import INT8_FILE, write_int8
from ..outputs.onnx_file import ONNX_FILE, OnnxSession, write_onnx
from ..verbs import resolve
from .budget import Budget, EdgeCost
from .latency import Form, latency_of, time_in_turn
from .rounds import ANEW
from .student import plan_lesson

SHARES_TRIED = tuple(round(0.02 * step, 2) for step in range(49, 0, -1))  # of the multiply-adds: 0.98, 0.96, ..., 0.02
MARGIN = 0.95  # of the budget's latency, in which the search stays: the same network is timed again at the end
PICTURES_TIMED = 16  # pictures that a draft of a graph is calibrated and timed on
PRUNED_RUN = "pruned"
"""The folder of the recovery, in that of the command."""
# What the search and the measurement rest on, so that no override of the recovery may change it. Forms are timed without a picture, so
# with the channels that magnitude leaves.
_SETTLED = (
    "run.dir", "data.size", "data.crop", "data.resize", "data.interpolation", "method.keep_head", "method.prune.macs",
    "method.prune.of", "method.prune.weights", "method.prune.importance",
)  # fmt: skip


class TriedForm(NamedTuple):
    """share: of the multiply-adds, as method.prune.macs asks for it, None for all; stays: the share that stays then."""

    share: float | None
    stays: float
    int8: bool
    cost: EdgeCost

    def in_words(self) -> str:
        """For messages."""
        channels = "all channels" if self.share is None else f"{self.stays:.1%} of the multiply-adds"
        return f"{channels}, {8 if self.int8 else 32} bits: {self.cost.in_words()}"

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, which `of_json` reads."""
        return {**self._asdict(), "cost": self.cost._asdict()}

    @staticmethod
    def of_json(found: dict[str, Any]) -> TriedForm:
        """As `as_json` wrote it."""
        return TriedForm(**{**found, "cost": EdgeCost(**found["cost"])})


def largest_share(
    form_of: Callable[[float], TriedForm | None], budget: Budget, shares: Sequence[float]
) -> TriedForm | None:
    """The form of the largest of these shares, which fall, that fits, by bisection; None if none does.

    form_of: None for a share that pruning cannot reach. What is pruned more costs less.
    """
    low, high, found = 0, len(shares), None
    while low < high:
        middle = (low + high) // 2
        form = form_of(shares[middle])
        if form is not None and not budget.holds(form.cost, MARGIN):
            low = middle + 1
            continue
        found, high = form or found, middle
    return found


def least_pruned(
    form_of: Callable[[float, bool], TriedForm | None], budget: Budget, shares: Sequence[float], int8: bool
) -> TriedForm | None:
    """The form of the largest of these shares, which fall, that fits in 32 bits, or in 8 where these are allowed; None if none does.

    Of equal shares that of 32 bits. Which precision is the faster one is a matter of the network and the machine. form_of: (share, whether
    in 8 bits) -> as of `largest_share`.
    """

    def of(precision: bool) -> Callable[[float], TriedForm | None]:
        return lambda share: form_of(share, precision)

    found = largest_share(of(True), budget, shares) if int8 else None
    if found is None or found.share is None:
        return largest_share(of(False), budget, shares)
    # Where this share is too much in 32 bits, every larger one is, and need not be timed.
    alike = form_of(found.share, False)
    if alike is None or not budget.holds(alike.cost, MARGIN):
        return found
    return largest_share(of(False), budget, shares[: shares.index(found.share)]) or alike


def recovery(trained: TrainedRun, share: float, folder: Path, tests: Sequence[str] = ()) -> dict[str, Any]:
    """The config that prunes a run's network and lets it recover, with the run as its teacher.

    It is the run's own, as in the rounds of `rootstock prune`: its optimizer, penalties, drop path and views, with its learning rates from
    the start (Renda, Frankle & Carbin 2020, arXiv:2003.02389, "learning rate rewinding"). Of an adaptation it is a fine-tuning on the
    target with that run's optimizer; `tests` test it where the target is a union and the run names no test. Raises UserError for a run
    without a classifier.
    """
    lesson = plan_lesson(trained, "")
    if lesson.verb != "finetune":
        raise UserError(f"{trained.folder} has no classifier, whose loss would be measured; fine-tune it first")
    own: dict[str, Any] = copy.deepcopy(dict(trained.config))
    method = lesson.config["method"]
    if trained.result["task"] == "finetune":
        method = {**own["method"], "teacher": method["teacher"]}
    method["prune"] = {**(method.get("prune") or {}), "macs": share, "importance": "magnitude"}
    config = {**lesson.config, "backbone": own["backbone"], "optim": own["optim"], "method": method}
    if config["data"]["test"] is None and method["teacher"].get("labels") == "teacher":
        config["data"]["test"] = {f"test_{number}": uri for number, uri in enumerate(tests, 1)}
    for key, value in {**ANEW, "backbone.weights": str(trained.folder), "run.dir": str(folder)}.items():
        section, _, name = key.rpartition(".")
        _section(config, section)[name] = copy.copy(value)
    return config


def check_overrides(config: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Raises UserError for overrides of a recovery that would make another network, or put it elsewhere. config: of the recovery."""
    own, given = (resolve("finetune", config, some) for some in ((), overrides))
    for key in (*_SETTLED, *(f"backbone.{name}" for name in own["backbone"])):
        if _value(own, key) != _value(given, key):
            raise UserError(f"{key}: rootstock compress sets it for the recovery; leave it out")


def _value(config: Mapping[str, Any], key: str) -> Any:
    """Of a dotted key; None in a section that is left out."""
    section = _section(config, key.rpartition(".")[0])
    return None if section is None else section.get(key.rpartition(".")[2])


def _section(config: Mapping[str, Any], key: str) -> Any:
    """Of a dotted key; None where it is left out."""
    return reduce(lambda section, name: None if section is None else section.get(name), key.split("."), config)


def pruned_draft(trained: TrainedRun, config: Mapping[str, Any], folder: Path) -> TrainedRun | None:
    """The pruned network before its recovery, which costs what it will cost afterwards; None if so little cannot stay.

    config: of the recovery, resolved. folder: a new one, of the draft.
    """
    try:
        _, built = build_dry("finetune", config)
    except UnreachableShare:
        return None
    built.plan.method.classifier.export(folder)
    return load_trained(folder)._replace(view=trained.view)


def part_that_stays(network: TrainedRun, whole: TrainedRun) -> float:
    """The multiply-adds of a network over those of the whole one."""
    small, large = (macs_of(one.backbone.model, one.backbone.channels, one.backbone.size) for one in (network, whole))
    return small / large


def first_pictures(images: Images) -> Images:
    """As many as a draft of a graph is calibrated on."""
    return images.select(torch.arange(min(len(images), PICTURES_TIMED)))


def cost_of_network(
    network: TrainedRun, shown: ShownPictures, calibration: Images | None, folder: Path, threads: int
) -> EdgeCost:
    """The cost of its graph, which is written into `folder`: of 8 bits by these pictures, of 32 bits without any."""
    folder.mkdir(exist_ok=True)
    if not (folder / ONNX_FILE).exists():
        write_onnx(network, shown, folder, uint8=False)
    if calibration is not None:
        write_int8(network, calibration, folder, uint8=False)
    return cost_of_file(folder / (ONNX_FILE if calibration is None else INT8_FILE), shown, threads)


def cost_of_file(file: Path, shown: ShownPictures, threads: int) -> EdgeCost:
    """Of a graph, one picture at a time."""
    form = Form("", OnnxSession(file, threads), shown.inputs[:1])
    found = latency_of(time_in_turn([form], threads=threads)[""])
    size = sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*"))
    return EdgeCost(found.median, found.p95, size)


def plain_json(value: Any) -> Any:
    """The value as a reader of JSON sees it."""
    return json.loads(json.dumps(value))
