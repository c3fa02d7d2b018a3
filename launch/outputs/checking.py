"""What an exported network is compared with before it is kept: the run's own network, on real pictures."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from timm.models import _hub
from torch import Tensor, nn

from ...core.errors import MachineError, UserError
from ...core.evaluate.pictures import spread
from ...core.evaluate.trained import TrainedRun
from ...core.images.images import Images
from ...core.images.open import open_images
from ...core.views.view import stack_pictures
from ..aloud import say
from .network import PlainNetwork
from .pictures import damage_with_remedy
from .scripts import SCRIPT_NAME

PICTURES_COMPARED = 16  # pictures
EXPORT_TOLERANCE = 1e-4  # of the largest number


class ExportCheck(NamedTuple):
    """How far the numbers of an exported form are from the run's, on the same pictures.

    what: the form and its output. largest: the largest difference; scale: the largest number of the run's. agreement: part of the pictures
    for which `of` holds (same class: the highest output; same nearest picture: by the cosine of features); None: not asked.
    """

    what: str
    largest: float
    scale: float
    pictures: int
    agreement: float | None = None
    of: str = ""

    def in_words(self) -> str:
        said = f"equal to the last bit on {self.pictures} pictures"
        if self.largest > 0:
            said = f"differ by at most {self.largest:.1e} (the largest is {self.scale:.3g}) on {self.pictures} pictures"
        return f"{self.what}: {said}" + (
            "" if self.agreement is None else f"; {self.of} for {self.agreement:.1%} of them"
        )

    def check(self, tolerance: float = EXPORT_TOLERANCE) -> ExportCheck:
        """Raises MachineError if they differ by more than rounding: nothing is kept then."""
        if not self.largest <= tolerance * self.scale:
            raise MachineError(
                f"{self.in_words()}, which is more than rounding ({tolerance:.0e} of the largest), so nothing is written; please report it "
                "with the versions that `rootstock doctor` shows"
            )
        return self


class ShownPictures(NamedTuple):
    """Real pictures, as the run's evaluation shows them. title: where they are from. cropped: uint8 or uint16 [N, C, S, S]."""

    title: str
    images: Images
    cropped: Tensor
    inputs: Tensor  # float [N, C, S, S], normalised
    features: Tensor  # [N, D], the backbone's
    logits: Tensor | None  # [N, K]


def shown_pictures(trained: TrainedRun, uris: Sequence[str], count: int = PICTURES_COMPARED) -> ShownPictures:
    """Some pictures of a URI, evenly spaced; those that the run was trained on where none is given. Raises UserError."""
    return shown_of(trained, opened_for(trained, uris), count)


def shown_of(trained: TrainedRun, images: Images, count: int = PICTURES_COMPARED) -> ShownPictures:
    """Some of these pictures, evenly spaced."""
    chosen = images.select(spread(len(images), count))
    with damage_with_remedy():
        cropped = stack_pictures([trained.view.worker(chosen.read(i)) for i in range(len(chosen))])
    inputs = trained.view(cropped)
    with torch.no_grad():
        features = trained.backbone(inputs)
        logits = None if trained.classifier is None else trained.classifier(inputs)
    return ShownPictures(images.uri, chosen, cropped, inputs, features, logits)


def opened_for(trained: TrainedRun, uris: Sequence[str]) -> Images:
    """Raises UserError where no pictures can be found."""
    data = trained.config.get("data")
    own = (data.get("target") or data.get("train") or data.get("source")) if isinstance(data, dict) else None
    given = list(uris) or ([own] if isinstance(own, str) else list(own or ()))
    if not given:
        raise UserError(
            f"{trained.folder} names no pictures to compare the exported network on; give some: --images URI"
        )
    try:
        images = open_images(given, seed=int(trained.config.get("seed", 0)), role="unlabelled")
    except UserError as error:
        if uris:
            raise
        raise UserError(
            f"the pictures of the run, to compare the exported network on, cannot be opened ({error}); give others: --images URI"
        ) from error
    trained.check_pictures(images)
    return images


Agreement = Literal["", "same class", "same nearest picture"]


def compared(what: str, found: Tensor, expected: Tensor, of: Agreement = "") -> ExportCheck:
    """The comparison of two tensors [N, D]. of: what else is compared, as of `ExportCheck`. Raises MachineError for another shape."""
    if found.shape != expected.shape:
        raise MachineError(
            f"{what} are {tuple(found.shape)} instead of {tuple(expected.shape)}, so nothing is written; please report it"
        )
    wide, own = found.double(), expected.double()
    check = ExportCheck(what, float((wide - own).abs().max()), float(own.abs().max()), len(own))
    if not of or (of == "same nearest picture" and len(own) < 3):
        return check
    choose = _nearest if of == "same nearest picture" else partial(torch.argmax, dim=1)
    return check._replace(agreement=float((choose(wide) == choose(own)).double().mean()), of=of)


def _nearest(features: Tensor) -> Tensor:
    """int64 [N]: the other image of highest cosine."""
    unit = nn.functional.normalize(features, dim=1)
    return (unit @ unit.T).fill_diagonal_(-2.0).argmax(1)


def compare_plain(folder: Path, network: PlainNetwork, shown: ShownPictures) -> list[ExportCheck]:
    """Compare what model.py and timm make of the written folder."""
    load = loader_of(folder)
    found = [compared("features of model.py", _run(load(folder, head=False), shown.inputs), shown.features)]
    if shown.logits is not None:
        found.append(compared("logits of model.py", _run(load(folder), shown.inputs), shown.logits, "same class"))
    if network.config and not hasattr(_hub, "load_model_config_from_path"):
        say(f"timm {timm.__version__} opens no folders (local-dir:), so that way is not compared; a later one does")
    elif network.config:
        named = f"local-dir:{folder}"
        made = timm.create_model(named, pretrained=True, num_classes=0)
        found.append(compared("features of timm's local-dir, num_classes=0", _run(made, shown.inputs), shown.features))
        if network.config["num_classes"] and shown.logits is not None:
            made = timm.create_model(named, pretrained=True)
            found.append(compared("logits of timm's local-dir", _run(made, shown.inputs), shown.logits, "same class"))
    return found


def through_timms_transform(trained: TrainedRun, network: PlainNetwork, shown: ShownPictures) -> float | None:
    """The least cosine between features of pictures that timm's own transform of the config prepared (Pillow) and the run's.

    None for pictures that it does not take, and for a network that timm cannot build.
    """
    if trained.backbone.channels != 3 or shown.cropped.dtype != torch.uint8 or not network.config:
        return None
    transform: Any = create_transform(**resolve_data_config(pretrained_cfg=network.config["pretrained_cfg"]))
    pictures = [shown.images.read(i).permute(1, 2, 0).numpy() for i in range(len(shown.images))]
    prepared = torch.stack([transform(Image.fromarray(np.ascontiguousarray(picture))) for picture in pictures])
    with torch.no_grad():
        found = trained.backbone(prepared)
    return float(nn.functional.cosine_similarity(found.double(), shown.features.double()).min())


def loader_of(folder: Path) -> Any:
    """`load` of the model.py that lies there; only for one whose text is one of ours, since it is run. Nothing is written beside it."""
    spec = importlib.util.spec_from_file_location("exported_model", folder / SCRIPT_NAME)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module.load


def _run(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.eval()(inputs)
