"""Rootstock from Python: `import rootstock.api as rs`.

    run = rs.pretrain("small", {"data.train": "folder:unlabelled", "run.dir": "runs/first"})
    print(rs.probe("small", {"data.train": "folder:labelled", "backbone.weights": "runs/first"})["metrics"])
    features = rs.extract("runs/first", "folder:labelled")["pooled"]  # [N, D]

Verbs take what the command line takes, and do the same: a run in a folder, which the same call resumes, and which leaves config.yaml,
result.json and the network. Nothing heavy is imported before a function is called. Mistakes in a config, in data or in a run raise
`UserError`, whose text is the sentence that the command line prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .core.errors import UserError
from .core.printable import printable

if TYPE_CHECKING:
    from torch import Tensor

    from .core.images.images import Images
    from .core.model.backbone import Backbone
    from .core.model.classifier import Classifier

__all__ = [
    "METHODS", "Predictions", "UserError", "adapt", "extract", "finetune", "load", "open_images", "predict", "pretrain", "probe",
]  # fmt: skip

Config = str | PathLike[str] | Mapping[str, Any]
"""A file; the name of a recipe that ships, such as `small` or `simclr`; or what a file would hold, as nested mappings."""
Overrides = Mapping[str, Any] | Sequence[str]
"""Keys over those of the config: {"optim.lr": 1e-3}, or as on the command line ["optim.lr=1e-3"]."""

METHODS: Mapping[str, Mapping[str, type]]
"""Methods by name: `METHODS["pretrain"]["simclr"]` is the class, whose docstring explains its keys, and `METHODS["adapt"]["dann"]`."""


class Predictions(NamedTuple):
    """What a classifier says of N pictures. names: N, of files or of places in a set. classes: names of the K outputs.

    order: int64 [N, top], outputs from the likeliest on. confidence: float64 [N, top], their probabilities, calibrated where `temperature`
    is not None.
    """

    names: list[str]
    classes: tuple[str, ...]
    order: Tensor
    confidence: Tensor
    temperature: float | None

    @property
    def labels(self) -> list[str]:
        """The likeliest class of each picture."""
        return [self.classes[first] for first in self.order[:, 0].tolist()]


def pretrain(config: Config, overrides: Overrides = (), *, quiet: bool = False) -> dict[str, Any]:
    """Pretrain a backbone on images without labels; returns result.json.

    overrides: keys over those of the config. quiet: print nothing but warnings. A finished run is not trained again: its result is
    returned. Raises UserError.
    """
    return _executed("pretrain", config, overrides, quiet)


def probe(config: Config, overrides: Overrides = (), *, quiet: bool = False) -> dict[str, Any]:
    """Evaluate frozen features by kNN, linear and other probes; returns result.json. Arguments and errors as of `pretrain`."""
    return _executed("probe", config, overrides, quiet)


def finetune(config: Config, overrides: Overrides = (), *, quiet: bool = False) -> dict[str, Any]:
    """Train a backbone and a classifier on labelled images; returns result.json. Arguments and errors as of `pretrain`."""
    return _executed("finetune", config, overrides, quiet)


def adapt(config: Config, overrides: Overrides = (), *, quiet: bool = False) -> dict[str, Any]:
    """Adapt from a labelled source to an unlabelled target; returns result.json. Arguments and errors as of `pretrain`."""
    return _executed("adapt", config, overrides, quiet)


def open_images(uri: str | Sequence[str], *, labels: bool = True) -> Images:
    """The pictures of a URI (folder:PATH, tar:PATH, csv:FILE, sklearn:digits, ...), or the union of several.

    `len(images)`; `images.read(i)`: uint8 (or uint16) [C, H, W]; `images.labels`: int64 [N], or None; `images.classes`; `images.keys()`:
    identities of the contents. labels: whether they are opened. Raises UserError.
    """
    from .core.images.open import open_images as opened

    return opened(_uris(uri), role="test" if labels else "unlabelled")


def load(run: str | PathLike[str]) -> Backbone | Classifier:
    """The network of a finished run in eval mode, a torch module: a Classifier (images -> logits [N, K]) if it trained one, else a
    Backbone (images -> features [N, D]).

    Images are float [N, C, size, size], normalised by the module's `mean` and `std` (of `classifier.backbone`, in a Classifier). Raises
    UserError.
    """
    from .core.evaluate.trained import load_trained

    trained = load_trained(fspath(run))
    return trained.backbone if trained.classifier is None else trained.classifier


def extract(
    run: str | PathLike[str],
    uri: str | Sequence[str],
    taps: Sequence[str] = ("pooled",),
    *,
    device: str = "auto",
    batch_size: int = 256,
    workers: int = 0,
) -> dict[str, Tensor]:
    """The features of pictures by tap, in the order of the set: float32 [N, D], or [N, L, D] of tokens; `keys`: int64 [N].

    taps: `pooled`, `bottleneck` (what the head of an adapted classifier sees), or any that `rootstock embed` offers. Pictures are shown as
    in the run's own evaluation. device: auto or cpu. workers: processes that read pictures. Raises UserError.
    """
    from .core.evaluate.trained import load_trained
    from .launch.outputs.embed import check_tap_names, features
    from .launch.outputs.pictures import joined, open_pictures

    place, trained = joined(device), load_trained(fspath(run))
    check_tap_names(trained, taps)
    images = open_pictures(_uris(uri), trained, skip_damaged=False)
    found = features(trained, images, taps, device=place, batch_size=batch_size, workers=workers)
    return {**found, "keys": images.keys()}


def predict(
    run: str | PathLike[str],
    uri: str | Sequence[str],
    top: int = 1,
    *,
    device: str = "auto",
    batch_size: int = 256,
    workers: int = 0,
) -> Predictions:
    """The `top` likeliest classes of each picture, by the classifier of a run of finetune or adapt.

    Confidences are calibrated if the run stored a temperature (a fine-tuning or an adaptation with `evaluate.held_out`). Open-set runs have
    one more class, `unknown`. Other arguments as of `extract`. Raises UserError.
    """
    from .core.evaluate.trained import load_trained
    from .launch.outputs.pictures import joined, names_of, open_pictures
    from .launch.outputs.predict import classifier_of, ranked

    place, trained = joined(device), load_trained(fspath(run))
    classifier = classifier_of(trained)
    images = open_pictures(_uris(uri), trained, skip_damaged=False)
    order, confidence = ranked(
        trained, images, top, trained.calibration, device=place, batch_size=batch_size, workers=workers
    )
    temperature = None if trained.calibration is None else trained.calibration.temperature
    return Predictions(names_of(images), tuple(classifier.outputs), order, confidence, temperature)


def _executed(verb: str, config: Config, overrides: Overrides, quiet: bool) -> dict[str, Any]:
    from .launch.verbs import execute

    return execute(verb, config if isinstance(config, Mapping) else fspath(config), _words(overrides), quiet)


def _words(overrides: Overrides) -> list[str]:
    """KEY=VALUE, the value as JSON. Raises UserError for a value that JSON does not have."""
    from .core.config.yaml_file import override_of

    if not isinstance(overrides, Mapping):
        return list(overrides)
    try:
        return [override_of(key, value, fspath) for key, value in overrides.items()]
    except TypeError as error:
        raise UserError(f"overrides: {error}; give numbers, texts, lists and mappings of these") from None


def _uris(uri: str | Sequence[str]) -> list[str]:
    """One URI or several, as a list. Raises UserError for a path, which does not say what kind of set it is."""
    given = [uri] if isinstance(uri, str | PathLike) else list(uri)
    if (path := next((one for one in given if isinstance(one, PathLike)), None)) is not None:
        from .core.images.sources.files import advice_for

        raise UserError(f"{printable(fspath(path))} is a path, and no image URI; {advice_for(Path(path))}")
    return given


def __getattr__(name: str) -> Any:
    if name != "METHODS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .adapt.registry import ADAPT_METHODS
    from .ssl.registry import PRETRAIN_METHODS

    return {"pretrain": dict(PRETRAIN_METHODS), "adapt": dict(ADAPT_METHODS)}
