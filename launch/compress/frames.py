"""Frames a second as an application sees them: from the bytes of a JPEG file to the class, one picture after the other."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ...core.evaluate.statistics import Interval
from ...core.images.decode import decode
from ...core.images.images import Images
from ...core.views.view import Evaluation
from .latency import Form, resampled

FRAMES_SHOWN = 16  # pictures, which come in turn
FRAME_QUALITY = 95


class Frames(NamedTuple):
    """JPEG files in memory, and what they are, in words."""

    files: list[bytes]
    title: str


def jpeg_frames(images: Images, count: int = FRAMES_SHOWN) -> Frames | None:
    """The first pictures as JPEG files: their own, or encoded anew where they are no JPEGs. None for pictures that no JPEG holds."""
    files, anew = list[bytes](), False
    for i in range(min(len(images), count)):
        content = images.encoded(i)
        if content is None or bytes(content[:2]) != b"\xff\xd8":
            picture = images.read(i)
            if picture.dtype != torch.uint8 or picture.shape[0] != 3:
                return None
            content, anew = _encoded(picture), True
        files.append(bytes(content))
    sides = sorted({tuple(decode(content, images.uri).shape[:0:-1]) for content in files})
    size = f"{sides[0][0]} x {sides[0][1]}" + (f" to {sides[-1][0]} x {sides[-1][1]}" if len(sides) > 1 else "")
    how = f", encoded as JPEG of quality {FRAME_QUALITY}" if anew else ""
    return Frames(files, f"{len(files)} pictures of {images.uri}, {size} px{how}")


def _encoded(picture: Tensor) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(content, "JPEG", quality=FRAME_QUALITY)
    return content.getvalue()


def label_of(content: bytes, view: Evaluation, run: Callable[[Tensor], Any], pixels: bool, device: torch.device) -> int:
    """The output of highest probability: decode, resize and cut, normalise, the network, softmax. pixels: whether it normalises itself."""
    cropped = view.worker(decode(content, "frame"))[None]
    found = run((cropped if pixels else view(cropped)).to(device))
    rows = found if isinstance(found, Tensor) else found.get("logits", found["features"])
    return int(rows[0].float().softmax(0).argmax())


def frame_form(form: Form, frames: Frames, view: Evaluation, pixels: bool) -> Form:
    """A form whose call is one frame; each has its own turn through the pictures, so round k shows the same one to all."""
    files: Iterator[bytes] = itertools.cycle(frames.files)
    device = form.images.device

    def run(_: Tensor) -> int:
        return label_of(next(files), view, form.run, pixels, device)

    return Form(form.name, run, form.images)


def frames_a_second(milliseconds: Sequence[float]) -> Interval:
    """Frames by the time of all of them, with the 95 % percentile bootstrap interval over frames."""
    return resampled(milliseconds, lambda calls: 1000 / calls.mean(axis=-1))
