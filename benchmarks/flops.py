"""Floating-point operations of a training step, and the peak rate of a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rootstock.core.model import norm

PEAKS = (
    ("B200", 2250.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.4),
    ("H200 NVL", 835.0),
    ("GH200", 989.4),
    ("H200", 989.4),
    ("A100", 311.9),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
)
"""TFLOP/s of dense bf16 matrix products by the makers' data sheets; the first name found in the device's own holds."""


def peak(device: str) -> float | None:
    """Peak FLOP/s of the named device in bf16; None if the table does not list it."""
    words = f" {device.replace('-', ' ')} "
    return next((tera * 1e12 for name, tera in PEAKS if f" {name} " in words), None)


def of_step(method: nn.Module, batch: Any, device: torch.device, dtype: torch.dtype) -> int:
    """Counted forward and backward: two for each multiply-add of matrix products, convolutions and attention, none for the rest.

    method: unchanged afterwards, but its gradients are dropped.
    """
    with FlopCounterMode(display=False) as counter, norm.frozen_statistics():
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = method(batch, 0.0).loss
        loss.backward()
    method.zero_grad(set_to_none=True)
    return counter.get_total_flops()
