"""Training steps on one GPU: each method from packed pictures against its ceiling, and lightly's own step beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flops
import lightly_steps
import numpy as np
import page
import torch
from fitted import Plan, Setting, of_pictures, of_ready_views, opened
from input import packed
from pictures import jpeg_files, photographs
from rounds import Found, Way, in_rounds
from timing import Interval

from rootstock.core.draws import Draws
from rootstock.core.images.pack.record import Packing
from rootstock.core.method import Views

CEILING, STEP, WHOLE = "ours, ready views (the ceiling)", "lightly, ready views", "lightly, end to end"
WAITING, SHARE, AUGMENTING = 0.05, 0.95, 0.05
"""Issued for every job: data_wait below, speed of the ceiling at least, augmentation at most."""


class Job(NamedTuple):
    """A setting, its sources of pictures, its target rates on an H200, and the length of a window."""

    key: str
    setting: Setting
    sources: tuple[str, ...]  # "memory", or a pack by its format; the targets are for the first
    floor: float  # a second
    unit: str  # "views" or "source images"
    length: int = 1  # steps


class Amounts(NamedTuple):
    """How much to measure; the job sets the length of a window."""

    plan: Plan
    files: int
    picture: tuple[int, int]  # width, height of the files
    memory: int  # pictures


FULL = Amounts(Plan(10, 4), 1024, (500, 375), 10_000)
TOY = Amounts(Plan(1, 2), 8, (40, 30), 16)


def simclr(size: int, batch: int, backbone: dict[str, Any], projection: list[int], optim: dict[str, Any]) -> Setting:
    return Setting(size, batch, backbone, {"name": "simclr", "temperature": 0.2, "projection": projection}, optim)


def mae(size: int, batch: int, backbone: dict[str, Any], dim: int, depth: int, heads: int) -> Setting:
    decoder = {"decoder_dim": dim, "decoder_depth": depth, "decoder_heads": heads}
    optim = {"name": "adamw", "lr": 1.5e-4, "betas": (0.9, 0.95), "weight_decay": 0.05}
    return Setting(size, batch, backbone, {"name": "mae", "mask_ratio": 0.75, **decoder}, optim)


def jobs(toy: bool) -> list[Job]:
    """ResNet-50 and ViT-B/16 as in configs/pretrain, ResNet-18 with the stem for small pictures; toy: nets of a few weights."""
    lars, sgd = {"name": "lars", "lr": 0.3, "weight_decay": 1e-6}, {"name": "sgd", "lr": 0.06, "weight_decay": 5e-4}
    tiny = {"name": "smallconv"}
    tiny_vit = {"name": "vit_tiny_patch16_224", "args": {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}}
    large = simclr(224, 256, {"name": "resnet50"}, [2048, 128], lars)
    small = simclr(32, 512, {"name": "resnet18", "stem": "small"}, [512, 128], sgd)
    vit = mae(224, 256, {"name": "vit_base_patch16_224", "pooling": "token"}, 512, 8, 16)
    if toy:
        large, small = simclr(24, 4, tiny, [8, 8], lars), simclr(16, 4, tiny, [8, 8], sgd)
        vit = mae(16, 4, tiny_vit, 32, 1, 2)
    long, short = (1, 1) if toy else (60, 15)
    return [
        Job("resnet50", large, ("raw", "original"), 4000.0, "views", short),
        Job("resnet18", small, ("memory",), 20000.0, "source images", long),
        Job("mae", vit, ("raw",), 4200.0, "source images", short),
    ]


class Machine(NamedTuple):
    """device: "cuda" or "cpu", which is for trying the script. files: a URI of JPEG files, or None for drawn ones."""

    device: torch.device
    folder: Path
    amounts: Amounts
    workers: int
    files: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Of the run."""
        return {"device": "cpu" if self.device.type == "cpu" else "auto"}

    def paths(self) -> list[Path]:
        """JPEG files, made once."""
        folder = self.folder / "files"
        if not folder.exists():
            jpeg_files(self.files, folder, self.amounts.picture, self.amounts.files)
        return sorted(folder.iterdir())

    def pictures(self, side: int) -> np.ndarray:
        """uint8 [N, side, side, 3], repeated where there are too few."""
        few = min(500, self.amounts.memory)
        drawn = np.stack([np.asarray(picture) for picture in photographs(side, side, few)])
        return drawn[np.arange(self.amounts.memory) % few]

    def uri(self, source: str, side: int) -> str:
        """Of the pictures: in memory, or a pack of the files."""
        path = self.folder / (f"{side}.npz" if source == "memory" else f"pack-{source}")
        if source == "memory":
            if not path.exists():
                np.savez(path, images=self.pictures(side))
            return f"npz:{path}"
        if path.exists():
            return f"pack:{path}"
        return packed(f"folder:{self.paths()[0].parent}?labels=none", path, Packing(source))  # pyright: ignore[reportArgumentType]


def ways(job: Job, machine: Machine, compiled: bool, whole: bool) -> Iterator[Way]:
    """Our step on ready views and from a source, and lightly's step. With `whole`: from all sources, and lightly end to end."""
    plan, setting = machine.amounts.plan._replace(length=job.length), job.setting
    options = {**machine.options, "compile": "on" if compiled else "off"}
    yield Way(CEILING, compiled, partial(of_ready_views, setting, plan, **options))
    for source in job.sources if whole else job.sources[:1]:
        uri = machine.uri(source, setting.size)
        resident = "on" if source == "memory" else "off"  # otherwise a small pack would be kept on the device, too
        train = partial(of_pictures, setting, plan, uri, workers=machine.workers, resident=resident, **options)
        yield Way(named(source), compiled, train)
    with opened(**options) as run:
        theirs = (setting, plan, run.device, run.dtype, compiled)
    yield Way(STEP, compiled, partial(lightly_steps.of_ready_views, *theirs))
    if whole:
        pictures = machine.pictures(setting.size) if "memory" in job.sources else machine.paths()
        yield Way(WHOLE, compiled, partial(lightly_steps.of_pictures, *theirs, pictures, machine.workers))


def named(source: str) -> str:
    return "ours, resident" if source == "memory" else f"ours, from a pack ({source})"


def counted(job: Job, machine: Machine) -> int | None:
    """FLOPs of a step; None if the uncompiled step does not fit into the device's memory."""
    with opened(**machine.options) as run:
        views = Views(job.setting.ready(run.device), Draws(0, torch.arange(job.setting.batch, device=run.device)))
        try:
            return flops.of_step(job.setting.objective().to(run.device), views, run.device, run.dtype)
        except torch.OutOfMemoryError:
            return None


def said_flops(operations: int | None) -> str:
    return "FLOPs not counted (no memory)" if operations is None else f"{operations / 1e9:,.3g} GFLOP"


def section(job: Job, machine: Machine, rounds: int) -> tuple[list[str], Found]:
    """The table of a job. On a GPU a way that fails becomes a line below the table, and the others go on."""
    before, setting, on_gpu = os.getloadavg()[0], job.setting, machine.device.type == "cuda"
    modes = (True, False) if on_gpu else (False,)
    chosen = [way for mode in modes for way in ways(job, machine, mode, whole=mode == modes[0])]
    failures: dict[str, str] = {}
    found = in_rounds(chosen, rounds, failures if on_gpu else None)
    operations, best = counted(job, machine), flops.peak(name_of(machine.device))
    facts = f"{setting.batch} source images ({setting.views * setting.batch} views) a step, {said_flops(operations)}"
    load = f"load average {before:.1f} before, {os.getloadavg()[0]:.1f} after"
    lines = table(f"{setting.title}: {facts}; {load}", setting, found, operations, best)
    return [*lines, *([""] if failures else []), *(f"- failed: {name}: {why}" for name, why in failures.items())], found


def table(
    title: str, setting: Setting, found: Found, operations: int | None = None, best: float | None = None
) -> list[str]:
    """One row for each way. operations: FLOPs of our step. best: peak FLOP/s of the device."""
    lines = ["", f"## {title}", ""]
    lines += [
        "| way | compile | ms a step | source images/s | views/s | of the ceiling | data_wait | augmentation | MFU | memory |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    for (name, compiled), seen in found.items():
        span = Interval.quartiles([seconds * 1e3 for seconds in seen.seconds])
        ours = operations if name.startswith("ours") else None
        cells = [name, "on" if compiled else "off", f"{span.median:.3g} [{span.low:.3g}, {span.high:.3g}]"]
        cells += [f"{setting.batch / seen.median:,.0f}", f"{setting.views * setting.batch / seen.median:,.0f}"]
        cells += [
            f"{found[CEILING, compiled].median / seen.median:.1%}" if (CEILING, compiled) in found else "–",
            f"{seen.waited:.1%}",
        ]
        cells += ["–" if seen.prepared is None else f"{seen.prepared:.1%}"]
        cells += ["–" if ours is None else "peak unknown" if best is None else f"{ours / seen.median / best:.1%}"]
        lines.append(page.row([*cells, "–" if seen.memory is None else f"{seen.memory / 2**30:.1f} GiB"]))
    return lines


def targets(job: Job, found: Found, compiled: bool) -> list[tuple[str, str, str, bool]]:
    """(what, measured, target, met) for the job's first source. A way that failed misses its target."""
    aims = (
        (f"{job.unit}/s", f">= {job.floor:,.0f}"),
        ("of the ceiling", f">= {SHARE:.0%}"),
        ("data_wait", f"< {WAITING:.0%}"),
        ("augmentation", f"<= {AUGMENTING:.0%}"),
    )
    seen, ceiling = found.get((named(job.sources[0]), compiled)), found.get((CEILING, compiled))
    if seen is None or ceiling is None or seen.prepared is None:
        return [(f"{job.key}: {what}", "failed", aim, False) for what, aim in aims]
    rate = (job.setting.views if job.unit == "views" else 1) * job.setting.batch / seen.median
    share = ceiling.median / seen.median
    measured = (
        (f"{rate:,.0f}", rate >= job.floor),
        (f"{share:.1%}", share >= SHARE),
        (f"{seen.waited:.1%}", seen.waited < WAITING),
        (f"{seen.prepared:.1%}", seen.prepared <= AUGMENTING),
    )
    return [(f"{job.key}: {what}", said, aim, met) for (what, aim), (said, met) in zip(aims, measured, strict=True)]


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def described(device: torch.device) -> str:
    """For the heading: the device, its memory and CUDA's version."""
    if device.type != "cuda":
        return "no accelerator used"
    whole = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"one {torch.cuda.get_device_name(device)}, {whole:.0f} GiB, CUDA {torch.version.cuda}"


def measured(machine: Machine, rounds: int, only: list[str], toy: bool) -> Iterator[tuple[list[str], list[Any]]]:
    """The table and the targets of each chosen job."""
    for job in jobs(toy):
        if not only or job.key in only:
            lines, found = section(job, machine, rounds)
            yield lines, targets(job, found, compiled=machine.device.type == "cuda")
