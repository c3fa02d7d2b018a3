"""The keys of a config's `data.views` section: how images are augmented for training. Presets (presets.py) are other defaults."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError
from .erasing import RATIO, Fill
from .resample import Interpolation
from .timm_randaugment import TimmRandAugment

# One probability for all views, or one for each view.
Each = float | tuple[float, ...]


LARGEST_SIDE = 1 << 14
"""Of an input, in pixels; more is a mistake, and would fill any memory."""

MOST_OPERATIONS, MOST_LOCAL = 100, 64
"""Of a view, and of an image; published recipes use at most 3 and 10."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How the views of an image are drawn: crop, flip, affine jitter, RandAugment, colour and erasing, then small local crops.

    Distributions are torchvision's. Every number is drawn for each image and each view. The default of every key is "off": the
    preset `none` has these defaults, the other presets change them. Operations on colour (difference, jitter, grayscale, blur, solarize,
    invert) need images of three channels and are left out for others.

    scale: Smallest and largest part of the image's area that a random resized crop takes, above 0 and up to 1. null takes the
        central square instead (see centre).
    ratio: Smallest and largest width / height of a random crop, above 0, drawn log-uniformly; not used where scale is null.
    interpolation: Filter for resizing crops, bilinear or bicubic; both antialiased.
    flip: Probability of mirroring a view left to right.
    rotate: Largest rotation in degrees to either side, 0 or more; uniform.
    shift: Largest shift as a fraction of the side, in each direction and along each axis, 0 or more; uniform.
    zoom: Smallest and largest magnification about the centre, above 0, drawn log-uniformly; [1, 1] doesn't zoom.
    difference: Probability of turning a view x into |x - c|, its absolute difference from a smooth field c of random colours (16 points,
        bilinear between them), before all other colours; one number, or a list with one a view. Local crops take the first.
    jitter: Strengths of colour jitter: brightness, contrast, saturation (0 or more) and hue (0 to 0.5). Factors are drawn from
        1 - strength (at least 0) to 1 + strength, the hue's shift from -strength to strength of a full turn; the order is random.
    jitter_p: Probability of colour jitter; one number, or a list with one a view. Local crops take the first.
    grayscale: Probability of turning a view gray; one number, or a list with one a view. Local crops take the first.
    blur: Probability of Gaussian blur; one number, or a list with one a view. Local crops have local_blur.
    blur_sigma: Smallest and largest sigma of the blur, above 0, in pixels at 224 px; scaled with the size of the view.
    solarize: Probability of inverting the values from one half up; one number, or a list with one a view. Local crops have
        local_solarize.
    invert: Probability of inverting all values; one number, or a list with one a view. Local crops take the first.
    centre: Side of the central square as a part of the image's shorter side, above 0 and up to 1; used where scale is null.
    randaugment: Number of RandAugment operations for each view, 0 to 100 (Cubuk et al. 2020, arXiv:1909.13719); 8-bit images only.
    magnitude: Strength of the RandAugment operations on torchvision's scale, 0 to 30; timm's m9 is 27 here.
    timm_randaugment: RandAugment as timm has it, by timm's string, such as rand-m9-mstd0.5-inc1; in the place of randaugment. Its fifteen
        operations, each with probability 0.5, fill with the mean colour and move pixels by the filter of `interpolation`. null: none.
    erase: Probability of random erasing: one box of a view is overwritten (Zhong et al. 2020, arXiv:1708.04896).
    erase_scale: Smallest and largest part of the view's area that the erased box takes, above 0 and up to 1.
    erase_ratio: Smallest and largest height / width of the erased box, above 0, drawn log-uniformly; [0.3, 3.3] is torchvision's.
    erase_fill: What the erased box is filled with: mean (of the normalisation, so zeros) or noise (standard normal values).
    local: Number of small local crops of each image beside the views (multi-crop, Caron et al. 2020, arXiv:2006.09882), 0 to 64.
    local_size: Side of a local crop in pixels, 1 to 16384. null is 3/7 of the views' size (96 of 224), rounded to a multiple of 8.
    local_scale: Smallest and largest part of the image's area that a local crop takes, above 0 and up to 1.
    local_blur: Probability of Gaussian blur of a local crop.
    local_solarize: Probability of inverting the values from one half up in a local crop.

    Raises UserError for a number out of its range.
    """

    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    flip: float = 0.0
    rotate: float = 0.0
    shift: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    difference: Each = 0.0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_p: Each = 0.0
    grayscale: Each = 0.0
    blur: Each = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: Each = 0.0
    invert: Each = 0.0
    centre: float = 1.0
    randaugment: int = 0
    magnitude: float = 9.0
    timm_randaugment: str | None = None
    erase: float = 0.0
    erase_scale: tuple[float, float] = (0.02, 0.33)
    erase_ratio: tuple[float, float] = RATIO
    erase_fill: Fill = "mean"
    local: int = 0
    local_size: int | None = None
    local_scale: tuple[float, float] = (0.05, 0.4)
    local_blur: float = 0.5
    local_solarize: float = 0.0

    def __post_init__(self) -> None:
        for key in ("flip", "erase", *PER_VIEW, "local_blur", "local_solarize"):
            given = getattr(self, key)
            chances = given if isinstance(given, tuple | list) else (given,)
            self._expect(key, all(0.0 <= p <= 1.0 for p in chances), "probabilities from 0 to 1")
        for key in ("scale", "local_scale", "erase_scale"):
            if (given := getattr(self, key)) is not None:
                low, high = given
                self._expect(
                    key, 0.0 < low <= high <= 1.0, "the smallest and the largest part of the area, above 0 and up to 1"
                )
        for key in ("ratio", "zoom", "erase_ratio"):
            low, high = getattr(self, key)
            self._expect(key, 0.0 < low <= high, "the smallest and the largest, above 0")
        low, high = self.blur_sigma
        self._expect("blur_sigma", 0.0 < low <= high, "the smallest and the largest in pixels at 224 px, above 0")
        *strengths, hue = self.jitter
        right = min(strengths) >= 0.0 and 0.0 <= hue <= 0.5
        self._expect("jitter", right, "brightness, contrast and saturation of 0 or more, and hue from 0 to 0.5")
        self._expect("rotate", self.rotate >= 0.0, "the largest angle in degrees, 0 or more")
        self._expect("shift", self.shift >= 0.0, "the largest shift as a fraction of the side, 0 or more")
        self._expect("centre", 0.0 < self.centre <= 1.0, "a part of the shorter side, above 0 and up to 1")
        self._expect(
            "randaugment", 0 <= self.randaugment <= MOST_OPERATIONS, f"a number of operations, 0 to {MOST_OPERATIONS}"
        )
        if self.timm_randaugment is not None:
            TimmRandAugment.parse(self.timm_randaugment)
            self._expect("timm_randaugment", not self.randaugment, "null beside randaugment, which is torchvision's")
        self._expect("magnitude", 0.0 <= self.magnitude <= 30.0, "a number from 0 to 30")
        self._expect("local", 0 <= self.local <= MOST_LOCAL, f"a number of local crops, 0 to {MOST_LOCAL}")
        side = self.local_size
        self._expect("local_size", side is None or 1 <= side <= LARGEST_SIDE, f"a side in pixels, 1 to {LARGEST_SIDE}")

    def _expect(self, key: str, right: bool, what: str) -> None:
        if not right:
            raise UserError(f"data.views.{key}: {getattr(self, key)} is given; expected {what}")

    @property
    def varies(self) -> bool:
        """Whether anything of a view is drawn, so that an image has other views at other times."""
        chances = [getattr(self, key) for key in KEYS_THAT_DRAW]
        chances += [probability(getattr(self, key), 0) for key in PER_VIEW]
        return self.scale is not None or tuple(self.zoom) != (1.0, 1.0) or any(chances)

    def check_counts(self, views: int) -> None:
        """Raises UserError where a key lists probabilities, but not one for each of so many views."""
        for key in PER_VIEW:
            given = getattr(self, key)
            if isinstance(given, tuple | list) and len(given) != views:
                raise UserError(
                    f"data.views.{key}: {len(given)} numbers are given for {views} view{'s' if views > 1 else ''}; "
                    "give one number, or one for each view"
                )


KEYS_THAT_DRAW = ("flip", "erase", "rotate", "shift", "randaugment", "timm_randaugment", "local")
PER_VIEW = ("difference", "jitter_p", "grayscale", "blur", "solarize", "invert")


def probability(given: Each, view: int) -> float:
    """The number of one view, counted from 0."""
    return given[view] if isinstance(given, tuple | list) else given  # a resolved config holds lists
