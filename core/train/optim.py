"""Optimizers, and schedules as functions of the step: nothing here has a state of its own besides the optimizer's moments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from timm.optim.lars import Lars
from torch import Tensor, nn

from ..config.auto import OrAuto
from ..config.resolve import Duration
from ..distributed import all_reduce_sum, own_shard
from ..errors import UserError
from ..method import Method
from ..model.backbone import Backbone
from .schedules import cosine

SCALED_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The `optim` section: the optimizer, its schedules, the batch and the length of the training.

    name: The optimizer: adamw (Loshchilov & Hutter 2019, arXiv:1711.05101), sgd with momentum, or lars (You et al. 2017,
        arXiv:1708.03888).
    lr: Peak learning rate, 0 or more; with `lr_scaling` the rate for 256 images.
    batch_size: Images a step, over all processes and micro-batches together. In adaptation so many of each domain. auto:
        the largest power of two of which there are eight in the smaller training set, 16 to 256 (adaptation: 64); less where
        it has no 16 after a fifth is held out.
    duration: Length of the training, in steps (`1000`) or epochs (`10ep`). auto: 100 epochs of pretraining or 30 of others, but at least
        1,000 and at most 100,000 steps.
    warmup: Linear rise of the rate from 0, in steps, epochs (`10ep`) or a part of the duration (`5%`).
    warmup_from: Whether the first step of the warm-up already has the rate of one (step), or 0 and the last one a step's less than the
        peak (zero), as the code of MAE, MoCo v3 and DINO has it.
    schedule: The rate after the warm-up. `cosine` falls to min_lr, `constant` stays at the peak, `inverse` is
        (1 + 10 p)^-0.75 with p from 0 to 1 (Ganin & Lempitsky 2015, arXiv:1409.7495), `inverse_steps` is (1 + inverse_alpha * steps)^-0.75
        whatever the duration (tllib, the authors of CDAN).
    inverse_alpha: Constant of the schedule inverse_steps, 0 or more: 1e-3 for DANN, CDAN and MCC, 3e-4 for DAN and JAN, 2e-4 for MDD.
    min_lr: Rate at the end of the cosine schedule, 0 or more.
    lr_scaling: How the peak rate follows the batch size: none, linear (lr * batch_size / 256) or sqrt (lr * sqrt(batch_size / 256)).
    weight_decay: Weight decay, 0 or more. Biases, normalisation layers and position embeddings are exempt, unless decay_all says otherwise.
    decay_all: Whether biases, normalisation layers and position embeddings are decayed too, as torch's own SGD does (tllib).
    weight_decay_end: Weight decay at the end; it moves there along a cosine (Caron et al. 2021, section 3.2). null: it stays the same.
    momentum: Momentum of sgd and lars, from 0 to below 1.
    nesterov: Whether sgd and lars use Nesterov's momentum.
    betas: Decay rates of AdamW's two moments, from 0 to below 1.
    trust: Trust coefficient of LARS (eta in the paper), above 0.
    clip: Largest norm of the gradient, above 0; longer gradients are scaled down to it. null: no clipping.
    clip_by: Whose norm `clip` limits: that of all parameters together (global) or of each by itself (parameter).
    backbone_lr: Factor of the backbone's learning rate, 0 or more.
    layer_decay: Factor of the rate from each layer of the backbone to the one below it, above 0 and at most 1; the last norm has the
        head's rate, as in BEiT and MAE. null: no difference.
    layer_groups: What a layer is for layer_decay: each residual block (blocks), as timm has it, or each stage (stages: a ResNet's stem and
        layer1 to layer4). Of a ViT they are the same.

    Raises UserError for a number out of range.
    """

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float
    batch_size: Annotated[int, OrAuto]
    duration: Annotated[Duration, OrAuto]
    warmup: Duration = Duration(0, "steps")
    warmup_from: Literal["step", "zero"] = "step"
    schedule: Literal["cosine", "constant", "inverse", "inverse_steps"] = "cosine"
    inverse_alpha: float = 0.001
    min_lr: float = 0.0
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    weight_decay: float = 0.0
    decay_all: bool = False
    weight_decay_end: float | None = None
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    trust: float = 0.001
    clip: float | None = None
    clip_by: Literal["global", "parameter"] = "global"
    backbone_lr: float = 1.0
    layer_decay: float | None = None
    layer_groups: Literal["blocks", "stages"] = "blocks"

    def __post_init__(self) -> None:
        """Raises UserError for a number out of range."""
        wrong = {
            "lr": (self.lr < 0, "0 or more"),
            "min_lr": (self.min_lr < 0, "0 or more"),
            "inverse_alpha": (self.inverse_alpha < 0, "0 or more"),
            "batch_size": (self.batch_size < 1, "1 or more"),
            "weight_decay": (self.weight_decay < 0, "0 or more"),
            "weight_decay_end": (self.weight_decay_end is not None and self.weight_decay_end < 0, "0 or more, or null"),
            "momentum": (not 0 <= self.momentum < 1, "a number from 0 to below 1"),
            "betas": (not all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            "trust": (self.trust <= 0, "more than 0"),
            "clip": (self.clip is not None and self.clip <= 0, "more than 0, or null"),
            "backbone_lr": (self.backbone_lr < 0, "0 or more"),
            "layer_decay": (
                self.layer_decay is not None and not 0 < self.layer_decay <= 1,
                "more than 0 and at most 1, or null",
            ),
            "clip_by": (self.clip_by == "parameter" and self.clip is None, "optim.clip beside it"),
            "nesterov": (self.nesterov and self.momentum == 0, "false where momentum is 0"),
        }
        for key, (bad, expected) in wrong.items():
            if bad:
                raise UserError(f"optim.{key}: expected {expected}, got {getattr(self, key)}")

    @property
    def peak_lr(self) -> float:
        ratio = self.batch_size / SCALED_BATCH
        return self.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.lr_scaling]

    def rate_in_words(self) -> str:
        """The peak rate as a log line shows it, with the scaling behind it."""
        if self.lr_scaling == "none":
            return f"peak rate {self.peak_lr:g}"
        by = {"linear": "", "sqrt": "the square root of "}[self.lr_scaling]
        return f"peak rate {self.peak_lr:g} ({self.lr:g} x {by}{self.batch_size}/{SCALED_BATCH})"

    def decay(self, step: int, steps: int) -> float:
        """The weight decay of the step that follows `step` completed ones; the cosine is that of Caron et al. 2021, section 3.2."""
        if self.weight_decay_end is None:
            return self.weight_decay
        return cosine(self.weight_decay, self.weight_decay_end, step / steps)

    def clip_gradients(self, parameters: list[nn.Parameter]) -> Tensor:
        """Clip gradients in place; returns their global norm from before. parameters: either none or all of them are sharded."""
        found = [p.grad for p in parameters if p.grad is not None]
        if not found:
            return torch.zeros(())
        gradients = [own_shard(gradient) for gradient in found]
        norms = torch.stack(torch._foreach_norm(gradients))  # pyright: ignore[reportPrivateImportUsage]
        if gradients[0] is not found[0]:
            norms = all_reduce_sum(norms.square()).sqrt()
        total = torch.linalg.vector_norm(norms)
        if self.clip is None:  # the norm is needed all the same: a non-finite one makes the loop skip the update
            return total
        # Gradients below the limit are multiplied by 1: asking whether to clip would wait for the device.
        if self.clip_by == "global":
            factor = (self.clip / (total + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]
        else:
            factors = list((self.clip / (norms + 1e-6)).clamp(max=1.0).unbind())
            torch._foreach_mul_(gradients, factors)  # pyright: ignore[reportPrivateImportUsage]
        return total

    def steps(self, steps_per_epoch: int) -> int:
        """The run's length in optimizer steps."""
        duration = Duration.parse(self.duration)
        if duration.unit == "%":
            raise UserError(
                f"optim.duration: {duration} would be a percentage of itself; give it in steps (100) or epochs (10ep)"
            )
        return duration.steps(steps_per_epoch)

    def warmup_steps(self, steps: int, steps_per_epoch: int) -> int:
        """The steps over which the rate rises."""
        return Duration.parse(self.warmup).steps(steps_per_epoch, steps)

    def rate(self, step: int, steps: int, steps_per_epoch: int, *, constant: bool = False) -> float:
        """The learning rate of the step that follows `step` completed ones. constant: for modules in `Method.constant_rate`."""
        warmup = self.warmup_steps(steps, steps_per_epoch)
        if step < warmup:
            return self.peak_lr * (step + (self.warmup_from == "step")) / warmup
        if constant or self.schedule == "constant":
            return self.peak_lr
        if self.schedule == "inverse_steps":
            return self.peak_lr * (1.0 + self.inverse_alpha * (step - warmup)) ** -0.75
        progress = (step - warmup) / max(1, steps - warmup)
        if self.schedule == "cosine":
            return self.min_lr + (self.peak_lr - self.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.peak_lr * (1.0 + 10.0 * progress) ** -0.75

    def build(self, method: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the method's trainable parameters; each group's `lr_scale` multiplies the rate."""
        groups = parameter_groups(method, self)
        if self.name == "adamw":
            return torch.optim.AdamW(groups, lr=self.peak_lr, betas=self.betas, fused=True)
        if self.name == "sgd":
            fused = all(own_shard(p) is p for group in groups for p in group["params"])  # torch's is for whole ones
            return torch.optim.SGD(groups, lr=self.peak_lr, momentum=self.momentum, nesterov=self.nesterov, fused=fused)
        momentum: Any = self.momentum  # timm's default 0 makes its annotation int
        return Lars(groups, lr=self.peak_lr, momentum=momentum, nesterov=self.nesterov, trust_coeff=self.trust)


def parameter_groups(method: nn.Module, optim: Optim) -> list[dict[str, Any]]:
    """Groups by (decayed or not, rate scale, constant or not).

    Biases, normalisation and embeddings are neither decayed, unless `decay_all`, nor adapted by LARS. A method's `constant_rate` holds the
    modules whose rate follows the warm-up but not the schedule after it.
    """
    scales: dict[Tensor, float] = {}
    exempt: set[Tensor] = set()
    # Every backbone inside, since `method.backbone` may be a teacher, which is not trained.
    for backbone in (module for module in method.modules() if isinstance(module, Backbone)):
        layer = backbone.layer_scales(optim.layer_decay, optim.layer_groups == "stages")
        scales |= {p: optim.backbone_lr * layer[name] for name, p in backbone.model.named_parameters()}
        exempt |= backbone.undecayed()
    constant_modules = method.constant_rate if isinstance(method, Method) else ()
    constant = {p for module in constant_modules for p in module.parameters()}
    groups: dict[tuple[bool, float, bool], dict[str, Any]] = {}
    for _, parameter in method.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.ndim > 1 and parameter not in exempt
        decayed, scale = matrix or optim.decay_all, scales.get(parameter, 1.0)
        group = groups.setdefault(
            (matrix, scale, parameter in constant),
            {
                "params": [],
                "lr_scale": scale,
                "constant": parameter in constant,
                "decayed": decayed,
                "weight_decay": optim.weight_decay if decayed else 0.0,
            },
        )
        if optim.name == "lars":
            group["always_adapt"] = matrix
        group["params"].append(parameter)
    return list(groups.values())


def set_rate(
    optimizer: torch.optim.Optimizer, rate: float, decay: float | None = None, constant: float | None = None
) -> None:
    """Set each group's learning rate, and the weight decay of decayed groups if `decay` is given.

    constant: the rate of groups that do not follow the schedule; `rate` by default.
    """
    for group in optimizer.param_groups:
        group["lr"] = (constant if constant is not None and group["constant"] else rate) * group["lr_scale"]
        if decay is not None and group["decayed"]:
            group["weight_decay"] = decay
