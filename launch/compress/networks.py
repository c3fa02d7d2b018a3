"""The networks that are measured: of a run, with graphs of ONNX that are made in a folder of passage, or of an export, as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.evaluate.trained import TrainedRun, load_trained
from ...core.files import expanded
from ...core.images.images import Images
from ...core.images.open import open_images
from ...core.images.places import uri_path
from ...core.manifest import DamagedFile, guard, read_object
from ...core.model.macs import bytes_of_tensors
from ...core.views.view import Evaluation, stack_pictures
from ..outputs.checking import loader_of, opened_for, shown_of
from ..outputs.int8 import INT8_FILE, write_int8
from ..outputs.network import CONFIG_FILE, HEAD_TENSORS, TENSORS
from ..outputs.onnx_file import ONNX_FILE, check_onnx, write_onnx
from ..outputs.pictures import damage_with_remedy
from ..outputs.scripts import KNOWN_SCRIPTS, SCRIPT_NAME

TORCH, ONNX, INT8 = "PyTorch, 32 bits", "ONNX Runtime, 32 bits", "ONNX Runtime, 8 bits"
_GRAPHS = {ONNX: ONNX_FILE, INT8: INT8_FILE}
PICTURES_SHOWN = 16  # of each network; they calibrate its graph of 8 bits, too, whose accuracy is not asked here


class MeasuredNetwork(NamedTuple):
    """A network and its forms. title: the folder as it was given.

    network: what torch runs, None where it cannot; graphs: files of ONNX by form. missing: why a form is not measured, by form.
    trained: of a run; None for an exported folder.
    """

    title: str
    folder: Path
    view: Evaluation
    channels: int
    network: nn.Module | None
    graphs: dict[str, Path]
    missing: dict[str, str]
    trained: TrainedRun | None


def is_exported(folder: Path) -> bool:
    """Whether `rootstock export` wrote it."""
    return (folder / CONFIG_FILE).is_file() and (folder / TENSORS).is_file()


def open_network(given: str | Path) -> MeasuredNetwork:
    """A run's network, or that of an exported folder with its graphs. Raises UserError."""
    folder = expanded(given)
    if is_exported(folder):
        return _exported(str(given), folder)
    trained = load_trained(given)
    network = trained.classifier or trained.backbone
    return MeasuredNetwork(str(given), folder, trained.view, trained.backbone.channels, network, {}, {}, trained)


def _exported(title: str, folder: Path) -> MeasuredNetwork:
    try:
        about = read_object(folder / CONFIG_FILE)["rootstock"]
        shown: dict[str, Any] = about["preprocessing"]
        sides = {key: shown[key] for key in ("size", "resize", "interpolation")}
        view = Evaluation(**sides, mean=tuple(shown["mean"]), std=tuple(shown["std"]))
        channels = int(shown["channels"])
    except (DamagedFile, KeyError, TypeError) as error:
        why = f"{folder / CONFIG_FILE} does not say how pictures are prepared ({error})"
        raise UserError(f"{why}; give a folder that `rootstock export` wrote, or a run") from error
    graphs = {form: folder / name for form, name in _GRAPHS.items() if (folder / name).is_file()}
    guard(folder, [CONFIG_FILE, TENSORS, *(path.name for path in graphs.values())], str(folder))
    missing = {form: f"{folder} has no {name}" for form, name in _GRAPHS.items() if form not in graphs}
    network = None
    # Only a script of this version is run: what a folder holds is not trusted.
    if (script := folder / SCRIPT_NAME).is_file() and script.read_text() in KNOWN_SCRIPTS:
        network = loader_of(folder)(folder)
    else:
        missing[TORCH] = f"{script} is not of this version of Rootstock"
    return MeasuredNetwork(title, folder, view, channels, network, graphs, missing, None)


def pictures_for(measured: MeasuredNetwork, uris: Sequence[str]) -> Images:
    """Pictures to show: of `uris`, else the run's own, else the two photographs that come with scikit-learn.

    Raises UserError, also for pictures of other channels than the network takes.
    """
    images = _opened(measured, uris)
    channels = images.read(0).shape[0] if len(images) else measured.channels
    if channels != measured.channels:
        raise UserError(
            f"{measured.title} takes pictures of {measured.channels} channels, and those of {images.uri} have {channels}; give pictures of "
            f"{measured.channels} channels with --images URI"
        )
    return images


def _opened(measured: MeasuredNetwork, uris: Sequence[str]) -> Images:
    if measured.trained is not None:
        try:
            return opened_for(measured.trained, uris)
        except UserError:
            if uris or measured.channels != 3:
                raise
    elif uris:
        return open_images(list(uris), role="unlabelled")
    import sklearn.datasets

    bundled = Path(sklearn.datasets.__file__).parent / "images"
    return open_images(f"folder:{uri_path(bundled)}", role="unlabelled")


def with_graphs(measured: MeasuredNetwork, images: Images, folder: Path) -> MeasuredNetwork:
    """With graphs of ONNX, which are written into `folder` for the network of a run; one that cannot be made is named as missing."""
    trained = measured.trained
    if trained is None:
        return measured
    folder.mkdir(parents=True)
    try:
        check_onnx()
        write_onnx(trained, shown_of(trained, images, PICTURES_SHOWN), folder, uint8=False)
        write_int8(trained, images.select(torch.arange(min(len(images), PICTURES_SHOWN))), folder, uint8=False)
    except UserError as error:
        return measured._replace(missing=dict.fromkeys(_GRAPHS, str(error)))
    return measured._replace(graphs={form: folder / name for form, name in _GRAPHS.items()})


def inputs_of(measured: MeasuredNetwork, images: Images, count: int, pixels: bool) -> Tensor:
    """[count, C, S, S] of the first pictures, which repeat. pixels: uint8, as a graph with its own normalisation takes them."""
    view = measured.view
    with damage_with_remedy():
        cropped = stack_pictures([view.worker(images.read(i % len(images))) for i in range(min(count, PICTURES_SHOWN))])
    repeated = cropped[torch.arange(count) % len(cropped)]
    return repeated if pixels else view(repeated)


def bytes_of(measured: MeasuredNetwork, form: str) -> int:
    """Of a graph's files; in torch of the files of tensors of an export, or of all tensors of a run's network."""
    if form in measured.graphs:
        path = measured.graphs[form]
        return sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))
    if measured.trained is None:
        return sum(
            (measured.folder / name).stat().st_size
            for name in (TENSORS, HEAD_TENSORS)
            if (measured.folder / name).is_file()
        )
    assert measured.network is not None
    return bytes_of_tensors(measured.network)
