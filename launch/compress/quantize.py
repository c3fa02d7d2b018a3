"""`rootstock quantize`: an export with a graph of 8 bits, of which it is known what each layer costs, and what stays in 32 bits for it.

Three sets of pictures, none in another: those that calibrate, those that choose, and those that test what was chosen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ...core.errors import UserError
from ...core.evaluate.statistics import Interval
from ...core.evaluate.trained import TrainedRun, load_trained
from ...core.files import write_text
from ...core.formats import FORMAT
from ...core.images.images import Images
from ...core.images.open import open_images
from ...core.images.parts import drawn_apart, linked_to
from ...core.images.sets import seen_in_training
from ...core.model.identity import network_digest
from ..aloud import say
from ..outputs.checking import shown_pictures
from ..outputs.export import Further, conclude_export, refuse_existing, refuse_several_processes, write_export
from ..outputs.int8 import (
    INT8_FILE,
    Int8Outcome,
    Int8Sets,
    calibrated_graph,
    int8_section,
    int8_sets,
    measure_int8,
    rows_apart,
)
from ..outputs.onnx_file import check_onnx
from ..outputs.predict import classifier_of, labels_for
from ..report.markdown import markdown_table
from .run_sets import uris_of_test
from .sensitivity import (
    KeptLayers,
    LayerEffect,
    Slice,
    Trials,
    by_noise,
    choose_kept,
    expected_snr,
    layer_effects,
    pictures_needed,
    slice_of,
)

QUANTIZATION_FILE = "quantization.json"
_HEADS = ("layer", "noise alone, dB", "points lost alone", "32 bits")


class QuantizeSets(NamedTuple):
    """int8: calibration and test; choosing: the pictures that choose, in an order by content; labels: int64 [N], None without."""

    int8: Int8Sets
    choosing: Images
    labels: Tensor | None


class Wanted(NamedTuple):
    """What was asked for. lose: points of accuracy, None: no layer stays in 32 bits; pictures: that each layer is shown."""

    calibrate: Sequence[str]
    test: Sequence[str]
    lose: float | None
    pictures: int
    per_channel: bool
    uint8: bool


def quantize_network(run: Path, to: Path, wanted: Wanted, images: Sequence[str], licence: str) -> int:
    """Write the folder `to`, whole or not at all. Returns the exit code 0. Raises UserError, and MachineError if something differs."""
    refuse_several_processes("quantize")
    refuse_existing(to)
    check_onnx("quantize")
    trained = load_trained(run)
    if wanted.lose is not None:
        classifier_of(trained)
    sets = quantize_sets(trained, wanted.calibrate, wanted.test or uris_of_test(trained))
    check_lose(sets, wanted.lose)
    shown = shown_pictures(trained, images)

    def in_8_bits(draft: Path) -> Further:
        return quantized(trained, sets, wanted, draft)

    write_export(trained, shown, to, licence=licence, onnx=True, uint8=wanted.uint8, further=in_8_bits)
    conclude_export("quantize", trained, shown, to)
    return 0


def quantize_sets(trained: TrainedRun, uris: Sequence[str], tests: Sequence[str]) -> QuantizeSets:
    """Pictures of `uris` calibrate and choose; those of `tests` test, or else half of those that do not calibrate. Raises UserError.

    No two of the sets share a picture or a group.
    """
    found = int8_sets(trained, uris, tests, "--calibrate")
    pool = open_images(list(uris))
    others = pool.select((~linked_to(pool, found.calibration)).nonzero()[:, 0])
    choosing = drawn_apart(others, len(others), 1, leave=not tests)
    if not len(choosing):
        more = "more" if pool.groups is None else "more groups"
        raise UserError(
            f"--calibrate: {pool.uri} has {len(pool)} pictures; beside those that calibrate, too few are left to choose by; give {more}"
        )
    scored = trained.classifier is not None and choosing.labels is not None
    labels = labels_for(trained, choosing, "--calibrate") if scored else None
    chosen = others.select(linked_to(others, choosing).nonzero()[:, 0])
    rows = rows_apart(found.test, chosen, "calibrate or choose")
    labelled = None if found.labels is None else found.labels[rows]
    return QuantizeSets(found._replace(test=found.test.select(rows), labels=labelled), choosing, labels)


def known_pictures(trained: TrainedRun, sets: QuantizeSets) -> list[str]:
    """A sentence for each set that holds pictures which trained the network: of these it is too sure, so 8 bits change few of them."""
    return seen_in_training(trained.backbone.seen, {"choosing": sets.choosing, "test": sets.int8.test})


def check_lose(sets: QuantizeSets, lose: float | None) -> None:
    """Raises UserError where `--lose` cannot be shown on so many pictures."""
    if lose is None:
        return
    for option, labels in (("--calibrate", sets.labels), ("--test", sets.int8.labels)):
        if labels is None:
            raise UserError(
                f"--lose is about accuracy, and the pictures of {option} have no labels; give labelled ones, or leave it out"
            )
    if (needed := pictures_needed(lose)) > (count := len(sets.choosing)):
        raise UserError(
            f"--lose {lose:g}: {count} pictures are left to choose by, and that a loss is so small takes {needed} at least; give more "
            "with --calibrate, or allow more points"
        )


def quantized(trained: TrainedRun, sets: QuantizeSets, wanted: Wanted, draft: Path) -> Further:
    """Write model.int8.onnx and quantization.json into the draft, and say what was found."""
    graph = calibrated_graph(trained, sets.int8.calibration, draft, wanted.uint8)
    trials = Trials(graph, draft, trained.view, quantization_facts(trained, sets, wanted.uint8), wanted.per_channel)
    # Those that calibrate are the first of one order by content, those that choose of another: any number of the first is a fair sample.
    choosing = slice_of(sets.choosing, sets.labels, trained.view)
    shown = choosing.first(wanted.pictures)
    effects = layer_effects(trials, shown, say)
    together = trials.effect(shown)
    kept = chosen_layers(trials, choosing, by_noise(effects), wanted.lose)
    graph.write(draft / INT8_FILE, per_channel=wanted.per_channel, keep=kept.kept)
    outcome = measure_int8(trained, sets.int8, draft, wanted.uint8)
    remarks = [*said(effects, together, kept, wanted, len(choosing.keys)), *known_pictures(trained, sets)]
    for line in layer_rows(effects, kept.kept):
        say(line)
    for line in (*remarks, *outcome.in_words()):
        say(line)
    write_text(draft / QUANTIZATION_FILE, as_json(sets, shown, effects, together, kept, wanted, outcome))
    section = int8_section(outcome, sets.int8.calibration, wanted.per_channel)
    table = markdown_table(_HEADS, _cells(effects, kept.kept), right=(1, 2))
    words = "\n".join(f"- {line}" for line in remarks)
    names = [path.name for path in sorted(draft.glob(f"{INT8_FILE}*"))]
    return [*names, QUANTIZATION_FILE], [f"{section}\n\n### By layer\n\n{words}\n\n{table}"]


def quantization_facts(trained: TrainedRun, sets: QuantizeSets, uint8: bool) -> dict[str, Any]:
    """All that the noise of a layer depends on beside the layer and the pictures that it is shown."""
    return {
        "network": network_digest(trained.classifier or trained.backbone),
        "calibration": sets.int8.calibration.split_hash(),
        "view": trained.view.describe(),
        "uint8": uint8,
        "versions": {name: version(name) for name in ("onnx", "onnxruntime", "torch")},
    }


def chosen_layers(trials: Trials, choosing: Slice, order: Sequence[str], lose: float | None) -> KeptLayers:
    """The layers that stay in 32 bits."""
    if lose is None:
        return KeptLayers((), {})

    def difference(keep: Sequence[str]) -> Interval:
        found = trials.effect(choosing, keep=keep).difference
        assert found is not None
        say(f"{len(keep)} of {len(order)} layers in 32 bits: {_points(found)} points lost on the pictures that choose")
        return found

    return choose_kept(order, difference, lose)


def _points(found: Interval | None) -> str:
    """A loss with its interval."""
    if found is None:
        return ""
    shown = [round(-100 * value, 2) + 0.0 for value in (found.estimate, found.high, found.low) if value is not None]
    return f"{shown[0]:.2f}" + (f" [{shown[1]:.2f}, {shown[2]:.2f}]" if len(shown) > 1 else "")


def _decibels(snr: float | None) -> str:
    return "no change" if snr is None else f"{snr:.1f}"


def _cells(effects: dict[str, LayerEffect], kept: Sequence[str]) -> list[list[str]]:
    """The noisiest layer first."""
    return [
        [layer, _decibels(effects[layer].snr), _points(effects[layer].difference), "yes" if layer in kept else ""]
        for layer in by_noise(effects)
    ]


def layer_rows(effects: dict[str, LayerEffect], kept: Sequence[str]) -> list[str]:
    """The table for the terminal, in columns."""
    rows = [list(_HEADS), *_cells(effects, kept)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def said(
    effects: dict[str, LayerEffect], together: LayerEffect, kept: KeptLayers, wanted: Wanted, count: int
) -> list[str]:
    """What the layers cost together, and which stay in 32 bits."""
    expected = expected_snr(effects)
    lines = [
        f"all layers in 8 bits: logits with {_decibels(together.snr)} dB of signal over noise; {_decibels(expected)} dB if the noises of "
        "the layers added up"
    ]
    if wanted.lose is None:
        return [*lines, "no layer stays in 32 bits; --lose POINTS would choose some by accuracy"]
    names = ", ".join(kept.kept) or "none"
    return [
        *lines,
        f"in 32 bits: {len(kept.kept)} of {len(effects)} layers ({names}), the fewest in the order of their noise with which the loss on "
        f"{count} pictures that choose, {_points(kept.tried[len(kept.kept)])} points, is at most {wanted.lose:g} by its 95 % bound",
    ]


def as_json(
    sets: QuantizeSets,
    shown: Slice,
    effects: dict[str, LayerEffect],
    together: LayerEffect,
    kept: KeptLayers,
    wanted: Wanted,
    outcome: Int8Outcome,
) -> str:
    """quantization.json: accuracies as shares, differences after - before."""
    pictures = {
        name: {"uri": images.uri, "images": len(images), "split": images.split_hash()}
        for name, images in (
            ("calibration", sets.int8.calibration),
            ("choosing", sets.choosing),
            ("test", sets.int8.test),
        )
    }
    content: dict[str, Any] = {
        "format": FORMAT,
        "weights": "per-channel" if wanted.per_channel else "per-tensor",
        "lose": wanted.lose,
        "pictures": pictures,
        "pictures_a_layer": len(shown.keys),
        "layers": {layer: _effect_in_json(effects[layer]) for layer in by_noise(effects)},
        "all": _effect_in_json(together),
        "snr_if_independent": expected_snr(effects),
        "kept": list(kept.kept),
        "tried": {str(count): found._asdict() for count, found in sorted(kept.tried.items())},
        "test": {**outcome._asdict(), "difference": outcome.difference and outcome.difference._asdict()},
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _effect_in_json(effect: LayerEffect) -> dict[str, Any]:
    return {"snr_db": effect.snr, "difference": effect.difference and effect.difference._asdict()}
