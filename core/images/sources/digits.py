"""Two domains of real digits that need no download: scikit-learn's 1,797 scans, and the same blended into photographs.

`digits-m` is the recipe of MNIST-M (Ganin & Lempitsky 2015, arXiv:1409.7495, section 4): |digit - colour patch|. The
patches come from the two photographs that ship with scikit-learn. A blend has the identity of its digit, so no split
separates a digit from its blends.
"""

import functools
import hashlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...draws import Draws
from ...errors import UserError
from ..store import ArrayStore, Scale, Source, Stamp, Uniform, sha256_key

PHOTOGRAPHS = ("china.jpg", "flower.jpg")
# The column that divides each photograph into a test and a training region: through the middle of the temple and of the flower, so
# that neither region is easier (at the middle of the image, one side would have all of the temple and none of the lake).
CUTS = (208, 308)
CLASSES = tuple("0123456789")


@functools.cache
def _scans() -> tuple[np.ndarray, Tensor, Tensor]:
    """uint8 [1797, 8, 8] in 0..16, int64 [1797] labels, int64 [1797] identities."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    scans = pixels.reshape(-1, 8, 8).astype(np.uint8)
    keys = torch.tensor([sha256_key(scan.tobytes()) for scan in scans], dtype=torch.int64)
    return scans, torch.from_numpy(labels.astype(np.int64)), keys


@functools.cache
def _photographs() -> tuple[np.ndarray, ...]:
    """The two photographs, uint8 [427, 640, 3] each."""
    from sklearn.datasets import load_sample_image

    return tuple(np.asarray(load_sample_image(name)) for name in PHOTOGRAPHS)


def _check_size(size: int) -> None:
    if not 1 <= size <= 1024:
        raise UserError(f"sklearn digits: size={size} is not a side in pixels; expected 1 to 1024")


@functools.cache
def enlarged(size: int) -> Tensor:
    """The scans, white on black, resized (bicubic) to uint8 [1797, size, size]."""
    full = (_scans()[0].astype(np.float64) * 255 / 16).round().astype(np.uint8)
    # Pillow resizes bytes in fixed point, so the pixels are the same on every machine.
    resized = [np.asarray(Image.fromarray(scan).resize((size, size), Image.Resampling.BICUBIC)) for scan in full]
    return torch.from_numpy(np.stack(resized))


class DigitStore(ArrayStore):
    """The plain digits below `classes` at one size. Identities are those of the 8x8 scans, so they are equal at every size."""

    def __init__(self, size: int, classes: int = 10) -> None:
        _, labels, keys = _scans()
        super().__init__(enlarged(size)[labels < classes][:, None], "digits")
        self.size = size
        self._keys = keys[labels < classes]

    def stamp(self, i: int) -> str:
        return f"{super().stamp(i)}\t{self.size}"


class BlendStore:
    """`blends` blends of every digit, made on demand; blend b of a digit is item digit * blends + b."""

    def __init__(self, size: int, region: str, blends: int, patch: tuple[int, int], seed: int) -> None:
        self.size, self.region, self.blends, self.patch, self.seed = size, region, blends, patch, seed
        positions = torch.arange(len(_scans()[0]) * blends)
        draws = Draws(seed, positions).stream("digits-m").stream(region)
        self.photograph = draws.integers("photograph", len(PHOTOGRAPHS))
        self.side = patch[0] + draws.integers("side", patch[1] - patch[0] + 1)
        bounds = torch.tensor([patch_region(region, k) for k in range(len(PHOTOGRAPHS))])[self.photograph]
        left, right, height = bounds.unbind(1)
        # floor(u * choices), u < 1: uniform over all corners that keep the patch inside the region
        self.x = left + (draws.uniform("x").double() * (right - left - self.side + 1)).long()
        self.y = (draws.uniform("y").double() * (height - self.side + 1)).long()
        self._made: Tensor | None = None
        self._ready = torch.empty(0, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.side)

    def box(self, i: int) -> tuple[int, int, int, int, int]:
        """(photograph, left, top, right, bottom) of the patch of item i, in pixels of the photograph."""
        x, y, side = int(self.x[i]), int(self.y[i]), int(self.side[i])
        return int(self.photograph[i]), x, y, x + side, y + side

    def read(self, i: int) -> Tensor:
        """uint8 [3, size, size]: |digit - patch|."""
        photograph, left, top, right, bottom = self.box(i)
        # cut before resizing: resizing with a box would let the filter read pixels of the other region
        patch = Image.fromarray(_photographs()[photograph][top:bottom, left:right])
        patch = np.asarray(patch.resize((self.size, self.size), Image.Resampling.BILINEAR)).astype(np.int16)
        digit = enlarged(self.size)[i // self.blends].numpy().astype(np.int16)
        blend = np.abs(digit[:, :, None] - patch).astype(np.uint8)
        return torch.from_numpy(np.ascontiguousarray(blend.transpose(2, 0, 1)))

    def name(self, i: int) -> str:
        return f"digits-m[{i // self.blends}]" + (f".{i % self.blends}" if self.blends > 1 else "")

    def full_name(self, i: int) -> str:
        return self.name(i)

    def repeats(self) -> bool:
        return False

    def unreadable(self) -> Collection[int]:
        return ()

    def keys(self) -> Tensor:
        return _scans()[2].repeat_interleave(self.blends)

    def stamp(self, i: int) -> str:
        scene = ",".join(map(str, self.box(i)))
        return f"{self.name(i)}\t{_scans()[2][i // self.blends].item()}\t{self.size}\t{scene}\t{photographs_hash()}"

    def watched(self, watch: Stamp) -> Sequence[str]:
        return [""] * len(self)  # made anew from pictures that ship

    def read_scaled(self, i: int, scale: Scale) -> tuple[Tensor, tuple[int, int]]:
        return self.read(i), (self.size, self.size)

    def encoded(self, i: int) -> None:
        return None

    def uniform(self) -> Uniform:
        return Uniform((3, self.size, self.size), torch.uint8)

    def rows(self, indices: Tensor) -> Tensor:
        """Every blend is made once and kept, since training reads it in every epoch."""
        if self._made is None:
            # the system allocates memory only when rows are written
            self._made = torch.empty(len(self), 3, self.size, self.size, dtype=torch.uint8)
            self._ready = torch.zeros(len(self), dtype=torch.bool)
        for i in indices[~self._ready[indices]].tolist():
            self._made[i] = self.read(i)
            self._ready[i] = True
        return self._made[indices]

    def layout(self, indices: Tensor) -> Tensor:
        return indices

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}


@functools.cache
def photographs_hash() -> str:
    digest = hashlib.sha256()
    for photograph in _photographs():
        digest.update(photograph.tobytes())
    return digest.hexdigest()[:16]


def patch_region(region: str, photograph: int) -> tuple[int, int, int]:
    """(left, right, height) of the region of a photograph that patches come from, in pixels; right is exclusive.

    `test` is the part left of the photograph's cut and `train` the rest, so test and training patches share no pixel.
    """
    height, width = _photographs()[photograph].shape[:2]
    cut = CUTS[photograph]
    left, right = {"all": (0, width), "train": (cut, width), "test": (0, cut)}[region]
    return left, right, height


def open_digits(*, size: int = 32, classes: int = 10) -> Source:
    """sklearn:digits, at `size` pixels a side (the scans are 8x8). classes: how many of the ten digits there are, from 0 on."""
    _check_size(size)
    if not 1 <= classes <= len(CLASSES):
        raise UserError(f"sklearn:digits: classes={classes} is not a number of digits; expected 1 to {len(CLASSES)}")
    labels = _scans()[1]
    return Source(DigitStore(size, classes), labels[labels < classes], CLASSES[:classes])


def open_digits_m(
    *, size: int = 32, region: str = "all", blends: int = 1, patch: str = "32-160", seed: int = 0
) -> Source:
    """sklearn:digits-m. patch: range of the side of the square patches, in pixels of the photograph, both ends included."""
    _check_size(size)
    if region not in ("all", "train", "test"):
        raise UserError(f"sklearn:digits-m: region={region} is unknown (known: all, train, test)")
    if not 1 <= blends <= 1000:
        raise UserError(f"sklearn:digits-m: blends={blends} is not a number of blends a digit; expected 1 to 1000")
    low, dash, high = patch.partition("-")
    bounds = [patch_region(region, k) for k in range(len(PHOTOGRAPHS))]
    largest = min(min(right - left, height) for left, right, height in bounds)
    if not (low.isdecimal() and (not dash or high.isdecimal())):
        raise UserError(f"sklearn:digits-m: patch={patch} is not a range of pixels; expected for example 32-160")
    sides = int(low), int(high) if dash else int(low)
    if not 1 <= sides[0] <= sides[1] <= largest:
        raise UserError(
            f"sklearn:digits-m: patch={patch} does not fit; sides in region={region} range from 1 to {largest} pixels"
        )
    labels = _scans()[1].repeat_interleave(blends)
    return Source(BlendStore(size, region, blends, sides, seed), labels, CLASSES)


DIGIT_SETS = {"digits": open_digits, "digits-m": open_digits_m}
