"""The probes of `rootstock try`: on how many of the labelled pictures, by what a hundred of them cost on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...core.config.yaml_file import override_of
from ...core.errors import UserError
from ...core.images.open import open_images
from .pictures import FEWEST_PICTURES, GivenSet

PROBES = "probe/small.yaml"
TIMED_PICTURES, FEWEST_TIMED = 128, 32
PROBED = 0.3
"""The part of the planned time that the probes may take; of more labelled pictures a part is probed."""

Resolve = Callable[[str, str, list[str]], dict[str, Any]]
ProbeTimer = Callable[[Mapping[str, Any]], float]
"""The config of a probe -> how many seconds it takes here."""


class ProbedParts(NamedTuple):
    """What the probes learn from and are tested on, as URIs. pictures: of both."""

    train: str
    test: str
    pictures: int


class ProbeCosts(NamedTuple):
    """What all four probes cost here, in seconds: besides, and for each picture of the size that was timed. spent: on finding it out."""

    fixed: float
    picture: float
    size: int
    spent: float

    def of(self, pictures: int, size: int) -> float:
        """Seconds for so many pictures, shown at this size."""
        return self.fixed + self.picture * pictures * (size / self.size) ** 2

    def fitting(self, seconds: float, size: int) -> int:
        """How many pictures of this size can be probed within these seconds."""
        each = self.picture * (size / self.size) ** 2
        return int(max(seconds - self.fixed, 0.0) / each) if each else 1 << 62

    @staticmethod
    def beside(others: float, whole: float) -> float:
        """Seconds in all where the others take so many: of more time the probes take their share, up to `whole` for all pictures."""
        return min(others + whole, others / (1 - PROBED))


def probed_parts(labelled: GivenSet, most: int) -> ProbedParts:
    """Four fifths and a fifth of about so many pictures: of more if that would tear a group, of all if there are no more."""
    uri = labelled.uri
    while most < len(labelled.images):
        parts = ProbedParts(f"{uri}#[:80%]#[:{most - most // 5}]", f"{uri}#[80%:]#[:{most // 5}]", most)
        try:
            for part in parts[:2]:
                open_images(part)
        except UserError:
            most *= 2
        else:
            return parts
    return ProbedParts(f"{uri}#[:80%]", f"{uri}#[80%:]", len(labelled.images))


def probe_stages(parts: ProbedParts, size: int, network: str) -> dict[str, dict[str, Any]]:
    """The stages of a pipeline: probes of raw pixels, HOG, a random network, and the pretrained one."""
    data = {"data.train": parts.train, "data.test": parts.test, "data.size": size}
    keys = {
        "pixels": {"backbone.name": "pixels"},
        "hog": {"backbone.name": "hog"},
        "random": {"backbone.name": network},
        "probe": {"backbone.name": None, "backbone.weights": "@pretrained"},
    }
    return {name: {"verb": "probe", "config": PROBES, "set": {**data, **own}} for name, own in keys.items()}


def probe_costs(labelled: GivenSet, size: int, network: str, resolve: Resolve, probe: ProbeTimer) -> ProbeCosts:
    """Time a probe of each kind on some pictures, and one on fewer: what it takes for none costs each of them the same.

    The pretrained network costs what the random one does.
    """
    parts, fewer = probed_parts(labelled, TIMED_PICTURES), probed_parts(labelled, FEWEST_TIMED)

    def seconds(kind: str, of: ProbedParts) -> float:
        words = [override_of(key, value) for key, value in probe_stages(of, size, network)[kind]["set"].items()]
        return probe(resolve("probe", PROBES, [*words, "run.dir=unused", "run.feature_cache='0'"]))

    each = {kind: seconds(kind, parts) for kind in ("random", "pixels", "hog")}
    spent, fixed = sum(each.values()), 0.0
    if fewer.pictures < parts.pictures:
        quick = seconds("random", fewer)
        spent += quick
        slope = max(each["random"] - quick, 0.0) / (parts.pictures - fewer.pictures)
        fixed = min(max(quick - slope * fewer.pictures, 0.0), *each.values())
    whole = sum(each.values()) + each["random"]
    return ProbeCosts(4 * fixed, (whole - 4 * fixed) / parts.pictures, size, spent)


def chosen_parts(labelled: GivenSet, size: int, costs: ProbeCosts, gone: float, planned: float) -> ProbedParts:
    """As many pictures as the probes' share of the seconds that are left allows, and no fewer than can be measured on.

    planned: seconds in all, of which so many are gone. Raises UserError if the probes alone take more.
    """
    parts = probed_parts(labelled, max(FEWEST_PICTURES, costs.fitting(PROBED * (planned - gone), size)))
    if (needed := costs.of(parts.pictures, size) + costs.spent) > planned:
        raise UserError(
            f"--minutes: probing {parts.pictures} labelled pictures of {labelled.uri} takes about {needed / 60:.1f} min here, which leaves "
            f"no time to pretrain; give {math.ceil(needed / PROBED / 60)} or more"
        )
    return parts
