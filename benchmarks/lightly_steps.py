"""lightly's training steps of the same methods, in the loop of its documentation: its head, its loss, its transform.

It gets the same backbone, optimizer, precision, memory format and torch.compile as ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from fitted import Figures, Plan, Setting, Watch
from lightly.loss import NTXentLoss
from lightly.models import utils
from lightly.models.modules import (
    MaskedVisionTransformerDecoderTIMM,
    MaskedVisionTransformerTIMM,
    SimCLRProjectionHead,
)
from lightly.transforms.mae_transform import MAETransform
from lightly.transforms.simclr_transform import SimCLRTransform
from peers import Transformed, loader, pil_picture
from torch import Tensor, nn

from rootstock.core.train import channels_last


class LightlySimCLR(nn.Module):
    """Both views through backbone and head one after the other, as lightly's example does."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.backbone = setting.network()
        hidden, out = setting.method["projection"]
        self.head = SimCLRProjectionHead(self.backbone.feature_dim, hidden, out)
        self.criterion = NTXentLoss(setting.method["temperature"])

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.criterion(*(self.head(self.backbone(view)) for view in (first, second)))


class LightlyMAE(nn.Module):
    """lightly's example on a timm ViT, with the decoder's size of the setting."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        method = setting.method
        self.backbone = setting.network()
        vit = self.backbone.model
        self.ratio, self.patch = method["mask_ratio"], vit.patch_embed.patch_size[0]
        self.encoder = MaskedVisionTransformerTIMM(vit=vit)
        self.embed = nn.Linear(vit.embed_dim, method["decoder_dim"])
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            vit.patch_embed.num_patches, method["decoder_dim"], method["decoder_depth"], method["decoder_heads"]
        )
        self.predict = nn.Linear(method["decoder_dim"], self.patch**2 * vit.patch_embed.proj.in_channels)
        self.criterion = nn.MSELoss()

    def forward(self, images: Tensor) -> Tensor:
        size = (len(images), self.encoder.sequence_length)
        keep, mask = utils.random_token_mask(size=size, mask_ratio=self.ratio, device=images.device)
        seen = self.embed(self.encoder.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, size)
        tokens = utils.set_at_index(tokens, keep, seen.type_as(tokens))
        painted = self.predict(utils.get_at_index(self.decoder.decode(tokens), mask))
        return self.criterion(painted, utils.get_at_index(utils.patchify(images, self.patch), mask - 1))


METHODS: dict[str, tuple[Callable[[Setting], nn.Module], Callable[..., Any]]] = {
    "simclr": (LightlySimCLR, SimCLRTransform),
    "mae": (LightlyMAE, MAETransform),
}


def of_ready_views(setting: Setting, plan: Plan, device: torch.device, dtype: torch.dtype, compiled: bool) -> Figures:
    """The step alone, on the views that ours gets at its ceiling."""
    return _train(setting, plan, device, dtype, compiled, itertools.repeat(setting.ready(device).unbind(0), plan.steps))


def of_pictures(
    setting: Setting, plan: Plan, device: torch.device, dtype: torch.dtype, compiled: bool, pictures: Any, workers: int
) -> Figures:
    """End to end: its transform in the workers of a DataLoader. pictures: paths, or uint8 [N, H, W, 3]."""
    transform = METHODS[setting.method["name"]][1](input_size=setting.size)
    dataset = Transformed(pictures, pil_picture, transform)
    batches = loader(dataset, setting.batch, plan.steps, workers, pinned=device.type == "cuda")
    return _train(setting, plan, device, dtype, compiled, batches)


def _train(
    setting: Setting, plan: Plan, device: torch.device, dtype: torch.dtype, compiled: bool, batches: Iterable[Any]
) -> Figures:
    method = METHODS[setting.method["name"]][0](setting).to(device).train()
    channels_last(method)
    optimizer = setting.optimizer().build(method)
    step: Any = torch.compile(method, dynamic=False) if compiled else method
    watch = Watch(plan, device)
    to_device: Any = partial(Tensor.to, device=device, non_blocking=True)
    source: Iterator[Any] = iter(batches)
    for views in watch.over(source):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = step(*map(to_device, views))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return watch.figures()
