"""Images in arrays: `idx:` (the format of MNIST) and `npz:` (NumPy). Read into memory as a whole, since these sets are small."""

import gzip
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...printable import printable
from ..pixels import full_range
from ..store import ArrayStore, Source, number_classes
from .files import checked_bits

IDX_IMAGES = re.compile(r"(.*?)[-_.]?images[-.]idx\d-ubyte(\.gz)?")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "t10k": "test"}
IMAGE_WORDS = ("x", "images", "image", "imgs", "data")
LABEL_WORDS = ("y", "labels", "label", "targets")
LAYOUTS = {"NHW": (0, 1, 2), "NHWC": (0, 3, 1, 2), "NCHW": (0, 1, 2, 3)}


def array_source(title: str, parts: Mapping[str, tuple[Tensor, Tensor | None]]) -> Source:
    """One Source from parts: split name ('' if there are no splits) to pixels [N, C, H, W] and labels [N].

    Class names are the labels as text. Raises UserError if counts or shapes differ, or only some parts have labels.
    """
    for name, (pixels, labels) in parts.items():
        if labels is not None and len(labels) != len(pixels):
            counts = f"{len(pixels)} pictures and {len(labels)} labels"
            raise UserError(f"{title}: {name or 'it'} has {counts}; they must be equally many")
    shapes = {tuple(pixels.shape[1:]) for pixels, _ in parts.values()}
    if len(shapes) > 1:
        raise UserError(f"{title}: its splits hold pictures of different shapes {sorted(shapes)}; make a set of each")
    pixels = torch.cat([part for part, _ in parts.values()])
    if not len(pixels):
        raise UserError(f"{title}: it holds no pictures")
    ends = np.cumsum([0, *(len(part) for part, _ in parts.values())])
    splits = {name: torch.arange(ends[k], ends[k + 1]) for k, name in enumerate(parts) if name}
    given = [labels for _, labels in parts.values() if labels is not None]
    if not given or len(given) < len(parts):
        return Source(ArrayStore(pixels, title), splits=splits)
    labels, classes = number_classes([str(label) for label in torch.cat(given).tolist()])
    return Source(ArrayStore(pixels, title), labels, classes, splits)


def open_idx(path: str, split: str | None) -> Source:
    """idx:PATH, a folder of IDX files (train-images..., t10k-images...) or one images file, gzip or not."""
    title, place = f"idx:{path}", Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{title}: there is no {printable(str(place))}; check the path")
    files = idx_files(place, title) if place.is_dir() else {"": place}
    parts: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name, images in files.items():
        pixels = read_idx(images)
        if pixels.ndim not in (3, 4):
            raise UserError(
                f"{printable(str(images))}: its values are {list(pixels.shape)}; expected [N, H, W] or [N, C, H, W]"
            )
        stack = torch.from_numpy(pixels if pixels.ndim == 4 else pixels[:, None])
        labels = labels_beside(images)
        parts[name] = stack, None if labels is None else torch.from_numpy(read_idx(labels).astype(np.int64))
    return array_source(title, parts)


def idx_files(folder: Path, title: str) -> dict[str, Path]:
    """The image files of a folder by split; if a file also exists as .gz, the uncompressed one is used."""
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if not (match := IDX_IMAGES.fullmatch(file.name)) or file.name.startswith("."):
            continue
        words = re.split(r"[-_.]", match.group(1))
        name = next((SPLITS[word] for word in words if word in SPLITS), match.group(1) or "all")
        if name in files and files[name].name != file.name.removesuffix(".gz"):
            raise UserError(
                f"{title}: both {files[name].name} and {file.name} are its {name} pictures; name one file in the URI"
            )
        files.setdefault(name, file)
    if not files:
        raise UserError(
            f"{title}: no IDX pictures there; expected files like train-images-idx3-ubyte or train-images-idx3-ubyte.gz"
        )
    return dict(
        sorted(files.items(), key=lambda item: list(SPLITS.values()).index(item[0]) if item[0] in SPLITS else 99)
    )


def labels_beside(images: Path) -> Path | None:
    """train-images-idx3-ubyte.gz -> train-labels-idx1-ubyte.gz (or without .gz), if it is there."""
    name = re.sub(r"idx\d", "idx1", images.name.replace("images", "labels")).removesuffix(".gz")
    if name == images.name.removesuffix(".gz"):
        return None
    return next((file for file in (images.with_name(name), images.with_name(name + ".gz")) if file.is_file()), None)


def read_idx(file: Path) -> np.ndarray:
    """An IDX file of bytes: two zeros, a type code, the number of dimensions, their sizes (big-endian), the values.

    Raises UserError if the file is damaged, cut short or of another type.
    """
    where = printable(str(file))
    try:
        content = file.read_bytes()
        content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{where}: cannot be read ({error}); fetch it again") from None
    if len(content) < 4 or content[:2] != b"\0\0":
        raise UserError(f"{where}: not an IDX file (it must begin with two zero bytes)")
    if content[2] != 0x08:
        raise UserError(f"{where}: its values are not bytes (type code {content[2]:#04x}); expected 0x08")
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start].ljust(start - 4, b"\0"), dtype=">u4").astype(np.int64).tolist()
    expected = start + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise UserError(f"{where}: {len(content)} bytes where {expected} are announced {shape}; fetch it again")
    return np.frombuffer(bytearray(content), dtype=np.uint8, offset=start).reshape(shape)


def open_npz(
    path: str,
    split: str | None,
    *,
    images: str | None = None,
    labels: str | None = None,
    layout: str = "auto",
    bits: int | None = None,
) -> Source:
    """npz:FILE with x or images (y or labels) or, by split, train_images, x_test and the like.

    images, labels: the names of the arrays, if they have other names. layout: NHW, NHWC or NCHW; auto infers it from the shape.
    Pixels are uint8 or uint16. bits: how many bits of uint16 are used, as of `folder:`.
    """
    title, file = f"npz:{path}", Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{title}: there is no such file; check the path")
    if layout not in ("auto", *LAYOUTS):
        raise UserError(f"{title}: layout={layout} is unknown (known: auto, {', '.join(LAYOUTS)})")
    try:
        # opened here, since np.load leaves files open that it cannot read
        with open(file, "rb") as content:
            archive = np.load(content, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{title}: a single array; expected an .npz of named arrays")
            chosen = npz_keys(archive.files, images, labels, title)
            arrays = {key: archive[key] for pair in chosen.values() for key in pair if key}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        # for a file that is no archive, numpy suggests loading it as a pickle if it is trusted, which is bad advice
        reason = error if zipfile.is_zipfile(file) else "it is no .npz file"
        raise UserError(
            f"{title}: cannot be read ({reason}); expected arrays of numbers saved by numpy.savez"
        ) from None
    parts = {}
    for name, (image_key, label_key) in chosen.items():
        where = f"{title}: {image_key}"
        pixels = full_range(as_nchw(arrays[image_key], layout, where), checked_bits(bits, title) or 16, where)
        parts[name] = pixels, as_labels(arrays[label_key], f"{title}: {label_key}") if label_key else None
    return array_source(title, parts)


def npz_keys(
    keys: Iterable[str], images: str | None, labels: str | None, title: str
) -> dict[str, tuple[str, str | None]]:
    """Split name ('' for none) to the names of its arrays of images and labels."""
    listed = list(keys)
    for key in (images, labels):
        if key is not None and key not in listed:
            raise UserError(f"{title}: it has no array {key} (it has: {', '.join(listed)})")
    if images is not None:
        return {"": (images, labels)}
    found: dict[str, dict[str, str]] = {"image": {}, "label": {}}
    for key in listed:
        words = key.lower().split("_")
        name = next((SPLITS[word] for word in words if word in SPLITS), "")
        rest = [word for word in words if word not in SPLITS]
        for role, known in ("image", IMAGE_WORDS), ("label", LABEL_WORDS):
            if len(rest) == 1 and rest[0] in known:
                if name in found[role]:
                    raise UserError(
                        f"{title}: both {found[role][name]} and {key} may be its {role}s; add ?images=KEY&labels=KEY"
                    )
                found[role][name] = key
    if not found["image"]:
        raise UserError(
            f"{title}: no array is called like images (it has: {', '.join(listed)}); add ?images=KEY&labels=KEY"
        )
    if "" in found["image"] and len(found["image"]) > 1:
        raise UserError(
            f"{title}: it has pictures with and without a split ({', '.join(found['image'].values())}); add ?images=KEY"
        )
    return {name: (key, labels or found["label"].get(name)) for name, key in found["image"].items()}


def as_nchw(array: np.ndarray, layout: str, where: str) -> Tensor:
    """uint8 or uint16 [N, C, H, W] from any of LAYOUTS. Raises UserError for other dtypes, or if the layout is ambiguous."""
    if array.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise UserError(
            f"{where} holds {array.dtype}; expected uint8 or uint16; save for example (255 * x).round().astype('uint8')"
        )
    if layout == "auto":
        few_first, few_last = (array.ndim == 4 and array.shape[axis] <= 4 for axis in (1, -1))
        if array.ndim not in (3, 4) or (array.ndim == 4 and few_first == few_last):
            raise UserError(
                f"{where} has the shape {list(array.shape)}: the axis of the channels is ambiguous; add ?layout=NCHW or ?layout=NHWC"
            )
        layout = "NHW" if array.ndim == 3 else "NCHW" if few_first else "NHWC"
    if array.ndim != len(layout):
        raise UserError(f"{where} has the shape {list(array.shape)}, which is not {layout}")
    moved = array[:, None] if layout == "NHW" else array.transpose(LAYOUTS[layout])
    native = np.ascontiguousarray(moved, dtype=moved.dtype.newbyteorder("="))
    return torch.from_numpy(native)


def as_labels(array: np.ndarray, where: str) -> Tensor:
    """int64 [N] from whole numbers [N] or [N, 1]."""
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or not np.issubdtype(flat.dtype, np.integer):
        raise UserError(
            f"{where} holds {array.dtype} {list(array.shape)}; expected one whole number for each picture, [N]"
        )
    return torch.from_numpy(flat.astype(np.int64))
