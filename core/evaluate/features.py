"""Frozen features of a set of images: each image exactly once, row i for image i, on any number of processes.

Rows are grouped into batches before batches are given to processes, so a batch holds the same images on any number of processes and
the features are the same bits. If there are few batches, some processes stay idle.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..distributed import rank
from ..errors import UserError
from ..phase import note_progress
from ..stream.loader import read_in_workers
from ..views.view import stack_pictures
from .rounds import ExtractionRounds, MakeStores, own_batches, stores_in_memory

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
    if isinstance(model, DistributedDataParallel):
        # Its forward broadcasts buffers even in eval mode, and would wait for processes that have fewer batches.
        model = model.module
    settings = {"batch_size": batch_size, "device": device, "workers": workers}
    found = extract_taps(
        _Single(model), images, view, {"": axes}, stores_in_memory(len(images), {"": dtype}), **settings
    )
    return found[""]


class _Single(nn.Module):
    """A model whose features have no name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"": self.model(images)}


def extract_taps(
    model: nn.Module,
    images: Readable,
    view: EvaluationView,
    axes: Mapping[str, int],
    make: MakeStores,
    *,
    batch_size: int = 256,
    device: torch.device | str,
    workers: int = 0,
) -> dict[str, Tensor]:
    """Named features of all images from one pass, [N, ...] each, complete and equal on every process.

    model: maps view(...) [n, C, s, s] to features by name, each [n, ...] with `axes[name]` more axes. make: where the rows go. Of the
    rest, as of `extract`; also what it raises.
    Memory, beside one batch and what `make` holds: among W processes, the rows of a round, which all exchange: W batches of rows, or up to
    NUMBERS_AT_ONCE numbers, on the device.
    """
    n = len(images)
    if n == 0:
        raise UserError("there are no images to extract features from; give a set with at least one")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; features are extracted in batches of at least 1")
    device = torch.device(device)
    own = own_batches(n, batch_size, rank())
    rounds = ExtractionRounds(n, batch_size, list(axes), make, device)
    broken, seen = torch.zeros(n, dtype=torch.int32), torch.zeros(n, dtype=torch.int32)
    try:
        source = _pixels(images, view, own, workers, pinned=device.type == "cuda")
        with closing(source), evaluating(model), torch.inference_mode():
            while (batches := rounds.next()) is not None:
                found, damaged = [], None
                for rows in batches:
                    pixels = next(source)
                    if isinstance(pixels, int):
                        damaged = pixels
                        break
                    found.append(_checked(model(view(pixels.to(device, non_blocking=True))), axes, len(pixels)))
                    broken[rows.start : rows.stop] = _not_finite(found[-1])
                    seen[rows.start : rows.stop] += 1
                    note_progress(rows.stop - own[0].start, own[-1].stop - own[0].start)
                with torch.inference_mode(False):  # a probe is trained on stored rows, which inference tensors refuse
                    if (damaged := rounds.agree(found, damaged)) is not None:
                        view.worker(images.read(damaged))  # the same error on all processes
                        raise UserError(
                            f"picture {damaged} could be read only at the second attempt; check the disk or the network it is on"
                        )
                    rounds.exchange(found)
        seen, broken = rounds.totals(torch.stack([seen, broken]))
        if not bool((seen == 1).all()):
            raise RuntimeError(f"{int((seen != 1).sum())} of {n} images were not seen exactly once")
        _refuse_broken(images, broken.nonzero()[:, 0].tolist())
        return rounds.finish()
    except BaseException:
        rounds.discard()
        raise


def _checked(found: Mapping[str, Tensor], axes: Mapping[str, int], n: int) -> dict[str, Tensor]:
    """The features of a batch of n images. Raises ValueError if they have another shape than they should."""
    for name, rows in found.items():
        if rows.ndim != 1 + axes[name] or len(rows) != n:
            raise ValueError(
                f"a feature extractor maps {n} images to as many rows of {axes[name]} axes each, not {tuple(rows.shape)}"
            )
    return dict(found)


def _not_finite(found: Mapping[str, Tensor]) -> Tensor:
    """bool [n]: the images with a feature that is not finite. Before any conversion: a number may be too large for a dtype alone."""
    return torch.stack([~rows.isfinite().flatten(1).all(1) for rows in found.values()]).any(0).cpu()


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
