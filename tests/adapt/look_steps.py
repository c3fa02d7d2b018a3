"""The whole target seen by one process, or by a group of them as a program, `look_steps.py OUT`: rank 0 writes what it saw."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from rootstock.adapt.overview import look_over
from rootstock.core.distributed import rank
from rootstock.core.method import Overview
from rootstock.core.model.classifier import Classifier
from rootstock.launch.doctor.trial_steps import SIZE, backbone

COUNT = 600  # three batches


def look(unlike: float = 0.0) -> Overview:
    """unlike: what this process's BatchNorm statistics are off by."""
    torch.manual_seed(0)
    classifier = Classifier(backbone("conv"), ["a", "b", "c"]).eval()
    images = torch.randn(COUNT, 3, SIZE, SIZE)
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean += unlike
    return look_over(classifier, COUNT, lambda parts: (images[rows] for rows in parts))


def main(out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    seen = look()
    own = look(unlike=float(rank()))
    least = own.logits.clone()
    dist.all_reduce(least, dist.ReduceOp.MIN)
    if rank() == 0:
        save_file({**seen._asdict(), "own": own.logits, "least": least}, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
