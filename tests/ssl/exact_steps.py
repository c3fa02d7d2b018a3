"""Two steps of every method, on one process or in a group of them: the results that test_exactness.py compares.

As a program, `torchrun ... exact_steps.py OUT DTYPE ...`: each process takes its share of the batch, and rank 0 writes the results.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from rootstock.core.distributed import rank
from rootstock.core.model import norm
from rootstock.launch.doctor.trial_steps import run_steps, share, views
from rootstock.tests.ssl.cases import CASES, method

N, GROUP, STEPS = 16, 4, 2


class Trial(NamedTuple):
    """One method on one backbone, with one kind of BatchNorm."""

    name: str
    backbone: str
    norm: str  # "batch", or "group" of GROUP images
    dtype: torch.dtype

    @property
    def key(self) -> str:
        return "/".join([self.name, self.backbone, self.norm, str(self.dtype).removeprefix("torch.")])


def trials() -> list[Trial]:
    """All trials; float32 shows the difference that users see."""
    return [
        Trial(name, kind, mode, dtype)
        for name, (_, kinds) in CASES.items()
        for kind in kinds
        for mode in ("batch", "group")
        for dtype in (torch.float64, torch.float32)
    ]


def resampled(table: Tensor, new_size: tuple[int, int], old_size: tuple[int, int], num_prefix_tokens: int) -> Tensor:
    """A ViT's positions for images of another size, as timm's function has them, which rounds to float32 for every dtype."""
    if new_size == old_size:
        return table
    grid = table[:, num_prefix_tokens:].unflatten(1, old_size).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, new_size, mode="bicubic", antialias=True)
    return torch.cat([table[:, :num_prefix_tokens], grid.flatten(2).transpose(1, 2)], 1)


@patch("timm.models.vision_transformer.resample_abs_pos_embed", resampled)
def run(trial: Trial, chunk: int | None = None) -> dict[str, Tensor]:
    """Losses, the gradients of both steps, and all weights and buffers after them."""
    made = method(trial.name, trial.backbone, chunk).to(trial.dtype).train()
    norm.convert_batch_norms(made, "group" if trial.norm == "group" else "batch", GROUP, made.rows_per_position)
    batches = [share(views(made, N, seed=step + 1, dtype=trial.dtype)) for step in range(STEPS)]
    return run_steps(made, batches)


def flat(results: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{key}|{name}": value.contiguous() for key, found in results.items() for name, value in found.items()}


def main(out: str, *dtypes: str) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results: dict[str, Any] = {trial.key: run(trial) for trial in trials() if trial.key.endswith(dtypes)}
    if rank() == 0:
        save_file(flat(results), out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
