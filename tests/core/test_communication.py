"""What processes send each other in a step, counted below everything of ours: what the loss needs, once, and the gradients, once."""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from rootstock.core.train import loop
from rootstock.launch.verbs import execute
from rootstock.ssl import pretrain as recipe
from rootstock.tests.conftest import Forks
from rootstock.tests.ssl import cases

WORLD, BATCH = 2, 16
OWN = BATCH // WORLD
MICRO = 4  # batches a step, where they are cut
STEPS = 3  # the last is looked at: the first ones also set DistributedDataParallel up
FLAGS = 3  # is the step bad, was anyone asked to stop, and is a checkpoint due by the clock


class Sent(NamedTuple):
    """Numbers that one process gives into each collective of a step (of a reduce-scatter: that it gets)."""

    gathered: list[int]
    scattered: list[int]
    summed: list[int]
    trained: int  # parameters


class Counting(TorchDispatchMode):
    """Within it, collectives are noted, whoever asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered: list[int] = []
        self.scattered: list[int] = []
        self.summed: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            first, second, *_ = args
            name = func._opname
            given: dict[str, tuple[list[int], Any]] = {
                "allgather_": (self.gathered, second),
                "_allgather_base_": (self.gathered, [second]),
                "reduce_scatter_": (self.scattered, first),
                "_reduce_scatter_base_": (self.scattered, [first]),
                "allreduce_": (self.summed, first),
            }
            noted, tensors = given[name]  # another kind would be a KeyError: nothing is sent unnoticed
            noted.append(sum(tensor.numel() for tensor in tensors))
        return func(*args, **(kwargs or {}))


# The method, and overrides. Widths are those of tests/ssl/cases.py.
SETTINGS: dict[str, tuple[str, list[str]]] = {
    "simclr": ("simclr", []),
    "simclr in chunks": ("simclr", ["run.chunk=2"]),
    "mocov3": ("mocov3", []),
    "dino": ("dino", ["method.head_norm=false"]),
    "mae": ("mae", []),
    "mae accumulated": ("mae", [f"run.accumulate={MICRO}"]),
    "mae, fsdp2": ("mae", ["run.sharding=fsdp2"]),
    "mae, fsdp2, accumulated": ("mae", ["run.sharding=fsdp2", f"run.accumulate={MICRO}"]),
    "mae, zero2, accumulated": ("mae", ["run.sharding=zero2", f"run.accumulate={MICRO}"]),
}


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> dict[str, Sent]:
    """What the first of two processes sent, by setting."""
    folder = tmp_path_factory.mktemp("sent")
    forks.group(__file__, folder)
    return {name: Sent(**found) for name, found in json.loads((folder / "0.json").read_text()).items()}


def normed(*channels: int) -> list[int]:
    """Of whole-batch BatchNorm in a forward pass: each layer's mean, then its variance."""
    return [width for width in channels for _ in range(2)]


@pytest.mark.parametrize("name", ["simclr", "simclr in chunks"])
def test_each_projection_is_gathered_once_and_its_gradient_comes_back(sent: dict[str, Sent], name: str) -> None:
    found = sent[name]
    assert found.gathered == found.scattered == [OWN * 8] * 2  # of two views
    forward, backward, running = normed(12, 8), normed(8, 12), 2 * (12 + 8)
    assert found.summed == [*forward, *backward, found.trained, FLAGS, running]


def test_keys_are_gathered_once_and_have_no_gradient(sent: dict[str, Sent]) -> None:
    found = sent["mocov3"]
    assert (found.gathered, found.scattered) == ([OWN * 6] * 2, [])
    queries, keys = normed(12, 6, 10, 6), normed(12, 6)
    assert found.summed == [*queries, *keys, *queries[::-1], found.trained, FLAGS, sum(queries) + sum(keys)]


def test_what_needs_a_mean_alone_sends_that(sent: dict[str, Sent]) -> None:
    """DINO's centre: a sum for each prototype, and of how many."""
    found = sent["dino"]
    assert (found.gathered, found.scattered, found.summed) == ([], [], [10 + 1, found.trained, FLAGS])


@pytest.mark.parametrize("name", ["mae", "mae accumulated"])
def test_gradients_are_summed_once_a_step_however_many_micro_batches(sent: dict[str, Sent], name: str) -> None:
    found = sent[name]
    assert (found.gathered, found.scattered, found.summed) == ([], [], [found.trained, FLAGS])


@pytest.mark.parametrize(
    ("name", "micro", "times"),
    [("mae, fsdp2", 1, 2), ("mae, fsdp2, accumulated", MICRO, 2 * MICRO), ("mae, zero2, accumulated", MICRO, 1)],
)
def test_slices_travel_as_often_as_they_must(sent: dict[str, Sent], name: str, micro: int, times: int) -> None:
    """A block's weights for each forward and each backward pass (zero2: once a step), the rest's for each forward; gradients once."""
    found, (rest, *blocks) = sent[name], sent["mae, zero2, accumulated"].gathered
    assert (
        found.trained / WORLD <= rest + sum(blocks) < found.trained / WORLD * 1.1
    )  # where rows do not divide, they are padded
    assert sum(found.gathered) == times * sum(blocks) + (micro if times > 1 else 1) * rest
    assert sum(found.scattered) < found.trained / WORLD * 1.1 and len(found.scattered) == 1 + len(blocks)
    assert len(found.summed) == 2  # the gradient's norm, and flags


def work(folder: Path) -> None:
    """One of the processes."""
    straight, found = loop.Loop.step, {}

    def counted(self: loop.Loop, wrapped: Any, micro: Any, prepare: Any, step: int, asked: list[int]) -> dict[str, Any]:
        if step + 1 < STEPS:
            return straight(self, wrapped, micro, prepare, step, asked)
        with Counting() as counting:
            row = straight(self, wrapped, micro, prepare, step, asked)
        found[name] = {**vars(counting), "trained": sum(p.numel() for p in self.parameters)}
        return row

    loop.Loop.step = counted
    recipe.save_pictures = lambda *_: None
    for name, (method, overrides) in SETTINGS.items():
        optim = {"lr": 1e-3, "batch_size": BATCH, "duration": STEPS}
        config = cases.config(method, "vit", "sklearn:digits?size=16#[:64]", 0.1, **optim)
        path = folder / f"{name}.yaml"
        path.write_text(
            yaml.safe_dump({**config, "run": {"workers": 0, "dir": str(folder / name)}, "evaluate": {"watch": None}})
        )
        execute("pretrain", str(path), overrides, quiet=True)
    keys = Sent._fields
    told = {name: {key: counts[key] for key in keys} for name, counts in found.items()}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
