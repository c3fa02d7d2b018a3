"""`rootstock compress`: the form of a trained network that fits a budget and changes it least, with what it loses.

Forms in the order of what they change: the network as it is, in 8 bits, and with fewer channels, in the precision in which more of them
fit; its own run teaches that network to recover. The first that fits is taken, so no form is chosen by a score, and the test pictures
measure what they did not choose.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...core.errors import UserError
from ...core.evaluate.features import extract
from ...core.evaluate.trained import TrainedRun, load_trained
from ...core.images.images import Images
from ...core.images.open import open_images
from ...core.images.sets import seen_in_training
from ...core.manifest import DamagedFile, read_record, write_record
from ...core.model.identity import network_digest
from ...finetune.compress.channels import UnprunableNetwork
from ..aloud import conclude, say
from ..following import command
from ..outputs.card import UNKNOWN_LICENCE
from ..outputs.checking import opened_for, shown_of, shown_pictures
from ..outputs.export import Further, refuse_several_processes, write_8_bits, write_export
from ..outputs.int8 import INT8_FILE, Int8Sets, drawn_in_words, int8_sets, paired_difference
from ..outputs.onnx_file import ONNX_FILE, OnnxSession, check_onnx
from ..outputs.predict import classifier_of, labels_for
from ..verbs import execute, resolve
from .budget import Budget
from .forms import (
    MARGIN,
    PICTURES_TIMED,
    PRUNED_RUN,
    SHARES_TRIED,
    TriedForm,
    check_overrides,
    cost_of_file,
    cost_of_network,
    first_pictures,
    least_pruned,
    part_that_stays,
    plain_json,
    pruned_draft,
    recovery,
)
from .run_sets import uris_of_test, uris_of_training

RECORD = "compress.json"


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
        return plain_json({**self._asdict(), "budget": self.budget._asdict()})


class Record:
    """compress.json of a folder: what was asked, which forms were timed, which one was chosen, and in the end what it loses."""

    def __init__(self, to: Path, run: Path, asked: Demand, network: str) -> None:
        """network: digest of the run's. Raises UserError if another command made the folder, and if it is something else."""
        self.to = to
        made = {"run": str(run), "network": network, "asked": asked.as_json()}
        self.content: dict[str, Any] = {"task": "compress", **made, "tried": []}
        if not to.exists() or (to.is_dir() and not any(to.iterdir())):
            return
        try:
            found = read_record(to / RECORD)
        except (FileNotFoundError, NotADirectoryError, DamagedFile):
            raise UserError(
                f"--to: {to} exists already, and is no folder of rootstock compress; name a new one"
            ) from None
        if any(found.get(key) != self.content[key] for key in ("task", "run", "asked")):
            raise UserError(
                f"--to: {to} was made by another command; name a new folder, or give the same run, budget and overrides"
            )
        if found.get("network") != network:
            raise UserError(
                f"--to: {to} holds forms of another network: {run} has been trained anew since; name a new folder, or delete this one"
            )
        self.content = found

    def write(self, **entries: Any) -> None:
        """Write it with further entries."""
        self.to.mkdir(parents=True, exist_ok=True)
        self.content |= entries
        write_record(self.to / RECORD, self.content)

    @property
    def chosen(self) -> TriedForm | None:
        return TriedForm.of_json(self.content["chosen"]) if "chosen" in self.content else None

    def known(self, share: float | None, int8: bool) -> TriedForm | None:
        """A form that was timed before."""
        forms = (TriedForm.of_json(found) for found in self.content["tried"])
        return next((form for form in forms if (form.share, form.int8) == (share, int8)), None)

    def add(self, form: TriedForm) -> TriedForm:
        """Keep what was timed, so that a command that goes on need not time it again."""
        say(form.in_words())
        self.write(tried=[*self.content["tried"], form.as_json()])
        return form


def compress_run(run: Path, to: Path, asked: Demand) -> int:
    """Choose, train what has to recover, export, and measure. Returns the exit code: 1 if the exported form misses the budget after all.

    The same command goes on with a folder that it began. Raises UserError.
    """
    refuse_several_processes("compress")
    check_onnx("compress")
    trained = load_trained(run)
    asked = with_sets(trained, asked)
    classifier = classifier_of(trained)
    record = Record(to, run, asked, network_digest(classifier))
    check_recovery(trained, to, asked)
    sets = int8_sets(trained, asked.calibrate, asked.test, "--calibrate") if asked.int8 else None
    test, labels = measured_pictures(trained, asked, sets)
    for sentence in seen_in_training(trained.backbone.seen, {"test": test}):
        say(sentence)
    # The test is read at once, so that a damaged picture is found before anything is timed or trained.
    before = extract(classifier, test, trained.view, device="cpu").argmax(1) == labels
    if record.chosen is None:
        record.write(chosen=_choose(trained, sets, asked, record).as_json())
    chosen = record.chosen
    assert chosen is not None
    say(f"compress: {chosen.in_words()}; the budget is {asked.budget.in_words()}")
    source = trained.folder
    if chosen.share is not None:
        source = to / PRUNED_RUN
        execute("finetune", recovery(trained, chosen.share, source, asked.test), asked.overrides)
    if not (to / "exported").exists():
        _export(load_trained(source), to / "exported", sets if chosen.int8 else None)
    return _conclude(trained, record, chosen, asked, (test, labels, before))


def check_recovery(trained: TrainedRun, to: Path, asked: Demand) -> None:
    """Raises UserError for overrides that cannot be; says where no channel can go, since the run cannot teach the network to recover."""
    try:
        config = recovery(trained, SHARES_TRIED[0], to / PRUNED_RUN, asked.test)
    except UserError as error:
        if asked.overrides:
            raise
        say(f"WARNING: all channels stay: {error}")
        return
    check_overrides(config, asked.overrides)


def with_sets(trained: TrainedRun, asked: Demand) -> Demand:
    """With the run's own pictures where none are given. Raises UserError where it names none."""
    classifier_of(trained)
    test = asked.test or uris_of_test(trained)
    if not test:
        raise UserError(
            f"--test: {trained.folder} held its test out of its training pictures, so what a smaller network loses is measured on others; "
            "give labelled ones with --test URI"
        )
    return asked._replace(calibrate=asked.calibrate or uris_of_training(trained), test=test)


def measured_pictures(trained: TrainedRun, asked: Demand, sets: Int8Sets | None) -> tuple[Images, Tensor]:
    """The test and its labels, int64 [N]; without what calibrates, which `sets` has taken out. Raises UserError."""
    test = open_images(list(asked.test)) if sets is None else sets.test
    trained.check_pictures(test)
    return test, labels_for(trained, test, "--test")


def _choose(trained: TrainedRun, sets: Int8Sets | None, asked: Demand, record: Record) -> TriedForm:
    """The form that fits and changes the network least. sets: those of 8 bits, None where these are not allowed.

    Raises UserError if none fits.
    """
    shown = shown_of(trained, opened_for(trained, asked.calibrate), PICTURES_TIMED)
    calibration = None if sets is None else first_pictures(sets.calibration)
    say("timing forms of the network, some seconds each; a stopped command goes on where it was")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def timed(network: TrainedRun, share: float | None, int8: bool) -> TriedForm:
            given = calibration if int8 else None
            cost = cost_of_network(network, shown, given, folder / f"graph-{share}", asked.threads)
            return record.add(TriedForm(share, part_that_stays(network, trained), int8, cost))

        for int8 in (False, True) if asked.int8 else (False,):
            form = record.known(None, int8) or timed(trained, None, int8)
            if asked.budget.holds(form.cost, MARGIN):
                return form

        @functools.cache
        def draft(share: float) -> TrainedRun | None:
            config = recovery(trained, share, record.to / PRUNED_RUN, asked.test)
            return pruned_draft(trained, resolve("finetune", config, asked.overrides), folder / f"run-{share}")

        def form_of(share: float, int8: bool) -> TriedForm | None:
            if (known := record.known(share, int8)) is not None:
                return known
            small = draft(share)
            return None if small is None else timed(small, share, int8)

        why = ""
        try:
            best = least_pruned(form_of, asked.budget, SHARES_TRIED, asked.int8)
        except UnprunableNetwork as error:
            best, why = None, f"{error.why}, and "
    if best is None:
        raise UserError(_nothing_fits(trained, asked.budget, record, why))
    return best


def _nothing_fits(trained: TrainedRun, budget: Budget, record: Record, why: str) -> str:
    """why: no smaller form can be made; "" if there are some, and the smallest was tried."""
    tried = [TriedForm.of_json(form) for form in record.content["tried"]]
    nearest = min(tried, key=lambda form: budget.used_by(form.cost))
    spare = "" if budget.latency is None else f" with {1 - MARGIN:.0%} of the time to spare"
    return (
        f"--latency, --size: nothing fits {budget.in_words()}{spare}; {why}of all forms that can be made, the nearest one has "
        f"{nearest.in_words()}. Allow that, or teach a smaller network: {command('distill', str(trained.folder), '--student', 'NAME')}"
    )


def _export(trained: TrainedRun, to: Path, sets: Int8Sets | None) -> None:
    """sets: those of the form of 8 bits; None for one of 32."""

    def in_8_bits(draft: Path) -> Further:
        return ([], []) if sets is None else write_8_bits(trained, sets, draft, False)[1]

    shown = shown_pictures(trained, ())
    write_export(trained, shown, to, licence=UNKNOWN_LICENCE, onnx=True, uint8=False, further=in_8_bits)


class _Logits(nn.Module):
    """The logits of a graph."""

    def __init__(self, session: OnnxSession) -> None:
        super().__init__()
        self.session = session

    def forward(self, images: Tensor) -> Tensor:
        return self.session(images)["logits"]


def _conclude(
    trained: TrainedRun, record: Record, chosen: TriedForm, asked: Demand, scored: tuple[Images, Tensor, Tensor]
) -> int:
    """Time and test the exported form. scored: the test, its labels, and which of them the whole network says rightly, bool [N]."""
    test, labels, before = scored
    file = record.to / "exported" / (INT8_FILE if chosen.int8 else ONNX_FILE)
    cost = cost_of_file(file, shown_of(trained, test, PICTURES_TIMED), asked.threads)
    after = extract(_Logits(OnnxSession(file)), test, trained.view, device="cpu").argmax(1) == labels
    told, changed = what_changed(before, after, test)
    record.write(cost=cost._asdict(), file=str(file), test=told)
    fits = asked.budget.holds(cost)
    missed = "" if fits else f"; it misses the budget of {asked.budget.in_words()}, on a machine that may be busier now"
    print(file)
    conclude(f"compress: {cost.in_words()}; {changed}{missed}", command("verify", str(record.to / "exported")))
    return 0 if fits else 1


def what_changed(before: Tensor, after: Tensor, test: Images) -> tuple[dict[str, Any], str]:
    """The accuracies and their difference, for compress.json and in words. before, after: bool [N], which pictures are right."""
    found = paired_difference(before.numpy(), after.numpy(), test.units().numpy())
    shares = [float(right.double().mean()) for right in (before, after)]
    told = {"n": len(test), "before": shares[0], "after": shares[1], "difference": found._asdict()}
    between, over = "", f"{len(test)} pictures"
    if test.groups is not None:
        over += f" in {drawn_in_words(test)}"
    if found.low is not None and found.high is not None:
        between = f" [{100 * found.low + 0.0:+.1f}, {100 * found.high + 0.0:+.1f}]"
    points = f"{100 * found.estimate + 0.0:+.1f} points{between} (95 %, paired over {over} of {test.uri})"
    return told, f"accuracy {shares[0]:.1%} before, {shares[1]:.1%} after: {points}"
