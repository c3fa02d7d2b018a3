"""Energy by a counter that stands for NVML's."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rootstock.core.run import energy
from rootstock.core.run.energy import EnergyMeter, RunEnergy


class Counter:
    """Two GPUs, in millijoules."""

    def __init__(self) -> None:
        self.spent = {"GPU-0": 5_000, "GPU-1": 70_000}

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return self.spent[handle]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=str(number)))
    return [torch.device("cuda", index) for index in range(2)]


def test_joules_are_what_all_gpus_spent_since_it_was_made(gpus: list[torch.device]) -> None:
    counter = Counter()
    meter = EnergyMeter(gpus, counter)
    assert meter.joules() == 0.0
    counter.spent["GPU-0"] += 1_500
    counter.spent["GPU-1"] += 250
    assert meter.joules() == 1.75 and meter.why == ""


def test_without_a_counter_there_is_no_number_and_a_reason(gpus: list[torch.device]) -> None:
    for devices in ([], [torch.device("cpu")], [*gpus, torch.device("cpu")]):
        meter = EnergyMeter(devices, Counter())
        assert meter.joules() is None and meter.why == "no GPU with a counter of energy computes"
    counter: Any = Counter()
    del counter.spent["GPU-1"]
    assert EnergyMeter(gpus, counter).why == "NVML does not count here ('GPU-1')"
    counter = Counter()
    meter = EnergyMeter(gpus, counter)
    del counter.spent["GPU-0"]
    assert meter.joules() is None and meter.why == "NVML does not count any more ('GPU-0')"


def test_parts_of_a_run_add_up(gpus: list[torch.device]) -> None:
    counter = Counter()
    first = RunEnergy(gpus[0], None, counter)
    counter.spent["GPU-0"] += 4_000
    counter.spent["GPU-1"] += 9_000  # another's
    saved = first.so_far()
    assert saved == {"joules": 4.0}
    counter.spent["GPU-0"] += 1_000_000  # between the parts
    second = RunEnergy(gpus[0], saved, counter)
    counter.spent["GPU-0"] += 2_500
    assert second.so_far() == {"joules": 6.5}
    # A part that nobody counted, as of an earlier version, is said.
    last = RunEnergy(gpus[0], {}, counter)
    counter.spent["GPU-0"] += 500
    assert last.so_far() == {"joules": 0.5, "of": "the last part alone"}


def test_all_gpus_of_a_node_count_and_several_nodes_do_not(
    gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter()
    monkeypatch.setattr(energy, "world", lambda: 2)
    whole = RunEnergy(gpus[0], None, counter)
    counter.spent["GPU-0"] += 1_000
    counter.spent["GPU-1"] += 2_000
    assert whole.so_far() == {"joules": 3.0}
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    why = "not measured: the run is spread over several nodes"
    assert RunEnergy(gpus[0], None, counter).so_far() == {"joules": None, "why": why}
    on_cpu = {"joules": None, "why": "not measured: no GPU with a counter of energy computes"}
    assert RunEnergy(torch.device("cpu"), None).so_far() == on_cpu
    assert RunEnergy(torch.device("cpu"), on_cpu).so_far() == on_cpu
