"""Pictures for the report of a run: contact sheets of views and reconstructions, and a map of its features."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files import write_bytes, write_text
from ..images.open import Images
from ..images.several import only_classes
from ..launchlog import warn
from ..manifest import DamagedFile, read_object
from ..views.view import per_channel
from .thumbnails import COLUMNS, SHEET, THUMBNAIL_SIDE, thumbnail_sheet

CELL = 64
MAP_POINTS, MAP_POINTS_OF_TWO = 450, 300
NEIGHBOURS = 8  # of each picture of a map
FEWEST_OF_TSNE = 100  # features; the neighbours of fewer say little, and their main axes take no time


def denormalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The inverse of views.normalise, clamped to 0..1; float [..., C, H, W]."""
    m, s = (torch.tensor(per_channel(one, x.shape[-3]), device=x.device).view(-1, 1, 1) for one in (mean, std))
    return (x * s + m).clamp(0.0, 1.0)


def save_sheet(run: Path, name: str, rows: Tensor, caption: str) -> None:
    """Write run/pictures/NAME.png: float [R, K, C, H, W] in 0..1 as R rows of K pictures, each at least CELL pixels wide."""
    pixels = (rows.detach().cpu().float() * 255.0).round().clamp(0, 255).to(torch.uint8)
    pixels = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1].expand(-1, -1, 3, -1, -1)
    factor = -(-CELL // pixels.shape[-1])
    pixels = pixels.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    gap = 2
    padded = torch.nn.functional.pad(pixels, (gap, gap, gap, gap), value=255)
    sheet = padded.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    save_picture(run, name, Image.fromarray(sheet.contiguous().numpy()), caption)


def save_picture(run: Path, name: str, picture: Image.Image, caption: str) -> None:
    """Write run/pictures/NAME.png, and its caption beside those of the others."""
    folder = run / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / f"{name}.png")
    captions, known = folder / "captions.json", dict[str, str]()
    try:
        known = read_object(captions)
    except FileNotFoundError:
        pass
    except DamagedFile as error:
        warn(f"WARNING: {error}; it is made anew")
    write_text(captions, json.dumps({**known, f"{name}.png": caption}, indent=1))


def spread(n: int, most: int) -> Tensor:
    """At most `most` of 0..n-1, evenly spaced and each once: int64 [min(n, most)]."""
    k = min(n, most)
    return torch.arange(k) * n // max(1, k)


def save_map(
    run: Path,
    features: Mapping[str, Tensor],
    sets: Mapping[str, Images],
    seed: int,
    before: Mapping[str, Tensor] | None = None,
    rows: Mapping[str, Tensor] | None = None,
) -> None:
    """Write run/map.json, up to MAP_POINTS features in a plane by class and by domain, and their pictures: run/map.webp, thumbnails.

    `key` and `row` name each point's image as predictions.safetensors does: its identity, which copies and blends share, and its place in
    the test, -1 where the set is none. `near` are the NEIGHBOURS points that are nearest to it by cosine of the features, nearest first.

    features: [N, D] by name of the set; each set is one domain. before: those of the same images before a training, [N, D']: each of the
    two maps then has up to MAP_POINTS_OF_TWO. Writes nothing for fewer than 8 features, or if they are not finite or all equal, so a
    diverged run still ends with its numbers. An image of several classes, or of none, has no class on the map.
    rows: int64 [N], of each set that is a part of a test: its images' places there; sets that it lacks are no tests. None: all are whole.
    """
    names = [name for name in features if len(features[name])]
    most = MAP_POINTS if before is None else MAP_POINTS_OF_TWO
    chosen = {name: spread(len(features[name]), max(1, most // len(names))) for name in names}
    after = _flat([features[name][chosen[name]] for name in names], seed)
    if after is None:
        return
    first = None if before is None else _flat([before[name][chosen[name]] for name in names], seed)
    classes = next((s.classes for s in sets.values() if s.classes), None)
    labels: list[int] = []
    for name in names:
        own = sets[name].labels
        labels += only_classes(own[chosen[name]]).tolist() if own is not None else [-1] * len(chosen[name])
    sheet, pixels = thumbnail_sheet([(sets[name], chosen[name]) for name in names])
    write_bytes(run / SHEET, sheet)
    own = {name: torch.arange(len(sets[name])) if rows is None else rows.get(name) for name in names}
    places = [(row[chosen[name]] if (row := own[name]) is not None else chosen[name] * 0 - 1) for name in names]
    write_text(
        run / "map.json",
        json.dumps(
            {
                **_written(after),
                "near": _nearest([features[name][chosen[name]] for name in names]),
                **({} if first is None else {"before": _written(first)}),
                "key": [key for name in names for key in sets[name].select(chosen[name]).keys().tolist()],
                "row": torch.cat(places).tolist(),
                "thumbnails": {"file": SHEET, "side": THUMBNAIL_SIDE, "columns": COLUMNS, "pixels": pixels},
                "label": labels,
                "domain": [i for i, name in enumerate(names) for _ in range(len(chosen[name]))],
                "classes": list(classes or []),
                "domains": names,
                "method": f"{'t-SNE' if len(labels) >= FEWEST_OF_TSNE else 'principal components'} of {len(labels)} normalised features",
            }
        ),
    )


def _flat(parts: Sequence[Tensor], seed: int) -> np.ndarray | None:
    """Features [N, D] of all parts in a plane, [N, 2]: by t-SNE (van der Maaten & Hinton 2008), few by their two main axes."""
    if sum(map(len, parts)) < 8:
        return None
    x = torch.nn.functional.normalize(torch.cat(list(parts)).double(), dim=1)
    if not bool(x.isfinite().all()) or bool((x == x[0]).all()):
        return None
    x = x.numpy()
    seed %= 2**32  # scikit-learn takes no larger ones
    from sklearn.decomposition import PCA  # imported here: it takes a second, and most runs draw no map
    from sklearn.manifold import TSNE

    if len(x) < FEWEST_OF_TSNE:
        points = PCA(min(2, *x.shape), random_state=seed).fit_transform(x)
        return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    x = PCA(min(32, *x.shape), random_state=seed).fit_transform(x)
    return TSNE(perplexity=min(30.0, (len(x) - 1) / 3), init="pca", max_iter=500, random_state=seed).fit_transform(x)


def _nearest(parts: Sequence[Tensor]) -> list[list[int]]:
    """The NEIGHBOURS nearest points of each, by cosine, nearest first; of equally near ones the first."""
    x = torch.nn.functional.normalize(torch.cat(list(parts)).double(), dim=1)
    apart = (-(x @ x.T)).fill_diagonal_(math.inf)
    return apart.argsort(dim=1, stable=True)[:, : min(NEIGHBOURS, len(x) - 1)].tolist()


def _written(points: np.ndarray) -> dict[str, list[float]]:
    return {axis: [round(float(v), 3) for v in points[:, i]] for i, axis in enumerate("xy")}
