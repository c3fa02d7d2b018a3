"""What a point costs before it trains: counts beside counts by hand, times by a clock of the test's own, and what is refused."""

import sys
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from rootstock.core.errors import UserError
from rootstock.launch.sweep.cost import COSTS, Cost, read_cost
from rootstock.launch.sweep.plan import plan_sweep
from rootstock.launch.sweep.point import Untrained
from rootstock.launch.sweep.timed import time_beside
from rootstock.launch.sweep.untrained import untrained_at
from rootstock.tests.launch.sweep.searched import FINETUNE, search


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def none(values: Mapping[str, Any] | None) -> Untrained:
    raise AssertionError("a count needs no reference")


def by_hand(widths: list[int], classes: int) -> tuple[int, int]:
    """Multiply-adds and numbers of SmallConv for 3 x 16 x 16 pixels, four 3x3 convolutions with BatchNorm, and of a linear head."""
    macs, numbers, before = 0, 0, 3
    for width, side in zip(widths, (8, 8, 4, 2), strict=True):
        macs += width * before * 9 * side * side
        numbers += width * before * 9 + 2 * width
        before = width
    return macs + before * classes, numbers + before * classes + classes


def test_counts_are_those_by_hand() -> None:
    """Of the network with its head, as it will be trained; buffers are saved too, and so count as bytes."""
    sweep = plan_sweep(search(), [])
    point = untrained_at(sweep, {"backbone.args.widths": [4, 4, 8, 8]})
    macs, numbers = by_hand([4, 4, 8, 8], classes=10)
    assert Cost({"name": "macs"}, None).of(point, none) == {"cost": macs}
    assert Cost({"name": "parameters"}, None).of(point, none) == {"cost": numbers}
    statistics = 2 * (4 + 4 + 8 + 8) * 4 + 4 * 8  # running means and variances, and four counters of int64
    assert Cost({"name": "bytes"}, None).of(point, none) == {"cost": 4 * numbers + statistics}


def test_the_stage_of_the_objective_is_measured() -> None:
    """A probe's network is that of the pretraining, whose search keys therefore count; pretraining alone has no head."""
    keys = {"search": {"stages.ssl.backbone.args.widths": {"choice": [[4, 4, 8, 8], [4, 4, 8, 16]]}}}
    sweep = plan_sweep(search(verb="run", config="pipeline.yaml", objective="probe/test/knn/accuracy", **keys), [])
    for widths in ([4, 4, 8, 8], [4, 4, 8, 16]):
        point = untrained_at(sweep, {"stages.ssl.backbone.args.widths": widths})
        assert point.macs == by_hand(widths, classes=0)[0]
    alone = plan_sweep(search(verb="pretrain", config="pretrain.yaml", objective="test/knn/accuracy"), [])
    assert untrained_at(alone, {"backbone.args.widths": [4, 4, 8, 8]}).macs == by_hand([4, 4, 8, 8], classes=0)[0]
    assert not Path("TRIAL").exists()


class Slow(nn.Module):
    """Takes so many seconds of the test's clock."""

    def __init__(self, seconds: float, clock: list[float]) -> None:
        super().__init__()
        self.seconds, self.clock = seconds, clock

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.clock[0] += self.seconds
        return images


def test_time_is_a_share_of_the_reference_s_in_the_same_round() -> None:
    now = [0.0]
    point, reference = (Untrained(Slow(seconds, now), 1, 4, 0) for seconds in (0.003, 0.004))
    found = time_beside(point, reference, runtime="torch", threads=1, rounds=4, clock=lambda: now[0])
    assert found == {
        "cost": pytest.approx(0.75), "milliseconds": pytest.approx(3.0), "reference_milliseconds": pytest.approx(4.0),
    }  # fmt: skip


def test_a_slower_machine_changes_the_milliseconds_and_not_the_share() -> None:
    """Each round takes longer than the one before it."""
    now, calls = [0.0], count()

    class Slowing(Slow):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.clock[0] += self.seconds * (1 + next(calls) // 2)
            return images

    point, reference = (Untrained(Slowing(seconds, now), 1, 4, 0) for seconds in (0.002, 0.004))
    found = time_beside(point, reference, runtime="torch", threads=1, rounds=4, clock=lambda: now[0])
    assert found["cost"] == pytest.approx(0.5) and found["milliseconds"] > 20


@pytest.mark.slow
def test_a_graph_of_onnx_is_timed() -> None:
    point = untrained_at(plan_sweep(search(), []), {"backbone.args.widths": [4, 4, 8, 8]})
    ticks = count()
    found = time_beside(point, point, runtime="onnx", threads=1, rounds=3, clock=lambda: float(next(ticks)))
    assert found == {"cost": 1.0, "milliseconds": 1000.0, "reference_milliseconds": 1000.0}


def test_the_budget_is_a_share_or_a_count() -> None:
    cost = Cost({"name": "macs"}, 200.0)
    assert cost.excess(200) == 0 and cost.excess(300) == pytest.approx(0.5) and cost.excess(100) < 0
    assert Cost({"name": "macs"}, None).excess(10**12) == 0
    assert set(COSTS) == {"macs", "parameters", "bytes", "latency"}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"cost": "mac"}, r"sweep.yaml: cost: unknown name mac; did you mean macs? (known: macs, parameters, bytes, latency)"),
    ({"cost": {"name": "macs", "budget": 0.0}}, "sweep.yaml: cost.budget: expected a number above 0, got 0.0"),
    ({"cost": {"name": "latency", "runtime": "torch", "threads": 0}}, "sweep.yaml: cost.threads: expected 1 or more, got 0"),
    ({"cost": {"name": "latency", "runtime": "torch", "rounds": 2}}, "sweep.yaml: cost.rounds: expected 3 or more, got 2"),
    (
        {"cost": {"name": "latency", "runtime": "torch", "reference": {"backbone.arg": {}}}},
        "sweep.yaml: cost.reference: backbone.arg: unknown key; did you mean args?",
    ),
    ({"direction": ["maximize", "minimize"]}, "sweep.yaml: direction: expected maximize or minimize, got [\"maximize\", \"minimize\"]"),
    ({"prefilter": "synflo"}, "sweep.yaml: prefilter: unknown name synflo; did you mean synflow? (known: none, synflow, steps)"),
    ({"prefilter": {"name": "synflow", "of": 0}}, "sweep.yaml: prefilter.of: expected 1 or more, got 0"),
    (
        {"prefilter": {"name": "synflow", "keep": 0.0}},
        "sweep.yaml: prefilter.keep: expected a share above 0 and at most 1, got 0.0",
    ),
    ({"prefilter": {"name": "steps", "steps": 0}}, "sweep.yaml: prefilter.steps: expected 1 or more, got 0"),
    (
        {"prefilter": "synflow", "sampler": "grid"},
        "sweep.yaml: prefilter: a grid tries its points in order; leave prefilter out, or take another sampler",
    ),
    (
        {"search": {"backbone.args.widths": {"list": [{"int": [8, 4]}]}}},
        "sweep.yaml: search.backbone.args.widths.0.int: expected two ends, the lower first, got [8, 4]",
    ),
    (
        {"search": {"backbone.args.widths": {"list": [{"list": [{"int": [4, 8]}]}]}}},
        "sweep.yaml: search.backbone.args.widths.0: expected one of log, uniform, int and choice, got list",
    ),
    (
        {"search": {"backbone.args.widths": {"list": []}}},
        "sweep.yaml: search.backbone.args.widths.list: expected at least one element, for example {int: [16, 64]}",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("sections", "sentence"), WRONG, ids=[sentence[12:50] for _, sentence in WRONG])
def test_a_mistake_is_said_before_anything_starts(sections: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        plan_sweep(search(**sections), [])
    assert str(error.value).startswith(sentence) if sentence.endswith("?") else str(error.value) == sentence
    assert not Path("sweep").exists()


def test_without_onnxruntime_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    section = {"name": "latency", "budget": None, "reference": None, "runtime": "onnx", "threads": 1, "rounds": 10}
    with pytest.raises(UserError) as error:
        read_cost(section, [])
    assert (
        str(error.value)
        == "cost.runtime: onnx needs onnxruntime; `pip install 'rootstock[onnx]'`, or take runtime: torch"
    )
    assert read_cost({**section, "runtime": "torch"}, []) is not None


def test_a_network_that_does_not_take_its_pictures_is_refused() -> None:
    path = search(config="convnext.yaml", search={"backbone.args.kernel_sizes": {"choice": [3, 5]}})
    Path("convnext.yaml").write_text(yaml.safe_dump({**FINETUNE, "backbone": {"name": "convnext_atto"}}))
    with pytest.raises(
        UserError, match=r"backbone: convnext_atto does not take pictures of 16 px .*; take a larger data.size"
    ):
        untrained_at(
            plan_sweep(path, []), {"backbone.args": {"depths": [1, 1, 1, 1], "dims": [4, 4, 4, 4], "patch_size": 8}}
        )
