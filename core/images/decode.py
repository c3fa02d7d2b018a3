"""Bytes of a picture file -> uint8 or uint16 [C, H, W], C = 3 but for TIFFs of several bands.

Pillow is the reference for pixels. Plain JPEGs are decoded by simplejpeg, the fastest in a loader's worker (benchmarks/input.md),
or else by torchvision, if these are installed and agree with Pillow in every bit; unusual files and failures go to Pillow. 16-bit
PNGs and TIFFs and 16-bit gray images of other formats keep their depth. Transparency is dropped as in torchvision's and timm's folders,
so that results are comparable.
"""

import functools
import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .bands import bands_of
from .pixels import DEEP_COLOUR, ORIENTATION, deep_colour, open_picture, pixels_of, upright
from .store import DamagedImage, Scale

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
"""Pillow's limit (a quarter of a GiB in RGB); Pillow only warns, but a larger image from a small file can fill the memory."""


def is_picture(name: str) -> bool:
    """Whether a file name has an image's extension; hidden files (also macOS's ._ copies) don't count."""
    last = name.rpartition("/")[2].lower()
    return not last.startswith(".") and last.endswith(EXTENSIONS)


def decode(content: bytes | bytearray, where: str) -> Tensor:
    """Decode an image to uint8 [C, H, W], or uint16 for 16-bit files, upright by its EXIF tag. where: the file's name in errors.

    C is 3, for gray too, or the number of bands of a TIFF. In memory it is [H, W, C], the layout that decoders write and that is
    cropped fastest. Raises DamagedImage if the file is empty, cut short, no image, or has more than MAX_PIXELS pixels.
    """
    if not content:
        raise DamagedImage(f"{where}: the file is empty (0 bytes); replace or remove it")
    if plain_jpeg_size(content) is not None and (decoder := fast_decoder()) is not None:
        try:
            return decoder(content)
        except (RuntimeError, ValueError):  # damaged: Pillow explains it, or can still read it
            pass
    return decode_by_pillow(content, where)


def decode_scaled(content: bytes | bytearray, where: str, scale: Scale) -> tuple[Tensor, tuple[int, int]]:
    """The picture decoded at 1/s of its sides (rounded up), s = scale(H, W) in 1, 2, 4, 8, and its full size (H, W).

    Only plain JPEGs that are stored upright can be scaled by their DCT; others are decoded in full, as by `decode`.
    """
    size = plain_jpeg_size(content)
    factor = 1 if size is None else scale(*size)
    if size is None or factor == 1 or min(size) < factor:
        picture = decode(content, where)
        return picture, (picture.shape[1], picture.shape[2])
    assert factor in (2, 4, 8)
    return decode_by_pillow(content, where, factor), size


def decode_by_pillow(content: bytes | bytearray, where: str, factor: int = 1) -> Tensor:
    """`decode` by Pillow. factor: a JPEG's sides are divided by it."""
    try:
        if (bands := bands_of(content)) is not None:
            return bands
        with open_picture(content) as picture:
            if factor > 1:
                picture.draft(picture.mode, (picture.width // factor, picture.height // factor))
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if picture.format == "PNG" and picture.tile and (rawmode := picture.tile[0].args) in DEEP_COLOUR:
                return deep_colour(content, str(rawmode))
            return pixels_of(upright(picture))
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
        # on damaged bytes decoders raise anything: OSError, SyntaxError, struct.error, IndexError
        reason = (
            "not a picture of a format that is read" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        )
        raise DamagedImage(f"{where}: cannot be decoded ({reason}); replace or remove it") from None


FRAMES = (0xC0, 0xC1, 0xC2)
"""JPEG markers (ITU-T T.81, table B.1) of baseline, extended and progressive Huffman frames, which every decoder can read."""


def plain_jpeg_size(content: bytes | bytearray) -> tuple[int, int] | None:
    """(H, W) if this is an 8-bit JPEG with one or three components, stored upright and not too large; else None."""
    if content[:2] != b"\xff\xd8":
        return None
    at, tagged = 2, False
    while at + 10 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker in FRAMES:
            height = int.from_bytes(content[at + 5 : at + 7], "big")
            width = int.from_bytes(content[at + 7 : at + 9], "big")
            plain = content[at + 4] == 8 and content[at + 9] in (1, 3) and 0 < height * width <= MAX_PIXELS
            return (height, width) if plain else None
        if marker == 0xE1:  # EXIF and XMP
            if tagged or turned(bytes(content[at + 4 : at + 2 + length])):
                return None
            tagged = True
        elif marker not in (0xC4, 0xDB, 0xDD, 0xFE) and not 0xE0 <= marker <= 0xEF:
            return None  # neither tables, nor a comment, nor application data
        at += 2 + length
    return None


def turned(segment: bytes) -> bool:
    """Whether a JPEG's APP1 segment may say that the picture is not upright."""
    if not segment.startswith(b"Exif\0\0"):
        return b"tiff:Orientation" in segment
    tags = Image.Exif()
    try:
        tags.load(segment)
        return tags.get(ORIENTATION, 1) != 1
    except Exception:  # unreadable EXIF: let Pillow decide
        return True


JpegDecoder = Callable[[bytes | bytearray], Tensor]
"""A plain JPEG -> uint8 [3, H, W]; raises RuntimeError or ValueError if it is damaged."""


@functools.cache
def fast_decoder() -> JpegDecoder | None:
    """The first of simplejpeg and torchvision that is installed and decodes samples exactly as Pillow does; None if neither does."""
    return next((decoder for load in (_simplejpeg, _torchvision) if _as_pillow(decoder := load())), None)


def _simplejpeg() -> JpegDecoder | None:
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    return lambda content: torch.from_numpy(decode_jpeg(content)).permute(2, 0, 1)


def _torchvision() -> JpegDecoder | None:
    """torchvision's operator, called directly: its Python function warns since 0.29 that it will move to another package."""
    try:
        import torchvision.io  # noqa: F401  # pyright: ignore[reportUnusedImport]

        decode_jpeg = torch.ops.image.decode_jpeg
    except (ImportError, AttributeError):
        return None

    def decoder(content: bytes | bytearray) -> Tensor:
        # torch warns about buffers that are not writable
        buffer = content if isinstance(content, bytearray) else bytearray(content)
        return decode_jpeg(torch.frombuffer(buffer, dtype=torch.uint8), 3, False)

    return decoder


def _as_pillow(decoder: JpegDecoder | None) -> bool:
    """Whether a decoder gives exactly Pillow's pixels, for full and subsampled colour and for gray."""
    if decoder is None:
        return False
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 43, 3), dtype=np.uint8))
    for picture, subsampling in ((noise, 0), (noise, 2), (noise.convert("L"), 0)):
        sample = io.BytesIO()
        picture.save(sample, "JPEG", quality=75, subsampling=subsampling)
        content = sample.getvalue()
        try:
            same = torch.equal(decoder(content), decode_by_pillow(content, "sample"))
        except (RuntimeError, TypeError, ValueError):  # built without libjpeg, or with another signature
            same = False
        if not same:
            return False
    return True
