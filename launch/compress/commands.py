"""Verbs for networks that are to be small and fast."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ...core.environment import usable_cores
from ...core.errors import UserError
from ...core.files import check_output


def measure_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders of runs, or that `rootstock export` wrote.")
    ],
    threads: Annotated[int, typer.Option(metavar="N", help="That compute.")] = 1,
    batch: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Pictures of a call; may be repeated. 1 and 64 if left out.")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="URI", help="Pictures to show; the run's own, or two photographs, if left out."),
    ] = None,
    seconds: Annotated[float, typer.Option(metavar="S", help="How long each batch size is timed.")] = 10.0,
    device: Annotated[str, typer.Option(metavar="auto|cpu", help="auto: in PyTorch also on a GPU.")] = "auto",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="A file .md or .json for the table.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> int:
    """Measure networks here: latency, memory, size, multiply-adds."""
    if out is not None:
        check_output(out, "--out", (".md", ".json"), make=True)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("measure times one process; start it without torchrun")
    cores = usable_cores()
    if not 1 <= threads <= cores:
        raise UserError(f"--threads: expected 1 to {cores}, the cores that this process may use, got {threads}")
    if wrong := [number for number in batch or () if not 1 <= number <= 4096]:
        raise UserError(f"--batch: expected 1 to 4096 pictures, got {wrong[0]}; 1 and 64 are usual")
    if not 0 < seconds <= 3600:
        raise UserError(f"--seconds: expected more than 0 and at most 3600, got {seconds:g}; 10 are usual")
    if device not in ("auto", "cpu"):
        raise UserError(f"--device: expected auto or cpu, got {device}")
    import torch

    from .measure import Asked, measure_networks

    batches = tuple(sorted({1, *(batch or (64,))}))
    asked = Asked(threads, batches, tuple(images or ()), seconds, device == "auto" and torch.cuda.is_available())
    return measure_networks(runs, asked, out, as_json)
