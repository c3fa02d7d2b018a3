"""What features depend on, in plain words: the key of an entry in the cache of features.

Whatever can move a number is here, most of it by content: weights, pictures in their order, the view, the source code. What is not here
moves numbers by rounding alone: the number of processes and threads, the model of the processor.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..distributed import unsharded
from ..environment import version_of
from ..images.images import Images
from ..images.pack.reader import PackStore
from ..model.backbone import Backbone
from ..model.identity import backbone_facts

PACKAGE_FOLDER = Path(__file__).resolve().parents[2]
FEATURE_SOURCES = (
    "core/model",
    "core/views",
    "core/images",
    "core/draws.py",
    "core/evaluate/augmented.py",
    "core/evaluate/features.py",
    "core/evaluate/maps.py",
    "core/evaluate/rounds.py",
    "core/evaluate/taps.py",
    "core/numerics.py",
    "finetune/baselines",
)
"""The source code that can move a feature."""

LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "peft",
    "numpy",
    "Pillow",
    "simplejpeg",
    "scikit-learn",
    "nibabel",
    "pydicom",
    "faiss-cpu",
    "opencv-python-headless",
)
"""The packages that decode or draw a picture, or compute a feature; those that bring bytes alone are not here."""


def feature_key(
    backbone: Backbone,
    images: Images,
    view: Mapping[str, Any],
    *,
    device: torch.device,
    batch_size: int,
    weights: str | None = None,
) -> dict[str, Any]:
    """What the features of a set depend on, without the tap and the dtype; as JSON can hold it.

    view: as `describe_view` gives it. weights: `weights_digest(backbone)`, where it is known already.
    """
    return {
        "network": {
            **backbone_facts(backbone),
            "layers": hashlib.sha256(str(backbone.model).encode()).hexdigest(),
        },
        "weights": weights or weights_digest(backbone),
        "view": dict(view),
        "images": images_key(images),
        "device": device.type,
        "precision": precision_of(device),
        "batch_size": batch_size,
        "code": feature_code_version(),
    }


def describe_view(view: object) -> dict[str, Any]:
    """All that a view holds, with the name of its class: its sides, interpolation, mean and std."""
    return {"class": type(view).__qualname__, **vars(view)}


def weights_digest(model: nn.Module) -> str:
    """sha256 (hex) over the names, shapes, dtypes and bytes of all parameters and buffers, as they are in the memory now."""
    return state_digest({**model.state_dict(), **dict(model.named_buffers())})  # buffers that are not saved count too


def state_digest(state: Mapping[str, Any]) -> str:
    """sha256 (hex) over the names, shapes, dtypes and bytes of some tensors."""
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        if isinstance(value, Tensor):
            value = unsharded(value.detach()).cpu().contiguous()
            found.update(f"{name}\t{value.dtype}\t{tuple(value.shape)}\n".encode())
            found.update(value.flatten().view(torch.uint8).numpy().data)
        else:
            found.update(f"{name}\t{value!r}\n".encode())
    return found.hexdigest()


def images_key(images: Images) -> dict[str, Any]:
    """What tells the pictures of a set and their order, by content: a picture that changed in place has another identity.

    order: sha256 over stamp and identity of each picture in turn. shapes: of the stores whose pictures have one shape: the identity of an
    array is that of its bytes alone. packs: of the packs among the stores the digest of their index, which
    has the checksum of every record: a pack of smaller copies has the identities of the originals.
    """
    order = hashlib.sha256(images.keys().numpy().astype(">i8").tobytes())
    for i in range(len(images)):
        order.update(f"{images.stamp(i)}\n".encode("utf-8", "surrogateescape"))
    order.update(np.array(images.places(), dtype=">i8").tobytes() if len(images.stores) > 1 else b"")
    shapes = [uniform and [*uniform.shape, str(uniform.dtype)] for uniform in (s.uniform() for s in images.stores)]
    packs = [_pack_digest(store) for store in images.stores if isinstance(store, PackStore)]
    return {
        "number": len(images),
        "fingerprint": images.unlabelled().fingerprint(),  # a label changes no feature
        "split": images.split_hash(),
        "order": order.hexdigest(),
        "shapes": shapes,
        **({"packs": packs} if packs else {}),
    }


def _pack_digest(store: PackStore) -> str:
    found = hashlib.sha256()
    for name in ("kinds", "shapes", "checksums"):
        found.update(store.index[name].contiguous().numpy().tobytes())
    return found.hexdigest()


def precision_of(device: torch.device) -> str:
    """How products of matrices are computed: the dtype of autocast, else torch's setting for float32."""
    if torch.is_autocast_enabled(device.type):
        return f"autocast {str(torch.get_autocast_dtype(device.type)).removeprefix('torch.')}"
    return f"float32, {torch.get_float32_matmul_precision()}"


@functools.cache
def feature_code_version() -> dict[str, str]:
    """sha256 of the source code that can move a feature, and the versions of the libraries that do."""
    found = hashlib.sha256()
    for source in FEATURE_SOURCES:
        place = PACKAGE_FOLDER / source
        for path in [place] if place.suffix else sorted(place.rglob("*.py")):
            found.update(f"{path.relative_to(PACKAGE_FOLDER)}\n".encode())
            found.update(path.read_bytes())
    return {"sources": found.hexdigest(), **{name: version_of(name) for name in LIBRARIES}}
