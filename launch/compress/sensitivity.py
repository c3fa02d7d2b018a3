"""What 8 bits cost layer by layer: each layer alone is written in 8 bits, and its logits are compared with those of 32 bits.

One layer at a time, because its own noise is then all that is seen; with all others in 8 bits too, a single one hardly shows. Noises of
layers are nearly independent, so the order of the layers is the order in which they are worth 32 bits; how well the sum of their powers
foretells the noise of all together is said beside it. Accuracies of single layers hardly differ on some hundred pictures, so they stand in
the table with their intervals, and decide nothing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.special import ndtri
from torch import Tensor

from ...core.evaluate.statistics import Interval
from ...core.images.cache import entry_name, recall, remember
from ...core.images.images import Images
from ...core.views.view import Evaluation, stack_pictures
from ..outputs.int8 import BATCH, paired_difference
from ..outputs.int8_graph import CalibratedGraph
from ..outputs.onnx_file import ONNX_FILE, OnnxSession
from ..outputs.pictures import damage_with_remedy

CACHE = "quantize"
_DRAFT = ".layer.onnx"


class Slice(NamedTuple):
    """Pictures that choose, and test nothing. cropped: uint8 or uint16 [N, C, S, S]; labels: int64 [N] as outputs, None without."""

    cropped: Tensor
    keys: Tensor  # int64 [N], the identity of each picture
    units: Tensor  # int64 [N], what the bootstrap draws as a whole: groups, such as patients, or copies
    labels: Tensor | None

    def first(self, count: int) -> Slice:
        """The first of them."""
        labels = None if self.labels is None else self.labels[:count]
        return Slice(self.cropped[:count], self.keys[:count], self.units[:count], labels)


class LayerEffect(NamedTuple):
    """What 8 bits change. snr: of the logits, in dB; None where nothing changes. difference: of the accuracy; None without labels."""

    snr: float | None
    difference: Interval | None


def slice_of(images: Images, labels: Tensor | None, view: Evaluation) -> Slice:
    """Read the pictures, once for all graphs."""
    with damage_with_remedy():
        cropped = stack_pictures([view.worker(images.read(i)) for i in range(len(images))])
    return Slice(cropped, images.keys(), images.units(), labels)


def outputs_of(path: Path, shown: Slice, view: Evaluation, threads: int) -> Tensor:
    """Logits [N, K] of a graph, or features [N, D] where it has no logits."""
    session, found = OnnxSession(path, threads), list[Tensor]()
    for start in range(0, len(shown.cropped), BATCH):
        pixels = shown.cropped[start : start + BATCH]
        outputs = session(pixels if session.takes_pixels else view(pixels))
        found.append(outputs.get("logits", outputs["features"]))
    return torch.cat(found)


def signal_to_noise(before: Tensor, after: Tensor) -> float | None:
    """10 log10 of the power of [N, K] logits over that of their changes, both without the mean over outputs, which softmax does not see.

    Returns dB; None where nothing changes.
    """
    signal, noise = (x.double() - x.double().mean(1, keepdim=True) for x in (before, after - before))
    power = float(noise.square().sum())
    return None if power == 0 else 10 * math.log10(float(signal.square().sum()) / power)


def effect_of(before: Tensor, after: Tensor, shown: Slice) -> LayerEffect:
    """before, after: [N, K] of the graphs of 32 and of 8 bits."""
    difference = None
    if shown.labels is not None:
        right = [(found.argmax(1) == shown.labels).numpy() for found in (before, after)]
        difference = paired_difference(right[0], right[1], shown.units.numpy())
    return LayerEffect(signal_to_noise(before, after), difference)


class Trials:
    """Graphs with some layers in 8 bits, shown to a slice; what is known of one is in the cache, so a stopped command goes on.

    about: all that the effects depend on beside the layers, as JSON.
    """

    def __init__(
        self, graph: CalibratedGraph, folder: Path, view: Evaluation, about: Mapping[str, Any], per_channel: bool
    ) -> None:
        self.graph, self.folder, self.view, self.per_channel = graph, folder, view, per_channel
        self.about, self.threads = {**about, "layers": graph.layers}, torch.get_num_threads()
        self._before: dict[int, Tensor] = {}
        self.made = 0  # graphs that the cache did not know

    def before(self, shown: Slice) -> Tensor:
        """Of the graph of 32 bits."""
        count = len(shown.keys)
        if count not in self._before:
            self._before[count] = outputs_of(self.folder / ONNX_FILE, shown, self.view, self.threads)
        return self._before[count]

    def effect(self, shown: Slice, *, only: Collection[str] | None = None, keep: Collection[str] = ()) -> LayerEffect:
        """only, keep: as of `CalibratedGraph.write`."""
        which = {"only": None if only is None else sorted(only), "keep": sorted(keep), "per_channel": self.per_channel}
        pictures = entry_name(*(None if column is None else column.tolist() for column in shown[1:]))
        name = entry_name(self.about, which, pictures)
        if (known := recall(CACHE, name)) is not None:
            snr, difference = json.loads(known)
            return LayerEffect(snr, None if difference is None else Interval(*difference))
        draft = self.folder / _DRAFT
        try:
            self.graph.write(draft, per_channel=self.per_channel, only=only, keep=keep)
            found = effect_of(self.before(shown), outputs_of(draft, shown, self.view, self.threads), shown)
        finally:
            for part in self.folder.glob(f"{_DRAFT}*"):
                part.unlink()
        self.made += 1
        remember(CACHE, name, json.dumps(found).encode(), 0)
        return found


def layer_effects(trials: Trials, shown: Slice, say: Callable[[str], None]) -> dict[str, LayerEffect]:
    """The effect of each layer alone, in the order of the graph. What it will cost is said beforehand."""
    layers = list(trials.graph.layers)
    began = time.monotonic()
    trials.before(shown)
    spent = time.monotonic() - began
    say(
        f"sensitivity: {len(layers)} layers, one after another alone in 8 bits, on {len(shown.keys)} pictures: about "
        f"{max(1.0, spent * len(layers)):.0f} s; a stopped command goes on where it was"
    )
    return {layer: trials.effect(shown, only=[layer]) for layer in layers}


def by_noise(effects: Mapping[str, LayerEffect]) -> list[str]:
    """The layers, the noisiest first; of equal ones the earlier first."""
    return sorted(effects, key=lambda layer: math.inf if (snr := effects[layer].snr) is None else snr)


def expected_snr(effects: Mapping[str, LayerEffect]) -> float | None:
    """dB of all layers together, if their noises were independent: the powers add up."""
    power = sum(10 ** (-effect.snr / 10) for effect in effects.values() if effect.snr is not None)
    return -10 * math.log10(power) if power else None


class KeptLayers(NamedTuple):
    """kept: layers in 32 bits, the noisiest first. tried: what was lost with so many layers in 32 bits, of the numbers that were tried."""

    kept: tuple[str, ...]
    tried: dict[int, Interval]


def lost_at_most(difference: Interval) -> float:
    """The upper bound of the loss, in points."""
    return math.inf if difference.low is None else -100 * difference.low


def choose_kept(order: Sequence[str], difference: Callable[[Sequence[str]], Interval], points: float) -> KeptLayers:
    """The fewest layers in 32 bits, in this order, for which the bound of the loss is at most so many points; found by halving.

    One layer fewer is not enough. With all of them nothing has 8 bits, and nothing is lost.
    """
    tried = dict[int, Interval]()

    def enough(count: int) -> bool:
        tried[count] = difference(order[:count])
        return lost_at_most(tried[count]) <= points

    few, many = (-1, 0) if enough(0) else (0, len(order))
    while many - few > 1:
        count = (few + many) // 2
        few, many = (few, count) if enough(count) else (count, many)
    if many not in tried:
        tried[many] = difference(order[:many])
    return KeptLayers(tuple(order[:many]), tried)


def pictures_needed(points: float) -> int:
    """How many pictures can show a loss of at most so many points, even if none changes its class: Wilson's bound of none of n."""
    z = float(ndtri(0.975))
    return math.ceil(z * z * (100 - points) / points)
