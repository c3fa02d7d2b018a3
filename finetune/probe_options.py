"""The keys of `data` and `evaluate` of `rootstock probe`."""

from __future__ import annotations

from typing import Annotated, Any

from ..core.config.auto import OrAuto
from ..core.config.resolve import Section
from ..core.images.store import Stamp
from ..core.views.resample import Interpolation
from .dense.dense import Dense
from .protocols.attentive import Attentive
from .protocols.attentive_capi import AttentiveCAPI
from .protocols.few_linear import FewLinear
from .protocols.fewshot import FewShot
from .protocols.knn import KNN
from .protocols.linear import Linear
from .protocols.linear_sgd import LinearSGD
from .protocols.nearest_mean import NearestMean
from .protocols.prototypes import PrototypeClassifier
from .protocols.retrieval import Retrieval
from .protocols.ridge import FewShotRidge
from .protocols.verification import Verification
from .robustness import robustness_options
from .speed import speed_options


def probe_data_options(
    *,
    train: str | list[str],
    test: str | dict[str, str] | None = None,
    size: Annotated[int, OrAuto],
    crop: float = 1.0,
    resize: int | None = None,
    interpolation: Interpolation = "bilinear",
    stamp: Stamp = "mtime",
    corrupt: Annotated[dict[str, Any] | None, Section(robustness_options)] = None,
) -> None:
    """The `data` section of `rootstock probe`.

    train: URI of the labelled training images, or a list of URIs whose union is taken.
    test: URI of a labelled test set, or a mapping of names to URIs; null holds out a stratified 20 % of the training images by seed.
    size: Side of the network's input in pixels. auto: that of the run in `backbone.weights`, or else what the pictures have, at most 224,
        without an accelerator 96.
    crop: Part of the shorter side that is kept, 0.01 to 1 (0.875 takes 224 of 256 pixels). A picture that already has the size is
        taken whole.
    resize: Pixels to which evaluation resizes the shorter side before it cuts out the centre, at least size; null is size / crop. A
        picture that already has the size is taken whole.
    interpolation: How evaluation resizes: bilinear, or bicubic, as DINOv2, MAE and timm's ViTs are evaluated.
    stamp: How a changed picture is noticed when the run resumes, in files and archives: size (another name or size), mtime (also another
        time of change) or content (also other bytes; reads every file at each start).
    corrupt: Corruptions of the test pictures, each of which is one more test; training pictures stay as they are. null for none.
    """


def protocol_options(
    *,
    knn: Annotated[dict[str, Any] | None, Section(KNN)] = None,
    linear: Annotated[dict[str, Any] | None, Section(Linear)] = None,
    attentive: Annotated[dict[str, Any] | None, Section(Attentive)] = None,
    fewshot: Annotated[dict[str, Any] | None, Section(FewShot)] = None,
    ridge: Annotated[dict[str, Any] | None, Section(FewShotRidge)] = None,
    nearest_mean: Annotated[dict[str, Any] | None, Section(NearestMean)] = None,
    few_linear: Annotated[dict[str, Any] | None, Section(FewLinear)] = None,
    linear_sgd: Annotated[dict[str, Any] | None, Section(LinearSGD)] = None,
    attentive_capi: Annotated[dict[str, Any] | None, Section(AttentiveCAPI)] = None,
    prototypes: Annotated[dict[str, Any] | None, Section(PrototypeClassifier)] = None,
    dense: Annotated[dict[str, Any] | None, Section(Dense)] = None,
    retrieval: Annotated[dict[str, Any] | None, Section(Retrieval)] = None,
    verification: Annotated[dict[str, Any] | None, Section(Verification)] = None,
    presets: list[str] = [],
    speed: Annotated[dict[str, Any] | None, Section(speed_options)] = None,
) -> None:
    """The `evaluate` section of `rootstock probe`: which protocols run; kNN where none is given.

    knn: A weighted kNN classifier; null for none.
    linear: Logistic regression, its regularisation chosen on a part of the training images; null for none.
    attentive: An attentive probe on the tokens before pooling; null for none.
    fewshot: Nearest class mean from a few labelled images a class; null for none.
    ridge: Ridge regression from a few labelled images a class, big_vision's few-shot probe; null for none.
    nearest_mean: Nearest class mean of all training images; null for none.
    few_linear: Logistic regression from 1 %, 10 % or a few of the labels; null for none.
    linear_sgd: Linear heads trained by SGD as SimCLR's, MAE's or DINOv2's linear evaluation; null for none.
    attentive_capi: CAPI's attentive and linear probes; null for none.
    prototypes: A classifier by likeness to patches of training images, with a sparse last layer; null for none.
    dense: Segmentation by a linear classifier on patches, from masks; null for none. With it alone, images need no class labels.
    retrieval: Which images of a gallery are nearest to a test image: mAP, recall@k, precision@k; null for none.
    verification: Whether two test images have the same class, by their cosine: equal error rate, FRR at a FAR; null for none.
    presets: Published protocols by name: knn-lightly, knn-dino, logreg, ridge-bigvision, linear-simclr, linear-simclr-cifar, linear-mae,
        linear-dinov2, attentive-capi.
    speed: Milliseconds an image, measured; null for none.
    """
