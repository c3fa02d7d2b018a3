"""The network of a finished run, ready to be used: with its classifier, and the view in which the run was evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..documents import read_mapping
from ..errors import UserError
from ..files import expanded
from ..images.images import Images
from ..manifest import DamagedFile, read_object
from ..model.backbone import Backbone, create
from ..model.classifier import HEAD, Classifier, read_head
from ..model.description import DESCRIPTION, read_description
from ..run.folder import CONFIG, read_result
from ..views.view import Evaluation
from .calibration import fit_temperature

CALIBRATION = "calibration"
"""The entry of result.json that holds a temperature."""

_VIEW = ("crop", "resize", "interpolation")
_OF_CONFIGS = "backbone.weights: "  # how messages begin that name the key of a config


class Calibration(NamedTuple):
    """What logits are divided by before the softmax, and the images on which that was fitted, in words."""

    temperature: float
    fitted_on: str


class TrainedRun(NamedTuple):
    """A network in eval mode. folder: the run's. classifier: None where the run trained none; it holds the same backbone."""

    folder: Path
    backbone: Backbone
    classifier: Classifier | None
    view: Evaluation
    calibration: Calibration | None
    result: Mapping[str, Any]  # result.json; empty where there is none
    config: Mapping[str, Any]  # config.yaml; empty where there is none, as in an imported network

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.backbone.spec['name']} of {self.folder}"

    def check_pictures(self, images: Images) -> None:
        """Raises UserError if pictures have another number of channels than the network takes. Reads the first one."""
        channels = images.read(0).shape[0] if len(images) else self.backbone.channels
        if channels != self.backbone.channels:
            raise UserError(
                f"{images.uri}: its pictures have {channels} channels, and {self.title} takes {self.backbone.channels}; give pictures of "
                f"{self.backbone.channels} channels"
            )


def load_trained(run: str | Path) -> TrainedRun:
    """The network that a run exported, and how the run saw its test images.

    run: the folder of a run, or of an export in it (RUN/backbone, RUN/classifier). Raises UserError, also for a damaged export.
    """
    root = expanded(run)
    if not root.is_dir():
        what = "is no folder" if root.exists() else "does not exist"
        raise UserError(f"{run} {what}; give the folder of a finished run, such as runs/NAME")
    folder = root if (root / CONFIG).is_file() or not (root.parent / CONFIG).is_file() else root.parent
    result = read_result(folder, lambda _: None) or {}
    if result.get("task") in ("probe", "pipeline", "sweep"):
        whose = "a stage of it" if result["task"] == "pipeline" else "a run of pretrain, finetune or adapt"
        raise UserError(f"{run} is a {result['task']}, which exports no network of its own; give the folder of {whose}")
    try:
        described = read_description(str(root))
        place = Path(described["path"])
        backbone = create(described["size"], channels_in(place), weights=str(root))
        classifier = _classifier(str(root), backbone)
    except UserError as error:
        raise UserError(
            str(error).replace(_OF_CONFIGS, "").replace("none, timm, a .safetensors file or ", "")
        ) from error
    config = read_mapping(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    data = config.get("data")
    shown = {key: data[key] for key in _VIEW if data.get(key) is not None} if isinstance(data, dict) else {}
    view = Evaluation(backbone.size, **shown, mean=backbone.mean, std=backbone.std)
    whole = backbone if classifier is None else classifier
    whole.eval().requires_grad_(False)
    return TrainedRun(folder, backbone, classifier, view, _calibration(result), result, config)


def channels_in(folder: Path) -> int:
    """The channels of the pictures that an exported backbone takes; earlier versions, which had RGB alone in mind, did not write them."""
    try:
        return int(read_object(folder / DESCRIPTION).get("channels", 3))
    except (FileNotFoundError, DamagedFile, TypeError, ValueError):
        return 3


def _classifier(run: str, backbone: Backbone) -> Classifier | None:
    place = Path(read_description(run)["path"])
    if not any((folder / HEAD).is_file() for folder in (place, place.parent / "classifier")):
        return None
    stored = read_head(run)
    made = Classifier(backbone, stored.classes, structure=stored.structure)
    made.load_head(run)
    return made


def calibration_entry(logits: Tensor, labels: Tensor, what: str) -> dict[str, Any]:
    """The entry of a result that `predict` takes its temperature from; none where no temperature is the best one.

    logits: [N, K] of labelled images that no training saw; labels: int64 [N]. what: these images, in words.
    """
    fitted = fit_temperature(logits.double().numpy(), labels.numpy())
    if fitted.at_bound:
        return {}
    return {CALIBRATION: {"temperature": fitted.value, "fitted_on": f"{len(labels)} {what}"}}


def _calibration(result: Mapping[str, Any]) -> Calibration | None:
    stored = result.get(CALIBRATION)
    if not isinstance(stored, Mapping) or not isinstance(stored.get("temperature"), float):
        return None
    return Calibration(stored["temperature"], str(stored.get("fitted_on", "")))
