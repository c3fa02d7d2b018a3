"""Pictures of a finished pretraining: augmented views, reconstructions of a masked model, attention of a ViT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ...core.draws import Draws
from ...core.evaluate.features import evaluating
from ...core.evaluate.pictures import denormalise, save_sheet
from ...core.method import Views
from ...core.model.vit_tokens import last_attention
from ...core.run.directory import Run
from ...core.stream.batches import MicroBatches

MAX_IMAGES = 12


def save_pictures(run: Run, objective: Any, batches: MicroBatches, prepare: Callable[[Any], Views]) -> None:
    """Write the run's pictures/: views, local crops, reconstructions and attention of the first images, where the method has them."""
    first = next(iter(batches(0)), None)
    if first is None:
        return
    model = objective.backbone
    batch = prepare(first[0])
    sheets = {"views": (batch.images, "Augmented views of the first images, one row a view.")}
    if batch.local is not None:
        sheets["local"] = (batch.local, "Local crops of the same images, one row a crop.")
    for name, (views, caption) in sheets.items():
        save_sheet(run.dir, name, denormalise(views[:, :MAX_IMAGES], model.mean, model.std), caption)
    images = batch.images[0, :MAX_IMAGES]
    with evaluating(objective), torch.no_grad():
        painting = objective.paint(images, Draws(run.seed, batch.draws.positions[:MAX_IMAGES]))
        if painting is not None:
            rows = denormalise(torch.stack([images, *painting]), model.mean, model.std)
            save_sheet(run.dir, "reconstructions", rows, "The image, its visible patches, and the reconstruction.")
        if isinstance(model.model, VisionTransformer) and model.model.attn_pool is None:
            shown = to_rgb(denormalise(images, model.mean, model.std))
            rows = torch.stack([shown, overlay_heatmap(shown, last_attention(model.model, images).mean(1))])
            save_sheet(
                run.dir,
                "attention",
                rows,
                f"Attention of the last block, averaged over its heads: {_attention_of(model.model)}.",
            )


def to_rgb(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, 3, H, W]: the first three channels, or the first one where there are fewer."""
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)


def overlay_heatmap(images: Tensor, maps: Tensor) -> Tensor:
    """Images [N, C, H, W] in 0..1 as gray, maps [N, h, w] in red over them, each scaled to its own range: [N, 3, H, W]."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    heat = ((maps - low) / (high - low).clamp(min=1e-12))[:, None]
    heat = torch.nn.functional.interpolate(heat, images.shape[2:], mode="nearest")
    gray = images[:, :3].mean(1, keepdim=True)
    return torch.cat([gray + (1.0 - gray) * heat, gray * (1.0 - heat), gray * (1.0 - heat)], 1)


def _attention_of(vit: VisionTransformer) -> str:
    """Which queries `last_attention` shows, for the caption."""
    return "from the class token" if vit.global_pool == "token" else "from all patches, averaged"
