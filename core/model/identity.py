"""What a network computes, in one digest: its tensors, and what they do not show, such as pooling, activations and normalisation."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ..digested import digest_of_tensors
from .backbone import Backbone
from .classifier import Classifier


def backbone_facts(backbone: Backbone) -> dict[str, Any]:
    """The spec that builds it, and the pictures that it takes: channels, mean and std."""
    normalised = {"mean": list(backbone.mean), "std": list(backbone.std)}
    return {**backbone.spec, "channels": backbone.channels, **normalised}


def network_digest(network: Backbone | Classifier) -> str:
    """sha256 (hex): two networks have the same one where they have the same tensors and are built alike.

    Of a classifier its structure and the names of its classes count, too. Not what they were trained on.
    """
    facts, backbone = {}, network
    if isinstance(network, Classifier):
        facts, backbone = {"structure": network.structure._asdict(), "classes": network.classes}, network.backbone
    assert isinstance(backbone, Backbone)
    # Buffers that are not saved count, too.
    tensors = {**network.state_dict(), **dict(network.named_buffers())}
    state = digest_of_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    known = json.dumps({**facts, "backbone": backbone_facts(backbone), "tensors": state}, sort_keys=True)
    return hashlib.sha256(known.encode()).hexdigest()
