"""JPEG files for measurements: the user's own, or parts of scikit-learn's two photographs, so that benchmarks run anywhere."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def photographs(width: int, height: int, count: int) -> Iterator[Image.Image]:
    """Random parts of scikit-learn's two photographs, scaled to width x height."""
    sources = [Image.fromarray(picture) for picture in load_sample_images().images]
    drawn = np.random.default_rng(0)
    for i in range(count):
        source = sources[i % len(sources)]
        share = drawn.uniform(0.6, 1.0) * min(source.width / width, source.height / height)
        left, top = (
            drawn.uniform(0, whole - share * cut) for whole, cut in ((source.width, width), (source.height, height))
        )
        part = (left, top, left + share * width, top + share * height)
        yield source.resize((width, height), Image.Resampling.LANCZOS, part)


def jpeg_files(
    uri: str | None, folder: Path, sides: tuple[int, int], count: int, quality: int | None = None
) -> list[Path]:
    """`count` JPEG files in `folder`: chosen evenly from folder:PATH or tar:PATH, repeated if too few, or made from photographs.

    quality: of those that are made.
    """
    folder.mkdir()
    paths = [folder / f"{i:05}.jpg" for i in range(count)]
    if uri is None:
        # at these qualities the files are about as large as ImageNet's and as Imagenette's at 96 px
        for path, picture in zip(paths, photographs(*sides, count), strict=True):
            picture.save(path, quality=quality or (97 if sides[0] > 96 else 88))
        return paths
    contents = stored(uri)
    if not contents:
        sys.exit(f"error: {uri} holds no .jpg or .jpeg files; expected folder:PATH or tar:PATH of JPEG files")
    for i, path in enumerate(paths):
        k = i * len(contents) // count if count < len(contents) else i % len(contents)
        path.write_bytes(contents[k])
    return paths


def stored(uri: str) -> list[bytes]:
    """The JPEG files of folder:PATH or tar:PATH, by name."""
    scheme, _, path = uri.partition(":")
    if scheme == "folder":
        names = sorted(name for name in Path(path).rglob("*") if name.suffix.lower() in (".jpg", ".jpeg"))
        return [name.read_bytes() for name in names]
    if scheme != "tar":
        sys.exit(f"error: {uri}: expected folder:PATH or tar:PATH of JPEG files")
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name.lower().endswith((".jpg", ".jpeg")) and (content := archive.extractfile(member)):
                found[member.name] = content.read()
    return [found[name] for name in sorted(found)]
