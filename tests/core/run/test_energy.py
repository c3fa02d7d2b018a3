"""Energy by a counter that stands for NVML's."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rootstock.core.run.energy import EnergyMeter


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
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=str(device.index)))
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
