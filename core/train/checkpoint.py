"""Atomic, verified, pickle-free checkpoints: safetensors for tensors, JSON for the rest, sha256 for both.

A folder is written under a dotted name, synced and renamed, so a checkpoint is complete or does not exist; older ones are deleted only
after that. Loading verifies everything, and falls back from a damaged checkpoint to the one before it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from .. import files
from ..config.resolve import Minutes
from ..distributed import any_process, broadcast_text, rank, sharded_like
from ..errors import UserError
from ..formats import FORMAT, check_format, current_names
from ..manifest import MANIFEST, own_digest

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


class Checkpoint(NamedTuple):
    step: int  # completed steps
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


class Damaged(Exception):
    """A checkpoint does not match its manifest; the message names the file and the reason."""


def save(folder: Path, checkpoint: Checkpoint, keep: int | str) -> Path:
    """Write folder/step-NNNNNNNN completely or not at all, then delete old ones. Raises OSError or SafetensorError; then none is deleted.

    keep: how many of the newest stay, or minutes (`30min`), whose checkpoints stay; at least two. Those of later steps are deleted too:
    they were found damaged on resuming, and would count among those kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.glob(".step-*"):  # left by a process that was killed while saving
        shutil.rmtree(abandoned, ignore_errors=True)
    final = folder / f"step-{checkpoint.step:08d}"
    draft = folder / f".{final.name}"
    try:
        _write(draft, checkpoint)
    except BaseException:  # half a checkpoint would take space that the next one may need
        shutil.rmtree(draft, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    files.sync(folder)
    for old in set(steps(folder)) - _kept(folder, checkpoint.step, keep):
        shutil.rmtree(folder / f"step-{old:08d}")
    return final


def _write(draft: Path, checkpoint: Checkpoint) -> None:
    """Write the files of a checkpoint into a new folder, and sync them."""
    draft.mkdir()
    files.write_tensors(draft / MODEL, checkpoint.model)
    files.write_tensors(draft / OPTIMIZER, checkpoint.optimizer)
    files.write_text(
        draft / STATE, json.dumps({"format": FORMAT, "step": checkpoint.step, **checkpoint.state}, indent=1)
    )
    digests = {name: files.sha256(draft / name) for name in (MODEL, OPTIMIZER, STATE)}
    manifest = {"step": checkpoint.step, "sha256": digests}
    files.write_text(draft / MANIFEST, json.dumps({**manifest, "own": own_digest(manifest)}, indent=1))
    files.sync(draft)


def _kept(folder: Path, step: int, keep: int | str) -> set[int]:
    """Which checkpoints stay once that of `step` is written."""
    earlier = [other for other in steps(folder) if other < step]
    minutes = Minutes.read(keep)
    if minutes is None:
        return {step, *earlier[-max(1, int(keep) - 1) :]}
    since = time.time() - minutes.seconds
    return {
        step,
        *earlier[-1:],
        *(other for other in earlier if (folder / f"step-{other:08d}").stat().st_mtime >= since),
    }


def steps(folder: Path) -> list[int]:
    """The steps of the finished checkpoints, ascending."""
    names = [p.name.removeprefix("step-") for p in folder.glob("step-*")]
    return sorted(int(name) for name in names if name.isdecimal())


def latest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest undamaged checkpoint, or None if there are none; each damaged one is named in a warning.

    Raises UserError if all checkpoints are damaged: starting over silently would hide the loss.
    """
    found = steps(folder)
    complaints: list[str] = []
    for step in reversed(found):
        try:
            checkpoint = read_checkpoint(folder / f"step-{step:08d}")
        except Damaged as error:
            complaints.append(str(error))
            continue
        for complaint in complaints:
            warn(f"WARNING: {complaint}; falling back to the checkpoint of step {step}")
        return checkpoint
    if complaints:
        raise UserError(
            f"no undamaged checkpoint in {folder}: {'; '.join(complaints)}; choose another run.dir or delete that folder"
        )
    return None


def agreed(folder: Path, warn: Callable[[str], None], device: torch.device) -> Checkpoint | None:
    """Rank 0's `latest`, on all processes. device: of the collectives. Raises UserError on all of them."""
    saved, answer = None, ""
    if rank() == 0:
        try:
            saved = latest(folder, warn)
            answer = "" if saved is None else str(saved.step)
        except UserError as error:
            answer = str(error)
    answer = broadcast_text(answer)
    if answer and not answer.isdecimal():
        raise UserError(answer)
    lacking = torch.zeros(1, device=device)
    if answer and saved is None:
        try:
            saved = read_checkpoint(folder / f"step-{int(answer):08d}")
        except Damaged:
            lacking += 1
    # Also waits until all have read it: saving deletes older checkpoints.
    if any_process(lacking).item():
        raise UserError(
            f"run.dir: rank 0 resumes from step {answer} in {folder}, which other processes do not find there; put run.dir on a "
            "disk that all nodes share"
        )
    return saved


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint folder. Raises Damaged."""
    try:
        manifest = json.loads(files.read_regular(path / MANIFEST))
        # The manifest has a digest of itself, so that a flipped bit in it does not make an intact file look damaged.
        if manifest.pop("own") != own_digest(manifest) or f"step-{manifest['step']:08d}" != path.name:
            raise ValueError("its contents are not those that were written")
        digests = {name: manifest["sha256"][name] for name in (MODEL, OPTIMIZER, STATE)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"damaged checkpoint file {path / MANIFEST} ({error})") from error
    for name, digest in digests.items():
        try:
            actual = files.sha256(path / name)
        except OSError as error:
            raise Damaged(f"damaged checkpoint file {path / name} ({error.strerror})") from error
        if actual != digest:
            raise Damaged(f"damaged checkpoint file {path / name} (its sha256 differs from the manifest's)")
    state = json.loads((path / STATE).read_bytes())
    check_format(state, str(path / STATE))
    state.pop("format", None)
    model, optimizer = (current_names(load_file(path / name)) for name in (MODEL, OPTIMIZER))
    return Checkpoint(state.pop("step"), model, optimizer, state)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """Optimizer state as flat tensors "parameter//key". names: each parameter's name in the model."""
    return {
        f"{names[parameter]}//{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`, in place.

    A tensor of its parameter's shape is copied into empty_like(parameter): fused optimizers ignore strides, and a contiguous
    moment beside a channels_last weight would silently be applied in the wrong order.
    """
    by_name = {name: parameter for parameter, name in names.items()}
    for key, value in tensors.items():
        name, _, slot = key.rpartition("//")
        parameter = by_name[name]
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(
                sharded_like(value, parameter)
            )
        elif value.ndim == 0:
            # torch keeps the step counter of fused and capturable optimizers on the parameter's device.
            fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
            value = value.to(parameter.device) if fused else value
        else:
            value = value.to(parameter.device)
        optimizer.state[parameter][slot] = value
