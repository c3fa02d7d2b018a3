"""Training steps of lightly's examples for methods that mask patches, on timm's ViTs.

Its examples of SimMIM and I-JEPA have torchvision's ViT; here they get the same modules for timm's, as its MAE has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from fitted import Setting
from lightly.data.ijepa_collate import IJEPAMaskCollator
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from lightly.models import utils
from lightly.models.modules import (
    DINOProjectionHead,
    DINOv2ProjectionHead,
    IJEPAPredictorTIMM,
    MaskedVisionTransformerDecoderTIMM,
    MaskedVisionTransformerTIMM,
)
from lightly.models.utils import deactivate_requires_grad
from lightly.transforms.dino_transform import DINOTransform
from lightly.transforms.ibot_transform import IBOTTransform
from lightly.transforms.ijepa_transform import IJEPATransform
from lightly.transforms.mae_transform import MAETransform
from lightly.utils.scheduler import cosine_schedule, linear_warmup_schedule
from lightly_joint import Example, crop_sizes, dino_views, frozen_copy
from torch import Tensor, nn


class LightlyMAE(Example):
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


class LightlySimMIM(Example):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.backbone = setting.network()
        vit = self.backbone.model
        self.ratio, self.patch = setting.method["mask_ratio"], vit.patch_embed.patch_size[0]
        self.encoder = MaskedVisionTransformerTIMM(vit=vit)
        self.predict = nn.Linear(vit.embed_dim, self.patch**2 * vit.patch_embed.proj.in_channels)
        self.criterion = nn.L1Loss()

    def forward(self, images: Tensor) -> Tensor:
        size = (len(images), self.encoder.sequence_length)
        _, mask = utils.random_token_mask(size=size, mask_ratio=self.ratio, device=images.device)
        tokens = self.encoder.encode(images=images, idx_mask=mask)
        painted = self.predict(utils.get_at_index(tokens, mask))
        return self.criterion(painted, utils.get_at_index(utils.patchify(images, self.patch), mask - 1))


class LightlyIJEPA(Example):
    """Masks come from lightly's collator, which cuts the masks of a batch to the size of the smallest one."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        method = setting.method
        self.backbone = setting.network()
        vit = self.backbone.model
        self.encoder = MaskedVisionTransformerTIMM(vit=vit)
        self.teacher = frozen_copy(self.encoder)
        self.predictor = IJEPAPredictorTIMM(
            num_patches=vit.patch_embed.num_patches,
            depth=method["predictor_depth"],
            mlp_dim=vit.embed_dim,
            predictor_embed_dim=method["predictor_dim"],
            num_heads=method["predictor_heads"],
        )
        self.criterion = nn.SmoothL1Loss()

    @staticmethod
    def collate(setting: Setting) -> Callable[[list[Any]], Any]:
        method = setting.method
        return IJEPAMaskCollator(
            setting.size, setting.backbone["args"]["patch_size"], enc_mask_scale=method["context_scale"],
            pred_mask_scale=method["target_scale"], aspect_ratio=method["target_aspect"], npred=method["targets"],
            min_keep=method["min_context"] - 1,
        )  # fmt: skip

    def forward(self, images: Tensor, context: list[Tensor], targets: list[Tensor]) -> Tensor:
        said = self.predictor(self.encoder.encode(images, idx_keep=context[0]), context, targets)
        with torch.no_grad():
            known = self.teacher.encode(images)
            known = utils.apply_masks(F.layer_norm(known, known.shape[-1:]), targets)
            known = utils.repeat_interleave_batch(known, len(images), repeat=len(context))
        return self.criterion(said, known)

    @torch.no_grad()
    def end(self, step: int, steps: int) -> None:
        momentum = 0.996 + 0.004 * step / steps
        for own, followed in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            own.data.mul_(momentum).add_((1.0 - momentum) * followed.detach().data)


class LightlyIBOT(Example):
    """One head for class tokens and patches; prototypes that may grow, as its example has them."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.backbone = setting.network()
        self.backbone.allow_any_size("lightly")
        self.student = MaskedVisionTransformerTIMM(
            vit=self.backbone.model, antialias=False, pos_embed_initialization="skip"
        )
        self.teacher = frozen_copy(self.student)
        self.heads, self.teacher_heads = self._heads(setting), self._heads(setting)
        deactivate_requires_grad(self.teacher_heads)
        prototypes = setting.method["prototypes"]
        self.class_loss = DINOLoss(prototypes, teacher_temp=0.07)
        self.patch_loss = IBOTPatchLoss(prototypes, teacher_temp=0.07)
        self.temperature = 0.07

    def _heads(self, setting: Setting) -> nn.ModuleList:
        """The heads of class tokens and of patches."""
        sizes = [setting.method[key] for key in ("hidden", "bottleneck", "prototypes")]
        head = DINOProjectionHead(self.backbone.feature_dim, *sizes)
        return nn.ModuleList([head, head])

    def train(self, mode: bool = True) -> LightlyIBOT:
        super().train(mode)
        self.teacher.eval()
        self.teacher_heads.eval()
        return self

    def begin(self, step: int, steps: int) -> None:
        self.temperature = linear_warmup_schedule(step, int(0.6 * steps), 0.04, 0.07)

    def forward(self, *crops: Tensor) -> Tensor:
        whole, local = torch.cat(crops[:2]), torch.cat(crops[2:])
        grid = self.teacher.vit.patch_embed.grid_size
        blocks = utils.random_block_mask(size=(len(whole), *grid), device=whole.device)
        mask = whole.new_zeros((len(whole), self.teacher.sequence_length), dtype=torch.bool)
        mask[:, 1:] = blocks.flatten(start_dim=1)
        with torch.no_grad():
            known = self.teacher.encode(whole)
            known_classes, known_patches = self.teacher_heads[0](known[:, 0]), self.teacher_heads[1](known[mask])
        seen = self.student.encode(whole, mask=mask)
        said_patches = self.heads[1](seen[mask])
        said_classes = [self.heads[0](seen[:, 0]), self.heads[0](self.student.encode(local)[:, 0])]
        loss = self.class_loss(
            known_classes.chunk(2), torch.cat(said_classes).chunk(len(crops)), teacher_temp=self.temperature
        )
        loss = loss + self.patch_loss(known_patches, said_patches, blocks, teacher_temp=self.temperature)
        return loss + self.spread(seen[:, 0])

    def spread(self, classes: Tensor) -> Tensor | float:
        """A further term of the loss, from the class tokens of both global views."""
        return 0.0

    def before_update(self, optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
        decay = cosine_schedule(step, steps, 0.04, 0.4)
        for group in optimizer.param_groups:
            if group["weight_decay"] != 0.0:
                group["weight_decay"] = decay

    def end(self, step: int, steps: int) -> None:
        momentum = cosine_schedule(step, steps, 0.992, 1.0)
        utils.update_momentum(self.student, self.teacher, momentum)
        utils.update_momentum(self.heads, self.teacher_heads, momentum)


class LightlyDINOv2(LightlyIBOT):
    """With a separate head for patches, which lightly's example offers as an option."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.patch_loss = IBOTPatchLoss(setting.method["patch_prototypes"])
        self.class_loss, self.koleo = DINOLoss(setting.method["prototypes"]), KoLeoLoss()

    def _heads(self, setting: Setting) -> nn.ModuleList:
        made = []
        for of in ("", "patch_"):
            sizes = setting.method["hidden"], setting.method[f"{of}bottleneck"], setting.method[f"{of}prototypes"]
            made.append(DINOv2ProjectionHead(self.backbone.feature_dim, *sizes))
        return nn.ModuleList(made)

    def spread(self, classes: Tensor) -> Tensor:
        return 0.1 * torch.stack([self.koleo(tokens) for tokens in classes.chunk(2)]).sum()


def mae_views(setting: Setting) -> MAETransform:
    """The views of lightly's MAE example; its SimMIM example has them, too."""
    return MAETransform(setting.size)


def ijepa_views(setting: Setting) -> IJEPATransform:
    return IJEPATransform(setting.size)


def ibot_views(setting: Setting) -> IBOTTransform:
    return IBOTTransform(**crop_sizes(setting))


def dinov2_views(setting: Setting) -> DINOTransform:
    return dino_views(setting, global_crop_scale=(0.32, 1.0), local_crop_scale=(0.05, 0.32))
