"""The losses of tllib and pytorch-adapt, in their own classes, from an installed package or a checkout of it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

WIDTH = 1024  # of discriminators, and of MDD's heads
Loss = Callable[[Tensor, Tensor], Tensor]
"""From features [2, N, D] and logits [2, N, K] to a transfer loss."""


class Made(NamedTuple):
    """A peer's loss and the modules that learn with it."""

    loss: Loss
    modules: nn.ModuleList


def classes_of(package: str, path: Path | None) -> Callable[[str], Any]:
    """A function from "module.Class" to the class. path: a checkout, or the folder that holds the package; None: the installed one.

    The package's own __init__ files don't run: they import detectors and data sets that need dozens of other packages. Raises
    FileNotFoundError if it is not there.
    """
    folder = _folder(package, path)
    for inner in [
        "",
        *sorted({file.parent.relative_to(folder).as_posix() for file in folder.rglob("__init__.py")} - {"."}),
    ]:
        name = ".".join([package, *([inner.replace("/", ".")] if inner else [])])
        if inner.startswith("utils/metric"):
            continue
        stub: Any = types.ModuleType(name)
        stub.__path__ = [str(folder / inner)]
        sys.modules.setdefault(name, stub)
    if not hasattr(np, "float"):
        setattr(np, "float", float)  # noqa: B010 - numpy 2 has it no longer, and tllib's reversal layer calls it

    def found(where: str) -> Any:
        module, _, name = where.rpartition(".")
        return getattr(importlib.import_module(f"{package}.{module}"), name)

    return found


def _folder(package: str, path: Path | None) -> Path:
    if path is None:
        spec = importlib.util.find_spec(package)
        places = list(spec.submodule_search_locations or []) if spec else []
        if not places:
            raise FileNotFoundError(f"{package} is not installed; give the folder of its checkout")
        return Path(places[0])
    for place in (path / package, path / "src" / package):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"{path} holds no {package}")


def tllib(path: Path | None, dim: int, classes: int) -> Mapping[str, Callable[[], Made]]:
    """tllib's losses by our names, with its scripts' settings; its estimates of MMD compare all pairs here, as ours do."""
    cls = classes_of("tllib", path)
    kernels = [cls("modules.kernels.GaussianKernel")(alpha=2.0**u) for u in range(-3, 2)]

    def dann() -> Made:
        discriminator = cls("modules.domain_discriminator.DomainDiscriminator")(in_feature=dim, hidden_size=WIDTH)
        loss = cls("alignment.dann.DomainAdversarialLoss")(discriminator)
        return Made(lambda f, z: loss(f[0], f[1]), nn.ModuleList([discriminator]))

    def cdan() -> Made:
        size = dim * classes
        discriminator = cls("modules.domain_discriminator.DomainDiscriminator")(in_feature=size, hidden_size=WIDTH)
        loss = cls("alignment.cdan.ConditionalDomainAdversarialLoss")(
            discriminator, entropy_conditioning=True, num_classes=classes, features_dim=dim, randomized=False
        )
        return Made(lambda f, z: loss(z[0], f[0], z[1], f[1]), nn.ModuleList([discriminator]))

    def mcc() -> Made:
        loss = cls("self_training.mcc.MinimumClassConfusionLoss")(2.5)
        return Made(lambda f, z: loss(z[1]), nn.ModuleList())

    def mdd() -> Made:
        adversary = nn.Sequential(nn.Linear(dim, WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes))
        loss, reverse = (
            cls("alignment.mdd.ClassificationMarginDisparityDiscrepancy")(4.0),
            cls("modules.grl.WarmStartGradientReverseLayer"),
        )
        layer = reverse(alpha=1.0, lo=0.0, hi=0.1, max_iters=1000, auto_step=True)

        def of(f: Tensor, z: Tensor) -> Tensor:
            other = adversary(layer(f.flatten(0, 1))).unflatten(0, (2, -1))
            return -loss(z[0], other[0], z[1], other[1])

        return Made(of, nn.ModuleList([adversary]))

    def dan() -> Made:
        loss = cls("alignment.dan.MultipleKernelMaximumMeanDiscrepancy")(kernels, linear=False)
        return Made(lambda f, z: loss(f[0], f[1]), nn.ModuleList())

    def jan() -> Made:
        fixed = cls("modules.kernels.GaussianKernel")(sigma=0.92, track_running_stats=False)
        loss = cls("alignment.jan.JointMultipleKernelMaximumMeanDiscrepancy")((kernels, (fixed,)), linear=False)

        def of(f: Tensor, z: Tensor) -> Tensor:
            p = z.softmax(-1)
            return loss((f[0], p[0]), (f[1], p[1]))

        return Made(of, nn.ModuleList())

    return {"dann": dann, "cdan": cdan, "mcc": mcc, "mdd": mdd, "dan": dan, "jan": jan}


def pytorch_adapt(path: Path | None, dim: int, classes: int) -> Mapping[str, Callable[[], Made]]:
    """pytorch-adapt's layers; its adversarial methods are hooks around whole models, so they have no row."""
    cls = classes_of("pytorch_adapt", path)

    def mcc() -> Made:
        loss = cls("layers.mcc_loss.MCCLoss")(2.5)
        return Made(lambda f, z: loss(z[1]), nn.ModuleList())

    def mmd() -> Any:
        return cls("layers.mmd_loss.MMDLoss")(torch.tensor([2.0**-u for u in range(-3, 2)]), mmd_type="quadratic")

    def dan() -> Made:
        loss = mmd()
        return Made(lambda f, z: loss(f[0], f[1]), nn.ModuleList())

    def jan() -> Made:
        loss = mmd()

        def of(f: Tensor, z: Tensor) -> Tensor:
            p = z.softmax(-1)
            return loss([f[0], p[0]], [f[1], p[1]])

        return Made(of, nn.ModuleList())

    return {"mcc": mcc, "dan": dan, "jan": jan}


PEERS = {"tllib": tllib, "pytorch_adapt": pytorch_adapt}
