"""Whether all processes were given the same: config, code and data. Otherwise they would train different weights, or wait for ever."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .distributed import connected, gather_texts
from .documents import flattened
from .environment import version_of
from .errors import UserError

# Keys of the section `run` that may differ between processes, and why.
MAY_DIFFER: Mapping[str, str] = {
    "dir": "nodes may mount the shared disk under different names; only rank 0 writes there, and what others read there is compared",
    "workers": "how many processes decode pictures depends on the cores of a node and changes no result",
    "decoded_cache": "how many decoded pictures are kept depends on the memory of a node and changes no result",
    "resident": "where pixels are held depends on the memory of a node and changes no result",
}
# What computes the numbers, beside our own code.
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow")
SOURCES = ("core", "ssl", "finetune", "adapt", "launch")
DIFFERENCES_NAMED = 3  # differences that a message names


def same_everywhere(facts: Mapping[str, Any], what: str, remedy: str) -> None:
    """Raise UserError on every process if the facts of one differ from those of another; on one process, do nothing.

    facts: JSON values by name, nested mappings by dotted name. what: for example "configs". remedy: the end of the sentence.
    """
    if not connected():
        return
    texts = gather_texts(json.dumps(flattened(facts), sort_keys=True, default=str))
    if found := differences([json.loads(text) for text in texts]):
        more = f"; and {len(found) - DIFFERENCES_NAMED} more" if len(found) > DIFFERENCES_NAMED else ""
        raise UserError(f"the processes have different {what} ({'; '.join(found[:DIFFERENCES_NAMED])}{more}); {remedy}")


def differences(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each name whose values differ, the values and who has them: `optim.lr: 0.1 on rank 0, 0.2 on ranks 1, 2`."""
    found = []
    for name in sorted({name for own in facts for name in own}, key=lambda name: (name != "verb", name)):
        holders: dict[str, list[int]] = defaultdict(list)
        for rank, own in enumerate(facts):
            holders[json.dumps(own[name]) if name in own else "absent"].append(rank)
        if len(holders) > 1:
            found.append(f"{name}: {', '.join(f'{value} on {ranks_in_words(who)}' for value, who in holders.items())}")
    return found


def ranks_in_words(ranks: Sequence[int]) -> str:
    """`rank 3` or `ranks 0, 1, 2, ... (64)`."""
    shown = [str(rank) for rank in ranks[:8]] + ([f"... ({len(ranks)})"] if len(ranks) > 8 else [])
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(shown)}"


def compared_config(verb: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config without the keys that may differ between processes."""
    options = {key: value for key, value in config["run"].items() if key not in MAY_DIFFER}
    return {"verb": verb, **config, "run": options}


def code_version() -> dict[str, str]:
    """The first digits of the sha256 of each of our source files, and the versions of the packages that compute."""
    root = Path(__file__).resolve().parents[1]
    found: dict[str, str] = {}
    for path in sorted(path for folder in SOURCES for path in (root / folder).rglob("*.py")):
        found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return found | {name: version_of(name) for name in PACKAGES}
