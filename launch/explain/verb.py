"""The verb `explain` on the command line."""

from pathlib import Path
from typing import Annotated

import typer

from ...core.errors import UserError
from ...core.files import path_beside
from ..outputs.commands import DeviceOption, SkipOption, UriArgument, WorkersOption

ExplainedRun = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="The folder of a finished run of finetune or adapt, or of a probe with `linear`."
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The folder of the page, pictures and result.json; RUN-explained if left out."),
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="grad-cam, saliency, smoothgrad, integrated-gradients, attention-rollout, gradient-attention; may be repeated. All that "
        "the network has, if left out.",
    ),
]
LayerOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Of Grad-CAM: stage2, block5, final, ... The last map before pooling if left out."
    ),
]
ClassOption = Annotated[
    str, typer.Option("--class", metavar="predicted|label|NAME", help="The class that is explained of each picture.")
]
MasksOption = Annotated[
    str | None,
    typer.Option(
        metavar="PLACE",
        help="Plays the pointing game: the folder of masks by the pictures' names, or a pattern with {stem}.",
    ),
]
ToleranceOption = Annotated[
    float | None,
    typer.Option(metavar="PX", help="How far from the object a point may lie; 3 % of the side if left out."),
]
TrainOption = Annotated[
    list[str] | None,
    typer.Option(metavar="URI", help="Training pictures for the nearest ones; the run's own if left out."),
]


def explain_command(
    run: ExplainedRun,
    uri: UriArgument,
    out: OutOption = None,
    method: MethodOption = None,
    layer: LayerOption = None,
    of: ClassOption = "predicted",
    masks: MasksOption = None,
    tolerance: ToleranceOption = None,
    train: TrainOption = None,
    neighbours: Annotated[int, typer.Option(metavar="K", help="Nearest training pictures of each picture.")] = 5,
    pictures: Annotated[int, typer.Option(metavar="N", help="Pictures on the page, drawn by content and seed.")] = 12,
    measured: Annotated[
        int, typer.Option(metavar="N", help="Pictures of the sanity check and the curves; 0 for neither.")
    ] = 12,
    draws: Annotated[int, typer.Option(metavar="N", help="Of SmoothGrad: noisy copies of each picture.")] = 32,
    steps: Annotated[int, typer.Option(metavar="N", help="Of integrated gradients: most points on the path.")] = 1024,
    seed: Annotated[int, typer.Option(metavar="N", help="Of all that is drawn.")] = 0,
    device: DeviceOption = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Pictures at once.")] = 16,
    workers: WorkersOption = 8,
    skip_damaged: SkipOption = False,
) -> int:
    """Show what a classifier looked at (a page, .png)."""
    folder = path_beside(run, "-explained") if out is None else out
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: {folder} is no folder; name another one")
    from ...finetune.explain.methods import MapSettings
    from .explain import Explaining, explain_pictures

    asked = Explaining(
        methods=tuple(method or ()), settings=MapSettings(seed=seed, layer=layer, draws=draws, most_steps=steps), of=of, masks=masks,
        tolerance=tolerance, train=tuple(train or ()), neighbours=neighbours, pictures=pictures, measured=measured,
        batch_size=batch_size, workers=workers, device=device, skip_damaged=skip_damaged,
    )  # fmt: skip
    return explain_pictures(run, uri, folder, asked)
