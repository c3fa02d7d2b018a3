"""What NVIDIA GPUs have spent, by NVML's counter of total energy: since Volta a GPU counts millijoules from when its driver was loaded.

It counts the whole board, whoever computes on it. NVML comes with nvidia-ml-py (extra `energy`), and is asked only where torch uses a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..distributed import world


class EnergyMeter:
    """Joules of some GPUs since this was made. why: why nothing is counted, in words; "" where it is.

    devices: those that compute, each once. nvml: the module pynvml, or what stands for it in tests.
    """

    def __init__(self, devices: Sequence[torch.device], nvml: Any = None) -> None:
        self.why, self._handles, self._nvml = "", list[Any](), nvml
        if not devices or any(device.type != "cuda" for device in devices):
            self.why = "no GPU with a counter of energy computes"
            return
        try:
            if nvml is None:
                import pynvml

                self._nvml = pynvml
            self._nvml.nvmlInit()
            self._handles = [self._nvml.nvmlDeviceGetHandleByUUID(_uuid(device)) for device in devices]
            self._began = self._millijoules()
        except ImportError:
            self.why = "nvidia-ml-py is not installed; `pip install 'rootstock[energy]'`"
        except Exception as error:  # NVML's errors are made at its import; a GPU without a counter is no reason to stop
            self.why = f"NVML does not count here ({str(error) or type(error).__name__})"

    def joules(self) -> float | None:
        """Since this was made, over all GPUs; None where nothing is counted."""
        if self.why:
            return None
        try:
            return (self._millijoules() - self._began) / 1000
        except Exception as error:
            self.why = f"NVML does not count any more ({str(error) or type(error).__name__})"
            return None

    def _millijoules(self) -> int:
        return sum(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles)


class RunEnergy:
    """Joules of a run, over its parts: of all GPUs that its processes compute on, counted by the first process.

    device: of this process. earlier: what `so_far` gave at the last checkpoint of the part before; None for the first part, {} where that
    was not counted.
    """

    def __init__(self, device: torch.device, earlier: Mapping[str, Any] | None, nvml: Any = None) -> None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", world()))
        devices = [torch.device("cuda", index) for index in range(here)] if world() > 1 else [device]
        self.meter = EnergyMeter(devices if device.type == "cuda" else [device], nvml)
        if world() > here and not self.meter.why:
            self.meter.why = "the run is spread over several nodes"
        before = (earlier or {}).get("joules")
        self.before = float(before) if isinstance(before, int | float) else 0.0
        self.whole = earlier is None or isinstance(before, int | float)

    def so_far(self) -> dict[str, Any]:
        """joules, or null and why. of: where not all parts are counted."""
        joules = self.meter.joules()
        if joules is None:
            return {"joules": None, "why": f"not measured: {self.meter.why}"}
        return {"joules": round(self.before + joules, 1), **({} if self.whole else {"of": "the last part alone"})}


def _uuid(device: torch.device) -> str:
    """As NVML names a GPU, whose numbers may be others than torch's."""
    # Without a number: torch's current GPU.
    number = torch.cuda.current_device() if device.index is None else device.index
    found = str(torch.cuda.get_device_properties(number).uuid)
    return found if found.startswith(("GPU-", "MIG-")) else f"GPU-{found}"
