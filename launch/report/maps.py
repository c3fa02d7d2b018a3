"""Maps of features for the page's script: points with their pictures, nearest points, and whether the run has them right."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...core.evaluate.picture_sheet import webp_sheet
from ...core.files import read_regular
from ...core.launchlog import warn
from .answers import Answers, Seeds
from .figures import POINTS_OF_MAP
from .records import RunRecord, StageRuns

MOST_PICTURES = 1500  # thumbnails of a page
_COLUMNS = 40  # of the page's sheet
_QUALITY = 60  # of WebP
_LARGEST = (
    256  # pixels of a thumbnail's side, and _WIDEST of a row of a run's sheet: what no run of ours writes is not read
)
_WIDEST = 100


@dataclass(frozen=True, eq=False)
class LiveMap:
    """One map. points: columns of equal length, {x, y, label, domain, thumb, right, guess}; before: {x, y} of the untrained network, or {}.

    thumb: number in the page's sheet, -1 for none. right: 1, 0, or -1 where it is not known. near: of each point the nearest ones.
    """

    title: str
    classes: list[str]
    domains: list[str]
    points: dict[str, list[Any]]
    near: list[list[int]]
    before: dict[str, list[float]]
    scored: str


@dataclass
class Thumbnails:
    """The pictures of all maps of a page, each once. side: pixels, 0 as long as there are none. left: how many found no room."""

    side: int = 0
    pictures: list[Image.Image] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    left: int = 0

    def add(self, record: RunRecord) -> list[int]:
        """The number of each of the map's pictures, -1 for one without. A sheet that cannot be read is told, and left out."""
        sheet = _sheet_of(record)
        if sheet is None:
            return [-1] * len(record.map["x"])
        pixels = record.map["thumbnails"]["pixels"]
        picture, side, columns = sheet
        self.side = self.side or side
        found = []
        for k, key in enumerate(pixels):
            if key not in self.numbers and len(self.pictures) < MOST_PICTURES:
                left, top = k % columns * side, k // columns * side
                one = picture.crop((left, top, left + side, top + side))
                self.numbers[key] = len(self.pictures)
                self.pictures.append(one if side == self.side else one.resize((self.side, self.side)))
            self.left += key not in self.numbers
            found.append(self.numbers.get(key, -1))
        return found

    def source(self) -> str:
        """The sheet as a data URI, _COLUMNS pictures in a row; "" without pictures."""
        if not self.pictures:
            return ""
        sheet = webp_sheet(self.pictures, self.side, self.columns, _QUALITY)
        return f"data:image/webp;base64,{base64.b64encode(sheet).decode()}"

    @property
    def columns(self) -> int:
        return min(_COLUMNS, len(self.pictures))


def _sheet_of(record: RunRecord) -> tuple[Image.Image, int, int] | None:
    """(sheet, side, columns) as map.json describes them."""
    said = record.map.get("thumbnails") or {}
    side, columns, name, pixels = (said.get(key) for key in ("side", "columns", "file", "pixels"))
    count = len(record.map["x"])
    fits = isinstance(side, int) and isinstance(columns, int) and 0 < side <= _LARGEST and 0 < columns <= _WIDEST
    if not fits or not isinstance(name, str) or Path(name).name != name:
        return None
    if not isinstance(pixels, list) or len(pixels) != count or not all(isinstance(one, int) for one in pixels):
        return None
    assert isinstance(side, int) and isinstance(columns, int)
    path = record.path / name
    try:
        with Image.open(io.BytesIO(read_regular(path)), formats=("WEBP",)) as image:
            if image.width != columns * side or image.height < -(-count // columns) * side:
                raise ValueError("it has another size than map.json says")
            return image.convert("RGB"), side, columns
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        warn(f"WARNING: {path} is left out ({getattr(error, 'strerror', None) or error})")
        return None


def live_map(stage: StageRuns, title: str, answers: Seeds, thumbnails: Thumbnails) -> LiveMap | None:
    """The first map of a stage's runs; None if there is none, or if it has more points than a page shows."""
    record = next((record for record in stage.records if record.map), None)
    if record is None or not 0 < len(record.map.get("x", [])) <= POINTS_OF_MAP:
        return None
    chart, n = record.map, len(record.map["x"])
    near = chart.get("near") or []
    scored, right, guess = right_of_points(chart, answers.get(record.seed) or {})
    points = {
        "x": _rounded(chart["x"]),
        "y": _rounded(chart["y"]),
        "label": list(chart.get("label") or [-1] * n),
        "domain": list(chart.get("domain") or [0] * n),
        "thumb": thumbnails.add(record),
        "right": right,
        "guess": guess,
    }
    before = {axis: _rounded(chart["before"][axis]) for axis in "xy"} if chart.get("before") else {}
    names = [[str(name) for name in chart.get(key) or []] for key in ("classes", "domains")]
    return LiveMap(title, names[0], names[1], points, near if len(near) == n else [], before, scored)


def right_of_points(chart: Mapping[str, Any], found: Mapping[str, Answers]) -> tuple[str, list[int], list[int]]:
    """(protocols that were asked, right or wrong of each point, predicted class of each); -1 where nothing is known.

    Each domain of the map is a test; its first protocol with a prediction answers for the images by their places, which have to hold the
    same identities.
    """
    n, keys, domains = len(chart["x"]), chart.get("key") or [], chart.get("domain") or []
    rows = chart.get("row") or []
    right, guess, asked = [-1] * n, [-1] * n, list[str]()
    for number, domain in enumerate(chart.get("domains") or []):
        protocol = next(
            (k for k, a in found.items() if k.partition("/")[0] == domain and a.predictions is not None), None
        )
        if protocol is None or not keys or not rows or not domains:
            continue
        one = found[protocol]
        assert one.predictions is not None
        if list(one.images.classes) != list(chart.get("classes") or []):
            continue
        asked.append(protocol)
        for i, (key, row, own) in enumerate(zip(keys, rows, domains, strict=True)):
            if own == number and 0 <= row < len(one.images.keys) and one.images.keys[row] == key:
                guess[i], right[i] = int(one.predictions[row]), int(one.correct[row] > 0.5)
    return ", ".join(asked), right, guess


def _rounded(values: Sequence[float]) -> list[float]:
    """To a thousandth of the map's extent; what is not finite stands in its middle."""
    array = np.asarray(values, dtype=float)
    finite = array[np.isfinite(array)]
    middle = float(finite.mean()) if len(finite) else 0.0
    extent = float(np.ptp(finite)) if len(finite) else 0.0
    digits = 3 if extent == 0 else int(max(0, 4 - np.floor(np.log10(extent))))
    return [round(float(value) if np.isfinite(value) else middle, digits) for value in array]
