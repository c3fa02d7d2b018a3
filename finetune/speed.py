"""How long a frozen network takes for an image, measured in the run that scores it.

A measurement of the clock, so it stands apart from what a repeated run has to reproduce: in the entry `speed` of the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import quantiles
from typing import Any

import torch

from ..core.environment import processor
from ..core.errors import UserError
from ..core.evaluate.features import EvaluationView, Readable
from ..core.evaluate.taps import POOLED, Taps
from ..core.views.view import stack_pictures

_WARM = 2  # batches before the clock counts
_MOST = 10_000


def speed_options(*, batch_size: int = 64, batches: int = 20) -> None:
    """The `evaluate.speed` section: milliseconds an image, from a picture that is decoded and cut to its pooled features.

    batch_size: Images at once; where there are fewer test images, they repeat.
    batches: Batches that are timed, after two that are not; the median counts. 4 or more.
    """


def check_speed(*, batch_size: int, batches: int) -> None:
    """Raises UserError for numbers out of range."""
    if not 1 <= batch_size <= _MOST:
        raise UserError(f"evaluate.speed.batch_size: expected 1 to {_MOST:,}, got {batch_size}; 64 is usual")
    if not 4 <= batches <= _MOST:
        raise UserError(f"evaluate.speed.batches: expected 4 to {_MOST:,}, got {batches}; 20 is usual")


def measured_speed(
    taps: Taps,
    images: Readable,
    view: EvaluationView,
    *,
    batch_size: int,
    batches: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """The entry `speed` of a result: the median of milliseconds an image over batches, its quartiles, and on what it was measured.

    taps: the network; its pooled features are timed. view: normalises a batch on the device, which is timed too. images: already opened;
    reading and cutting them is not timed. On one process, while the others wait. clock: seconds.
    """
    one = Taps(taps.backbone, [POOLED])
    pixels = stack_pictures([view.worker(images.read(i % len(images))) for i in range(batch_size)])
    each = list[float]()
    with torch.inference_mode():
        for _ in range(_WARM + batches):
            began = clock()
            features = one(view(pixels.to(device)))[POOLED]
            float(features[0, 0])  # waits for the device
            each.append(1000 * (clock() - began) / batch_size)
    low, median, high = quantiles(each[_WARM:], n=4, method="inclusive")
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "ms_an_image": median,
        "quartiles": [low, high],
        "batch_size": batch_size,
        "batches": batches,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "processor": on,
    }
