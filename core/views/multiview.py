"""Several views of each image: cropped where the images are (in a worker or on the device), finished on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..draws import Draws
from ..errors import UserError
from ..hostmemory import empty
from ..method import RawBatch, Views
from ..numerics import eager_cpu
from .augmentation import PER_VIEW, Augmentation
from .scaled_decode import useful_scale, worthwhile
from .view import Sides, View


def multiview(
    augmentation: Augmentation, size: int, mean: tuple[float, ...], std: tuple[float, ...], count: int
) -> Multiview:
    """Build `count` views of each image, `size` pixels a side, and the augmentation's local crops.

    Raises UserError where a key of the augmentation lists probabilities for another number of views.
    """
    augmentation.check_counts(count)
    views = [View(size, mean, std, augmentation, v) for v in range(count)]
    small = augmentation.local_size if augmentation.local_size is not None else max(8, 8 * round(size * 3 / 56))
    # In DINO's and SwAV's code local crops are blurred by as many pixels as the full views, but View scales sigma with its size.
    low, high = augmentation.blur_sigma
    of_local = replace(
        augmentation,
        scale=augmentation.local_scale,
        blur_sigma=(low * size / small, high * size / small),
        blur=augmentation.local_blur,
        solarize=augmentation.local_solarize,
    )
    return Multiview(views, [View(small, mean, std, of_local)] * augmentation.local)


class Multiview:
    """Several views of each image, each with its own draw stream: "view0/", "view1/", ..., and "local0/", ... for small crops.

    Two halves as in `View`: `crop` or `crop_each` where the images are, then a call on the device.
    """

    def __init__(self, views: Sequence[View], local: Sequence[View] = ()) -> None:
        self.views, self.local = list(views), list(local)

    def crop(self, images: Tensor, draws: Draws) -> dict[str, Tensor]:
        """uint8 [N, C, H, W] -> {"images": uint8 [N, V, C, size, size]} and, with local crops, "local" [N, L, C, s, s]."""
        return {
            key: torch.stack([view.crop(images, stream) for view, stream in self._streams(key, draws)], 1)
            for key in self._keys()
        }

    def crop_each(self, pictures: Sequence[Tensor], draws: Draws, sizes: Sides | None = None) -> dict[str, Tensor]:
        """`crop` of N images [C, H, W] of any sizes, in a worker. sizes: the full sizes of images that were decoded scaled."""
        deep = any(picture.dtype == torch.uint16 for picture in pictures)
        found: dict[str, Tensor] = {}
        for key in self._keys():
            streams = self._streams(key, draws)
            shape = (len(pictures), len(streams), pictures[0].shape[0], *[streams[0][0].size] * 2)
            found[key] = empty(*shape, dtype=torch.uint16 if deep else torch.uint8)
            for v, (view, stream) in enumerate(streams):
                view.crop_each(pictures, stream, sizes, found[key][:, v])
        return found

    def scale(self, draws: Draws, height: int, width: int) -> int:
        """The largest s of 1, 2, 4, 8 such that no view enlarges its box if the image of one position is decoded at 1 / s.

        height, width: the image's full size. Returns 1 if the image is too small for scaling to save time.
        """
        scale = useful_scale(height, width, max(view.size for view in [*self.views, *self.local]))
        for view, stream in (one for key in self._keys() for one in self._streams(key, draws)):
            if not worthwhile(height, width, scale):
                return 1
            scale = min(scale, view.useful_scale(stream, height, width))
        return scale if worthwhile(height, width, scale) else 1

    def __call__(self, sample: RawBatch, draws: Draws) -> Views:
        """Raw images [N, C, H, W], or crops made by a worker, -> normalised float32 [V, N, C, size, size] and local crops."""
        cropped = {"images": sample.images, **sample.extra}
        if sample.images.ndim == 4:
            cropped = self.crop(sample.images, draws)
        local = self._finished("local", cropped["local"], draws) if self.local else None
        return Views(self._finished("images", cropped["images"], draws), draws, local)

    def beside(self, further: Sequence[Multiview]) -> Multiview:
        """These views, and after them the first view of each of `further`; the draws of these stay as they are."""
        return Multiview([*self.views, *(one.views[0] for one in further)], self.local)

    def refuse_local(self, who: str) -> Multiview:
        """Returns self. Raises UserError if there are local crops, which `who` (a method or stage) doesn't use."""
        if self.local:
            raise UserError(
                f"data.views.local: {len(self.local)} local crops are given, but {who} uses none; set it to 0"
            )
        return self

    def warn_unused(self, channels: int, log: Callable[[str], None], section: str = "data.views") -> None:
        """Log a warning if colour operations are on but the images don't have three channels. section: the config's, which says them."""
        used = [key for key in PER_VIEW if any(getattr(view, key) for view in [*self.views, *self.local])]
        if channels != 3 and used:
            log(
                f"WARNING: pictures of {channels} channel{'s' if channels > 1 else ''}: "
                f"{', '.join(f'{section}.{key}' for key in used)} need three and are left out"
            )

    def _streams(self, key: str, draws: Draws) -> list[tuple[View, Draws]]:
        views, name = (self.views, "view") if key == "images" else (self.local, "local")
        return [(view, draws.stream(f"{name}{v}")) for v, view in enumerate(views)]

    def _keys(self) -> tuple[str, ...]:
        return ("images", "local") if self.local else ("images",)

    def _finished(self, key: str, crops: Tensor, draws: Draws) -> Tensor:
        streams = self._streams(key, draws)
        if not eager_cpu(crops):
            return torch.stack([view.finish(crops[:, v], stream) for v, (view, stream) in enumerate(streams)])
        out = empty(len(streams), len(crops), *crops.shape[2:])
        for v, (view, stream) in enumerate(streams):
            view.finish(crops[:, v], stream, out[v])
        return out


class StillView:
    """The one view of an augmentation that draws nothing, used as an evaluation's: `worker` crops a picture, the call makes floats."""

    def __init__(self, view: View) -> None:
        """Raises ValueError for a view that may not be cropped twice, or of which anything is drawn."""
        if view.augmentation.varies or view.augmentation.centre != 1.0:
            raise ValueError("a still view shows the whole of an image, and always the same")
        self.view = view

    @staticmethod
    def of(views: Multiview) -> StillView | None:
        """That of one view of each image, if it is still."""
        (view, *further) = views.views
        if further or view.augmentation.varies or view.augmentation.centre != 1.0:
            return None
        return StillView(view)

    def describe(self) -> dict[str, Any]:
        """All that decides what the view shows, as plain JSON."""
        view = self.view
        shown = {"size": view.size, "interpolation": view.augmentation.interpolation}
        return {"class": "StillView", **shown, "mean": list(view.mean), "std": list(view.std)}

    def worker(self, image: Tensor) -> Tensor:
        """uint8 [C, H, W] of any size -> uint8 [C, size, size]."""
        return self.view.crop_each([image], _no_draws(1))[0]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W], whole or cropped by `worker` -> normalised float32 [N, C, size, size]."""
        draws, size = _no_draws(len(images)), self.view.size
        return self.view.finish(images if images.shape[2:] == (size, size) else self.view.crop(images, draws), draws)


def _no_draws(n: int) -> Draws:
    """For views that draw nothing."""
    return Draws(0, torch.zeros(n, dtype=torch.int64))
