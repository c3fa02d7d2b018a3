"""Features of a frozen network for recipes: extracted once, kept in the cache, checked before they are used again."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..distributed import gather_texts
from ..images.images import Images
from ..launchlog import warn
from ..manifest import DamagedFile
from ..numerics import wide
from ..views.view import stack_pictures
from .feature_cache import Entry, InTheWay, entry_of, look_up, remove, shrink
from .feature_key import describe_view, feature_key
from .feature_stores import FeatureStores, leads_node
from .features import EvaluationView, extract_taps
from .rounds import ExceedsDtype, StorageFailed
from .taps import SEQUENCES, Taps

ROWS_CHECKED = 8
"""Rows of a cached set that are computed again before the set is used."""

TOLERANCE, COARSE_TOLERANCE = 1e-3, 5e-2
"""By how much of its largest number a row that is computed again may differ, since batches of other sizes round otherwise: on the CPU in
float32; on GPUs, whose products of float32 may have 10 bits, and in half precision."""


def features_of(
    taps: Taps,
    images: Images,
    view: EvaluationView,
    *,
    device: torch.device,
    workers: int = 0,
    cache: int = 0,
    dtype: torch.dtype | None = None,
    batch_size: int = 256,
    weights: str | None = None,
    described: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = warn,
) -> dict[str, Tensor]:
    """The features of all images by the name of their tap, [N, D] or [N, L, D], row i for image i, on the CPU of every process.

    Every process calls it with the same arguments, and has the same numbers. From the cache if they are there: then the file's digest is
    compared and ROWS_CHECKED rows are computed again; else from one pass over the images, each read once. They may be larger than the
    memory: tensors from the cache and from temporary files are mapped. Such a tensor may be written to; the file doesn't change.

    taps: the network and the names. view: an evaluation's; two views that crop otherwise differ in `vars(view)` or in `described`, which
    replaces it in the key. device: where the network is. workers: processes that read pictures.
    cache: bytes of the whole cache, as `limits.size_of` reads `run.feature_cache`; 0: neither read nor written.
    dtype: float32 for all, or float16 where it holds the numbers, else float32; None: float32 for features of one axis, float16 for
    tokens. batch_size: images per forward pass on one process. weights: `weights_digest(taps.backbone)`, to compute it once for many
    sets. log: for lines that are no warnings.

    Raises as `extract` does, and UserError if the features fit neither into memory nor on the disk.
    """
    dtypes = {name: dtype or (torch.float16 if name in SEQUENCES else torch.float32) for name in taps.names}
    settings: dict[str, Any] = {"batch_size": batch_size, "device": device}
    leads = leads_node()
    entries = dict[str, Entry]()
    if cache > 0 and len(images):
        key, failed = dict[str, Any](), ""
        try:
            key = feature_key(taps.backbone, images, described or describe_view(view), weights=weights, **settings)
        except OSError as error:  # the sources of the code cannot be read
            failed = str(error)
        if reasons := [reason for reason in gather_texts(failed) if reason]:
            warn(f"WARNING: features are not cached ({reasons[0]}); this run goes on without the cache")
        else:
            entries = {name: entry_of({"tap": name, "dtype": _spelt(dtypes[name]), **key}) for name in taps.names}
    found = _reused(taps, images, view, entries, leads, device)
    if entries and leads:
        shrink(cache)
    missing = taps.only([name for name in taps.names if name not in found])
    if missing.names:
        entries = {name: entry for name, entry in entries.items() if name in missing.names}
        stores = FeatureStores(len(images), dtypes, entries, cache, leads, device, log)
        found |= _extracted(missing, images, view, stores, workers=workers, **settings)
    return {name: found[name] for name in taps.names}


def _spelt(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return "float16, or float32 where that cannot hold the numbers" if dtype == torch.float16 else name


def _extracted(
    taps: Taps, images: Images, view: EvaluationView, stores: FeatureStores, **settings: Any
) -> dict[str, Tensor]:
    """From a pass over the images; from another one, where the first could not be stored."""
    axes = {name: taps.axes(name) for name in taps.names}
    while True:
        try:
            return extract_taps(taps, images, view, axes, stores, **settings)
        except StorageFailed as error:
            stores.give_up(str(error))
        except ExceedsDtype as error:
            stores.log(
                f"features {', '.join(error.names)}: float16 cannot hold some; they are extracted again in float32"
            )
            stores.dtypes.update(dict.fromkeys(error.names, torch.float32))


def _reused(
    taps: Taps,
    images: Images,
    view: EvaluationView,
    entries: Mapping[str, Entry],
    leads: bool,
    device: torch.device,
) -> dict[str, Tensor]:
    """The features that are in the cache of every machine and are right, by name. Damaged entries are removed, and named in a warning."""
    if not entries:
        return {}
    found, missing = _opened(entries, check=True) if leads else ({}, {})
    missing = _from_all(missing)
    usable = {name: entry for name, entry in entries.items() if name not in missing}
    if not leads:
        found, lost = _opened(usable, check=False)
    else:
        found, lost = {name: found[name] for name in usable}, {}
    wrong = _from_all(_different_rows(taps.only(list(found)), images, view, entries, found, device))
    for name in wrong if leads else ():
        remove(entries[name])
    lost = _from_all(lost | wrong)
    for reason in [*missing.values(), *lost.values()]:
        if reason:
            warn(f"WARNING: {reason}")
    return {name: rows for name, rows in found.items() if name not in lost}


def _opened(entries: Mapping[str, Entry], check: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The features that are there, and why others are not: "" for those that nobody made yet."""
    found: dict[str, Tensor] = {}
    missing: dict[str, str] = {}
    for name, entry in entries.items():
        try:
            rows = look_up(entry, check)
            if rows is None:
                missing[name] = ""
            else:
                found[name] = rows
        except DamagedFile as error:
            missing[name] = f"{error}; it is made anew"
            remove(entry)
        except InTheWay as error:
            missing[name] = f"{error}; its features are computed"
        except (OSError, RuntimeError):  # no folder that can be read; that it cannot be written either is said then
            missing[name] = ""
    return found, missing


def _from_all(own: Mapping[str, str]) -> dict[str, str]:
    """Reasons by name from all processes, the same on all."""
    every: dict[str, str] = {}
    for text in gather_texts(json.dumps(own)):
        for name, reason in json.loads(text).items():
            every[name] = every.get(name) or reason
    return every


def rows_to_check(entry: Entry, n: int) -> list[int]:
    """The rows of an entry of n images that are computed again, ascending: by a hash of its name, so always the same."""
    rows = set[int]()
    for number in itertools.count():
        if len(rows) == min(ROWS_CHECKED, n):
            break
        digest = hashlib.sha256(f"{entry.name}/{number}".encode()).digest()
        rows.add(int.from_bytes(digest[:8], "big") % n)
    return sorted(rows)


def _different_rows(
    taps: Taps,
    images: Images,
    view: EvaluationView,
    entries: Mapping[str, Entry],
    found: Mapping[str, Tensor],
    device: torch.device,
) -> dict[str, str]:
    """Why features are not what the network gives now, by name; nothing of those that are."""
    if not taps.names:
        return {}
    rows = rows_to_check(entries[taps.names[0]], len(images))
    pictures = stack_pictures([view.worker(images.read(row)) for row in rows])
    with torch.inference_mode():
        anew = taps(view(pictures.to(device)))
    half = any(part.dtype in (torch.float16, torch.bfloat16) for part in anew.values())
    tolerance = TOLERANCE if device.type == "cpu" and not half else COARSE_TOLERANCE
    wrong: dict[str, str] = {}
    for name, part in anew.items():
        now, before = wide(part).cpu().flatten(1), wide(found[name][rows]).flatten(1)
        if now.shape != before.shape:
            wrong[name] = (
                f"{entries[name].data} holds features of another shape than the network gives; it is made anew"
            )
            continue
        apart = (now - before).abs().amax(1) / now.abs().amax(1).clamp(min=torch.finfo(now.dtype).tiny)
        if not bool((apart <= tolerance).all()):
            worst = int(apart.nan_to_num(nan=torch.inf).argmax())
            wrong[name] = (
                f"{entries[name].data} holds other features than the network gives (of picture {rows[worst]}, they differ by "
                f"{float(apart[worst]):.1e} of the largest number); it is made anew"
            )
    return wrong
