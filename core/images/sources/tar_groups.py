"""Groups of an archive's pictures by the .json beside each (?group=json:KEY): what a split must not tear, such as a patient's pictures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...errors import UserError
from ..groups import BY_FOLDER, numbered_groups
from ..places import abridged
from .samples import LabelRule, TarMember
from .tar_index import TarContents


def group_rule(group: str | None, rule: LabelRule, title: str) -> LabelRule | None:
    """The rule of ?group=json:KEY, with the key and the pictures of `rule`; None for none and for `folder`. Raises UserError."""
    if group is None or group == BY_FOLDER:
        return None
    ending, colon, field = group.partition(":")
    if not (colon and field) or ending.rpartition(".")[2] != "json":
        raise UserError(f"{title}: group={abridged(group, 40)} is unknown (known: {BY_FOLDER}, json:KEY)")
    if group == rule.given:
        raise UserError(
            f"{title}: group={abridged(group, 40)} is the key of the labels, which must not shape a split; name the key that says what "
            "belongs together, such as the patient"
        )
    return LabelRule(group, rule.key, rule.image)


def groups_of_members(
    by_json: LabelRule,
    members: Sequence[TarMember],
    inside: str,
    indices: Sequence[TarContents],
    title: str,
) -> Tensor:
    """int64 [N]: the group of each image. by_json: as of `group_rule`. Raises UserError for an image that has none."""
    sidecars = [sidecars_by_key(found, inside, by_json) for found in indices]
    named = [sidecars[member.shard].get(by_json.split(member.name)[0], []) for member in members]
    if without := [member.name for member, names in zip(members, named, strict=True) if not names]:
        raise UserError(
            f"{title}: {len(without):,} pictures have no .{by_json.ending} beside them ({abridged(without[0])}), which says their group; "
            "add it, or leave ?group= out"
        )
    texts = []
    for member, names in zip(members, named, strict=True):
        found, name = indices[member.shard], inside + names[0]
        fault = found.group_faults.get(name) if len(names) == 1 else f"is one of {len(names)}, where one is expected"
        if fault is not None:
            raise UserError(
                f"{title}: the .{by_json.ending} beside {abridged(member.name)} {fault}; correct it, or leave ?group= out"
            )
        texts.append(found.groups[name])
    return numbered_groups(texts)


def sidecars_by_key(found: TarContents, inside: str, rule: LabelRule) -> dict[str, list[str]]:
    """Key of a sample to the names of what says its group, below the folder `inside`."""
    names: dict[str, list[str]] = {}
    for name in (*found.groups, *found.group_faults):
        below = name[len(inside) :]
        if name.startswith(inside) and rule.takes(below):
            names.setdefault(rule.split(below)[0], []).append(below)
    return names
