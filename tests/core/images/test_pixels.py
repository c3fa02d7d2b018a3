"""Large pictures are copied in strips: the same pixels, and little memory."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rootstock.core.images import pixels
from rootstock.core.images.decode import decode
from rootstock.tests.core.images.test_decode import encoded, png

# The child decodes pictures of 9 million pixels, with as much memory as it has, and a number of bytes a pixel more.
CHILD = """
import resource, struct, zlib
from rootstock.core.images.decode import decode

def png(side, depth, colour, samples):
    def chunk(kind, content):
        return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))
    row = b"\\0" + bytes(range(samples * depth // 8)) * side
    header = struct.pack(">LLBBBBB", side, side, depth, colour, 0, 0, 0)
    return b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * side, 1)) + chunk(b"IEND", b"")

for depth, colour, samples, allowed in ((8, 2, 3, 8), (8, 6, 4, 8), (8, 0, 1, 8), (16, 0, 1, 12), (16, 2, 3, 12), (16, 4, 2, 13)):
    decode(png(2, depth, colour, samples), "x")  # loads what is loaded on first use
    content = png(3000, depth, colour, samples)
    size = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")][0] * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + allowed * 3000 * 3000, -1))
    try:
        print(len(decode(content, "x")), end=" ")
    except MemoryError:
        print("too little for", depth, colour)
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
"""


def test_a_large_picture_needs_few_bytes_a_pixel() -> None:
    assert subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True).stdout == "3 " * 6


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK", "I;16", "I", "transparent P"])
def test_strips_give_the_pixels_of_the_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (23, 17, 3), dtype=np.uint8)
    options: dict[str, object] = {}
    if mode.startswith("I"):
        picture = Image.fromarray(noise[..., 0].astype(np.uint16 if mode == "I;16" else np.int32) * 200)
    elif mode.endswith("P"):
        picture = Image.fromarray(noise).quantize(16)
        options = {"transparency": bytes([0, 128, 255])} if mode != "P" else {}
    else:
        picture = Image.fromarray(noise).convert(mode)
    content = encoded(picture, "TIFF" if mode in ("CMYK", "I") else "PNG", **options)
    whole = decode(content, "x")
    monkeypatch.setattr(pixels, "STRIP", 40)  # two rows, and a last one
    assert decode(content, "x").equal(whole)


@pytest.mark.parametrize(("colour", "samples"), [(2, 3), (4, 2), (6, 4)])
def test_strips_of_deep_colours(colour: int, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (9, 7, samples)).astype(">u2")
    content = png(7, 9, 16, colour, b"".join(b"\0" + row.tobytes() for row in values))
    whole = decode(content, "x")
    monkeypatch.setattr(pixels, "STRIP", 14)
    assert decode(content, "x").equal(whole)
