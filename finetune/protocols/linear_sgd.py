"""Linear heads on frozen features, trained by SGD as published: SimCLR's, MAE's and DINOv2's linear evaluations as presets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

from ...core.errors import UserError
from ...core.evaluate.sgd_heads import train_heads
from .candidates import (
    Augment,
    Candidate,
    Length,
    check_candidates,
    fit_candidates,
    how_trained,
    trainer,
    training_of,
)
from .contract import Counts, Fitted, Known, check_vectors
from .room import check_room

SGD_SECTION = "evaluate.linear_sgd"
Published = Literal["linear-simclr", "linear-simclr-cifar", "linear-mae", "linear-dinov2"]


@dataclass(frozen=True, kw_only=True)
class LinearSGD:
    """Linear heads trained by SGD, as a published linear evaluation; each input, lr and weight_decay is a candidate.

    All candidates are trained at once on the same batches, with a cosine to 0, and the last step counts. Where there are several, the best
    on a held-out 20 % of the training images is trained anew on all. The result holds every number of the training. A key that is null has
    the preset's value, which the table in docs/reference/probes.md gives.

    preset: The published evaluation whose numbers the other keys change.
    inputs: Features that candidates read, by name (`pooled`, `cls`, `cls+mean`, `last4`, ...).
    lr: Learning rates for a batch of 256 images, each above 0; multiplied by batch_size / 256.
    weight_decay: Weight decays, each 0 or more. Biases have none.
    optimizer: sgd, nesterov (SGD with Nesterov's momentum), lars or adamw.
    momentum: Momentum of sgd, nesterov and lars, from 0 to below 1.
    epochs: Passes over the training set, 1 or more; instead of steps.
    steps: Number of steps, 1 or more; instead of epochs.
    batch_size: Images in a step, 1 or more; all of them if there are fewer.
    warmup: Part of the steps in which the rate rises linearly from 0, from 0 to below 1.
    init_std: Standard deviation of the weights at the start, 0 or more; 0 starts from zeros.
    normalise: Whether features pass a BatchNorm without scale and shift before the heads.
    augment: crops trains on random crops (0.08 to 1 of the area) and flips of the images, as published; none on the stored features.
    cached_epochs: Epochs of crops whose features are extracted, and kept in the cache on the disk; the training cycles through them. null
        extracts new ones for each epoch, and keeps none.
    """

    preset: Published = "linear-simclr"
    inputs: tuple[str, ...] | None = None
    lr: tuple[float, ...] | None = None
    weight_decay: tuple[float, ...] | None = None
    optimizer: Literal["sgd", "nesterov", "lars", "adamw"] | None = None
    momentum: float | None = None
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    warmup: float | None = None
    init_std: float | None = None
    normalise: bool | None = None
    augment: Augment = "crops"
    cached_epochs: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Every number: the preset's, where a key is null."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        settings = asdict(LINEAR_PRESETS[self.preset]())
        for one, other in (("epochs", "steps"), ("steps", "epochs")):
            settings |= {other: None} if one in given else {}
        return {**settings, **given}

    @property
    def candidates(self) -> list[Candidate]:
        """Every input with every rate and decay; ascending in rate."""
        found = self.settings
        rates, decays = sorted(set(found["lr"])), sorted(set(found["weight_decay"]))
        return [Candidate(*one) for one in product(dict.fromkeys(found["inputs"]), rates, decays)]

    @property
    def length(self) -> Length:
        """How long the training is."""
        return Length(*(self.settings[key] for key in Length._fields))

    @property
    def reads(self) -> tuple[str, ...]:
        """The inputs."""
        return tuple(dict.fromkeys(self.settings["inputs"]))

    @property
    def expects(self) -> str:
        """How the publication shows images, as `Evaluation.in_words` says it."""
        return EXPECTS[self.preset]

    def requires(self, name: str, counts: Counts) -> None:
        """Raises UserError for inputs that are no vectors, numbers out of range, want of images to choose on, and of memory."""
        check_vectors(f"{SGD_SECTION}.inputs", self.reads, counts)
        if self.epochs is not None and self.steps is not None:
            raise UserError(
                f"{SGD_SECTION}: epochs and steps are given; expected one of them, which says how long the training is"
            )
        self.length.check(SGD_SECTION)
        candidates, found = self.candidates, self.settings
        n = check_candidates(SGD_SECTION, candidates, self.augment, self.cached_epochs, counts)
        if found["normalise"] and min(n, found["batch_size"]) < 2:
            raise UserError(
                f"{SGD_SECTION}.normalise: the statistics of a batch need two images or more; raise batch_size, or add images"
            )
        try:
            training_of(self.length, n, **self._options())
        except UserError as error:
            raise UserError(f"{SGD_SECTION}.{error}") from None
        if all(one.tap in counts.shapes for one in candidates):
            width = sum(counts.shapes[one.tap][-1] for one in candidates)
            need = 4 * 4 * width * len(counts.classes)  # weight, gradient and at most two moments in float32
            check_room(SGD_SECTION, len(candidates), need, "give fewer values of lr, weight_decay or inputs")

    def fit(self, train: Known) -> Fitted:
        """Train all candidates, choose, and train the best on all images. Scores are logits, float32 [M, K]."""
        make = trainer(train, self.length, self.augment, self.cached_epochs, train_heads, **self._options())
        fitted = fit_candidates(SGD_SECTION, train, self.candidates, make)
        trained = {"trained": self.length.described(len(train.labels))}
        said = {**self.settings, **trained, **how_trained(fitted, self.expects)}
        return fitted._replace(facts={"settings": said})

    def _options(self) -> dict[str, Any]:
        return {key: self.settings[key] for key in ("optimizer", "momentum", "init_std", "normalise")}


# How each publication shows images; the keys size, crop or resize, and interpolation of `data` say it here.
_IMAGENET = "pictures resized to 256 and cropped to 224 px, bicubic"
EXPECTS: Mapping[str, str] = {
    "linear-simclr": _IMAGENET,
    "linear-simclr-cifar": "pictures resized and cropped to 32 px",
    "linear-mae": _IMAGENET,
    "linear-dinov2": _IMAGENET,
}


def linear_simclr() -> LinearSGD:
    """SimCLR's linear evaluation (Chen et al. 2020, arXiv:2002.05709, and its code).

    Pooled features as they are, heads from 0, SGD with Nesterov's momentum 0.9, lr 0.1 x batch / 256, batch 4096, 90 epochs without
    warm-up, cosine, weight decay 1e-6, random crops and flips; nothing is chosen. Its code decays the bias too, and reports the best
    epoch; this is the last.
    """
    return LinearSGD(
        preset="linear-simclr",
        inputs=("pooled",),
        lr=(0.1,),
        weight_decay=(1e-6,),
        optimizer="nesterov",
        momentum=0.9,
        epochs=90,
        batch_size=4096,
        warmup=0.0,
        init_std=0.0,
        normalise=False,
    )


def linear_simclr_cifar() -> LinearSGD:
    """SimCLR's linear evaluation for sets of the size of CIFAR-10: as `linear_simclr`, with batch 512, 100 epochs and no weight decay."""
    return LinearSGD(
        preset="linear-simclr-cifar",
        inputs=("pooled",),
        lr=(0.1,),
        weight_decay=(0.0,),
        optimizer="nesterov",
        momentum=0.9,
        epochs=100,
        batch_size=512,
        warmup=0.0,
        init_std=0.0,
        normalise=False,
    )


def linear_mae() -> LinearSGD:
    """MAE's linear probe of ViT-B (He et al. 2022, arXiv:2111.06377, and its code).

    The class token through a BatchNorm without scale and shift (epsilon 1e-6), heads from N(0, 0.01), LARS with momentum 0.9 and trust
    0.001, lr 0.1 x batch / 256, batch 16384, 90 epochs of which 10 are warm-up, cosine, no weight decay, random crops and flips; nothing is
    chosen. Its code reports the best of all epochs; this is the last.
    """
    return LinearSGD(
        preset="linear-mae",
        inputs=("cls",),
        lr=(0.1,),
        weight_decay=(0.0,),
        optimizer="lars",
        momentum=0.9,
        epochs=90,
        batch_size=16384,
        warmup=10 / 90,
        init_std=0.01,
        normalise=True,
    )


def linear_dinov2() -> LinearSGD:
    """DINOv2's linear evaluation (Oquab et al. 2023, arXiv:2304.07193, and its code): 52 heads in one pass.

    Class tokens of the last 1 or 4 blocks, with or without the mean of the patches, as they are; heads from N(0, 0.01), SGD with momentum
    0.9, 13 values of lr from 1e-5 to 0.1, x batch / 256, batch 1024 (128 on each of 8 GPUs), 12,500 steps without warm-up, cosine, no
    weight decay, random crops and flips. The head is chosen on a held-out slice of the training images, then trained anew on all; DINOv2
    reports the best of 52 on the images that it tests on.
    """
    return LinearSGD(
        preset="linear-dinov2",
        inputs=("cls", "cls+mean", "last4", "last4+mean"),
        lr=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
        weight_decay=(0.0,),
        optimizer="sgd",
        momentum=0.9,
        steps=12_500,
        batch_size=1024,
        warmup=0.0,
        init_std=0.01,
        normalise=False,
    )


LINEAR_PRESETS: Mapping[str, Callable[[], LinearSGD]] = {
    "linear-simclr": linear_simclr,
    "linear-simclr-cifar": linear_simclr_cifar,
    "linear-mae": linear_mae,
    "linear-dinov2": linear_dinov2,
}
