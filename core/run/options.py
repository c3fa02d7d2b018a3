"""The `run` section of a config: where and how, never what."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from ..config.resolve import Duration, Section
from ..errors import UserError

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def checkpoint_options(*, every: Duration = Duration(10, "%"), keep: int = 2) -> None:
    """The `run.checkpoint` section. every: how often (steps, `5ep`, `10%`). keep: how many, two at least."""


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
    checkpoint: Annotated[dict[str, Any], Section(checkpoint_options)] = {},
    damaged: float = 0.01,
    changed_data: Literal["refuse", "accept"] = "refuse",
    tracker: Literal["none", "tensorboard", "wandb"] = "none",
) -> None:
    """The `run` section: where and how, never what (rounding aside).

    dir: the run's folder. precision, compile: auto is bf16 and on with CUDA, fp32 and off on the CPU. workers: loader processes,
    at most one a core. resident: whether pictures that need no decoding and have one shape are kept on the device; auto does so
    on a GPU if a quarter of its free memory holds them. accumulate: micro-batches a step. chunk: images encoded at once by losses
    that couple samples. sharding: how processes share out the weights, gradients and moments of a ViT, see core/train/fsdp.py.
    activation_checkpointing: blocks are worked out again in the backward pass, instead of keeping their activations. damaged: the
    largest fraction of damaged pictures. changed_data: what to do when the data changed since the run began.
    """


def check(options: Mapping[str, Any], seed: int) -> None:
    """Raises UserError for numbers of the `run` section, and a seed, that nothing can be done with."""
    least = {"workers": 0, "log_every": 0, "accumulate": 1, "chunk": 1, "damaged": 0}
    given = [(f"run.{key}", options[key], low) for key, low in least.items()]
    # Two checkpoints: the newest, and one to fall back to.
    for key, value, low in [*given, ("run.checkpoint.keep", options["checkpoint"]["keep"], 2), ("seed", seed, 0)]:
        if value is not None and value < low:
            raise UserError(f"{key}: expected at least {low}, got {value}")
    tracker = options["tracker"]
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise UserError(f"run.tracker: {tracker} is not installed; `pip install {tracker}`, or use run.tracker=none")
