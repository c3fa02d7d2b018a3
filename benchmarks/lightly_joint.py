"""Training steps of lightly's examples for methods that compare views, with its heads and losses.

The setting gives the widths. Views go through the networks one after another if the example does so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from fitted import Setting
from lightly.loss import BarlowTwinsLoss, DINOLoss, LeJEPALoss, NegativeCosineSimilarity, SwaVLoss, VICRegLoss
from lightly.models.modules import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    LeJEPAProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
    SwaVProjectionHead,
    SwaVPrototypes,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from lightly.transforms.dino_transform import DINOTransform
from lightly.transforms.simsiam_transform import SimSiamTransform
from lightly.transforms.swav_transform import SwaVTransform
from lightly.transforms.vicreg_transform import VICRegTransform
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn


class Example(nn.Module):
    """A step of one of lightly's examples: forward computes the loss of the views; the other methods do what the example does around it.

    step: completed steps. steps: all steps.
    """

    @staticmethod
    def collate(setting: Setting) -> Callable[[list[Any]], Any] | None:
        """The function that makes a batch of transformed pictures; None for torch's default."""
        return None

    def begin(self, step: int, steps: int) -> None:
        """Before the forward."""

    def before_update(self, optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
        """Between backward and the optimizer's step."""

    def end(self, step: int, steps: int) -> None:
        """After the optimizer's step."""


class Compared(Example):
    """Both views go through backbone and head one after another; one loss compares them."""

    backbone: Any
    head: Any
    criterion: Any

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.criterion(*(self.head(self.backbone(view)) for view in (first, second)))


def frozen_copy(module: nn.Module) -> Any:
    """A frozen copy of a network, as lightly's examples make for a teacher."""
    teacher = copy.deepcopy(module)
    deactivate_requires_grad(teacher)
    return teacher


class LightlyBYOL(Example):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.backbone = setting.network()
        hidden, out = setting.method["projection"]
        self.head = BYOLProjectionHead(self.backbone.feature_dim, hidden, out)
        self.predict = BYOLPredictionHead(out, setting.method["prediction"][0], out)
        self.teacher, self.teacher_head = frozen_copy(self.backbone), frozen_copy(self.head)
        self.criterion = NegativeCosineSimilarity()

    def begin(self, step: int, steps: int) -> None:
        momentum = cosine_schedule(step, steps, 0.996, 1.0)
        update_momentum(self.backbone, self.teacher, momentum)
        update_momentum(self.head, self.teacher_head, momentum)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        said, known = [], []
        for view in (first, second):
            said.append(self.predict(self.head(self.backbone(view))))
            known.append(self.teacher_head(self.teacher(view)).detach())
        return 0.5 * (self.criterion(said[0], known[1]) + self.criterion(said[1], known[0]))


class LightlySimSiam(Example):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.backbone = setting.network()
        hidden, _, out = setting.method["projection"]
        self.head = SimSiamProjectionHead(self.backbone.feature_dim, hidden, out)
        self.predict = SimSiamPredictionHead(out, setting.method["prediction"][0], out)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        z = [self.head(self.backbone(view)) for view in (first, second)]
        p = [self.predict(projection) for projection in z]
        return 0.5 * (self.criterion(z[0].detach(), p[1]) + self.criterion(z[1].detach(), p[0]))


class LightlyBarlowTwins(Compared):
    """Barlow Twins, or VICReg with another loss: lightly's examples give both the same head."""

    def __init__(self, setting: Setting, loss: Callable[[], nn.Module] = BarlowTwinsLoss) -> None:
        super().__init__()
        self.backbone = setting.network()
        hidden, _, out = setting.method["projection"]
        self.head = BarlowTwinsProjectionHead(self.backbone.feature_dim, hidden, out)
        self.criterion = loss()


class LightlyVICReg(LightlyBarlowTwins):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, VICRegLoss)


class LightlySwAV(Example):
    """Its prototypes have a bias."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.backbone = setting.network()
        hidden, out = setting.method["projection"]
        self.head = SwaVProjectionHead(self.backbone.feature_dim, hidden, out)
        self.prototypes = SwaVPrototypes(out, setting.method["prototypes"])
        self.criterion = SwaVLoss()

    def begin(self, step: int, steps: int) -> None:
        self.prototypes.normalize()

    def forward(self, *crops: Tensor) -> Tensor:
        said: list[Any] = [self.prototypes(F.normalize(self.head(self.backbone(crop)), dim=1)) for crop in crops]
        return self.criterion(said[:2], said[2:])


class LightlyDINO(Example):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.backbone = setting.network()
        self.backbone.allow_any_size("lightly")
        sizes = [setting.method[key] for key in ("hidden", "bottleneck", "prototypes")]
        self.head = DINOProjectionHead(self.backbone.feature_dim, *sizes, freeze_last_layer=1)
        self.teacher = frozen_copy(self.backbone)
        self.teacher_head = DINOProjectionHead(self.backbone.feature_dim, *sizes)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(sizes[-1], warmup_teacher_temp_epochs=5)

    def forward(self, *crops: Tensor) -> Tensor:
        known = [self.teacher_head(self.teacher(crop)) for crop in crops[:2]]
        return self.criterion(known, [self.head(self.backbone(crop)) for crop in crops], epoch=1)

    def before_update(self, optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
        self.head.cancel_last_layer_gradients(current_epoch=1)  # in the first epoch only

    def end(self, step: int, steps: int) -> None:
        momentum = cosine_schedule(step, steps, 0.996, 1.0)
        update_momentum(self.backbone, self.teacher, momentum)
        update_momentum(self.head, self.teacher_head, momentum)


class LightlyLeJEPA(Example):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.backbone = setting.network()
        self.backbone.allow_any_size("lightly")
        hidden, _, out = setting.method["projection"]
        self.head = LeJEPAProjectionHead(self.backbone.feature_dim, hidden, out)
        self.criterion = LeJEPALoss()

    def forward(self, *crops: Tensor) -> Tensor:
        whole, local = (
            torch.stack(self.head(self.backbone(torch.cat(views))).chunk(len(views)))
            for views in (crops[:2], crops[2:])
        )
        return self.criterion(local_proj=local, global_proj=whole)


def byol_views(setting: Setting) -> BYOLTransform:
    """The views of lightly's BYOL example; its Barlow Twins example has them, too."""
    return BYOLTransform(BYOLView1Transform(setting.size), BYOLView2Transform(setting.size))


def simsiam_views(setting: Setting) -> SimSiamTransform:
    return SimSiamTransform(setting.size)


def vicreg_views(setting: Setting) -> VICRegTransform:
    return VICRegTransform(setting.size)


def swav_views(setting: Setting) -> SwaVTransform:
    local = setting.augmentation().local
    return SwaVTransform((setting.size, local[0].size), (2, len(local)))


def dino_views(setting: Setting, **changed: Any) -> DINOTransform:
    """The views of DINO and LeJEPA. changed: arguments that lightly's example changes."""
    return DINOTransform(**crop_sizes(setting), **changed)


def lejepa_views(setting: Setting) -> DINOTransform:
    return dino_views(
        setting, global_crop_scale=(0.3, 1.0), local_crop_scale=(0.05, 0.3), gaussian_blur=(0.5, 0.5, 0.5)
    )


def crop_sizes(setting: Setting) -> dict[str, Any]:
    local = setting.augmentation().local
    return {"global_crop_size": setting.size, "local_crop_size": local[0].size, "n_local_views": len(local)}
