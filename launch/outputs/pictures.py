"""The pictures that `predict`, `embed` and `export` show to a trained network, and the processes and device that look at them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from ...core.agree import code_version, same_everywhere
from ...core.distributed import broadcast_text, connected, rank, wait_without_limit
from ...core.errors import UserError
from ...core.evaluate.trained import TrainedRun
from ...core.images.open import DamagedImage, Images, open_images
from ...core.images.survey import survey
from ...core.run.accelerator import build_accelerator
from ..aloud import say
from ..processes import together

MOST_LISTED = 20  # pictures that a message names

Speak = Callable[[str], None]


def joined(device: str) -> torch.device:
    """This process's device, once all processes that were started together are connected. device: auto or cpu. Raises UserError."""
    found = _device(device)
    if connected():
        wait_without_limit()
        same_everywhere(code_version(), "code", "install the same version on every node")
    return found


@contextmanager
def watched_together(device: str) -> Iterator[torch.device]:
    """As `joined`, for a command: within it, the processes watch each other until the end. Raises UserError."""
    found = _device(device)
    with together(found, say):
        yield found


def _device(device: str) -> torch.device:
    if device not in ("auto", "cpu"):
        raise UserError(f"--device: expected auto or cpu, got {device}")
    return build_accelerator({"device": device}).device


def open_pictures(uris: Sequence[str], trained: TrainedRun, skip_damaged: bool, say: Speak = say) -> Images:
    """The pictures of a URI, or of the union of several, in the order of the set, without labels. Raises UserError.

    skip_damaged: look at every picture first, leave out those that cannot be read, and list them.
    """
    images = open_images(list(uris), role="unlabelled")
    if connected():
        seen = {"images": len(images), "split": images.split_hash()[:12]}
        same_everywhere({"data": seen}, "data", "give all of them the same files, on a shared disk or as equal copies")
    if skip_damaged:
        found = survey(images).damaged if rank() == 0 else []
        images = without(images, [(int(i), str(why)) for i, why in json.loads(broadcast_text(json.dumps(found)))], say)
    with damage_with_remedy():
        trained.check_pictures(images)
    return images


def without(images: Images, damaged: Sequence[tuple[int, str]], say: Speak) -> Images:
    """The other images; the damaged ones are listed. damaged: (index, why). Raises UserError if no image is left."""
    if not damaged:
        return images
    say(f"WARNING: {len(damaged)} of {len(images)} pictures cannot be read and are left out:")
    for _, why in damaged[:MOST_LISTED]:
        say(f"  {why}")
    if len(damaged) > MOST_LISTED:
        say(f"  and {len(damaged) - MOST_LISTED} more, which `rootstock data URI` lists")
    bad = torch.zeros(len(images), dtype=torch.bool)
    bad[torch.tensor([i for i, _ in damaged])] = True
    if bool(bad.all()):
        raise UserError(f"{images.uri}: none of its {len(images)} pictures can be read; check the files")
    return images.select((~bad).nonzero()[:, 0])


@contextmanager
def damage_with_remedy() -> Iterator[None]:
    """Within it, the error of a damaged picture says how to leave it out."""
    try:
        yield
    except DamagedImage as error:
        raise UserError(f"{error}, or leave such pictures out with --skip-damaged") from error


def names_of(images: Images) -> list[str]:
    """The name of each image, unique among them where the source can tell them apart."""
    return [images.full_name(i) for i in range(len(images))]
