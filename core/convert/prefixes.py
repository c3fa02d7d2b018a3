"""Networks below a prefix that no project of core/convert/names.py uses, such as `model.` or `net.encoder.`."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import timm

from ..config.messages import spelt
from ..errors import UserError
from .file import Contents
from .names import unwrapped

# A network is known by its first layer and by one that follows: a ResNet, a ViT (blocks plain or in chunks), a Swin.
_PAIRS = (
    ("conv1.weight", "layer1.0.conv1.weight"),
    ("patch_embed.proj.weight", "blocks.0.norm1.weight"),
    ("patch_embed.proj.weight", "blocks.0.0.norm1.weight"),
    ("patch_embed.proj.weight", "layers.0.blocks.0.norm1.weight"),
)


def prefixes_of(contents: Contents, name: str | None) -> list[str]:
    """What stands before the names of the networks in a file, shortest first. name: a timm model to look for as well."""
    names = {unwrapped(key) for group in contents.groups.values() for key in group}
    found = {
        key.removesuffix(first)
        for first, second in _PAIRS
        for key in names
        if key.endswith(first) and key.removesuffix(first) + second in names
    }
    config = timm.get_pretrained_cfg(name) if name is not None and timm.is_model(name) else None
    if config is not None and isinstance(config.first_conv, str):
        first = f"{config.first_conv}.weight"
        alone = {key.removesuffix(first) for key in names if key.endswith(first)}
        # A first layer called conv1 has namesakes inside the network's blocks, which are no networks of their own.
        found |= {key for key in alone if not any(key != above and key.startswith(above) for above in found | alone)}
    return sorted(
        (prefix for prefix in found if prefix == "" or prefix.endswith(".")), key=lambda text: (len(text), text)
    )


def only_prefix(contents: Contents, name: str | None, known: Collection[str] = ()) -> str | None:
    """The prefix of a file's only network; None if there is none, or none but what the project itself looks for (known).

    Raises UserError if there are several.
    """
    found = prefixes_of(contents, name)
    if any(prefix in known for prefix in found):
        return None
    if len(found) > 1:
        shown = ", ".join(spelt(prefix) if prefix else "no prefix" for prefix in found)
        raise UserError(
            f"{contents.path}: holds several networks (under {shown}); choose one with --prefix, for example --prefix {found[-1]}"
        )
    return found[0] if found and found[0] else None


def without_prefix(contents: Contents, prefix: str) -> tuple[Contents, list[str]]:
    """The tensors below a prefix, with their names after it; and the names of the others, with their places. Raises UserError."""
    wanted, every = unwrapped(prefix), [unwrapped(key) for group in contents.groups.values() for key in group]
    dotted = wanted if wanted.endswith(".") or not wanted else f"{wanted}."
    wanted = dotted if any(key.startswith(dotted) for key in every) else wanted
    groups = {
        place: {
            unwrapped(key).removeprefix(wanted): tensor
            for key, tensor in group.items()
            if unwrapped(key).startswith(wanted)
        }
        for place, group in contents.groups.items()
    }
    if not any(groups.values()):
        raise UserError(
            f"--prefix: no tensor of {contents.path} begins with {spelt(prefix)}; they begin with "
            f"{', '.join(_beginnings(every)) or 'nothing'}"
        )
    others = [
        f"{place}/{unwrapped(key)}".lstrip("/")
        for place, group in contents.groups.items()
        for key in group
        if not unwrapped(key).startswith(wanted)
    ]
    return contents._replace(groups={place: group for place, group in groups.items() if group}), others


def _beginnings(names: Iterable[str]) -> list[str]:
    """The first parts of dotted names, at most five."""
    return [spelt(f"{first}.") for first in dict.fromkeys(name.partition(".")[0] for name in names if "." in name)][:5]
