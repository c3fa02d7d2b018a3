"""`rootstock quantize --weights-only`: linear layers with int8 weights by torchao, in a folder that plain PyTorch reads.

torchao says what the numbers are: one scale for each output, int8 weights, maps of 32 bits. The file holds both as plain tensors of
safetensors, and model.py multiplies them when it loads: small on the disk and on the way, as large and as fast as before in memory.
Convolutions stay as they are, and so does the head.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.evaluate.features import extract
from ...core.evaluate.statistics import Interval
from ...core.evaluate.trained import TrainedRun, load_trained
from ...core.files import write_text
from ...core.images.images import Images
from ...core.images.open import open_images
from ...core.images.sets import seen_in_training
from ...core.manifest import write_manifest
from ...core.model.macs import bytes_of_tensors
from ..aloud import say
from ..outputs.card import model_card
from ..outputs.checking import ExportCheck, ShownPictures, compared, loader_of, shown_pictures
from ..outputs.export import CARD, conclude_export, drafted, refuse_existing, refuse_several_processes
from ..outputs.int8 import accuracy_in_words, drawn_in_words, paired_difference
from ..outputs.network import TENSORS, PlainNetwork, plain_network
from ..outputs.onnx_file import quiet
from ..outputs.pictures import damage_with_remedy
from ..outputs.predict import labels_for
from ..outputs.scripts import SCALE_SUFFIX, with_scales
from .sensitivity import signal_to_noise

WEIGHTS_TOLERANCE = 1e-5  # of the largest number, between torchao's network and what model.py makes of the file


class WeightsOutcome(NamedTuple):
    """layers: linear ones; bytes: of the file of tensors, before and after. snr: of the outputs, in dB. The rest is about accuracy."""

    layers: int
    bytes: tuple[int, int]
    snr: float | None
    pictures: str
    before: float | None = None
    after: float | None = None
    difference: Interval | None = None
    over: str = "pictures"  # as of `drawn_in_words`

    def in_words(self) -> list[str]:
        """For console and card."""
        large, small = self.bytes
        lines = [
            f"{TENSORS}: {small / 2**20:.2f} MiB instead of {large / 2**20:.2f} MiB ({100 * (1 - small / large):.1f} % less): the "
            f"weights of {self.layers} linear layers have 8 bits, one scale an output; all else has 32"
        ]
        changed = "nothing changes" if self.snr is None else f"{self.snr:.1f} dB of signal over noise"
        lines.append(f"outputs on {self.pictures}: {changed}")
        if self.difference is not None and self.before is not None and self.after is not None:
            lines.append(accuracy_in_words(self.before, self.after, self.difference, self.over))
        return lines


def export_weights_only(run: Path, to: Path, tests: Sequence[str], images: Sequence[str], licence: str) -> int:
    """Write the folder `to`, whole or not at all. Returns the exit code 0. Raises UserError, and MachineError if something differs."""
    refuse_several_processes("quantize")
    refuse_existing(to)
    if importlib.util.find_spec("torchao") is None:
        raise UserError("--weights-only needs torchao; `pip install 'rootstock[quantize]'`")
    trained = load_trained(run)
    if not linear_layers(trained):
        raise UserError(
            f"--weights-only: {trained.title} has no linear layer below its head, so nothing would be saved; give --calibrate URI instead"
        )
    test = open_images(list(tests)) if tests else None
    if test is not None:
        trained.check_pictures(test)
    labels = None if test is None else labels_for(trained, test, "--test")
    shown = shown_pictures(trained, images)
    with drafted(to) as draft:
        rounded, pairs = by_torchao(trained)
        network = with_pairs(plain_network(trained, whole=False), pairs)
        before = bytes_of_tensors(trained.backbone.model)
        names = network.write(draft)
        checks = checked(draft, rounded, shown)
        outcome = WeightsOutcome(len(pairs), (before, (draft / TENSORS).stat().st_size), None, "")
        outcome = measured_loss(trained, rounded, shown, test, labels, outcome)
        found = outcome.in_words()
        if test is not None:
            found += seen_in_training(trained.backbone.seen, {"test": test})
        for line in (*(check.in_words() for check in checks), *found):
            say(line)
        section = "\n".join(["## 8 bits", "", *(f"- {line}" for line in found)])
        card = model_card(trained, network, checks, licence=licence, pictures=shown.title, further=[section])
        write_text(draft / CARD, card)
        write_manifest(draft, [*names, CARD])
    conclude_export("quantize", trained, shown, to)
    return 0


def linear_layers(trained: TrainedRun) -> list[str]:
    """Below the head."""
    return [name for name, module in trained.backbone.model.named_modules() if isinstance(module, nn.Linear)]


def by_torchao(trained: TrainedRun) -> tuple[nn.Module, dict[str, tuple[Tensor, Tensor]]]:
    """The run's network with torchao's weights, and these by layer: int8 [out, in] and scales [out, 1]. Raises UserError."""
    with quiet():
        import torchao
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        rounded: Any = copy.deepcopy(trained.classifier or trained.backbone)
        backbone: Any = rounded if trained.classifier is None else rounded.backbone
        quantize_(backbone.model, Int8WeightOnlyConfig(set_inductor_config=False))
    pairs = dict[str, tuple[Tensor, Tensor]]()
    for name in linear_layers(trained):
        weight: Any = backbone.model.get_submodule(name).weight
        try:
            whole, scale = weight.qdata, weight.scale
        except AttributeError:
            raise UserError(
                f"--weights-only: torchao {torchao.__version__} keeps its weights in a form that is not known here; install 0.18"
            ) from None
        pairs[name] = (whole.detach(), scale.detach().reshape(-1, 1))
    return rounded.eval(), pairs


def with_pairs(network: PlainNetwork, pairs: dict[str, tuple[Tensor, Tensor]]) -> PlainNetwork:
    """The files of a network whose layers are int8 weights and scales, with a model.py that multiplies them."""
    tensors = dict(network.tensors)
    for name, (whole, scale) in pairs.items():
        tensors[f"{name}.weight"], tensors[f"{name}.weight{SCALE_SUFFIX}"] = whole, scale
    reason = "timm reads no weights of 8 bits"
    return network._replace(script=with_scales(network.script), tensors=tensors, config={}, reason=reason)


def checked(draft: Path, rounded: nn.Module, shown: ShownPictures) -> list[ExportCheck]:
    """What model.py makes of the folder, compared with torchao's network. Raises MachineError."""
    what = "features" if shown.logits is None else "logits"
    with torch.no_grad():
        found, expected = loader_of(draft)(draft)(shown.inputs), rounded(shown.inputs)
    return [compared(f"{what} of model.py, against torchao's", found, expected).check(WEIGHTS_TOLERANCE)]


def measured_loss(
    trained: TrainedRun,
    rounded: nn.Module,
    shown: ShownPictures,
    test: Images | None,
    labels: Tensor | None,
    outcome: WeightsOutcome,
) -> WeightsOutcome:
    """With the noise on the test, and the accuracies there; without a test the noise on the pictures that were compared."""
    if test is None or labels is None:
        own = shown.features if shown.logits is None else shown.logits
        with torch.no_grad():
            snr = signal_to_noise(own, rounded(shown.inputs))
        return outcome._replace(snr=snr, pictures=f"{len(own)} pictures of {shown.title}")
    whole: nn.Module = trained.classifier or trained.backbone
    with damage_with_remedy():
        before, after = (
            extract(model, test, trained.view, device=torch.device("cpu"), workers=0).float()
            for model in (whole, rounded)
        )
    right = [(found.argmax(1) == labels).numpy() for found in (before, after)]
    return outcome._replace(
        snr=signal_to_noise(before, after),
        pictures=f"{len(test)} pictures of {test.uri}",
        before=float(right[0].mean()),
        after=float(right[1].mean()),
        difference=paired_difference(right[0], right[1], test.units().numpy()),
        over=drawn_in_words(test),
    )
