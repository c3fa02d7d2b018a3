"""What a network costs by count: multiply-adds of one picture, and its parameters. What it costs by the clock is measured elsewhere."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def macs_of(network: nn.Module, channels: int, size: int) -> int:
    """Multiply-adds of a forward pass of one picture [channels, size, size]: of convolutions, matrix products and attention.

    Additions of biases, normalisation, activations and pooling count nothing, as in the tables of papers. A copy is run, without values, so
    weights, buffers and mode of the network stay as they are.
    """
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        copy.deepcopy(network).to("meta").eval()(torch.zeros(1, channels, size, size, device="meta"))
    return counter.get_total_flops() // 2


def parameters_of(network: nn.Module) -> int:
    """How many numbers are its parameters; buffers are not."""
    return sum(parameter.numel() for parameter in network.parameters())


def bytes_of_tensors(network: nn.Module) -> int:
    """What its parameters and buffers take, as a file of safetensors holds them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
