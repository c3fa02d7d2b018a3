"""A trained network that teaches another one: it stands beside the method, and is no part of what is trained, saved or put into a mode.

So checkpoints stay as small as the student. What the method keeps of its teacher is a digest, and a run goes on only with the same teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .backbone import Backbone
from .classifier import Classifier
from .identity import network_digest

TEACHER_DIGEST = "teacher_digest"
"""The entry of a stage in `provenance` that says which network taught."""

Normalisation = tuple[Sequence[float], Sequence[float]]  # mean and std of normalised images, one number a channel


class FrozenTeacher(nn.Module):
    """The network in eval mode and without gradient, on the device of the module that holds it.

    network: takes float [N, C, H, W]. normalised: how images come; own: how the network takes them. size: pixels to which they are
    resized; None leaves them. key, source: the config's key that names the teacher and its value, for messages.
    identity: `network_digest`, hex.
    """

    digest: Tensor  # int64 [4], `network_digest`
    scale: Tensor  # [C, 1, 1]: of the images
    shift: Tensor

    def __init__(
        self,
        network: Backbone | Classifier,
        normalised: Normalisation,
        own: Normalisation,
        size: int | None,
        *,
        key: str,
        source: str,
    ) -> None:
        super().__init__()
        network.eval().requires_grad_(False)
        # Not by assignment: that would register it, and its weights would then be saved, averaged and sharded with the method's.
        self.__dict__["network"] = network
        self.size, self.key, self.source = size, key, source
        self.identity = network_digest(network)
        words = bytes.fromhex(self.identity)
        parts = [int.from_bytes(words[i : i + 8], "little", signed=True) for i in range(0, 32, 8)]
        self.register_buffer("digest", torch.tensor(parts, dtype=torch.int64))
        (mean, std), (to_mean, to_std) = ([torch.tensor(part) for part in pair] for pair in (normalised, own))
        self.same = bool(torch.equal(mean, to_mean) and torch.equal(std, to_std))
        self.register_buffer("scale", (std / to_std).view(-1, 1, 1), persistent=False)
        self.register_buffer("shift", ((mean - to_mean) / to_std).view(-1, 1, 1), persistent=False)

    @property
    def network(self) -> Any:
        """The teacher's own network."""
        return self.__dict__["network"]

    def _apply(self, fn: Any, recurse: bool = True) -> FrozenTeacher:
        super()._apply(fn, recurse)
        self.network._apply(fn)
        return self

    def images(self, images: Tensor) -> Tensor:
        """The student's images, [N, C, H, W], as the teacher takes them."""
        shown = images if self.same else images * self.scale + self.shift
        if self.size is None or shown.shape[-1] == self.size:
            return shown
        return F.interpolate(shown, (self.size, self.size), mode="bilinear", antialias=True)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(f"{prefix}digest")
        if saved is not None and not torch.equal(saved.cpu(), self.digest.cpu()):
            raise UserError(
                f"{self.key}: {self.source} is another network than the one that this run began with; restore it, or choose another run.dir"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def teach(
    student: Backbone, teacher: Backbone, network: Backbone | Classifier, *, key: str, source: str
) -> FrozenTeacher:
    """A frozen teacher for a student, which inherits what it has seen. network: the teacher's backbone, or the classifier above it.

    key, source: as of `FrozenTeacher`. Raises UserError for a teacher of pictures with other channels.
    """
    check_channels(teacher, student.channels, key=key, source=source)
    normalised, own = ((one.mean, one.std) for one in (student, teacher))
    frozen = FrozenTeacher(network, normalised, own, teacher.size, key=key, source=source)
    inherit(student, teacher, source, frozen.identity)
    return frozen


def check_channels(teacher: Backbone, channels: int, *, key: str, source: str) -> None:
    """Raises UserError for a teacher of pictures with other channels. key, source: as of `FrozenTeacher`."""
    if teacher.channels != channels:
        raise UserError(
            f"{key}: {source} takes pictures of {teacher.channels} channels, and these have {channels}; give another one"
        )


def inherit(student: Backbone, teacher: Backbone, source: str, digest: str) -> None:
    """Note in the student what its teacher has seen: these images taught the student, too. digest: `network_digest` of the teacher.

    So tests that the teacher was trained on are counted, and a teacher that was selected by labels of a target is said.
    """
    stages = teacher.provenance or [{"task": "external", "weights": source}]
    student.provenance.extend({"teacher": source, TEACHER_DIGEST: digest, **stage} for stage in stages)
    for stage, keys in teacher.seen.items():
        own = student.seen.get(stage, torch.empty(0, dtype=torch.int64))
        student.seen = {**student.seen, stage: torch.cat([own, keys]).unique()}
