"""Calls in turn by a clock that the test moves: who is called when, what counts, and what the numbers are."""

import itertools
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rootstock.core.threads import on_threads
from rootstock.launch.compress.latency import Form, latency_of, latency_ratio, time_in_turn, turns_of


class Clock:
    """Moves only when a form runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.called: list[str] = []

    def form(self, name: str, seconds: list[float]) -> Form:
        each = itertools.cycle(seconds)

        def run(images: Tensor) -> None:
            assert not torch.is_grad_enabled()
            self.called.append(name)
            self.now += next(each)

        return Form(name, run, torch.zeros(1, 3, 4, 4))


def test_each_round_times_each_form_once_and_warm_rounds_do_not_count() -> None:
    clock = Clock()
    forms = [clock.form("a", [9.0, 9.0, 0.001, 0.003]), clock.form("b", [9.0, 9.0, 0.002, 0.004])]
    found = time_in_turn(forms, threads=1, rounds=2, warm=2, clock=lambda: clock.now)
    assert found == {"a": pytest.approx([1.0, 3.0]), "b": pytest.approx([2.0, 4.0])}
    assert len(clock.called) == 8 and all({*clock.called[start : start + 2]} == {"a", "b"} for start in range(0, 8, 2))


@pytest.mark.parametrize("forms", [1, 2, 3, 4])
def test_every_form_begins_as_often_and_follows_every_other_one(forms: int) -> None:
    orders = list(turns_of(forms, 2 * forms))
    assert all(sorted(order) == list(range(forms)) for order in orders)
    firsts = [order[0] for order in orders]
    assert len({firsts.count(form) for form in range(forms)}) == 1
    after = {(order[k], order[k + 1]) for order in orders for k in range(forms - 1)}
    assert all((b, a) in after for a, b in after)


def test_threads_are_those_asked_for_and_given_back() -> None:
    before, seen = torch.get_num_threads(), list[int]()
    run: Any = lambda images: seen.append(torch.get_num_threads())  # noqa: E731
    time_in_turn([Form("a", run, torch.zeros(1))], threads=before + 1, rounds=2, warm=0)
    assert seen == [before + 1] * 2 and torch.get_num_threads() == before
    with pytest.raises(KeyError), on_threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before


def test_a_latency_has_median_quartiles_and_the_95th_percentile() -> None:
    found = latency_of([float(k) for k in range(1, 102)])
    assert found == (51.0, 96.0, 26.0, 76.0, 101)


def test_a_ratio_is_paired_by_round() -> None:
    random = np.random.default_rng(1)
    slow_rounds = random.uniform(1, 10, 200)  # of the machine: both forms alike
    above, below = slow_rounds * random.normal(2.0, 0.02, 200), slow_rounds
    found = latency_ratio(above.tolist(), below.tolist())
    assert found.estimate == pytest.approx(statistics.median(above / below))
    assert found.low is not None and found.high is not None and found.low < 2.0 < found.high
    assert found.high - found.low < 0.01  # a tenth of a percent, where the latencies themselves differ tenfold
    assert latency_ratio([3.0], [1.5]) == (2.0, 2.0, 2.0, "percentile")


def test_forms_of_torch_and_of_onnx_are_timed_alike(tmp_path: Path) -> None:
    onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from rootstock.launch.outputs.onnx_file import OnnxSession

    shape = ["n", 3, 4, 4]
    ends = [onnx.helper.make_tensor_value_info(name, 1, shape) for name in ("images", "features")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["images"], ["features"])], "g", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    images = torch.randn(2, 3, 4, 4)
    session = OnnxSession(tmp_path / "model.onnx", threads=1)
    found = time_in_turn(
        [Form("torch", torch.relu, images), Form("onnx", session, images)], threads=1, rounds=3, warm=1
    )
    assert [len(calls) for calls in found.values()] == [3, 3] and all(
        ms > 0 for calls in found.values() for ms in calls
    )
