"""Optimizers, and schedules as functions of the step: nothing here has a state of its own besides the optimizer's moments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.optim.lars import Lars
from torch import Tensor, nn

from ..config.resolve import Duration
from ..distributed import all_reduce_sum, own_slice
from ..errors import UserError
from ..method import Method
from ..model.backbone import Backbone
from .schedules import cosine

SCALED_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The `optim` section.

    lr: the peak rate, as given or per 256 images where lr_scaling says so (linear: lr * batch_size / 256; sqrt: lr *
    sqrt(batch_size / 256)). batch_size: the global batch; in adaptation that many of each domain. duration: steps or `10ep`.
    warmup: linear from 0, in steps, `10ep` or `5%` of the duration. schedule: cosine to min_lr, constant, or inverse: the
    annealing (1 + 10 p)^-0.75 of Ganin & Lempitsky (2015, arXiv:1409.7495). backbone_lr: factor of the backbone's rate.
    layer_decay: factor of the rate from each layer to the one below it. weight_decay_end: where weight decay goes along a
    cosine, if it is not to stay. clip: largest gradient norm, of all parameters together or, with clip_by: parameter, of each
    for itself. trust: LARS's eta.
    """

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float
    batch_size: int
    duration: Duration
    warmup: Duration = Duration(0, "steps")
    schedule: Literal["cosine", "constant", "inverse"] = "cosine"
    min_lr: float = 0.0
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    weight_decay: float = 0.0
    weight_decay_end: float | None = None
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    trust: float = 0.001
    clip: float | None = None
    clip_by: Literal["global", "parameter"] = "global"
    backbone_lr: float = 1.0
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        """Raises UserError for numbers that no optimizer can use."""
        wrong = {
            "lr": (self.lr < 0, "0 or more"),
            "min_lr": (self.min_lr < 0, "0 or more"),
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
        """The peak rate in words, with the scaling behind it."""
        if self.lr_scaling == "none":
            return f"peak rate {self.peak_lr:g}"
        by = {"linear": "", "sqrt": "the square root of "}[self.lr_scaling]
        return f"peak rate {self.peak_lr:g} ({self.lr:g} x {by}{self.batch_size}/{SCALED_BATCH})"

    def decay(self, step: int, steps: int) -> float:
        """The weight decay of the step that follows `step` completed ones; with a cosine as in Caron et al. 2021, section 3.2."""
        if self.weight_decay_end is None:
            return self.weight_decay
        return cosine(self.weight_decay, self.weight_decay_end, step / steps)

    def clip_gradients(self, parameters: list[nn.Parameter]) -> Tensor:
        """Clip in place; returns the global norm that the gradients had before. parameters: all whole, or all in slices."""
        found = [p.grad for p in parameters if p.grad is not None]
        if not found:
            return torch.zeros(())
        gradients = [own_slice(gradient) for gradient in found]
        norms = torch.stack(torch._foreach_norm(gradients))  # pyright: ignore[reportPrivateImportUsage]
        if gradients[0] is not found[0]:
            norms = all_reduce_sum(norms.square()).sqrt()
        whole = torch.linalg.vector_norm(norms)
        if self.clip is None:  # looked at in any case: one bad gradient would spoil the weights for good
            return whole
        # Without a question to the host whether anything is to be clipped: a factor of 1 does nothing.
        if self.clip_by == "global":
            factor = (self.clip / (whole + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]
        else:
            factors = list((self.clip / (norms + 1e-6)).clamp(max=1.0).unbind())
            torch._foreach_mul_(gradients, factors)  # pyright: ignore[reportPrivateImportUsage]
        return whole

    def steps(self, steps_per_epoch: int) -> int:
        """The run's length in optimizer steps."""
        duration = Duration.parse(self.duration)
        if duration.unit == "%":
            raise UserError(
                f"optim.duration: {duration} is a part of no whole; give it in steps (100) or epochs (10ep)"
            )
        return duration.steps(steps_per_epoch)

    def warmup_steps(self, steps: int, steps_per_epoch: int) -> int:
        """The steps over which the rate rises."""
        return Duration.parse(self.warmup).steps(steps_per_epoch, steps)

    def rate(self, step: int, steps: int, steps_per_epoch: int, *, constant: bool = False) -> float:
        """The learning rate of the step that follows `step` completed ones; constant: of what stays at the peak after the warm-up."""
        warmup = self.warmup_steps(steps, steps_per_epoch)
        if step < warmup:
            return self.peak_lr * (step + 1) / warmup
        if constant or self.schedule == "constant":
            return self.peak_lr
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
            fused = all(own_slice(p) is p for group in groups for p in group["params"])  # torch's is for whole ones
            return torch.optim.SGD(groups, lr=self.peak_lr, momentum=self.momentum, nesterov=self.nesterov, fused=fused)
        momentum: Any = self.momentum  # timm's default 0 makes its annotation int
        return Lars(groups, lr=self.peak_lr, momentum=momentum, nesterov=self.nesterov, trust_coeff=self.trust)


def parameter_groups(method: nn.Module, optim: Optim) -> list[dict[str, Any]]:
    """Groups by (decayed or not, rate scale, constant or not).

    Biases, normalisation and embeddings are neither decayed nor adapted by LARS. A method's `constant_rate` holds the modules
    whose rate follows the warm-up but not the schedule after it.
    """
    scales: dict[Tensor, float] = {}
    exempt: set[Tensor] = set()
    # All of them: where a teacher is exported, the backbone that learns is another.
    for backbone in (module for module in method.modules() if isinstance(module, Backbone)):
        layer = backbone.layer_scales(optim.layer_decay)
        scales |= {p: optim.backbone_lr * layer[name] for name, p in backbone.model.named_parameters()}
        exempt |= backbone.undecayed()
    constant_modules = method.constant_rate if isinstance(method, Method) else ()
    constant = {p for module in constant_modules for p in module.parameters()}
    groups: dict[tuple[bool, float, bool], dict[str, Any]] = {}
    for _, parameter in method.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and parameter not in exempt
        scale = scales.get(parameter, 1.0)
        group = groups.setdefault(
            (decayed, scale, parameter in constant),
            {
                "params": [],
                "lr_scale": scale,
                "constant": parameter in constant,
                "decayed": decayed,
                "weight_decay": optim.weight_decay if decayed else 0.0,
            },
        )
        if optim.name == "lars":
            group["always_adapt"] = decayed
        group["params"].append(parameter)
    return list(groups.values())


def set_rate(
    optimizer: torch.optim.Optimizer, rate: float, decay: float | None = None, constant: float | None = None
) -> None:
    """Give every group its share of the rate, and those that are decayed the weight decay where it changes.

    constant: the rate of the groups that do not follow the schedule; the same by default.
    """
    for group in optimizer.param_groups:
        group["lr"] = (constant if constant is not None and group["constant"] else rate) * group["lr_scale"]
        if decay is not None and group["decayed"]:
            group["weight_decay"] = decay
