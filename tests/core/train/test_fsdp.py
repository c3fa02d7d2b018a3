"""What can be sharded, and what is refused in a sentence; that it trains as one process does is in tests/test_processes.py."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from rootstock.core.distributed import own_shard, planned_processes, sharded_like, unsharded
from rootstock.core.errors import UserError
from rootstock.core.method import Method
from rootstock.core.model.backbone import create
from rootstock.core.run.directory import Run
from rootstock.core.train.fsdp import Sharded
from rootstock.core.train.parallel import Replicated, strategy_for

VIT: dict[str, Any] = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


class Holder(Method):
    """A method that has a backbone and no more."""

    rows_per_position, couples_samples = 1, False

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone


def test_a_vit_is_sharded_among_several_processes_alone(opened: Callable[..., Run]) -> None:
    vit = Holder(create(16, name="vit_tiny_patch16_224", args=VIT))
    run, whole_run = opened(sharding="fsdp2"), opened("whole")
    assert isinstance(strategy_for(vit, run), Replicated)
    with planned_processes(2):
        assert isinstance(strategy_for(vit, run), Sharded)
        assert isinstance(strategy_for(vit, whole_run), Replicated)


@pytest.mark.parametrize(
    ("name", "args", "why"),
    [
        ("resnet18", {"layers": [2, 2, 2, 2], "channels": [8, 8, 8, 8]}, "resnet18 has BatchNorm"),
        ("vit_tiny_patch16_224", {**VIT, "depth": 1}, "vit_tiny_patch16_224 repeats no blocks"),
    ],
)
def test_other_networks_stay_whole(opened: Callable[..., Run], name: str, args: dict[str, Any], why: str) -> None:
    with pytest.raises(
        UserError, match=rf"run\.sharding: fsdp2 shards the blocks of ViTs; {why} .* use run\.sharding=none"
    ):
        strategy_for(Holder(create(32 if name == "resnet18" else 16, name=name, args=args)), opened(sharding="fsdp2"))


def test_whole_tensors_are_left_as_they_are() -> None:
    tensor = nn.Linear(2, 2).weight
    assert unsharded(tensor) is tensor and own_shard(tensor) is tensor and sharded_like(tensor, tensor) is tensor
