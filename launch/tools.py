"""Verbs that train nothing: they look at data, weights, runs and this machine, or say what configs may hold."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from ..core.environment import usable_cores
from ..core.errors import UserError
from ..core.files import check_output
from .app import JobOption, NodesOption, NprocOption, RendezvousOption, complete_key, complete_validator


def data_command(
    uri: Annotated[
        list[str],
        typer.Argument(
            metavar="URI", help="folder:PATH, tar:PATH, csv:FILE, sklearn:digits, ...; several: their union."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to save the contact sheet; in the cache if left out.")
    ] = None,
    pack: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Copy the set there, into one file that pack:FOLDER opens.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(metavar="original|raw|jpeg", help="In a pack: the files as they are, pixels, or JPEGs made anew."),
    ] = None,
    short: Annotated[
        int | None, typer.Option(metavar="N", help="In a pack: scale pictures down to N pixels on the shorter side.")
    ] = None,
    quality: Annotated[int | None, typer.Option(metavar="Q", help="Of JPEGs made anew, 95 by default.")] = None,
    skip_damaged: Annotated[bool, typer.Option("--skip-damaged", help="Leave damaged pictures out of a pack.")] = False,
    anew: Annotated[bool, typer.Option("--anew", help="Read all pictures, even if no file has changed.")] = False,
) -> int:
    """Count, hash, check and draw a set of images; or pack it."""
    options = {"format": format, "short": short, "quality": quality}
    given = {name: value for name, value in options.items() if value is not None}
    if pack is None:
        if given or skip_damaged:
            raise UserError(f"--{next(iter(given), 'skip-damaged')} is for packing; add --pack FOLDER")
        from .data import describe_set

        return describe_set(uri, out, anew)
    if anew:
        raise UserError("--anew is for describing a set, and --pack always reads all pictures; leave it out")
    if out is not None:
        raise UserError("--out is where the contact sheet goes, and --pack draws none; give one of them")
    from ..core.images.pack.record import Packing
    from .pack import pack_set

    return pack_set(uri, pack, Packing(**given), skip_damaged)


def try_command(
    uri: Annotated[
        list[str],
        typer.Argument(
            metavar="URI",
            help="Folders or URIs: pictures without labels (if you have them), labelled ones, pictures of another domain.",
        ),
    ],
    minutes: Annotated[float, typer.Option(metavar="N", help="How long it may take.")] = 10.0,
    to: Annotated[str, typer.Option(metavar="DIR", help="The folder of its runs and its page.")] = "runs/try",
) -> int:
    """Try it on your own pictures, in ten minutes."""
    from .trial.run import try_pictures

    try_pictures(uri, minutes, to)
    return 0


def import_command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A .pth, .pth.tar, .pt, .ckpt, .bin or .safetensors file.")
    ],
    to: Annotated[Path, typer.Option(metavar="RUN", help="The new folder, for backbone.weights=RUN.")],
    project: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="PROJECT",
            help="timm, torchvision, mae, dino, dinov2, moco, solo, lightly, vissl, simmim, ijepa, or auto.",
        ),
    ] = "auto",
    name: Annotated[
        str | None, typer.Option(metavar="TIMM_MODEL", help="The architecture; told by the shapes if left out.")
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What stands before the names of the layers; found if left out.")
    ] = None,
    size: Annotated[int | None, typer.Option(metavar="N", help="Pixels, if other than the weights'.")] = None,
    args: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An argument of the timm model; may be repeated.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Of its normalisation; ImageNet's if left out.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Of its normalisation; ImageNet's if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> int:
    """Make a backbone of weights that others published."""
    from .importing import import_weights

    return import_weights(
        path,
        project,
        to,
        name=name,
        size=size,
        arguments=args or [],
        mean=mean,
        std=std,
        prefix=prefix,
        as_json=as_json,
    )


def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, or of one pipeline.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page; RUN/report.html, or comparison.html here for several runs."),
    ] = None,
) -> None:
    """Make a page of a run, or one that compares several."""
    from .report.page import write_report

    if out is not None:
        check_output(out, "--out", (".html", ".htm"), make=True)
    page = out or (runs[0] / "report.html" if len(runs) == 1 else Path("comparison.html"))
    # The path alone goes to stdout, for scripts.
    typer.echo(write_report(runs, page, lambda line: typer.echo(line, err=True)))


def runs_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with runs below it.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """List runs: state, step, headline metric, host and age."""
    from .runs import list_runs

    list_runs(folder, as_json)


def verify_command(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER", help="Of a run, an export or a pack, or with some below it.")
    ],
) -> int:
    """Compare every file of runs, exports and packs with its digest."""
    from .verify import verify_folders

    return verify_folders(folders)


def score_command(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER", help="Of an adaptation, a pipeline or packed runs, or with some below it."),
    ],
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--validator",
            metavar="NAME",
            help="Score this one; may be repeated. All if left out.",
            autocompletion=complete_validator,
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The test of the runs whose accuracy counts; the target's if left out."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A file .md for the table, or .json for the scores of every run too."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Score N tasks side by side; as many as there are CPU cores if left out."
        ),
    ] = None,
) -> int:
    """Rank finished adaptations by every validator, and compare with their accuracies."""
    if out is not None:
        check_output(out, "--out", (".md", ".json"), make=True)
    from .scoring import score_validators

    return score_validators(folders, names or [], test, out, as_json, processes or usable_cores())


def doctor_command(
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Examine several processes: reachability, bandwidth, and N == 1.")
    ] = False,
    nproc: NprocOption = None,
    nodes: NodesOption = 1,
    rendezvous: RendezvousOption = None,
    job: JobOption = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu", help="Of the processes.")] = "auto",
    timeout: Annotated[int, typer.Option(metavar="S", help="Seconds that they wait for each other.")] = 120,
    as_json: Annotated[bool, typer.Option("--json", help="Print what is found as JSON.")] = False,
) -> int:
    """Show versions, devices and rates, and what is wrong with them."""
    if not distributed:
        if (nproc, nodes, rendezvous, job, device, timeout) != (None, 1, None, None, "auto", 120):
            raise UserError("doctor examines several processes with --distributed; add it, or leave their options out")
        from .doctor.examine import examine

        return examine(as_json)
    # Silence is said in one sentence; torch, which reads this when it is imported, would add a stack trace for each try.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from .doctor.distributed import examine_distributed

    return examine_distributed(nproc, nodes, rendezvous, job, device, timeout, as_json)


def schema_command() -> None:
    """Print the JSON schema of the training verbs' configs."""
    from . import verbs

    typer.echo(json.dumps(verbs.schema(), indent=2))


def help_command(
    key: Annotated[
        str | None,
        typer.Argument(metavar="KEY", help="For example optim.lr.", show_default=False, autocompletion=complete_key),
    ] = None,
) -> None:
    """Explain a key of a config: meaning, type, default."""
    from .keys import explain

    typer.echo(explain(key))
