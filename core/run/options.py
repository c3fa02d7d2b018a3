"""The `run` section of a config: where and how a training runs, never what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from ..config.resolve import Duration, Minutes, Section
from ..errors import UserError
from ..images.limits import size_of
from .trackers import Tracker, check_tracker

LARGEST_SEED = 2**63 - 1  # torch's generators take signed numbers of 64 bits
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def checkpoint_options(*, every: Duration | Minutes = Duration(10, "%"), keep: int | Minutes = 2) -> None:
    """The `run.checkpoint` section.

    every: How often a checkpoint is saved: in steps, epochs (`5ep`), a part of the training (`10%`) or minutes (`30min`). 0: only at
        the end.
    keep: How many checkpoints are kept, at least 2: the newest, and one to fall back to if that is damaged. Or minutes: `120min` keeps
        those of the last two hours, and at least 2.
    """


def options(
    *,
    dir: str,
    precision: Precision = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    device: Literal["auto", "cpu"] = "auto",
    channels_last: bool = True,
    workers: int = 8,
    resident: Literal["auto", "on", "off"] = "auto",
    accumulate: int = 1,
    chunk: int | None = None,
    sharding: Literal["none", "zero2", "fsdp2"] = "none",
    activation_checkpointing: bool = False,
    log_every: int = 10,
    log_gradients: bool = False,
    checkpoint: Annotated[dict[str, Any], Section(checkpoint_options)] = {},
    keep: Literal["all", "results"] = "all",
    pictures: Literal["all", "none"] = "all",
    damaged: float = 0.01,
    changed_data: Literal["refuse", "accept"] = "refuse",
    tracker: Tracker = "none",
    timeout: float = 120.0,
    phase_timeout: float = 1800.0,
    verify_replicas: Duration | None = None,
    feature_cache: str | int = "20GB",
    decoded_cache: str | int = "1GB",
) -> None:
    """The `run` section: where and how a training runs. Besides rounding, it changes no result.

    dir: Folder of the run. The same command in the same folder resumes it.
    precision: Number format of forward and backward passes. auto: bf16 on CUDA, fp32 on the CPU. fp16 needs a GPU.
    compile: Whether torch.compile is used. auto: on CUDA, and without it where compiling fails; on: or else an error.
    device: The device. auto: the GPU if there is one.
    channels_last: Whether convolution weights have the channels_last memory format, which is faster on GPUs.
    workers: Processes that load pictures, 0 or more; at most one a CPU core is started.
    resident: Whether pictures of one shape that need no decoding stay on the device. auto: on a GPU with four times their room free.
    accumulate: Micro-batches a step, 1 or more; `optim.batch_size` is their sum. For methods that compare images, see `chunk`.
    chunk: Images that the encoder takes at once, to save memory in methods whose loss compares the images of a batch. null: all.
    sharding: How processes share a ViT's weights, gradients and moments. none: each has all; fsdp2: each keeps a part of all three;
        zero2: likewise, but weights stay whole between the forward and the backward pass.
    activation_checkpointing: Whether blocks are computed again in the backward pass, not kept: less memory, more time.
    log_every: Steps between rows of metrics.jsonl. 0: only the last step.
    log_gradients: Whether rows of metrics.jsonl have the length of each layer's gradient, too.
    checkpoint: When checkpoints are saved and how many are kept.
    keep: What a finished run keeps. results: not its weights (checkpoints/, candidates/, backbone/, classifier/), so that a table of
        thousands of runs fits on a disk; nothing can then start from them. A run that was killed still resumes.
    pictures: Whether the run draws its page's views, maps, and images that it changed or got wrong; none is some seconds faster.
    damaged: Largest fraction of damaged pictures, 0 to 1, before a run stops. Others are replaced by a neighbour.
    changed_data: What to do if the data changed since the run began: refuse to resume, or accept it.
    tracker: Where metrics go besides metrics.jsonl: none, tensorboard (run.dir/tensorboard), wandb (its account, or offline in
        run.dir/wandb without one) or mlflow (MLFLOW_TRACKING_URI, or run.dir/mlflow.db).
    timeout: Seconds, at least 1, without a sign of life after which one of several processes counts as lost, and without progress of
        any process after which a training counts as stuck. The run then ends with exit code 132.
    phase_timeout: Seconds, at least 1, without progress after which a phase besides training, such as an evaluation, counts as stuck.
    verify_replicas: How often the weights of several processes are compared bit for bit: steps, `5ep` or `10%`, and at the end; null:
        before each checkpoint; 0: never, for machines of different kinds, which round differently.
    feature_cache: Largest size of the cache of frozen features; 20GB hold those of a million images (2048 numbers) twice. 0: no cache.
    decoded_cache: Memory for decoded pictures of each training set, such as 500MB, shared by the loading processes of a process and at
        most a quarter of what is free: as many pictures as have room are decoded once instead of once an epoch. 0: none.
    """


def check_run_options(options: Mapping[str, Any], seed: int) -> None:
    """Check the numbers of the `run` section, the tracker and the seed. Raises UserError."""
    least = {
        "workers": 0, "log_every": 0, "accumulate": 1, "chunk": 1, "damaged": 0, "timeout": 1, "phase_timeout": 1
    }  # fmt: skip
    given = [(f"run.{key}", options[key], low) for key, low in least.items()]
    # Two checkpoints: the newest, and one to fall back to.
    for key, value, low in [*given, ("run.checkpoint.keep", options["checkpoint"]["keep"], 2), ("seed", seed, 0)]:
        if isinstance(value, int | float) and value < low:
            raise UserError(f"{key}: expected at least {low}, got {value}")
    if seed > LARGEST_SEED:
        raise UserError(f"seed: expected at most {LARGEST_SEED} (63 bits), got {seed}")
    for key in ("feature_cache", "decoded_cache"):
        size_of(options[key], f"run.{key}")
    check_tracker(options["tracker"])
