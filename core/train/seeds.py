"""Seeds of torch's own generators, for random layers of foreign modules: a function of seed, process and step."""

from __future__ import annotations

import hashlib

import torch


def seed_generators(seed: int, device: torch.device) -> None:
    """torch.manual_seed for the CPU and, where it is used, the GPU.

    torch.manual_seed also seeds every other accelerator, and before CUDA is first used it stores the call stack: a millisecond a step,
    and a list that only grows.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def step_seed(seed: int, process: int, step: int, turn: int = 0) -> int:
    """A 63-bit seed for torch's generators, different for each process, step and turn."""
    digest = hashlib.sha256(f"{seed}/{process}/{step}{f'/{turn}' if turn else ''}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
