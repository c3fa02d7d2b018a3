"""`rootstock compress`: the form of a trained network that fits a budget and changes it least, with what it loses.

Forms in the order of what they change: the network as it is, in 8 bits, and with fewer channels, whose recovery its own run teaches. The
first that fits is taken, so no form is chosen by a score, and the test pictures measure what they did not choose.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.evaluate.features import extract
from ...core.evaluate.statistics import Interval
from ...core.evaluate.trained import TrainedRun, load_trained
from ...core.images.images import Images
from ...core.images.open import open_images
from ...core.images.split import hash_order
from ...core.manifest import DamagedFile, read_record, write_record
from ..aloud import conclude, say
from ..dry import build_dry
from ..following import command, uris
from ..outputs.checking import ShownPictures, opened_for, shown_of
from ..outputs.export import export_network, refuse_several_processes
from ..outputs.int8 import CALIBRATED, INT8_FILE, int8_sets, paired_difference, write_int8
from ..outputs.onnx_file import ONNX_FILE, OnnxSession, check_onnx, write_onnx
from ..outputs.predict import classifier_of, labels_for
from ..verbs import execute, resolve
from .budget import Budget, EdgeCost
from .latency import Form, latency_of, time_in_turn
from .student import NO_NETWORK, plan_lesson

RECORD = "compress.json"
SHARES_TRIED = tuple(round(0.05 * step, 2) for step in range(19, 0, -1))  # of the multiply-adds: 0.95, 0.9, ..., 0.05
MARGIN = 0.95  # of the budget's latency, in which the search stays: the same network is timed again at the end
PICTURES_TIMED = 16  # pictures that a draft of a graph is calibrated and timed on

CostOf = Callable[[float], EdgeCost]


class Demand(NamedTuple):
    """What was asked for. calibrate, test: URIs; threads: of ONNX Runtime; int8: whether 8 bits are allowed."""

    budget: Budget
    calibrate: Sequence[str]
    test: Sequence[str]
    threads: int
    int8: bool
    overrides: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """What must not change when the command goes on."""
        return {**self._asdict(), "budget": self.budget._asdict()}


class Chosen(NamedTuple):
    """share: of the multiply-adds that stay; None: all. int8: whether the form has 8 bits. cost: as it was timed for the choice."""

    share: float | None
    int8: bool
    cost: EdgeCost

    def in_words(self) -> str:
        """For messages."""
        channels = "all channels" if self.share is None else f"{self.share:.0%} of the multiply-adds"
        return f"{channels}, {8 if self.int8 else 32} bits"


def compress_run(run: Path, to: Path, asked: Demand) -> int:
    """Choose, train what has to recover, export, and measure. Returns the exit code: 1 if the exported form misses the budget after all.

    The same command goes on with a folder that it began. Raises UserError.
    """
    refuse_several_processes("compress")
    check_onnx("compress")
    trained = load_trained(run)
    classifier_of(trained)
    asked = asked._replace(
        calibrate=asked.calibrate or uris_of_training(trained), test=asked.test or uris_of_test(trained)
    )
    test = open_images(list(asked.test))
    labels = labels_for(trained, test, "--test")
    if asked.int8:
        int8_sets(
            trained, asked.calibrate, asked.test, "--calibrate"
        )  # before anything is timed: refuses a test that calibrates
    images = opened_for(trained, asked.calibrate)
    known = _recalled(to, run, asked)
    chosen = known if known is not None else _choose(trained, images, asked, to)
    if known is None:
        to.mkdir(parents=True, exist_ok=True)
        write_record(to / RECORD, {"run": str(run), "asked": asked.as_json(), "chosen": _plain(chosen)})
    say(f"compress: {chosen.in_words()}: {chosen.cost.in_words()}; the budget is {asked.budget.in_words()}")
    source = trained.folder
    if chosen.share is not None:
        source = to / "pruned"
        execute("finetune", recovery(trained, chosen.share, source), asked.overrides)
    exported = to / "exported"
    if not exported.exists():
        given = (asked.calibrate, asked.test) if chosen.int8 else ((), ())
        export_network(source, exported, onnx=True, int8=given[0], test=given[1])
    return _conclude(trained, exported, chosen, asked, test, labels)


def _conclude(trained: TrainedRun, exported: Path, chosen: Chosen, asked: Demand, test: Images, labels: Tensor) -> int:
    file = exported / (INT8_FILE if chosen.int8 else ONNX_FILE)
    cost = cost_of_file(file, shown_of(trained, test, PICTURES_TIMED), asked.threads)
    before, after, lost = lost_by(trained, OnnxSession(file), test, labels)
    between = "" if lost.low is None or lost.high is None else f" [{-100 * lost.high:.2f}, {-100 * lost.low:.2f}]"
    say(
        f"{len(test)} pictures of {test.uri}: {before:.2%} before, {after:.2%} after; {-100 * lost.estimate:.2f}{between} points lost"
    )
    whole = {
        "task": "compress", "run": str(trained.folder), "asked": asked.as_json(), "chosen": _plain(chosen),
        "cost": cost._asdict(), "file": str(file), "test": {"n": len(test), "before": before, "after": after, "difference": lost._asdict()},
    }  # fmt: skip
    write_record(exported.parent / RECORD, whole)
    fits = asked.budget.holds(cost)
    verdict = f"{file}: {cost.in_words()}"
    missed = (
        ""
        if fits
        else f", which misses the budget of {asked.budget.in_words()}; the machine may be busier than when it was chosen"
    )
    conclude(f"compress: {verdict}{missed}", command("verify", str(exported)))
    return 0 if fits else 1


def _recalled(to: Path, run: Path, asked: Demand) -> Chosen | None:
    """What an earlier command of this folder chose. Raises UserError if it was another command, or if the folder is something else."""
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return None
    try:
        found = read_record(to / RECORD)
    except (FileNotFoundError, DamagedFile):
        raise UserError(f"--to: {to} exists already, and is no folder of rootstock compress; name a new one") from None
    if found.get("run") != str(run) or found.get("asked") != json.loads(json.dumps(asked.as_json())):
        raise UserError(
            f"--to: {to} was made by another command; name a new folder, or give the same run, budget and overrides"
        )
    share, int8, cost = found["chosen"]
    return Chosen(share, int8, EdgeCost(*cost))


def _plain(chosen: Chosen) -> list[Any]:
    return json.loads(json.dumps(chosen))


def uris_of_training(trained: TrainedRun) -> list[str]:
    """The pictures that the run was trained on. Raises UserError where its config names none."""
    data = trained.config.get("data") or {}
    given = data.get("target") or data.get("train")
    if not given:
        raise UserError(f"{trained.folder} names no training pictures; give some with --calibrate URI")
    return uris(given, int(trained.config.get("seed", 0)))


def uris_of_test(trained: TrainedRun) -> list[str]:
    """The test that the run's config names. Raises UserError where it names none."""
    given = (trained.config.get("data") or {}).get("test")
    if not given:
        raise UserError(
            f"--test: {trained.folder} held its test out of its training pictures, so what a smaller network loses is measured on others; "
            "give labelled ones with --test URI"
        )
    return uris(given, int(trained.config.get("seed", 0)))


def _choose(trained: TrainedRun, images: Images, asked: Demand, to: Path) -> Chosen:
    """The form that fits and changes the network least. Raises UserError if none does."""
    shown, calibration = shown_of(trained, images, PICTURES_TIMED), _calibrating(images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def costs(network: TrainedRun, place: str) -> dict[bool, EdgeCost]:
            (folder / place).mkdir(exist_ok=True)
            return costs_of(network, shown, calibration, folder / place, asked)

        found = costs(trained, "whole")
        for int8, cost in found.items():
            say(f"as it is, {8 if int8 else 32} bits: {cost.in_words()}")
        fitting = next(
            (Chosen(None, int8, cost) for int8, cost in found.items() if asked.budget.holds(cost, MARGIN)), None
        )
        if fitting is not None:
            return fitting

        def cost_of(share: float) -> EdgeCost:
            small = pruned_draft(trained, share, to, folder / f"run-{share}")
            cost = costs(small, f"share-{share}")[asked.int8]
            say(f"{share:.0%} of the multiply-adds, {8 if asked.int8 else 32} bits: {cost.in_words()}")
            return cost

        best = largest_share(cost_of, asked.budget, SHARES_TRIED)
    if best is None:
        raise UserError(
            f"--latency, --size: no form of {trained.title} fits {asked.budget.in_words()}, not even {SHARES_TRIED[-1]:.0%} of its "
            f"multiply-adds in {8 if asked.int8 else 32} bits; allow more, or teach a smaller network: "
            f"{command('distill', str(trained.folder), '--student', 'NAME')}"
        )
    share, cost = best
    return Chosen(share, asked.int8, cost)


def largest_share(
    cost_of: CostOf, budget: Budget, shares: Sequence[float] = SHARES_TRIED
) -> tuple[float, EdgeCost] | None:
    """The largest of these shares, which fall, that fits, by bisection; None if the least does not. What is pruned more costs less."""
    low, high, found = 0, len(shares), None
    while low < high:
        middle = (low + high) // 2
        cost = cost_of(shares[middle])
        if budget.holds(cost, MARGIN):
            found, high = (shares[middle], cost), middle
        else:
            low = middle + 1
    return found


def recovery(trained: TrainedRun, share: float, folder: Path) -> dict[str, Any]:
    """The config that prunes a run's network and lets it recover, with the run as its teacher.

    It is the run's own, with its learning rates from the start (Renda, Frankle & Carbin 2020, arXiv:2003.02389, "learning rate rewinding").
    """
    lesson = plan_lesson(trained.folder, "")
    if lesson.verb != "finetune":
        raise UserError(f"{trained.folder} has no classifier, whose loss would be measured; fine-tune it first")
    config = copy.deepcopy(lesson.config)
    config["backbone"] = {
        **NO_NETWORK,
        "norm": config["backbone"]["norm"],
        "name": None,
        "weights": str(trained.folder),
    }
    config["method"] = {**config["method"], "keep_head": True, "prune": {"macs": share}}
    config["run"] = {**config["run"], "dir": str(folder)}
    return config


def pruned_draft(trained: TrainedRun, share: float, to: Path, folder: Path) -> TrainedRun:
    """The pruned network before its recovery, which costs what it will cost afterwards."""
    config = resolve("finetune", recovery(trained, share, to / "pruned"), [])
    _, built = build_dry("finetune", config)
    built.plan.method.classifier.export(folder)
    return load_trained(folder)._replace(view=trained.view)


def _calibrating(images: Images) -> Images:
    order = set(hash_order(images.keys(), 0)[:CALIBRATED])
    rows = [i for i, key in enumerate(images.keys().tolist()) if key in order][:PICTURES_TIMED]
    return images.select(torch.tensor(rows))


def costs_of(
    network: TrainedRun, shown: ShownPictures, calibration: Images, folder: Path, asked: Demand
) -> dict[bool, EdgeCost]:
    """The cost of its graph of 32 bits (False), and of 8 bits (True) where these are allowed."""
    write_onnx(network, shown, folder, uint8=False)
    files = {False: folder / ONNX_FILE}
    if asked.int8:
        write_int8(network, calibration, folder, uint8=False)
        files[True] = folder / INT8_FILE
    return {int8: cost_of_file(file, shown, asked.threads) for int8, file in files.items()}


def cost_of_file(file: Path, shown: ShownPictures, threads: int) -> EdgeCost:
    """Of a graph, one picture at a time."""
    form = Form("", OnnxSession(file, threads), shown.inputs[:1])
    found = latency_of(time_in_turn([form], threads=threads)[""])
    size = sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*"))
    return EdgeCost(found.median, found.p95, size)


class _Logits(nn.Module):
    """The logits of a graph."""

    def __init__(self, session: OnnxSession) -> None:
        super().__init__()
        self.session = session

    def forward(self, images: Tensor) -> Tensor:
        return self.session(images)["logits"]


def lost_by(trained: TrainedRun, session: OnnxSession, test: Images, labels: Tensor) -> tuple[float, float, Interval]:
    """(accuracy of the run's network, of the graph, the difference after - before, paired over pictures)."""
    whole = classifier_of(trained)
    right = [
        (extract(model, test, trained.view, device="cpu").argmax(1) == labels).numpy()
        for model in (whole, _Logits(session))
    ]
    lost = paired_difference(right[0], right[1], test.keys().numpy())
    return float(right[0].mean()), float(right[1].mean()), lost
