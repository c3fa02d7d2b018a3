"""SimMIM: mask tokens replace patches, and one layer reconstructs the pixels below them (Xie et al. 2022, arXiv:2111.09886).

Unlike MAE's, the encoder processes mask tokens too, so networks with windows or stages can be trained like ViTs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..core.draws import Draws
from ..core.errors import UserError
from ..core.method import PretrainMethod, Step, Views
from ..core.model.vit_tokens import embed, plain_vit, transform
from ..core.numerics import wide
from .parts.masks import enlarge, random_units
from .watch.collapse import collapse_metrics

if TYPE_CHECKING:
    from ..core.model.backbone import Backbone

SWIN_CLASSES = (SwinTransformer, SwinTransformerV2)


def simmim_loss(prediction: Tensor, images: Tensor, hidden: Tensor) -> Tensor:
    """The mean absolute error over hidden pixels (section 3.4), as in the authors' code: sum / (count + 1e-5) / channels.

    prediction, images: [N, C, H, W], the latter the target. hidden: bool [N, H, W]. The ratio is computed for each image and then averaged;
    theirs is computed once for the batch. Both are equal up to the 1e-5, as all images hide equally many pixels.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        error = (wide(prediction) - wide(images)).abs().mean(1)
        weight = hidden.to(error.dtype)
        return ((error * weight).sum((1, 2)) / (weight.sum((1, 2)) + 1e-5)).mean()


def local_statistics(images: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the window around each pixel, both [N, C, H, W]; the part of the window inside the picture counts.

    window: Side in pixels, odd. The deviation is the root of the unbiased variance + 1e-6 (norm_targets in the authors' code for Swin V2).
    """
    x = wide(images)
    # Window sums by two matrix products; a pooling layer would add window^2 pixels for each output.
    rows, columns = _windows(x, x.shape[-2], window), _windows(x, x.shape[-1], window)
    count = rows.sum(1)[:, None] * columns.sum(1)
    mean, square = (rows @ y @ columns / count for y in (x, x.square()))
    variance = (square - mean.square()).clamp(min=0.0) * (count / (count - 1.0))
    return mean, (variance + 1e-6).sqrt()


def _windows(x: Tensor, side: int, window: int) -> Tensor:
    """Whether each of `side` pixels in a row lies in the window around each other one: 0 or 1, [side, side], with x's dtype."""
    places = torch.arange(side, device=x.device)
    return ((places[:, None] - places).abs() <= window // 2).to(x.dtype)


class Painting(NamedTuple):
    prediction: Tensor  # [N, C, H, W], standardised where targets are
    hidden: Tensor  # bool [N, H, W]
    features: Tensor  # [N, D], mean over the last feature map


class SimMIM(PretrainMethod):
    """SimMIM's training objective on timm's ViTs and Swins: mean absolute error of the hidden pixels (section 3.4).

    A ViT keeps timm's learned positions; the authors' ViT has relative positions, shared by its layers, and layer scale.

    mask_ratio: Fraction of the image that is hidden, between 0 and 1, in units of mask_patch; the number of units is rounded up.
    mask_patch: Side of a masked unit in pixels: a multiple of the backbone's patch size that divides data.size.
    norm_target: Side in pixels, odd and 3 or more, of the window whose mean and deviation standardise each target pixel: 47 in the authors'
        code for Swin V2 at 192 px. null leaves pixels as they are, as in the paper.

    Raises UserError for other backbones, and for sizes that do not fit.
    """

    views = 1
    rows_per_position = 1
    hides_patches = True
    couples_samples = False

    def __init__(
        self,
        backbone: Backbone,
        chunk: int | None = None,
        *,
        mask_ratio: float = 0.6,
        mask_patch: int = 32,
        norm_target: int | None = None,
    ) -> None:
        super().__init__()
        model = backbone.model if isinstance(backbone.model, SWIN_CLASSES) else _vit(backbone)
        if isinstance(model, VisionTransformer):
            stride, width = int(model.patch_embed.patch_size[0]), model.embed_dim
        else:
            stride, width = int(model.feature_info[-1]["reduction"]), model.num_features
        embedding: Any = model.patch_embed
        size, patch = backbone.size, int(embedding.patch_size[0])
        if size % stride:
            raise UserError(
                f"data.size: {size} px are not a multiple of {stride} px, the stride of {backbone.spec['name']}'s last feature "
                "map; choose a size that is"
            )
        if mask_patch < 1 or mask_patch % patch or size % mask_patch:
            raise UserError(
                f"method.mask_patch: {mask_patch} px must be a multiple of the backbone's patches ({patch} px) and divide "
                f"data.size ({size} px); {_fitting(size, patch, mask_patch)} would do"
            )
        if not 0.0 < mask_ratio < 1.0:
            raise UserError(f"method.mask_ratio: must lie between 0 and 1, got {mask_ratio}; 0.6 is published")
        if norm_target is not None and (norm_target < 3 or norm_target % 2 == 0):
            raise UserError(
                f"method.norm_target: expected an odd number of pixels, 3 or more, got {norm_target}; 47 is published "
                "for 192 px"
            )
        self.norm_target = norm_target
        self.units = (size // mask_patch, size // mask_patch)
        count = self.units[0] * self.units[1]
        self.count = math.ceil(mask_ratio * count)
        if self.count == count:
            raise UserError(
                f"method.mask_ratio: {mask_ratio} of {count} units of {mask_patch} px hides all; lower it or method.mask_patch"
            )
        self.backbone, self.patch, self.mask_patch = backbone, patch, mask_patch
        # A vector, so it gets no weight decay; the authors exempt Swin's too.
        self.mask_token = nn.Parameter(torch.empty(embedding.proj.out_channels))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Sequential(nn.Conv2d(width, stride**2 * embedding.proj.in_channels, 1), nn.PixelShuffle(stride))

    def forward(self, batch: Views, progress: float) -> Step:
        """batch.images: [1, N, C, H, W]."""
        images = batch.images[0]
        out = self.reconstruct(images, batch.draws)
        target = images
        if self.norm_target is not None:
            with torch.autocast(images.device.type, enabled=False):
                mean, deviation = local_statistics(images, self.norm_target)
                target = (images - mean) / deviation
        return Step(simmim_loss(out.prediction, target, out.hidden), collapse_metrics(out.features.detach()))

    def reconstruct(self, images: Tensor, draws: Draws) -> Painting:
        """Hide units of [N, C, H, W] and predict all pixels."""
        units = random_units(draws, self.units, self.count)
        features = self.encode(images, enlarge(units, self.mask_patch // self.patch))
        return Painting(self.head(features), enlarge(units, self.mask_patch), features.mean((2, 3)))

    def encode(self, images: Tensor, hidden: Tensor) -> Tensor:
        """The backbone's last feature map, [N, D, h, w], with mask tokens where `hidden`, bool [N, H / patch, W / patch]."""
        model = self.backbone.model
        if isinstance(model, VisionTransformer):
            tokens = transform(model, embed(model, images, hidden.flatten(1), self.mask_token))
            tokens = tokens[:, model.num_prefix_tokens :]
            return tokens.transpose(1, 2).unflatten(2, hidden.shape[1:])
        assert isinstance(model, SWIN_CLASSES)
        x = model.patch_embed(images)  # [N, h, w, D]
        x = torch.where(hidden[..., None], self.mask_token.to(x.dtype), x)
        return model.norm(model.layers(x)).permute(0, 3, 1, 2)

    @torch.no_grad()
    def paint(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """What the encoder saw (hidden pixels gray) and the reconstruction; both [N, C, H, W], in the inputs' normalisation."""
        out = self.reconstruct(images, draws)
        hidden, prediction = out.hidden[:, None], out.prediction.float()
        if self.norm_target is not None:
            mean, deviation = local_statistics(images, self.norm_target)
            prediction = prediction * deviation + mean
        seen = torch.where(hidden, torch.zeros_like(images), images)
        return seen, torch.where(hidden, prediction.to(images.dtype), images)


def _vit(backbone: Backbone) -> VisionTransformer:
    if not isinstance(backbone.model, VisionTransformer):
        raise UserError(
            f"method: simmim needs a ViT or a Swin, {backbone.spec['name']} is a {type(backbone.model).__name__}; try "
            "swin_tiny_patch4_window7_224"
        )
    return plain_vit(backbone, "simmim")


def _fitting(size: int, patch: int, wanted: int) -> int:
    """The possible unit size that is nearest to the wanted one."""
    units = [unit for unit in range(patch, size + 1, patch) if size % unit == 0]
    return min(units, key=lambda unit: abs(unit - wanted))
