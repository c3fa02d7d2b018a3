"""The pixels of a Pillow image as a tensor: upright, gray as three equal channels, 16 bits where the file has them.

Large pictures are copied in strips, so that beside Pillow's own copy (up to 4 bytes a pixel) only the result is in memory.
"""

import functools
import io
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from .store import DamagedImage, three_channels

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn a stored image upright, by its Orientation tag (EXIF 2.32, section 4.6.4)."""

DEEP_COLOUR = ("RGB;16B", "RGBA;16B", "LA;16B")
"""Pillow's names of 16-bit PNG modes that it would reduce to 8 bits."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is decoded, whatever a file's name says. Pillow knows more, and hands a PostScript file to Ghostscript, which runs it."""

# decode() refuses what is larger, in one sentence; Pillow would print a warning of its own beside it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

STRIP = 1 << 19
"""Pixels of a strip; a picture of up to so many is copied in one piece."""


def open_picture(content: bytes | bytearray) -> ImageFile.ImageFile:
    """A file's picture, not decoded yet. Raises what Pillow raises; UnidentifiedImageError if it has none of FORMATS."""
    return Image.open(io.BytesIO(content), formats=known_formats())


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow can read."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def upright(picture: Image.Image) -> Image.Image:
    """The image, loaded and turned upright by its EXIF tag."""
    picture.load()  # before reading the tag: on loading, Pillow turns TIFFs itself and removes the tag
    try:
        turn = TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # the pixels may be fine even if the EXIF is unreadable
        turn = None
    return picture if turn is None else picture.transpose(turn)


def pixels_of(picture: Image.Image) -> Tensor:
    """The pixels of a loaded Pillow image as uint8 or uint16 [3, H, W]."""
    if picture.mode.startswith("I"):
        return three_channels(torch.from_numpy(copied(picture, 0, np.uint16, sixteen_bits))[None])
    if picture.mode == "F":
        raise DamagedImage("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if picture.mode in ("1", "L", "LA", "La"):
        return three_channels(torch.from_numpy(copied(picture, 0, np.uint8, lambda strip: in_mode(strip, "L")))[None])
    return torch.from_numpy(copied(picture, 3, np.uint8, colours)).permute(2, 0, 1)


def copied(
    picture: Image.Image, channels: int, dtype: type[np.generic], convert: Callable[[Image.Image], np.ndarray]
) -> np.ndarray:
    """[H, W, channels], or [H, W] for 0 channels: `convert` of the image, or of its strips if it is large."""
    if picture.width * picture.height <= STRIP:
        return np.array(convert(picture))
    whole = np.empty((picture.height, picture.width, channels) if channels else (picture.height, picture.width), dtype)
    for top, strip in strips(picture):
        whole[top : top + strip.height] = convert(strip)
    return whole


def strips(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The first row of each strip, and the strip."""
    rows = max(1, STRIP // picture.width)
    for top in range(0, picture.height, rows):
        yield top, picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def in_mode(picture: Image.Image, mode: str) -> np.ndarray:
    return np.asarray(picture if picture.mode == mode else picture.convert(mode))


def colours(picture: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3]; transparency is dropped."""
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return in_mode(picture, "RGB")


def sixteen_bits(picture: Image.Image) -> np.ndarray:
    """uint16 [H, W]. Raises DamagedImage if a value needs more bits."""
    deep = np.asarray(picture)
    if deep.dtype.itemsize > 2 and (deep.min() < 0 or deep.max() > 65535):
        raise DamagedImage("its pixels need 32 bits; save it with 8 or 16")
    return deep.astype(np.uint16)


def deep_colour(content: bytes | bytearray, rawmode: str) -> Tensor:
    """Decode a 16-bit PNG with colour or alpha to uint16 [3, H, W]; alpha is dropped.

    Pillow keeps only the high byte of each value, the first of two. If it assumes little-endian values, it keeps the second byte
    instead, so decoding twice gives both bytes.
    """
    if rawmode == "LA;16B":  # four bytes a pixel: high and low byte of gray, then of alpha
        four = unpacked(content, "RGBA")
        gray = np.empty((1, four.height, four.width), np.uint16)
        for top, strip in strips(four):
            two = np.asarray(strip)
            gray[0, top : top + strip.height] = (two[..., 0].astype(np.uint16) << 8) | two[..., 1]
        return three_channels(torch.from_numpy(gray))
    # the high bytes first, and Pillow's copy of them is gone before the low ones are unpacked
    high = unpacked(content, rawmode)
    values = np.empty((3, high.height, high.width), np.uint16)
    for top, strip in strips(high):
        values[:, top : top + strip.height] = np.asarray(strip)[..., :3].transpose(2, 0, 1)
    values <<= 8
    del high
    for top, strip in strips(unpacked(content, rawmode.replace("16B", "16L"))):
        values[:, top : top + strip.height] |= np.asarray(strip)[..., :3].transpose(2, 0, 1)
    return torch.from_numpy(values)


def unpacked(content: bytes | bytearray, rawmode: str) -> Image.Image:
    """The image that Pillow makes of a PNG, upright, if it assumes that the rows are in `rawmode`."""
    with open_picture(content) as picture:
        assert isinstance(picture, ImageFile.ImageFile)
        picture.tile = [tile._replace(args=rawmode) for tile in picture.tile]
        return upright(picture)


def full_range(image: Tensor, bits: int, where: str) -> Tensor:
    """16-bit pixels that use only the lower `bits` bits, stretched so that the greatest value of so many bits becomes 65535.

    Images of 8 bits stay as they are. Raises DamagedImage if a value needs more bits. where: the file's name in errors.
    """
    if bits == 16 or image.dtype != torch.uint16:
        return image
    values, greatest = image.numpy(), (1 << bits) - 1
    if (found := int(values.max(initial=0))) > greatest:
        raise DamagedImage(
            f"{where}: has the value {found}, more than {bits} bits hold ({greatest}); correct ?bits={bits}"
        )
    table = (np.arange(greatest + 1) * 65535 + greatest // 2) // greatest  # rounded
    return torch.from_numpy(table.astype(np.uint16)[values])
