"""Opening pictures by URI: sources, splits, unions. The public entry to this folder.

    folder:PATH  tar:PATH  tar:SHARDS-{000..127}.tar  pack:FOLDER  idx:PATH  npz:PATH  list:FILE  csv:FILE
    parquet:PATH  hf:FOLDER  dicom:PATH  nifti:PATH  tar:s3://BUCKET/SHARDS-{000..127}.tar  pack:s3://BUCKET/PACK
    torchvision:NAME?root=DIR  sklearn:digits  sklearn:digits-m   #train  #[:80%,seed=0]  #train[20%:60%,seed={seed}]

Labels are dropped here for the role `unlabelled`, so that they cannot leak.
"""

import errno
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..errors import UserError
from .groups import NO_GROUP
from .images import Images
from .notes import merged, with_alike
from .pack.reader import open_pack
from .parts import apply_fragment, holdout, natural_split, needs_name, refuse_cut
from .places import abridged, place_named, reason_of, titled
from .remote.address import is_remote
from .several import among_classes, has_several
from .sources import digits
from .sources.dicom import open_dicom
from .sources.files import open_folder
from .sources.hf import open_hf
from .sources.idx import open_idx
from .sources.listed import open_csv, open_list
from .sources.nifti import open_nifti
from .sources.npz import open_npz
from .sources.parquet import open_parquet
from .sources.tar import open_tar
from .sources.torchvision_sets import open_torchvision
from .split import Fragment, parse_fragment
from .store import DamagedImage, Source, number_classes
from .uri import Uri, keyword_options, parse_uri, suggestion

__all__ = ["DamagedImage", "Images", "holdout", "open_images", "open_with_splits"]

Role = Literal["train", "test", "unlabelled"]

# An opener takes the path, the first split that the URI names (or None), and the URI's options as keyword-only parameters.
SCHEMES: dict[str, Callable[..., Source]] = {
    "folder": open_folder,
    "tar": open_tar,
    "pack": open_pack,
    "idx": open_idx,
    "npz": open_npz,
    "torchvision": open_torchvision,
    "list": open_list,
    "csv": open_csv,
    "parquet": open_parquet,
    "hf": open_hf,
    "dicom": open_dicom,
    "nifti": open_nifti,
}

OF_OBJECTS = ("tar", "pack", "parquet")
"""The schemes whose path can be an address, such as s3://bucket/key."""


def open_images(uri: str | Sequence[str], *, seed: int = 0, role: Role = "train", undrawn: bool = False) -> Images:
    """Open one URI, or several as a union with one domain each; `{seed}` inside a URI stands for `seed`.

    role: `unlabelled` drops the labels and refuses `stratify`, so that labels cannot influence a split. undrawn: opens the whole set
    instead of the part that a seed, dirichlet or longtail draws from it.
    Raises UserError for a URI that cannot be opened.
    """
    texts = [uri] if isinstance(uri, str) else list(uri)
    if not texts:
        raise UserError("no image URI is given; expected for example folder:PATH")
    uris = [parsed(text, seed) for text in texts]
    repeated = [one.text for k, one in enumerate(uris) if one.text in [other.text for other in uris[:k]]]
    if repeated:
        raise UserError(f"{repeated[0]} is given twice in one union; its pictures would count double")
    opened = [open_one(one, role, undrawn) for one in uris]
    images = opened[0][0] if len(opened) == 1 else union(uris, opened, role)
    return images.unlabelled() if role == "unlabelled" else images


def open_with_splits(uri: str | Sequence[str]) -> tuple[Images, Mapping[str, Tensor]]:
    """The images and the splits (name to int64 indices) that a copy of a set needs.

    If the URI names no split, all images are opened, with the source's own splits. If all images come from one split (#train, also
    sliced or from several sets), that is the only split: otherwise #test of the copy would be a part of the training images.
    Other parts and unions have no splits.
    """
    uris = [parsed(text) for text in ([uri] if isinstance(uri, str) else uri)]
    if len(uris) != 1 or uris[0].fragments not in ((), ("all",)):
        images = open_images(uri)
        names = {split_name(one) for one in uris}
        name = names.pop() if len(names) == 1 else None
        return images, {} if name is None else {name: torch.arange(len(images))}
    (location,) = uris
    source = open_source(location, "all")
    if needs_name(source) and not location.fragments:
        location = location._replace(text=f"{location.text}#all")
    return images_of_source(location, source), source.splits


def split_name(uri: Uri) -> str | None:
    """The last split that a URI names: train for #train, #train[:80%] and #all#train."""
    names = [parse_fragment(fragment).name for fragment in uri.fragments]
    return next((name for name in reversed(names) if name not in (None, "all")), None)


def parsed(text: str, seed: int = 0) -> Uri:
    return parse_uri(text.replace("{seed}", str(seed)))


def images_of_source(uri: Uri, source: Source) -> Images:
    """All images of a source."""
    count = len(source.store)
    return Images(
        uri.text,
        [source.store],
        torch.zeros(count, dtype=torch.int64),
        torch.arange(count),
        labels=source.labels,
        classes=source.classes,
        domains=torch.zeros(count, dtype=torch.int64) if source.domains is None else source.domains,
        domain_names=source.domain_names or (short_name(uri),),
        groups=source.groups,
        notes=with_alike(source.notes, source.classes),
        folders=() if source.folder is None else (source.folder,),
    )


def open_one(uri: Uri, role: Role, undrawn: bool = False) -> tuple[Images, bool]:
    """Open one URI and apply its splits. Also returns whether the source itself has domains."""
    fragments = [fragment_of(uri, text, role) for text in uri.fragments]
    first = fragments[0].name if fragments else None
    source = open_source(uri, first)
    images = images_of_source(uri, source)
    if source.splits:
        images = images.select(natural_split(uri, source, first))
        if fragments and "[" in uri.fragments[0] and not (fragments[0].sliced or fragments[0].drawn):
            raise UserError(f"{uri.text}: the set's own split has no seed; add a slice like :80%, or drop the brackets")
        fragments = [fragments[0]._replace(name=None), *fragments[1:]] if fragments else []
    else:
        refuse_cut(uri, source, fragments)
    for fragment in takewhile(lambda one: not (undrawn and one.one_of_many), fragments):
        images = apply_fragment(uri, images, fragment)
    return images, source.domains is not None


def fragment_of(uri: Uri, text: str, role: Role) -> Fragment:
    try:
        fragment = parse_fragment(text)
    except UserError as error:
        raise UserError(f"{uri.location}{error}") from None
    if fragment.stratify and role == "unlabelled":
        raise UserError(f"{uri.text}: stratify reads labels, but these pictures are used as unlabelled; remove it")
    return fragment


def open_source(uri: Uri, split: str | None) -> Source:
    """Call the scheme's opener with the URI's options."""
    if uri.scheme == "sklearn":
        if uri.path not in digits.DIGIT_SETS:
            near = suggestion(uri.path[:100], digits.DIGIT_SETS)
            raise UserError(f"{abridged(uri.text)}: unknown set sklearn:{abridged(uri.path, 40)}{near}")
        opener = digits.DIGIT_SETS[uri.path]
        return opener(**keyword_options(opener, uri))
    if uri.scheme not in SCHEMES:
        known = [*SCHEMES, "sklearn"]
        raise UserError(
            f"{abridged(uri.text)}: unknown scheme {abridged(uri.scheme, 40)}{suggestion(uri.scheme[:100], known)}"
        )
    if is_remote(uri.path) and uri.scheme not in OF_OBJECTS:
        raise UserError(
            f"{abridged(uri.text)}: objects are read by tar:, pack: and parquet: alone; put the pictures into .tar files there, or "
            "fetch them to a folder"
        )
    opener = SCHEMES[uri.scheme]
    options = keyword_options(opener, uri)
    if uri.scheme == "folder":
        place_named(uri.path, titled(uri.scheme, uri.path))
    try:
        return opener(uri.path, split, **options)
    except OSError as error:
        if error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EPIPE,
        ):  # they have a message and an exit code of their own
            raise
        place = f"{abridged(str(error.filename))} " if error.filename else ""
        raise UserError(
            f"{abridged(uri.text)}: {place}cannot be opened ({reason_of(error)}); check the path and its permissions"
        ) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(
            error
        ):  # torch has no class of its own for it
            raise
        raise UserError(f"{abridged(uri.text)}: it needs more memory than there is; make parts of the set") from None


def short_name(uri: Uri) -> str:
    """A domain's name: the last part of the path (or of ?under=) without file extensions."""
    name = Path(uri.options.get("under") or uri.path).name or uri.path
    while Path(name).suffix in (".gz", ".bz2", ".xz", ".tar", ".tgz", ".npz", ".parquet", ".csv", ".tsv", ".txt"):
        name = Path(name).stem
    return name


def union(uris: Sequence[Uri], opened: Sequence[tuple[Images, bool]], role: Role) -> Images:
    """Several Images as one. Classes and domains with equal names are merged; equal short names of domains become URIs.

    opened: the result of `open_one` for each URI.
    """
    parts = [part for part, _ in opened]
    labelled = all_or_none_labelled(parts, role)
    names = names_of_domains(uris, opened)
    domain_names = tuple(dict.fromkeys(name for group in names for name in group))
    classes = tuple(dict.fromkeys(name for part in parts for name in part.classes or ()))
    if any(part.classes and set(part.classes) != set(classes) for part in parts):
        classes = number_classes(classes)[1]
    offsets = torch.tensor([0, *(len(part._stores) for part in parts)]).cumsum(0).tolist()
    numbers = among_classes if any(has_several(part.labels) for part in parts) else renamed
    labels = [
        numbers(part.labels, part.classes or (), classes) for part in parts if labelled and part.labels is not None
    ]
    return Images(
        " + ".join(part.uri for part in parts),
        [store for part in parts for store in part._stores],
        torch.cat([part._which + offset for part, offset in zip(parts, offsets, strict=False)]),
        torch.cat([part._index for part in parts]),
        labels=torch.cat(labels) if labelled else None,
        classes=classes or None,
        domains=torch.cat(
            [renamed(part.domains, group, domain_names) for part, group in zip(parts, names, strict=True)]
        ),
        domain_names=domain_names,
        groups=groups_of(parts),
        notes=with_alike(merged(part.notes for part in parts), classes),
        folders=tuple(folder for part in parts for folder in part.folders),
    )


def groups_of(parts: Sequence[Images]) -> Tensor | None:
    """The groups of a union; without any in a part, each of its images is its own."""
    if all(part.groups is None for part in parts):
        return None
    alone = [torch.full((len(part),), NO_GROUP, dtype=torch.int64) for part in parts]
    return torch.cat([one if part.groups is None else part.groups for part, one in zip(parts, alone, strict=True)])


def all_or_none_labelled(parts: Sequence[Images], role: Role) -> bool:
    """Whether all parts of a union have labels. Raises UserError if only some have them, unless the role drops labels."""
    labelled = [part.labels is not None for part in parts]
    if role != "unlabelled" and len(set(labelled)) > 1:
        with_labels, without = parts[labelled.index(True)].uri, parts[labelled.index(False)].uri
        raise UserError(
            f"{with_labels} has labels and {without} has none; a union needs them in all of its sets or in none"
        )
    kinds = {has_several(part.labels): part.uri for part in parts if part.labels is not None}
    if len(kinds) > 1 and role != "unlabelled":
        raise UserError(
            f"{kinds[True]} may have several classes an image and {kinds[False]} has one; a union needs one kind (?several= for all)"
        )
    return all(labelled) and len(kinds) == 1


def names_of_domains(uris: Sequence[Uri], opened: Sequence[tuple[Images, bool]]) -> list[tuple[str, ...]]:
    """The domain names of each part of a union; where the short names of two parts are equal, their URIs."""
    shorts = [part.domain_names[0] for part, has_domains in opened if not has_domains]
    names: list[tuple[str, ...]] = []
    for uri, (part, has_domains) in zip(uris, opened, strict=True):
        clash = not has_domains and shorts.count(part.domain_names[0]) > 1
        names.append((uri.text,) if clash else part.domain_names)
    return names


def renamed(index: Tensor, names: Sequence[str], among: Sequence[str]) -> Tensor:
    """Indices into `names` -> indices of the same names into `among`."""
    return torch.tensor([among.index(name) for name in names], dtype=torch.int64)[index]
