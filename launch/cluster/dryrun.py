"""`rootstock launch --dry-run`: prints what a launch would do, or the error that would stop it, before any process starts.

It runs the recipe's own first half, which opens the data and builds the method as rank 0 of the planned processes would, and stops
before training. It writes nothing and uses no GPU.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ...core.distributed import planned_processes
from ...core.errors import UserError
from ...core.images.open import Images, open_images
from ...core.model.norm import layers
from ...core.run.compare import of_another_config
from ...core.run.folder import run_folder
from ...core.run.options import check_run_options
from ...core.stream.batches import Share
from ...core.train.fit import Training
from ...core.train.parallel import strategy_for
from ..dry import DryRun, build_dry
from ..verbs import fill_defaults
from . import launcher
from .memory import Memory, expected_memory
from .placement import Placement, check_devices


def dry_run(verb: str, config: str, overrides: Sequence[str], where: Placement, as_json: bool) -> None:
    """Print the plan. Raises UserError if the launch would fail."""
    resolved = launcher.resolve_launch(verb, config, overrides)
    processes = where.nproc * where.nodes
    check_devices(where, resolved["run"])
    check_run_options(resolved["run"], resolved["seed"])
    if trouble := of_another_config(run_folder(resolved["run"]["dir"]), verb, resolved, partial(fill_defaults, verb)):
        raise UserError(trouble)
    with planned_processes(processes):
        run, training = _built(verb, resolved)
    facts: dict[str, Any] = {"run": str(run.dir), "verb": verb, "processes": _processes(where, resolved["run"])}
    facts |= _data(verb, resolved)
    if training is not None:
        micro = _micro(training, resolved, processes)
        facts |= _training(training, resolved, processes, micro)
        images = min(micro, resolved["run"]["chunk"] or micro)
        memory = expected_memory(
            training, partial(_of_size, verb, resolved), images, resolved["run"]["sharding"], processes
        )
        facts |= _memory_facts(memory, resolved["run"]) | _checkpoints(training, memory, run)
    facts["will be written"] = _written(verb, run.dir)
    if run.messages:
        facts["notes"] = run.messages
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, "\n".join(value) if isinstance(value, list) else str(value))
    Console(highlight=False, markup=False, width=None if os.isatty(1) else 160).print(table)


def _built(verb: str, resolved: Mapping[str, Any]) -> tuple[DryRun, Training | None]:
    """Build what the recipe builds before it trains; None for a probe, which trains nothing. Raises UserError as the recipe would."""
    run, built = build_dry(verb, resolved)
    if verb == "probe":
        return run, None
    strategy_for(built.plan.method, run)  # refuses what cannot be sharded or recomputed
    return run, built.plan


def _processes(where: Placement, options: Mapping[str, Any]) -> str:
    gpu = options["device"] == "auto" and torch.cuda.device_count() > 0
    nodes = "1 node" if where.nodes == 1 else f"each of {where.nodes} nodes, rendezvous at {where.rendezvous}"
    return f"{where.nproc} on {nodes}, {'a GPU each (NCCL)' if gpu else 'on the CPU (gloo)'}"


def _data(verb: str, resolved: Mapping[str, Any]) -> dict[str, str]:
    """Number, size and later place (files, memory, device) of the images of each training set."""
    options, facts = resolved["run"], {}
    for key in ("train", "source", "target"):
        if (uri := resolved["data"].get(key)) is not None:
            unlabelled = verb == "pretrain" or key == "target"
            images = open_images(uri, seed=resolved["seed"], role="unlabelled" if unlabelled else "train")
            facts[f"data.{key}"] = f"{len(images):,} images, {_storage(images, options)}"
    return facts


def _storage(images: Images, options: Mapping[str, Any]) -> str:
    """Where the images are read from during training, and their size if it is known."""
    uniform = images.uniform()
    if uniform is None:
        return f"decoded from their files by up to {options['workers']} workers a process"
    size = bytes_in_words(len(images) * torch.Size(uniform.shape).numel() * uniform.dtype.itemsize)
    if options["resident"] == "on":
        return f"{size} of pixels, resident on the device"
    packed = images.uri.startswith("pack:")
    where = "mapped from their pack" if packed else "in each process's memory"
    return f"{size} of pixels, {where}; resident on a GPU if they fit into a quarter of its free memory"


def _micro(training: Training, resolved: Mapping[str, Any], processes: int) -> int:
    """Number of images in a micro-batch. Raises UserError for sizes that do not divide."""
    rows = Share(0, processes, resolved["run"]["accumulate"]).slices(training.optim.batch_size)[0]
    micro = rows.stop - rows.start
    for layer in layers(training.method):
        if layer.mode == "group" and micro % layer.group:
            raise UserError(
                f"backbone.norm: groups of {layer.group} do not divide the {micro} images of a process's micro-batch; choose a "
                "group that divides optim.batch_size / (processes x run.accumulate)"
            )
    return micro


def _training(training: Training, resolved: Mapping[str, Any], processes: int, micro: int) -> dict[str, str]:
    optim, options = training.optim, resolved["run"]
    chunk = f", encoded {options['chunk']:,} at a time" if options["chunk"] else ""
    each = " of each domain" if "source" in resolved["data"] else ""
    parameters = list(training.method.parameters())
    trained = sum(p.numel() for p in training.trained)
    return {
        "batch": f"{optim.batch_size:,} in all{each} = {processes} processes x {options['accumulate']} micro-batches x {micro:,}{chunk}",
        "steps": f"{training.steps:,} of {training.steps_per_epoch:,} an epoch, {training.steps / training.steps_per_epoch:.4g} epochs; "
        f"warm-up {optim.warmup_steps(training.steps, training.steps_per_epoch):,}",
        "rate": f"{optim.rate_in_words()}, {optim.name}, {optim.schedule}",
        "parameters": f"{sum(p.numel() for p in parameters):,}, of which {trained:,} are trained",
    }


def _of_size(verb: str, resolved: Mapping[str, Any], images: int) -> Training:
    """The same training with steps of this many images, on one process."""
    single = {"workers": 0, "accumulate": 1, "chunk": None, "resident": "off", "sharding": "none"}
    changed = {
        **resolved,
        "optim": {**resolved["optim"], "batch_size": images},
        "run": {**resolved["run"], **single},
        "backbone": {**resolved["backbone"], "norm": "auto"},
    }
    _, training = _built(verb, changed)
    assert training is not None
    return training


def _memory_facts(memory: Memory, options: Mapping[str, Any]) -> dict[str, str]:
    parts = ", ".join(f"{name} {bytes_in_words(size)}" for name, size in memory.parts().items())
    note = "" if options["precision"] == "fp32" else "; bf16 keeps about half of the activations"
    if memory.total == memory.evaluation:
        note = "; the peak is an evaluation, which holds the whole network on each device"
    return {"memory a process": f"about {bytes_in_words(memory.total)} in float32: {parts}{note}"}


def _checkpoints(training: Training, memory: Memory, run: DryRun) -> dict[str, str]:
    """Number, size and interval of the checkpoints. Raises UserError if they do not fit on the disk."""
    size, keep = memory.saved, run.options["checkpoint"]["keep"]
    needed = size * (keep + 1)  # the newest is written before the oldest is deleted
    place = next(folder for folder in [run.dir.absolute(), *run.dir.absolute().parents] if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"run.dir: {place} has {bytes_in_words(free)} free, but {keep + 1} checkpoints of {bytes_in_words(size)} need space; free some "
            "space, or choose another run.dir"
        )
    count = -(-training.steps // training.every.save) if training.every.save else 1
    every = f"every {training.every.save:,} steps" if training.every.save else "at the end"
    return {
        "checkpoints": f"{count} of {bytes_in_words(size)}, {every}, the last {keep} kept; {bytes_in_words(free)} free"
    }


def _written(verb: str, folder: Path) -> str:
    made = {"pretrain": ["backbone/"], "finetune": ["backbone/", "classifier/"], "adapt": ["backbone/", "classifier/"]}
    files = [
        "config.yaml",
        "run.json",
        "state.json",
        "metrics.jsonl",
        "result.json",
        "MANIFEST.json",
        "checkpoints/",
        "pictures/",
        "logs/",
    ]
    kept = files if verb in made else [name for name in files if name not in ("metrics.jsonl", "checkpoints/")]
    scores = [] if verb == "pretrain" else ["predictions.safetensors"]
    scores += ["candidates.safetensors", "looks.json"] if verb == "adapt" else []
    return f"{folder}/: {' '.join([*kept, *scores, *made.get(verb, [])])}"


def bytes_in_words(size: float) -> str:
    """`512 B`, `3.4 MB` or `12 GB`; units are powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
