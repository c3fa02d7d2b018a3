"""Bytes of a picture file -> uint8 or uint16 [3, H, W].

Pillow decodes all of them, so that a picture has the same pixels wherever it lies (torchvision's decoders are deprecated).
16-bit PNGs keep their depth, 16-bit gray of other formats too. Transparency is dropped, as torchvision's and timm's folders
do it, so that numbers compare.
"""

import io

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from .store import DamagedImage, three_channels

EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".jp2",
    ".avif",
)
MAX_PIXELS = 89_478_485
"""Pillow's own limit (a quarter of a GiB in RGB), where it only warns: beyond it a small file can fill the memory."""

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
"""EXIF 2.32, section 4.6.4, tag Orientation: what turns the stored picture upright."""

DEEP_COLOUR = ("RGB;16B", "RGBA;16B", "LA;16B")
"""Pillow's names of what it would cut to 8 bits."""


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture; hidden files (also macOS's ._ copies) are not."""
    last = name.rpartition("/")[2].lower()
    return not last.startswith(".") and last.endswith(EXTENSIONS)


def decode(content: bytes, where: str) -> Tensor:
    """uint8 [3, H, W], or uint16 for 16-bit files. Upright by its EXIF tag. `where` names the file in errors.

    Raises DamagedImage for what is empty, cut short, no picture at all, or larger than MAX_PIXELS.
    """
    if not content:
        raise DamagedImage(f"{where}: the file is empty (0 bytes); replace or remove it")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if picture.format == "PNG" and picture.tile and (rawmode := picture.tile[0].args) in DEEP_COLOUR:
                return deep_colour(content, str(rawmode))
            return pixels(upright(picture))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DamagedImage(
            f"{where}: more than {MAX_PIXELS // 1_000_000} million pixels, perhaps a decompression bomb; "
            "scale it down or remove it"
        ) from None
    except DamagedImage as error:
        raise DamagedImage(f"{where}: {error}") from None
    except MemoryError:
        raise
    except Exception as error:
        # decoders raise anything on damaged bytes: OSError, SyntaxError, struct.error, IndexError
        reason = "not a picture that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise DamagedImage(f"{where}: cannot be decoded ({reason}); replace or remove it") from None


def upright(picture: Image.Image) -> Image.Image:
    """The loaded picture, turned by its EXIF tag."""
    picture.load()  # first: on loading, Pillow turns TIFFs by itself and takes their tag away
    try:
        turn = TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # unreadable EXIF does not make the pixels unreadable
        turn = None
    return picture if turn is None else picture.transpose(turn)


def pixels(picture: Image.Image) -> Tensor:
    """A loaded picture as uint8 or uint16 [3, H, W]."""
    if picture.mode.startswith("I"):
        deep = np.asarray(picture).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise DamagedImage("its pixels need 32 bits; save it with 8 or 16")
        return three_channels(torch.from_numpy(deep.astype(np.uint16))[None])
    if picture.mode == "F":
        raise DamagedImage("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode in ("1", "L", "LA", "La"):
        return three_channels(torch.from_numpy(np.array(picture.convert("L")))[None])
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def deep_colour(content: bytes, rawmode: str) -> Tensor:
    """A 16-bit PNG in colour or with alpha as uint16 [3, H, W]; alpha is dropped.

    Pillow keeps the first of each value's two bytes. Asked for little-endian values it takes the second one for the first,
    so unpacking twice gives both.
    """
    if rawmode == "LA;16B":  # four bytes a pixel: high and low byte of gray, then of alpha
        four = unpacked(content, "RGBA")
        return three_channels(joined(four[..., :1], four[..., 1:2]))
    low = rawmode.replace("16B", "16L")
    return joined(unpacked(content, rawmode)[..., :3], unpacked(content, low)[..., :3])


def unpacked(content: bytes, rawmode: str) -> np.ndarray:
    """The bytes [H, W, bands] that Pillow takes out of a PNG's rows when told that they are in `rawmode`."""
    with Image.open(io.BytesIO(content)) as picture:
        assert isinstance(picture, ImageFile.ImageFile)
        picture.tile = [tile._replace(args=rawmode) for tile in picture.tile]
        return np.array(upright(picture))


def joined(high: np.ndarray, low: np.ndarray) -> Tensor:
    """uint16 [C, H, W] from the two bytes of each value, uint8 [H, W, C] each."""
    values = (high.astype(np.uint16) << 8) | low
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
