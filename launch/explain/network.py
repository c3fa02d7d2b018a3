"""The classifier that is explained: of a run of finetune or adapt, or the linear one of a probe on its frozen network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...core.documents import read_mapping
from ...core.errors import UserError
from ...core.evaluate.feature_key import weights_digest
from ...core.evaluate.linear_head import read_linear_head
from ...core.evaluate.trained import TrainedRun, load_trained
from ...core.files import expanded
from ...core.model.backbone import create
from ...core.model.classifier import Classifier
from ...core.run.folder import CONFIG, read_result
from ...core.views.view import Evaluation
from ...finetune.baselines.registry import BASELINES
from ..outputs.predict import classifier_of

_VIEW = ("crop", "resize", "interpolation")


def explained_run(run: Path) -> tuple[TrainedRun, Classifier]:
    """The run and its classifier. Raises UserError."""
    root = expanded(run)
    if (root / CONFIG).is_file() and (read_result(root, lambda _: None) or {}).get("task") == "probe":
        trained = _probed(root)
    else:
        trained = load_trained(run)
    return trained, classifier_of(trained)


def _probed(root: Path) -> TrainedRun:
    """The network of a probe, under the linear classifier that the probe fitted. Raises UserError."""
    head, config = read_linear_head(root), read_mapping(root / CONFIG)
    data, given = config["data"], dict(config["backbone"])
    if given.get("name") in BASELINES:
        raise UserError(
            f"{root} is a probe of {given['name']}, which is no network, so it has no maps; explain a network's run"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(config.get("seed", 0)))  # of a network that nothing has trained, as the probe drew it
        backbone = create(data["size"], head.channels, **given)
    if head.network and weights_digest(backbone) != head.network:
        raise UserError(
            f"{root}: backbone.weights ({given['weights']}) are no longer those that were probed; run the probe again in another run.dir"
        )
    classifier = Classifier(backbone, head.classes)
    with torch.no_grad():
        classifier.head.weight.copy_(head.weight)
        classifier.head.bias.copy_(head.bias)
    classifier.eval().requires_grad_(False)
    shown: dict[str, Any] = {key: data[key] for key in _VIEW if data.get(key) is not None}
    view = Evaluation(backbone.size, **shown, mean=backbone.mean, std=backbone.std)
    return TrainedRun(root, backbone, classifier, view, None, read_result(root, lambda _: None) or {}, config)
