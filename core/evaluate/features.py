"""Frozen features of a set of images: each image exactly once, row i for image i, on any number of processes.

Rows are grouped into batches before batches are given to processes, so a batch holds the same images on any number of processes and
the features are the same bits. If there are few batches, some processes stay idle.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..distributed import all_reduce_sum, rank, world
from ..errors import UserError
from ..phase import note_progress
from ..stream.loader import read_in_workers
from ..views.view import stack_pictures

# Rows are summed over processes in blocks of this many numbers (256 MB), to bound the memory on the device.
NUMBERS_AT_ONCE = 1 << 26
# A message about images names the first of them.
NAMED_IMAGES = 5


class Readable(Protocol):
    """The part of `Images` that this file uses."""

    def __len__(self) -> int: ...
    def read(self, i: int, /) -> Tensor: ...
    def uniform(self) -> object | None: ...
    def rows(self, indices: Tensor, /) -> Tensor | None: ...
    def full_name(self, i: int, /) -> str: ...


class EvaluationView(Protocol):
    """A deterministic transform: `worker` crops one picture to a fixed size, the call makes a batch of floats."""

    def __call__(self, images: Tensor, /) -> Tensor: ...
    def worker(self, image: Tensor, /) -> Tensor: ...


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it, `model` is in eval mode, so BatchNorm statistics stay; afterwards each submodule has its earlier mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            # Not train(mode), which would also change submodules that are frozen in eval mode.
            module.training = mode


def extract(
    model: nn.Module,
    images: Readable,
    view: EvaluationView,
    *,
    batch_size: int = 256,
    device: torch.device | str,
    workers: int = 0,
    axes: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The features of all images, [N, D] on the CPU, complete and equal on every process.

    model: maps view(...) [n, 3, s, s] to [n, D]; runs in eval mode without gradient, and keeps its mode.
    images: uniform sets are read directly; pictures of others are read and cropped by `workers` processes, at most one a core.
    batch_size: images per forward pass on one process. device: where the model is.
    axes: axes of one image's features, 1 for [N, D], 2 for tokens, [N, L, D]. dtype: of the returned features.
    Raises the error of a damaged picture on all processes (evaluation never skips one), UserError for an empty set, and for features
    that are not finite, naming the images.
    """
    n = len(images)
    if n == 0:
        raise UserError("there are no images to extract features from; give a set with at least one")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; features are extracted in batches of at least 1")
    device = torch.device(device)
    if isinstance(model, DistributedDataParallel):
        # Its forward broadcasts buffers even in eval mode, and would wait for processes that have fewer batches.
        model = model.module
    starts = range(0, n, batch_size)
    share = -(-len(starts) // world())
    own = [range(start, min(start + batch_size, n)) for start in starts[rank() * share : (rank() + 1) * share]]
    features = None
    damaged = None
    broken = torch.zeros(n, dtype=torch.int32)
    source = _pixels(images, view, own, workers, pinned=device.type == "cuda")
    with closing(source), evaluating(model), torch.inference_mode():
        for pixels, rows in zip(source, own, strict=False):  # `source` ends early at a damaged picture
            if isinstance(pixels, int):
                damaged = pixels
                break
            found = model(view(pixels.to(device, non_blocking=True)))
            if found.ndim != 1 + axes or len(found) != len(pixels):
                raise ValueError(
                    f"a feature extractor maps {len(pixels)} images to as many rows of {axes} axes each, not {tuple(found.shape)}"
                )
            if features is None:
                with torch.inference_mode(False):  # a probe is trained on them, which inference tensors refuse
                    features = torch.zeros(n, *found.shape[1:], dtype=dtype)
            # Before the conversion: a number may be too large for the dtype alone, which is the caller's matter.
            broken[rows.start : rows.stop] = (~found.isfinite().flatten(1).all(1)).cpu()
            features[rows.start : rows.stop] = found.to(dtype).cpu()
            note_progress(rows.stop - own[0].start, own[-1].stop - own[0].start)
    _agree_on_damage(images, view, damaged, device)
    _refuse_broken(images, all_reduce_sum(broken.to(device)).nonzero()[:, 0].tolist())
    return _assemble(features, own, n, axes, dtype, device)


def features_of(model, images, view, taps, *, device, workers):  # stand-in
    class T(nn.Module):
        def __init__(self):
            super().__init__()
            self.m = model

        def forward(self, x):
            return self.m.tokens(x)

    found = {}
    for tap in taps:
        if tap == "tokens":
            found[tap] = extract(T(), images, view, device=device, workers=workers, axes=2, dtype=torch.float16)
        else:
            found[tap] = extract(model, images, view, device=device, workers=workers)
    return found


def _pixels(
    images: Readable, view: EvaluationView, own: Sequence[range], workers: int, *, pinned: bool
) -> Generator[Tensor | int]:
    """For each range of rows its pictures, uint8 [n, C, h, w], or the index of one that cannot be read."""
    rows = iter(own)
    if images.uniform() is not None:
        batches = (images.rows(torch.arange(batch.start, batch.stop)) for batch in own)
    else:
        columns = ((np.arange(batch.start, batch.stop),) for batch in own)
        batches = (
            batch["images"]
            for batch in read_in_workers(_Cropped(images, view), columns, workers=workers, pinned=pinned)
        )
    try:
        for pixels in batches:
            assert pixels is not None
            yield pixels
            next(rows)
    except UserError:
        # Reading them again finds the damaged one; given its index, every process raises the same error.
        yield _unreadable(images, view, next(rows))
    finally:
        batches.close()  # ends the workers too, also after an error in the model


def _unreadable(images: Readable, view: EvaluationView, rows: range) -> int:
    """The first of `rows` that cannot be read."""
    for index in rows:
        try:
            view.worker(images.read(index))
        except UserError:
            return index
    return rows.start


class _Cropped:
    """Pictures at the view's size."""

    def __init__(self, images: Readable, view: EvaluationView) -> None:
        self.images, self.view = images, view

    def __call__(self, indices: np.ndarray) -> dict[str, Tensor]:
        """indices: int64 [n] -> {"images": uint8 or uint16 [n, C, h, w]}."""
        return {"images": stack_pictures([self.view.worker(self.images.read(index)) for index in indices.tolist()])}


def _agree_on_damage(images: Readable, view: EvaluationView, damaged: int | None, device: torch.device) -> None:
    """Raise the same error on all processes if one met a damaged picture; otherwise the others would wait for it forever."""
    found = torch.zeros(world(), dtype=torch.int64, device=device)
    if damaged is not None:
        found[rank()] = damaged + 1
    numbers = [number - 1 for number in all_reduce_sum(found).tolist() if number]
    if numbers:
        view.worker(images.read(min(numbers)))
        raise UserError(f"picture {min(numbers)} could be read only at the second attempt; check the disk it is on")


def _refuse_broken(images: Readable, rows: list[int]) -> None:
    """Raise UserError if there are images, int `rows`, whose features are not finite: they would get scores that mean nothing."""
    if len(rows) == len(images):
        raise UserError(
            f"the features of all {len(rows)} images are not finite: the network has diverged, or its weights hold such numbers; "
            "take an earlier checkpoint or other weights"
        )
    if rows:
        names = ", ".join(images.full_name(i) for i in rows[:NAMED_IMAGES])
        raise UserError(
            f"the features of {len(rows)} of {len(images)} images are not finite ({names}{', ...' if len(rows) > NAMED_IMAGES else ''}); "
            "leave these pictures out, or take an earlier checkpoint or other weights, because the network may have diverged"
        )


def _assemble(
    features: Tensor | None, own: Sequence[range], n: int, axes: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The rows of all processes, [N, ...], after checking that each row was computed once.

    features: [N, ...] with this process's rows, zeros elsewhere; None if it has no rows.
    """
    # Process 0 always has the first batch; others may have none, and then do not know the shape.
    shape = torch.zeros(axes, dtype=torch.int64, device=device)
    if rank() == 0:
        assert features is not None
        shape += torch.tensor(features.shape[1:], device=device)
    shape = [int(side) for side in all_reduce_sum(shape).tolist()]
    if features is None:
        features = torch.zeros(n, *shape, dtype=dtype)
    seen = torch.zeros(n, dtype=torch.int64)
    for rows in own:
        seen[rows.start : rows.stop] += 1
    if world() > 1:
        seen = all_reduce_sum(seen.to(device)).cpu()
        block = max(1, NUMBERS_AT_ONCE // max(1, math.prod(shape)))
        for start in range(0, n, block):
            features[start : start + block] = all_reduce_sum(features[start : start + block].to(device)).cpu()
    if not bool((seen == 1).all()):
        raise RuntimeError(f"{int((seen != 1).sum())} of {n} images were not seen exactly once")
    return features
