"""Verbs for a trained network: its features, its predictions, and the network itself in forms that others read."""

from pathlib import Path
from typing import Annotated

import typer

from ...core.files import check_output

RunArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="The folder of a finished run of pretrain, finetune or adapt, or an import."),
]
UriArgument = Annotated[
    list[str],
    typer.Argument(metavar="URI", help="Pictures: folder:PATH, tar:PATH, csv:FILE, ...; several: their union."),
]
DeviceOption = Annotated[str, typer.Option(metavar="auto|cpu", help="Where the network computes.")]
BatchOption = Annotated[int, typer.Option("--batch-size", metavar="N", help="Pictures at once, on each process.")]
WorkersOption = Annotated[int, typer.Option(metavar="N", help="Processes that read pictures, at most one a core.")]
SkipOption = Annotated[
    bool, typer.Option("--skip-damaged", help="Leave pictures out that cannot be read, and list them.")
]

ComparedOption = Annotated[
    list[str] | None,
    typer.Option("--images", metavar="URI", help="Pictures to compare the result on; the run's own if left out."),
]
LicenceOption = Annotated[
    str,
    typer.Option("--licence", "--license", metavar="ID", help="Of the weights, for the model card: apache-2.0, ..."),
]


def embed_command(
    run: RunArgument,
    uri: UriArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="A file .npz or .parquet: name, key, features.")],
    tap: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="pooled, cls, mean, tokens, block3, bottleneck, ...; may be repeated. pooled if left out.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 256,
    workers: WorkersOption = 8,
    skip_damaged: SkipOption = False,
) -> int:
    """Save a network's features of pictures (.npz, .parquet)."""
    check_output(out, "--out", (".npz", ".parquet"), make=True)
    from .embed import embed_pictures

    how = {"device": device, "batch_size": batch_size, "workers": workers, "skip_damaged": skip_damaged}
    return embed_pictures(run, uri, out, tap or [], **how)


def predict_command(
    run: RunArgument,
    uri: UriArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="A file .csv or .parquet: name, class, confidence.")],
    top: Annotated[int, typer.Option(metavar="K", help="How many classes of each picture, best first.")] = 1,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URI", help="Labelled pictures that no training saw: fits the temperature of the confidences there."
        ),
    ] = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 256,
    workers: WorkersOption = 8,
    skip_damaged: SkipOption = False,
) -> int:
    """Label pictures with a classifier (.csv, .parquet)."""
    check_output(out, "--out", (".csv", ".parquet"), make=True)
    from .predict import predict_pictures

    how = {"device": device, "batch_size": batch_size, "workers": workers, "skip_damaged": skip_damaged}
    return predict_pictures(run, uri, out, top, calibrate or [], **how)


def export_command(
    run: RunArgument,
    to: Annotated[
        Path, typer.Option(metavar="DIR", help="The new folder: config.json, model.safetensors, model.py, README.md.")
    ],
    images: ComparedOption = None,
    licence: LicenceOption = "unknown",
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx too, for any batch size.")] = False,
    uint8: Annotated[
        bool, typer.Option("--uint8", help="model.onnx takes pixels (uint8) and normalises them.")
    ] = False,
    int8: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URI", help="Pictures that calibrate model.int8.onnx, which has weights and maps of 8 bits."
        ),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URI", help="Labelled pictures that measure what 8 bits cost; others of --int8 if left out."
        ),
    ] = None,
) -> int:
    """Write a network for timm, the Hugging Face Hub, PyTorch, ONNX."""
    from .export import export_network

    return export_network(
        run, to, images=images or [], licence=licence, onnx=onnx, uint8=uint8, int8=int8 or [], test=test or []
    )
