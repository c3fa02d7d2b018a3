"""The record of an image in a pack: its original file, its pixels, or a newly encoded JPEG."""

import io
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ...errors import UserError
from ..images import Images
from .reader import PIXELS
from .validate import BYTES, ENCODED, WORDS

Format = Literal["original", "raw", "jpeg"]
JPEG_QUALITY = 95
JPEG_SIDE = 65_500
"""libjpeg's limit (JPEG_MAX_DIMENSION), slightly below the format's 65,535."""


@dataclass(frozen=True)
class Packing:
    """How images are packed.

    format: original (the files as they are), raw (decoded pixels) or jpeg (newly encoded).
    short: shorter side in pixels to which larger images are scaled down (antialiased, bilinear); None keeps the size.
    quality: JPEG quality from 1 to 100; None is JPEG_QUALITY.
    """

    format: Format = "original"
    short: int | None = None
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise UserError(f"--format {self.format} is unknown (known: {', '.join(get_args(Format))})")
        if self.short is not None and self.short < 1:
            raise UserError(f"--short {self.short} is not a side in pixels; expected 1 or more")
        if self.short is not None and self.format == "original":
            raise UserError("--short makes new pictures, which --format original does not; add --format raw or jpeg")
        if self.quality is not None and self.format != "jpeg":
            raise UserError(f"--quality applies to --format jpeg, not to --format {self.format}; add --format jpeg")
        if not 1 <= self.jpeg_quality <= 100:
            raise UserError(f"--quality {self.quality} is not a JPEG quality; expected 1 to 100")

    @property
    def jpeg_quality(self) -> int:
        return JPEG_QUALITY if self.quality is None else self.quality

    def options(self) -> dict[str, str | int]:
        """All options that affect a record, with defaults filled in."""
        short = {} if self.short is None else {"short": self.short}
        return {"format": self.format, **short, **({"quality": self.jpeg_quality} if self.format == "jpeg" else {})}

    def changes(self) -> str | None:
        """How the pixels differ from the source's, in words; None if they don't."""
        resized = [f"shorter side at most {self.short} pixels"] if self.short else []
        encoded = [f"JPEG of quality {self.jpeg_quality}"] if self.format == "jpeg" else []
        return ", ".join(resized + encoded) or None


class PackRecord(NamedTuple):
    """Bytes, their kind (ENCODED, BYTES or WORDS), and the image's shape (C, H, W)."""

    content: bytes | bytearray
    kind: int
    shape: tuple[int, ...]


def record_of(images: Images, i: int, packing: Packing) -> PackRecord:
    """Image i as a record. It is always decoded, so that a pack has no damaged images. Raises DamagedImage."""
    picture = images.read(i)
    if packing.format == "original" and (content := images.encoded(i)) is not None:
        return PackRecord(content, ENCODED, tuple(picture.shape))
    picture = scaled_down(picture, packing.short)
    if packing.format != "jpeg":
        kind = WORDS if picture.dtype == torch.uint16 else BYTES
        pixels = np.ascontiguousarray(picture.numpy()).astype(PIXELS[kind][1], copy=False)
        return PackRecord(pixels.tobytes(), kind, tuple(picture.shape))
    if picture.dtype != torch.uint8 or len(picture) != 3:
        shown = f"{len(picture)} of {8 * picture.element_size()}"
        raise UserError(f"{images.name(i)}: a JPEG holds 3 channels of 8 bits, not {shown}; use --format raw")
    if max(picture.shape[1:]) > JPEG_SIDE:
        size = f"{picture.shape[2]} x {picture.shape[1]}"
        raise UserError(
            f"{images.name(i)}: a JPEG holds at most {JPEG_SIDE} pixels a side, not {size}; use --format raw, or scale down "
            "by --short"
        )
    stream = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(stream, "JPEG", quality=packing.jpeg_quality)
    return PackRecord(stream.getvalue(), ENCODED, tuple(picture.shape))


def scaled_down(picture: Tensor, short: int | None) -> Tensor:
    """[C, H, W] with a shorter side of at most `short`; the longer side is rounded down, as in torchvision's Resize."""
    height, width = picture.shape[1:]
    if short is None or min(height, width) <= short:
        return picture
    size = (short * height // min(height, width), short * width // min(height, width))
    if picture.dtype == torch.uint8:
        return interpolate(picture[None], size, mode="bilinear", antialias=True)[0]
    exact = interpolate(picture[None].double(), size, mode="bilinear", antialias=True)[0]
    return exact.round().to(picture.dtype)
