"""The keys of the sections `data` and `method` of `rootstock finetune`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from ..core.config.auto import OrAuto
from ..core.config.resolve import Choice, Section
from ..core.images.store import Stamp
from ..core.model.heads import HeadInit
from ..core.stream.batches import Decode
from ..core.stream.order import SHUFFLES
from ..core.views.mixup import MixBy
from ..core.views.presets import VIEWS
from ..core.views.resample import Interpolation
from .compress.distillation import teacher_options
from .compress.prune import prune_options
from .training.averages import ema_options, swa_options
from .training.losses import LOSSES
from .training.penalties import l1_options, l2_sp_options
from .training.posthoc import POSTHOC


def data_options(
    *,
    train: str | list[str],
    test: str | dict[str, str] | None = None,
    size: Annotated[int, OrAuto],
    crop: float = 1.0,
    resize: int | None = None,
    interpolation: Interpolation = "bilinear",
    views: Annotated[dict[str, Any], Choice(VIEWS)] = {"name": "supervised"},
    shuffle: Annotated[dict[str, Any], Choice(SHUFFLES)] = {"name": "full"},
    sampler: Literal["uniform", "sqrt", "balanced"] | float = "uniform",
    label_noise: float = 0.0,
    class_groups: tuple[int, int] | None = None,
    decode: Decode = "full",
    stamp: Stamp = "mtime",
    selection: str = "last",
) -> None:
    """The `data` section of `rootstock finetune`.

    train: URI of the labelled training images, or a list of URIs whose union is taken.
    test: URI of a labelled test set, or a mapping of names to URIs; null holds out a stratified 20 % of the training images by seed.
    size: Side of the network's input in pixels. auto: that of the run in `backbone.weights`, or else what the pictures have, at most 224,
        without an accelerator 96.
    crop: Part of the shorter side that evaluation keeps, 0.01 to 1 (0.875 takes 224 of 256 pixels). A picture that already has the size is
        taken whole.
    resize: Pixels to which evaluation resizes the shorter side before it cuts out the centre, at least size; null is size / crop. A
        picture that already has the size is taken whole.
    interpolation: How evaluation resizes: bilinear, or bicubic, as DINOv2, MAE and timm's ViTs are evaluated.
    views: How training images are augmented: a preset's name, or a mapping with its name and changed numbers.
    shuffle: Order of an epoch: full, or blocks of images that are neighbours on the disk.
    sampler: How often an image of a class of n training images comes: each once an epoch (uniform), in proportion to n^-1/2 (sqrt), or to
        1 / n, so that all classes come equally often (balanced). A number a from 0 to 1 is the power between: n^-a.
    label_noise: Share of the training images, the held-out ones included, that get the label of another class, drawn evenly from the
        others; tests keep theirs. 0: none. The result then has how many of these are predicted as trained, and as they are.
    class_groups: Two numbers of training images, for example [20, 100]: the result then has the accuracy of classes with fewer than the
        first (few), with more than the second (many) and of those between (medium). null: no such groups.
    decode: How JPEG files are decoded: full, or scaled, which decodes a large file only as large as its crops need. Scaled is faster
        and gives slightly other pixels; evaluation always decodes in full.
    stamp: How a changed picture is noticed when the run resumes, in files and archives: size (another name or size), mtime (also another
        time of change) or content (also other bytes; reads every file at each start).
    selection: How the hyper-parameters of this config were chosen, as the result says it: last, train-split, source-val,
        tuned-on-target or oracle.
    """


def method_options(
    *,
    loss: Annotated[dict[str, Any], Choice(LOSSES)] = {"name": "cross_entropy"},
    posthoc: Annotated[dict[str, Any], Choice(POSTHOC)] = {"name": "none"},
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    mix_by: MixBy = "pair",
    dropout: float = 0.0,
    freeze: bool = False,
    trained: str = "all",
    l2_sp: Annotated[dict[str, Any] | None, Section(l2_sp_options)] = None,
    l1: Annotated[dict[str, Any] | None, Section(l1_options)] = None,
    keep_head: bool = False,
    head_init: HeadInit = "torch",
    head_std: float = 2e-5,
    linear_first: bool = False,
    ema: Annotated[dict[str, Any] | None, Section(ema_options)] = None,
    swa: Annotated[dict[str, Any] | None, Section(swa_options)] = None,
    wise_ft: float | None = None,
    teacher: Annotated[dict[str, Any] | None, Section(teacher_options)] = None,
    prune: Annotated[dict[str, Any] | None, Section(prune_options)] = None,
) -> None:
    """The `method` section of `rootstock finetune`. Raises UserError for numbers out of their range.

    loss: What is minimised: cross_entropy, or for classes of unequal size inverse_frequency, class_balanced, focal, logit_adjusted,
        balanced_softmax or ldam.
    posthoc: What happens to the linear head after the training, for classes of unequal size: none, logit_adjusted or tau_norm.
    label_smoothing: Label smoothing of the cross-entropy, 0 or more and less than 1.
    mixup: Parameter a of Beta(a, a) for mixup (Zhang et al. 2018, arXiv:1710.09412); 0 for none. With cutmix too, each takes half of
        the images.
    cutmix: Parameter a of Beta(a, a) for CutMix (Yun et al. 2019, arXiv:1905.04899); 0 for none.
    mix_by: Whether each pair of images draws its own share, kind of mixing and box (pair), or the whole batch of all processes draws one
        of each (batch), as timm and MAE do.
    dropout: Dropout before the head, 0 or more and less than 1.
    freeze: Whether the head alone is trained; the same as `trained: head` and `backbone.freeze: all`.
    trained: What is trained beside the head: all, biases (BitFit, arXiv:2106.10199), head (nothing else) or last:N (the last N stages, of
        a ViT blocks). What rests stays in eval mode, so that BatchNorm keeps its statistics there.
    l2_sp: Penalty towards the weights that training begins with. null: none.
    l1: Penalty that makes weights exactly 0. null: none.
    keep_head: Whether training begins with the head of the classifier in `backbone.weights` instead of a new one, as the second half of
        LP-FT does: a head is trained on the frozen network, then everything from there (arXiv:2202.10054).
    head_init: How a new head is drawn: torch (as torch's linear layer), truncated_normal (N(0, head_std^2), as MAE's code), xavier,
        kaiming, or zeros. All but torch begin with a bias of 0.
    head_std: Standard deviation of head_init: truncated_normal, above 0.
    linear_first: Whether training begins with the head of a linear probe, fitted on the features of the network as it is given: LP-FT in
        one command (Kumar et al. 2022, arXiv:2202.10054).
    ema: An exponential moving average of the weights, which is exported and tested. null: none.
    swa: An equal average of the weights from some step on, which is exported and tested. null: none.
    wise_ft: Share alpha of the fine-tuned weights in those that are exported, 0 to 1; the rest is the start's (WiSE-FT, Wortsman et al.
        2022, arXiv:2109.01903). It needs a trained head at the start: linear_first or keep_head. BatchNorm's statistics are computed anew.
        null: all.
    teacher: A trained network whose outputs are learned, too: distillation. null: labels alone.
    prune: Part of the network in `backbone.weights` that is kept; training lets it recover. null: all.
    """
