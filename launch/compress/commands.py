"""Verbs for networks that are to be small and fast."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from ...core.environment import usable_cores
from ...core.errors import UserError
from ...core.files import check_output, path_beside
from ..app import DryOption, OverridesArgument
from ..outputs.commands import ComparedOption, LicenceOption


def distill_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The teacher: the folder of a finished run.")],
    overrides: OverridesArgument = None,
    student: Annotated[
        str, typer.Option(metavar="NAME", help="The small network, as backbone.name takes it.", show_default=False)
    ] = "",
) -> int:
    """Teach a small network what a finished run knows."""
    if not student:
        raise UserError("--student: missing; name a network, for example --student mobilenetv3_small_050")
    from .student import distil_run

    return distil_run(run, student, overrides or [])


def prune_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run of finetune.")],
    overrides: OverridesArgument = None,
    macs: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Share of its multiply-adds that is kept at the end, above 0 and below 1."),
    ] = 0.5,
    rounds: Annotated[
        int, typer.Option(metavar="N", help="Prune in N rounds, each trained again as the run was; 1 is the quickest.")
    ] = 1,
    importance: Annotated[
        Literal["magnitude", "taylor"],
        typer.Option(help="What goes first: small weights, or what the loss misses least."),
    ] = "taylor",
    dry: DryOption = False,
) -> int:
    """Prune a classifier to a share of its cost and let it recover."""
    from .prune import prune_run
    from .rounds import plan_rounds

    return prune_run(plan_rounds(run, macs, rounds, importance, overrides or []), dry)


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

    from .measure import HowMeasured, measure_networks

    batches = tuple(sorted({1, *(batch or (64,))}))
    asked = HowMeasured(threads, batches, tuple(images or ()), seconds, device == "auto" and torch.cuda.is_available())
    return measure_networks(runs, asked, out, as_json)


def quantize_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run, or an import.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="The new folder: an export with model.int8.onnx.")],
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URI", help="Pictures, of which 128 calibrate and others choose; labelled where accuracy counts."
        ),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="URI", help="Labelled, to measure the loss; half of --calibrate's others if left out."),
    ] = None,
    lose: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="Keep layers in 32 bits until no more is lost, by the 95 % bound."),
    ] = None,
    pictures: Annotated[int, typer.Option(metavar="N", help="That each layer's noise is measured on, at most.")] = 512,
    weights: Annotated[
        str, typer.Option(metavar="per-channel|per-tensor", help="What has a scale of its own.")
    ] = "per-channel",
    weights_only: Annotated[
        bool,
        typer.Option(
            "--weights-only", help="Int8 weights of linear layers by torchao, in PyTorch; nothing calibrates."
        ),
    ] = False,
    uint8: Annotated[bool, typer.Option("--uint8", help="The graphs take pixels (uint8) and normalise them.")] = False,
    images: ComparedOption = None,
    licence: LicenceOption = "unknown",
    device: Annotated[str, typer.Option(metavar="cpu", help="For which the graph is.")] = "cpu",
) -> int:
    """Export a network in 8 bits, and say what each layer loses."""
    _check_quantization(device, lose, pictures, weights)
    if weights_only:
        if calibrate or lose is not None or uint8 or weights != "per-channel":
            raise UserError(
                "--weights-only calibrates nothing and writes no graph; leave --calibrate, --lose, --weights and --uint8 out"
            )
        from .weights_only import export_weights_only

        return export_weights_only(run, to, test or [], images or [], licence)
    if not calibrate:
        raise UserError("quantize needs pictures that calibrate: --calibrate URI; or give --weights-only")
    from .quantize import Wanted, quantize_network

    wanted = Wanted(calibrate, test or [], lose, pictures, weights == "per-channel", uint8)
    return quantize_network(run, to, wanted, images or [], licence)


def _check_quantization(device: str, lose: float | None, pictures: int, weights: str) -> None:
    if device != "cpu":
        raise UserError(
            f"--device: {device} is given, and graphs of 8 bits are for the CPU; leave it out, or for a GPU `rootstock export --onnx`"
        )
    if lose is not None and not 0 < lose < 100:
        raise UserError(
            f"--lose: expected points of accuracy, more than 0 and less than 100, got {lose:g}; 0.5 is usual"
        )
    if pictures < 2:
        raise UserError(f"--pictures: expected 2 or more, got {pictures}; 512 are usual")
    if weights not in ("per-channel", "per-tensor"):
        raise UserError(f"--weights: expected per-channel or per-tensor, got {weights}")


def compress_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run with a classifier.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Keys of the recovery, e.g. optim.duration=10ep.", show_default=False),
    ] = None,
    latency: Annotated[str, typer.Option(metavar="TIME", help="Of a picture, the median here: 5ms.")] = "",
    size: Annotated[str, typer.Option(metavar="SIZE", help="Of the file: 2MB.")] = "",
    threads: Annotated[int, typer.Option(metavar="N", help="That compute.")] = 1,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(metavar="URI", help="Pictures that calibrate 8 bits; those of the training if left out."),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="URI", help="Labelled pictures that measure the loss; the run's test if left out."),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8/--no-int8", help="Whether 8 bits are allowed.")] = True,
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of what is made; RUN-compressed if left out.")
    ] = None,
) -> int:
    """Make a network fit a latency or a size, and say what it loses."""
    from .budget import read_budget

    budget = read_budget(latency, size)
    cores = usable_cores()
    if not 1 <= threads <= cores:
        raise UserError(f"--threads: expected 1 to {cores}, the cores that this process may use, got {threads}")
    from .compress import Demand, compress_run

    demand = Demand(budget, calibrate or [], test or [], threads, int8, overrides or [])
    return compress_run(run, to or path_beside(run, "-compressed"), demand)
