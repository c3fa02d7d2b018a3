"""lightly's training step of each method, in the loop of its documentation: its head, its loss, its transform.

It gets the same backbone, optimizer, precision, memory format and torch.compile as ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lightly_joint
import lightly_masked
import torch
from fitted import Clock, Figures, Plan, Setting, Watch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from lightly_joint import Compared, Example
from peers import Transformed, loader, pil_picture
from torch import Tensor

from rootstock.core.train.parallel import channels_last


class LightlySimCLR(Compared):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.backbone = setting.network()
        hidden, out = setting.method["projection"]
        self.head = SimCLRProjectionHead(self.backbone.feature_dim, hidden, out)
        self.criterion = NTXentLoss(setting.method["temperature"])


def simclr_views(setting: Setting) -> SimCLRTransform:
    return SimCLRTransform(setting.size)


# The class of the step, and the function that makes the views. lightly has no example of MoCo v3.
METHODS: dict[str, tuple[type[Example], Callable[[Setting], Any]]] = {
    "simclr": (LightlySimCLR, simclr_views),
    "byol": (lightly_joint.LightlyBYOL, lightly_joint.byol_views),
    "simsiam": (lightly_joint.LightlySimSiam, lightly_joint.simsiam_views),
    "barlow": (lightly_joint.LightlyBarlowTwins, lightly_joint.byol_views),
    "vicreg": (lightly_joint.LightlyVICReg, lightly_joint.vicreg_views),
    "swav": (lightly_joint.LightlySwAV, lightly_joint.swav_views),
    "dino": (lightly_joint.LightlyDINO, lightly_joint.dino_views),
    "ibot": (lightly_masked.LightlyIBOT, lightly_masked.ibot_views),
    "dinov2": (lightly_masked.LightlyDINOv2, lightly_masked.dinov2_views),
    "mae": (lightly_masked.LightlyMAE, lightly_masked.mae_views),
    "simmim": (lightly_masked.LightlySimMIM, lightly_masked.mae_views),
    "ijepa": (lightly_masked.LightlyIJEPA, lightly_masked.ijepa_views),
    "lejepa": (lightly_joint.LightlyLeJEPA, lightly_joint.lejepa_views),
}


def ready_views(setting: Setting, device: torch.device, count: int) -> Iterator[list[Any]]:
    """Batches of the ready views that our step gets, with masks of their own where lightly's collator draws them."""
    collate = METHODS[setting.method["name"]][0].collate(setting)
    whole, local = setting.ready(device), setting.ready_local(device)
    views: list[Any] = [*whole, *(() if local is None else local)]
    return iter([list(collate(list(whole[0]))) if collate else views for _ in range(count)])


def of_ready_views(
    setting: Setting, plan: Plan, device: torch.device, dtype: torch.dtype, compiled: bool,
    clock: Clock = time.perf_counter,
) -> Figures:  # fmt: skip
    """The step alone, on the ready views that our step gets."""
    return _train(setting, plan, device, dtype, compiled, ready_views(setting, device, plan.begun), clock)


def of_pictures(
    setting: Setting, plan: Plan, device: torch.device, dtype: torch.dtype, compiled: bool, pictures: Any, workers: int,
    clock: Clock = time.perf_counter,
) -> Figures:  # fmt: skip
    """End to end: its transform in the workers of a DataLoader. pictures: paths, or uint8 [N, H, W, 3]."""
    build, transform = METHODS[setting.method["name"]]
    dataset = Transformed(pictures, pil_picture, transform(setting))
    batches = loader(dataset, setting.batch, plan.begun, workers, pinned=device.type == "cuda")
    if (collate := build.collate(setting)) is not None:
        batches.collate_fn = collate
    return _train(setting, plan, device, dtype, compiled, batches, clock)


def _train(
    setting: Setting, plan: Plan, device: torch.device, dtype: torch.dtype, compiled: bool, batches: Iterable[Any],
    clock: Clock,
) -> Figures:  # fmt: skip
    method = METHODS[setting.method["name"]][0](setting).to(device).train()
    channels_last(method)
    optimizer = setting.optimizer().build(method)
    forward: Any = torch.compile(method, dynamic=False) if compiled else method
    watch = Watch(plan, device, clock)
    source: Iterator[Any] = iter(batches)
    for step, views in enumerate(watch.over(source)):
        method.begin(step, plan.steps)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = forward(*on_device([views] if isinstance(views, Tensor) else views, device))
        loss.backward()
        method.before_update(optimizer, step, plan.steps)
        optimizer.step()
        optimizer.zero_grad()
        method.end(step, plan.steps)
    return watch.figures()


def on_device(views: Any, device: torch.device) -> Any:
    """Move a tensor, or a list of tensors, to the device."""
    if isinstance(views, Tensor):
        return views.to(device, non_blocking=True)
    return [on_device(view, device) for view in views]
