"""`rootstock export`: a trained network in forms that others read, compared with the run's own on real pictures before it is kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...core.errors import UserError
from ...core.evaluate.trained import TrainedRun, load_trained
from ...core.files import write_text
from ...core.images.pack.unfinished import writable
from ...core.images.sets import seen_in_training
from ...core.manifest import write_manifest
from ..aloud import conclude, say
from ..following import command
from .card import UNKNOWN_LICENCE, model_card
from .checking import (
    EXPORT_TOLERANCE,
    ExportCheck,
    ShownPictures,
    compare_plain,
    shown_pictures,
    through_timms_transform,
)
from .int8 import Int8Sets, int8_section, int8_sets, measure_int8, write_int8
from .network import PlainNetwork, plain_network
from .onnx_file import ONNX_FILE, ONNX_TOLERANCE, check_onnx, compare_onnx, onnx_section, write_onnx

CARD = "README.md"
Further = tuple[list[str], list[str]]
"""Names of further files of an export, and sections of its card about them."""


def export_network(
    run: Path,
    to: Path,
    *,
    images: Sequence[str] = (),
    licence: str = UNKNOWN_LICENCE,
    onnx: bool = False,
    uint8: bool = False,
    int8: Sequence[str] = (),
    test: Sequence[str] = (),
) -> int:
    """Write the folder `to`, whole or not at all. Returns the exit code 0. Raises UserError, and MachineError if something differs.

    images: URIs of pictures for the comparison; the run's own training pictures by default. licence: as the Hub names it. onnx: whether
    model.onnx is written too; uint8: whether it takes pixels instead of normalised floats. int8: URIs of pictures that calibrate a graph of
    8 bits, which is tested on `test`, or on the others of these.
    """
    refuse_several_processes("export")
    refuse_existing(to)
    onnx = onnx or bool(int8)
    if onnx:
        check_onnx()
    elif uint8:
        raise UserError("--uint8 is about the graph of ONNX; add --onnx, or leave it out")
    if test and not int8:
        raise UserError(
            "--test measures what 8 bits cost; add --int8 URI, the pictures that calibrate, or leave it out"
        )
    trained = load_trained(run)
    sets = int8_sets(trained, int8, test) if int8 else None

    def in_8_bits(draft: Path) -> Further:
        if sets is None:
            return [], []
        lines, written = write_8_bits(trained, sets, draft, uint8)
        for line in lines:
            say(line)
        return written

    shown = shown_pictures(trained, images)
    write_export(trained, shown, to, licence=licence, onnx=onnx, uint8=uint8, further=in_8_bits)
    conclude_export("export", trained, shown, to)
    return 0


def write_8_bits(trained: TrainedRun, sets: Int8Sets, draft: Path, uint8: bool) -> tuple[list[str], Further]:
    """Write the form of 8 bits beside that of 32, and measure what it costs. Returns what was found in words, and what was written."""
    names = write_int8(trained, sets.calibration, draft, uint8)
    outcome = measure_int8(trained, sets, draft, uint8)
    remarks = seen_in_training(trained.backbone.seen, {"test": sets.test})
    section = int8_section(outcome, sets.calibration, remarks=remarks)
    return [*outcome.in_words(), *remarks], (names, [section])


def conclude_export(verb: str, trained: TrainedRun, shown: ShownPictures, to: Path) -> None:
    """Print the folder, for scripts, and the verdict."""
    print(to)
    compared = f"compared on {len(shown.inputs)} pictures of {shown.title}"
    conclude(f"{verb}: {trained.title}, {compared}", command("verify", str(to)))


def write_export(
    trained: TrainedRun,
    shown: ShownPictures,
    to: Path,
    *,
    licence: str,
    onnx: bool,
    uint8: bool,
    further: Callable[[Path], Further],
) -> None:
    """Write the folder, whole or not at all. further: writes other forms into the draft, which holds the graph of 32 bits if `onnx`."""
    with drafted(to) as draft:
        network, names, checks = write_for_torch(trained, shown, draft)
        _say_all(checks)
        _say_whether_timm_can(network)
        sections = list[str]()
        if onnx:
            written = write_onnx(trained, shown, draft, uint8)
            found = compare_onnx(draft / ONNX_FILE, shown, uint8)
            _say_all(found, ONNX_TOLERANCE)
            names += written
            sections.append(onnx_section(written, uint8, found))
        more, others = further(draft)
        cosine = through_timms_transform(trained, network, shown)
        facts = {"licence": licence, "pictures": shown.title, "cosine": cosine}
        card = model_card(trained, network, checks, further=[*sections, *others], **facts)
        write_text(draft / CARD, card)
        write_manifest(draft, [*names, *more, CARD])


def write_for_torch(
    trained: TrainedRun, shown: ShownPictures, draft: Path
) -> tuple[PlainNetwork, list[str], list[ExportCheck]]:
    """Write tensors, config.json and model.py, and compare them. Where timm's own classifier gives other logits, the head lies apart."""
    network = plain_network(trained)
    names = network.write(draft)
    checks = compare_plain(draft, network, shown)
    if network.about["classifier"] and any(check.largest > EXPORT_TOLERANCE * check.scale for check in checks):
        network = plain_network(trained, whole=False)
        names = network.write(draft)
        checks = compare_plain(draft, network, shown)
    return network, names, checks


def _say_whether_timm_can(network: PlainNetwork) -> None:
    if network.reason:
        why = f"timm's local-dir cannot load it: {network.reason}; model.py can"
        remedy = (
            "" if network.about["pruned"] else ". Training with backbone.name=resnet18, say, makes one that timm has"
        )
        say(f"{why}{remedy}")


def _say_all(checks: Sequence[ExportCheck], tolerance: float = EXPORT_TOLERANCE) -> None:
    """Print each comparison. Raises MachineError for the first that is more than rounding."""
    for check in checks:
        say(check.check(tolerance).in_words())


def refuse_several_processes(verb: str) -> None:
    """Raises UserError in one of several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{verb} writes one folder from one process; start it without torchrun")


def refuse_existing(to: Path) -> None:
    """Raises UserError for a folder with something in it."""
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise UserError(f"--to: {to} exists already; name a new folder, or delete that one")


@contextmanager
def drafted(to: Path) -> Iterator[Path]:
    """Within it, a hidden folder beside `to`, which gets this name at the end; after an error nothing is left."""
    draft = to.absolute().parent / f".{to.name}.export"
    with writable(to):
        shutil.rmtree(draft, ignore_errors=True)  # left by an export that was killed
        draft.mkdir(parents=True)
        try:
            yield draft
            draft.rename(to)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
